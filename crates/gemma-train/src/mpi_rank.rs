//! The communicator of processes that `mpirun` (or Slurm, or an MPIJob of Kubernetes) has started.
//!
//! All calls of MPI are made on a thread of their own. A call that waits for a process that is gone never returns; the
//! training hears of a request to end (which launchers send then) while that thread waits, and can save its state.

use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::traits::{Communicator as _, CommunicatorCollectives};

use crate::{Communicator, Error};

/// How long a wait is before the flag is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// This process among those of an MPI job.
pub struct MpiRank {
    rank: usize,
    size: usize,
    link: Mutex<Option<Link>>,
    interrupted: Arc<AtomicBool>,
}

/// The way to the thread that calls MPI.
struct Link {
    values: Sender<Vec<f64>>,
    sums: Receiver<Vec<f64>>,
    thread: JoinHandle<()>,
}

impl MpiRank {
    /// Joins the other processes of the job. `interrupted` is set when this process is to end.
    ///
    /// # Errors
    /// When MPI does not start.
    pub fn join(interrupted: Arc<AtomicBool>) -> Result<Self, Error> {
        let (values, work) = channel::<Vec<f64>>();
        let (done, sums) = channel();
        let (ready, started) = channel();
        let thread = std::thread::Builder::new().name("mpi".to_owned()).spawn(move || {
            let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else { return };
            let world = universe.world();
            if ready.send((world.rank(), world.size())).is_err() {
                return;
            }
            for values in work {
                let mut sums = vec![0.0f64; values.len()];
                world.all_reduce_into(&values[..], &mut sums[..], SystemOperation::sum());
                if done.send(sums).is_err() {
                    return;
                }
            }
            // the universe ends here, when all processes have come to this
        });
        let lost = |reason: &str| Error::RankLost { reason: reason.to_owned() };
        let thread = thread.map_err(|_| lost("the system refuses to start a thread"))?;
        let (rank, size) = started.recv().map_err(|_| lost("MPI does not start"))?;
        let link = Mutex::new(Some(Link { values, sums, thread }));
        Ok(Self { rank: rank as usize, size: size as usize, link, interrupted })
    }
}

impl Communicator for MpiRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn sum(&self, values: &mut [f64]) -> Result<(), Error> {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = || Error::RankLost { reason: "MPI has ended".to_owned() };
        let link = link.as_ref().ok_or_else(lost)?;
        link.values.send(values.to_vec()).map_err(|_| lost())?;
        loop {
            match link.sums.recv_timeout(LOOK) {
                Ok(sums) => {
                    values.copy_from_slice(&sums);
                    return Ok(());
                }
                Err(RecvTimeoutError::Timeout) if self.interrupted.load(Ordering::Relaxed) => {
                    return Err(Error::Interrupted);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(lost()),
            }
        }
    }

    /// Ends MPI. A process that ends without this has failed, and its launcher ends the others.
    fn finish(&self) {
        if let Some(Link { values, sums, thread }) = self.link.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop((values, sums));
            // a panic of that thread has been printed
            let _ = thread.join();
        }
    }
}

impl Debug for MpiRank {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "rank {} of {}", self.rank, self.size)
    }
}
