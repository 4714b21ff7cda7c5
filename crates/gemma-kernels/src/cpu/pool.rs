//! The threads that all kernels share: fork, take part, join.
//!
//! A token is some hundred short parallel regions with little between them, so the workers stay awake for a moment
//! after each region, and a fork costs less than a microsecond; a worker that has waited longer sleeps, so that an
//! idle program uses no CPU time.
//!
//! The tasks of a region are divided evenly beforehand: each thread works through its own share from the front,
//! which keeps a stream of memory reads in one piece, and a thread that has finished takes over the later half of what
//! another has left. So a worker that the operating system wakes late or interrupts, because another program or another
//! machine of the host wants its CPU, holds nobody up for long. (Running the regions in rayon's pool while that is so, whose
//! threads sleep at once, was slower in every case that was tried: idle, beside one busy program, and beside one per CPU.)

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::*};
use std::sync::{Mutex, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Fewer multiplications than this are not worth a second thread.
const SERIAL_WORK: usize = 1 << 16;
/// How long a thread waits awake.
const AWAKE: Duration = Duration::from_micros(100);
/// Work that is left must take longer than this for a sleeping worker to be woken for it.
const WORTH_WAKING: Duration = Duration::from_micros(100);

/// Number of threads that [`for_each`] uses, the caller's included: what rayon said in the thread of the first product.
/// That is the size of its global pool, the number of CPUs that the program may use (affinity and quotas
/// included) unless the program said otherwise before; in a pool of its own, it is that pool's.
pub(crate) fn threads() -> usize {
    pool().threads()
}

/// Calls `task` with `0..tasks`, on all threads, and returns when all calls have returned.
///
/// One region runs at a time: a call from inside a task, or from a second thread while another is in here, runs its
/// tasks one after the other in its own thread, which is right and merely slower.
///
/// # Panics
/// When a task panics, with its message; tasks that nobody had begun are left out.
pub(crate) fn for_each(tasks: usize, task: impl Fn(usize) + Sync) {
    pool().for_each(tasks, &task);
}

/// The same for tasks that are so many multiplications together: on this thread alone, one after the other, where they
/// are few.
///
/// # Panics
/// As [`for_each`].
pub(crate) fn for_work(work: usize, tasks: usize, task: impl Fn(usize) + Sync) {
    if threads_for(work) == 1 { (0..tasks).for_each(task) } else { for_each(tasks, task) }
}

/// How many threads [`for_work`] uses.
pub(crate) fn threads_for(work: usize) -> usize {
    if work < SERIAL_WORK { 1 } else { threads() }
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<&'static Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool::start(rayon::current_num_threads()))
}

/// What the threads share. It lives as long as the process, as its threads do.
struct Pool {
    /// Generation (bits 32 and up), whether the region may be entered ([`OPEN`]), whether its caller sleeps
    /// ([`ASLEEP`]), and how many workers are inside.
    state: AtomicU64,
    /// The region's job; valid while a worker is inside.
    job: AtomicPtr<Job<'static>>,
    /// Whether some caller has the pool.
    taken: AtomicBool,
    /// The caller that last slept until the last worker left.
    caller: Mutex<Option<Thread>>,
    /// One share of the tasks per thread, the caller's first.
    shares: Box<[Share]>,
    workers: Box<[Worker]>,
}

const OPEN: u64 = 1 << 31;
/// The caller sleeps until nobody is inside.
const ASLEEP: u64 = 1 << 30;
const INSIDE: u64 = ASLEEP - 1;

struct Job<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Default)]
struct Worker {
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

/// The tasks `front..back` that nobody has begun, as `back << 32 | front`; alone on its cache line.
#[derive(Default)]
#[repr(align(64))]
struct Share(AtomicU64);

impl Share {
    fn set(&self, front: u32, back: u32) {
        self.0.store(u64::from(back) << 32 | u64::from(front), Relaxed);
    }

    /// How many tasks are left.
    fn len(&self) -> u32 {
        let held = self.0.load(Relaxed);
        ((held >> 32) as u32).saturating_sub(held as u32)
    }

    /// Its owner's next task.
    fn next(&self) -> Option<usize> {
        let mut held = self.0.load(Relaxed);
        while (held as u32) < (held >> 32) as u32 {
            match self.0.compare_exchange_weak(held, held + 1, Relaxed, Relaxed) {
                Ok(_) => return Some(held as u32 as usize),
                Err(now) => held = now,
            }
        }
        None
    }

