//! The memory bandwidth of this machine, from a buffer that it has room for, and that of a GPU.

use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::{Device, Tensor};

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

/// f32 values that a GPU reads, and writes, at a time: 128 MiB, which every adapter binds at once, and with what is written more
/// than any cache holds.
const VALUES: usize = 32 << 20;
/// Launches that are timed together, and how often.
const LAUNCHES: usize = 8;
const ROUNDS: usize = 3;

/// Bytes per second that a GPU reads and writes together, the best of a few rounds.
pub(crate) fn of_device(device: &Device) -> Result<u64> {
    let values = Tensor::<1>::ones([VALUES], device);
    let mut best = f64::INFINITY;
    // the first round compiles
    for _ in 0..=ROUNDS {
        let begin = Instant::now();
        for _ in 0..LAUNCHES {
            drop(values.clone().add_scalar(1.0));
        }
        device.sync().context("the device did not finish")?;
        best = best.min(begin.elapsed().as_secs_f64());
    }
    Ok(((2 * 4 * VALUES * LAUNCHES) as f64 / best) as u64)
}
