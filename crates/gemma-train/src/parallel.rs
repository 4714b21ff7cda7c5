//! A training in several processes: each computes its share of a batch, the gradients are added up, and all take the same
//! step.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Error;
use crate::gradients::{BatchGradients, NamedValues, Values};

/// What connects the processes of a training (its ranks).
pub trait Communicator: Debug + Send + Sync {
    /// The number of this process, from 0. Rank 0 writes the files.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn size(&self) -> usize;

    /// Replaces `values` by their sums over all processes, which all call this with the same number of values.
    ///
    /// # Errors
    /// [`Error::RankLost`] when another process is gone, [`Error::Interrupted`] when this one is asked to end while it waits.
    fn sum(&self, values: &mut [f64]) -> Result<(), Error>;

    /// Says that this process has done all it was to do, and waits until the others have.
    fn finish(&self) {}
}

/// Whether all processes are at the same step of the same training.
pub(crate) fn check_agreement(communicator: &dyn Communicator, run: &str, step: usize) -> Result<(), Error> {
    // FNV-1a, of which so many bits are kept that the sum over any number of processes is exact
    let hash = run
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let own = [(hash >> 32) as f64, step as f64];
    let mut sums = own;
    communicator.sum(&mut sums)?;
    let same = own.iter().zip(sums).all(|(own, sum)| own * communicator.size() as f64 == sum);
    if same { Ok(()) } else { Err(Error::Disagreement) }
}

/// The communicator of a training in one process.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Communicator for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn sum(&self, _values: &mut [f64]) -> Result<(), Error> {
        Ok(())
    }
}

/// Which of `len` items rank `rank` of `size` takes: neighbours, and as many as the others or one fewer.
pub(crate) fn share_of(len: usize, rank: usize, size: usize) -> Range<usize> {
    rank * len / size..(rank + 1) * len / size
}

/// The sum of what all ranks made of their shares of a batch. `parameters` gives names and sizes, in the same order on all
/// ranks; a rank whose share is empty has no gradients.
pub(crate) fn reduce(
    communicator: &dyn Communicator,
    batch: BatchGradients,
    parameters: &NamedValues,
) -> Result<BatchGradients, Error> {
    if communicator.size() == 1 {
        return Ok(batch);
    }
    let mut sums = vec![batch.loss, batch.count as f64, batch.tokens as f64];
    for (name, parameter) in parameters {
        match batch.gradients.get(name) {
            Some(gradient) => sums.extend(gradient.values.iter().map(|value| f64::from(*value))),
            None => sums.extend(std::iter::repeat_n(0.0, parameter.values.len())),
        }
    }
    communicator.sum(&mut sums)?;
    let mut values = sums[3..].iter().map(|value| *value as f32);
    let gradient = |(name, parameter): (&String, &Values)| {
        let values = values.by_ref().take(parameter.values.len()).collect();
        (name.clone(), Values { shape: parameter.shape.clone(), values })
    };
    let gradients = parameters.iter().map(gradient).collect();
    Ok(BatchGradients { loss: sums[0], count: sums[1] as usize, tokens: sums[2] as usize, gradients })
}

/// How long a thread waits for the others.
const PATIENCE: Duration = Duration::from_secs(60);

/// The communicator of threads of one process: ranks without a network, for trials and tests.
#[derive(Debug)]
pub struct ThreadRank {
    rank: usize,
    meeting: Arc<Meeting>,
}

#[derive(Debug)]
struct Meeting {
    size: usize,
    state: Mutex<Round>,
    changed: Condvar,
}

/// A sum on its way: each rank puts its values in, and takes the sum away when all have.
#[derive(Debug, Default)]
struct Round {
    given: Vec<Option<Vec<f64>>>,
    sum: Option<Vec<f64>>,
    taken: usize,
    lost: Option<usize>,
}

impl ThreadRank {
    /// The communicators of `size` threads, one for each.
    pub fn new(size: usize) -> Vec<Self> {
        let state = Mutex::new(Round { given: vec![None; size], ..Round::default() });
        let meeting = Arc::new(Meeting { size, state, changed: Condvar::new() });
        (0..size).map(|rank| Self { rank, meeting: Arc::clone(&meeting) }).collect()
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, Round>,
        until: impl Fn(&Round) -> bool,
    ) -> Result<MutexGuard<'a, Round>, Error> {
        let begin = Instant::now();
        let mut state = state;
        while !until(&state) {
            if let Some(rank) = state.lost {
                return Err(Error::RankLost { reason: format!("rank {rank} ended early") });
            }
            if begin.elapsed() > PATIENCE {
                return Err(Error::RankLost { reason: format!("no answer for {} s", PATIENCE.as_secs()) });
            }
            state = self
                .meeting
                .changed
                .wait_timeout(state, Duration::from_millis(100))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(state)
    }
}

impl Communicator for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.meeting.size
    }

    /// Sums in the order of the ranks.
    fn sum(&self, values: &mut [f64]) -> Result<(), Error> {
        let state = self.meeting.state.lock().unwrap_or_else(PoisonError::into_inner);
        // those of the round before have gone
        let mut state = self.wait(state, |round| round.sum.is_none())?;
        state.given[self.rank] = Some(values.to_vec());
        if state.given.iter().all(Option::is_some) {
            let mut sum = vec![0.0; values.len()];
            for given in state.given.iter_mut().filter_map(Option::take) {
                sum.iter_mut().zip(given).for_each(|(sum, value)| *sum += value);
            }
            (state.sum, state.taken) = (Some(sum), 0);
        }
        self.meeting.changed.notify_all();
        let mut state = self.wait(state, |round| round.sum.is_some())?;
        if let Some(sum) = &state.sum {
            values.copy_from_slice(sum);
        }
        state.taken += 1;
        if state.taken == self.meeting.size {
            state.sum = None;
        }
        self.meeting.changed.notify_all();
        Ok(())
    }
}

impl Drop for ThreadRank {
    fn drop(&mut self) {
        let mut state = self.meeting.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.lost.get_or_insert(self.rank);
        self.meeting.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_a_batch_once() {
        for (len, size) in [(8, 2), (7, 3), (1, 4), (0, 2)] {
            let all: Vec<usize> = (0..size).flat_map(|rank| share_of(len, rank, size)).collect();
            assert_eq!(all, (0..len).collect::<Vec<_>>(), "{len} of {size}");
        }
    }

    #[test]
    fn threads_add_up_and_hear_of_one_that_ends() {
        let ranks = ThreadRank::new(3);
        let results: Vec<Result<Vec<f64>, Error>> = std::thread::scope(|scope| {
            let threads: Vec<_> = ranks
                .into_iter()
                .map(|rank| {
                    scope.spawn(move || {
                        let mut last = Vec::new();
                        for round in 0..100 {
                            // rank 1 leaves before the last round
                            if rank.rank() == 1 && round == 99 {
                                break;
                            }
                            last = vec![rank.rank() as f64, f64::from(round)];
                            rank.sum(&mut last)?;
                            assert_eq!(last, [3.0, 3.0 * f64::from(round)]);
                        }
                        Ok(last)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert!(results[1].is_ok());
        for lost in [&results[0], &results[2]] {
            let message = lost.as_ref().expect_err("a rank is gone").to_string();
            assert!(message.contains("rank 1"), "{message}");
        }
    }
}
