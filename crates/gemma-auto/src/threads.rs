//! How many threads the CPU kernels use.

use crate::Error;

/// More than any machine has, few enough to start.
const MOST: usize = 1024;

/// Sets how many threads of this process compute on the CPU; without it, as many as it has CPUs. There is one pool of
/// threads in a process, so that only the first call, before any model has computed, can choose.
///
/// # Errors
/// When the number is not possible, or the pool has another one already.
pub fn set_threads(threads: usize) -> Result<(), Error> {
    if !(1..=MOST).contains(&threads) {
        return Err(Error::ThreadCount { threads, most: MOST });
    }
    let built = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    let running = rayon::current_num_threads();
    if built.is_err() && running != threads {
        return Err(Error::ThreadsChosen { running, wanted: threads });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_not_possible_is_refused() {
        for threads in [0, MOST + 1, usize::MAX] {
            assert!(matches!(set_threads(threads), Err(Error::ThreadCount { .. })), "{threads}");
        }
    }

    #[test]
    fn another_number_than_that_of_the_pool_is_refused() {
        let running = rayon::current_num_threads();
        set_threads(running).unwrap();
        let refusal = set_threads(running + 1).unwrap_err().to_string();
        assert!(refusal.contains(&format!("{running} threads already")), "{refusal}");
    }
}
