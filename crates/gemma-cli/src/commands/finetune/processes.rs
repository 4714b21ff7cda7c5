//! A training in several processes.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Result, bail};
use gemma_train::Communicator;

/// Joins the processes that a launcher of MPI has started. `interrupted` is the flag of a request to end.
#[cfg(feature = "mpi")]
pub(super) fn join(interrupted: Arc<AtomicBool>) -> Result<Arc<dyn Communicator>> {
    Ok(Arc::new(gemma_train::MpiRank::join(interrupted)?))
}

/// Refuses, since this program has no MPI.
#[cfg(not(feature = "mpi"))]
pub(super) fn join(_interrupted: Arc<AtomicBool>) -> Result<Arc<dyn Communicator>> {
    bail!("this program was built without MPI; build it with --features mpi (it takes an MPI library and libclang)")
}

/// How launchers say how many processes they have started.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"];

/// Refuses to run as one of several processes that know nothing of each other and would write the same files.
pub(super) fn refuse_unasked() -> Result<()> {
    let size = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
    match SIZES.iter().find(|name| size(name).is_some_and(|size| size > 1)) {
        Some(name) => bail!("{name} says that several processes were started; give --mpi, so that they train together"),
        None => Ok(()),
    }
}