    /// The later half of its tasks, or the only one, as a range.
    fn steal(&self) -> Option<(u32, u32)> {
        let mut held = self.0.load(Relaxed);
        loop {
            let (front, back) = (held as u32, (held >> 32) as u32);
            if front >= back {
                return None;
            }
            let middle = front + (back - front) / 2;
            let left = u64::from(middle) << 32 | u64::from(front);
            match self.0.compare_exchange_weak(held, left, Relaxed, Relaxed) {
                Ok(_) => return Some((middle, back)),
                Err(now) => held = now,
            }
        }
    }
}

impl Pool {
    /// A pool of `threads`, the caller's included; fewer where the system refuses to start them.
    fn start(threads: usize) -> &'static Pool {
        let threads = threads.max(1);
        let pool: &'static Pool = Box::leak(Box::new(Pool {
            state: AtomicU64::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            taken: AtomicBool::new(false),
            caller: Mutex::new(None),
            shares: (0..threads).map(|_| Share::default()).collect(),
            workers: (1..threads).map(|_| Worker::default()).collect(),
        }));
        for (index, worker) in pool.workers.iter().enumerate() {
            let name = format!("gemma-kernel-{}", index + 1);
            // a share whose thread could not be started is emptied by the others
            if let Ok(handle) = thread::Builder::new().name(name).spawn(move || pool.work(index)) {
                let _ = worker.thread.set(handle.thread().clone());
            }
        }
        pool
    }

    fn threads(&self) -> usize {
        self.shares.len()
    }

    fn for_each(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let in_turn = tasks <= 1 || tasks > u32::MAX as usize || self.workers.is_empty();
        if in_turn || self.taken.swap(true, Acquire) {
            return (0..tasks).for_each(task);
        }
        let threads = self.threads();
        for (index, share) in self.shares.iter().enumerate() {
            share.set((index * tasks / threads) as u32, ((index + 1) * tasks / threads) as u32);
        }
        let job = Job { task, panic: Mutex::new(None) };
        self.job.store((&raw const job).cast_mut().cast(), Relaxed);
        // the region is closed and empty; this publishes shares and job
        let generation = (self.state.load(Relaxed) >> 32) + 1;
        self.state.store(generation << 32 | OPEN, SeqCst);
        self.take_part(&job, 0, Some(Instant::now()));
        // from here on nobody enters, and once nobody is inside, nobody knows the job
        self.state.fetch_and(!OPEN, AcqRel);
        self.wait_for_workers();
        self.taken.store(false, Release);
        let panic = job.panic.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Works through a share, then through what is left of the others'. Does not panic. The caller, which says when
    /// the region began, wakes the others when it has seen how long a task takes.
    fn take_part(&self, job: &Job<'_>, share: usize, mut began: Option<Instant>) {
        let own = &self.shares[share];
        let next = || {
            own.next().or_else(|| {
                let mut others = (1..self.threads()).map(|step| &self.shares[(share + step) % self.threads()]);
                let (first, back) = others.find_map(Share::steal)?;
                own.set(first + 1, back);
                Some(first as usize)
            })
        };
        let all = AssertUnwindSafe(|| {
            while let Some(task) = next() {
                (job.task)(task);
                if let Some(began) = began.take() {
                    self.wake(began.elapsed());
                }
            }
        });
        if let Err(panic) = catch_unwind(all) {
            self.shares.iter().for_each(|share| share.set(0, 0));
            let mut first = job.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            first.get_or_insert(panic);
        }
    }

    /// Wakes the workers that sleep, where the tasks that nobody has begun, of about `each`, are worth it.
    fn wake(&self, each: Duration) {
        let left: u32 = self.shares.iter().map(Share::len).sum();
        if each.saturating_mul(left) < WORTH_WAKING {
            return;
        }
        for worker in &self.workers {
            if worker.asleep.load(SeqCst)
                && let Some(thread) = worker.thread.get()
            {
                thread.unpark();
            }
        }
    }

    /// The life of a worker.
    fn work(&self, index: usize) {
        let mut generation = 0;
        loop {
            generation = self.enter(index, generation);
            // SAFETY: this thread is counted as inside, so the caller has not left `for_each`, where the job lives.
            let job = unsafe { &*self.job.load(Relaxed) };
            self.take_part(job, index + 1, None);
            let before = self.state.fetch_sub(1, AcqRel);
            if before & ASLEEP != 0 && before & INSIDE == 1 {
                // the handle stays: should the caller have gone on meanwhile, the next one still needs it
                let caller = self.caller.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                caller.iter().for_each(Thread::unpark);
            }
        }
    }

    /// Waits for a region later than `last`, enters it and returns its generation.
    fn enter(&self, index: usize, last: u64) -> u64 {
        let asleep = &self.workers[index].asleep;
        let is_new = |state: u64| state & OPEN != 0 && state >> 32 != last;
        loop {
            Self::wait_awake(|| is_new(self.state.load(Acquire)));
            let state = self.state.load(Acquire);
            if is_new(state) {
                if self.state.compare_exchange_weak(state, state + 1, AcqRel, Relaxed).is_ok() {
                    return state >> 32;
                }
            } else {
                // announce, look again, then sleep: a region opened in between sees the announcement, or is seen
                asleep.store(true, SeqCst);
                if !is_new(self.state.load(SeqCst)) {
                    thread::park();
                }
                asleep.store(false, SeqCst);
            }
        }
    }

    /// Waits until nobody is inside the closed region.
    fn wait_for_workers(&self) {
        let is_empty = || self.state.load(Acquire) & INSIDE == 0;
        if Self::wait_awake(is_empty) {
            return;
        }
        *self.caller.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(thread::current());
        // whoever leaves last after this looks for the caller
        if self.state.fetch_or(ASLEEP, AcqRel) & INSIDE != 0 {
            while !is_empty() {
                thread::park();
            }
        }
    }

    /// Waits for a moment until something is so, awake; returns whether it became so.
    fn wait_awake(is_so: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        loop {
            for _ in 0..32 {
                if is_so() {
                    return true;
                }
                std::hint::spin_loop();
            }
            // the thread that is waited for may be next in line for this very CPU
            thread::yield_now();
            if start.elapsed() > AWAKE {
                return is_so();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    /// Every task is run once, whatever their number, with sleeping and with waking workers.
    #[test]
    fn every_task_runs_exactly_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::start(threads);
            for round in 0..200 {
                let tasks = round * 7 % 50;
                let runs: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.for_each(tasks, &|task| {
                    runs[task].fetch_add(1, Relaxed);
                });
                assert!(runs.iter().all(|runs| runs.load(Relaxed) == 1), "{threads} threads, {tasks} tasks");
                if round % 50 == 0 {
                    thread::sleep(AWAKE * 20);
                }
            }
        }
    }

    #[test]
    fn several_callers_and_nested_calls_do_not_wait_for_each_other() {
        let pool = Pool::start(3);
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        pool.for_each(5, &|_| {
                            pool.for_each(3, &|_| {
                                total.fetch_add(1, Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(Relaxed), 4 * 300 * 5 * 3);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::start(4);
        for bad in [0, 17, 39] {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.for_each(40, &|task| assert!(task != bad, "task {task} fails"));
            }));
            let message = *caught.expect_err("a panic").downcast::<String>().expect("its message");
            assert_eq!(message, format!("task {bad} fails"));
            let done = AtomicUsize::new(0);
            pool.for_each(40, &|_| {
                done.fetch_add(1, Relaxed);
            });
            assert_eq!(done.load(Relaxed), 40);
        }
    }

    #[test]
    fn workers_sleep_when_there_is_nothing_to_do() {
        let pool = Pool::start(3);
        pool.for_each(10, &|_| {});
        let start = Instant::now();
        while !pool.workers.iter().all(|worker| worker.asleep.load(SeqCst)) {
            assert!(start.elapsed() < Duration::from_secs(60), "a worker stays awake");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_share_is_worked_off_from_the_front_and_its_later_half_is_stolen() {
        let share = Share::default();
        share.set(3, 8);
        assert_eq!((share.next(), share.steal(), share.next()), (Some(3), Some((6, 8)), Some(4)));
        assert_eq!((share.steal(), share.steal(), share.next()), (Some((5, 6)), None, None));
    }
}
