//! The memory bandwidth of this machine, from a buffer that it has room for.

use crate::machine;

/// Read per round: far beyond any cache that one program has to itself.
const BYTES: u64 = 2 << 30;
/// One part in so many of the memory that is left is the most that is taken.
const PART: u64 = 4;

/// Bytes per second that so many threads read together.
pub(crate) fn of_memory(threads: usize) -> u64 {
    let bytes = machine::available_memory().map_or(BYTES, |left| BYTES.min(left / PART));
    gemma_kernels::memory_bandwidth(bytes, threads)
}
