//! How fast this machine reads memory: the yardstick of decoding, which reads every weight once per token.

use anyhow::{Result, bail};
use std::hint::black_box;
use std::time::Instant;

/// Read per round: far beyond any cache that one program has to itself.
const BYTES: usize = 2 << 30;
/// The best round counts: a slower one was disturbed.
const ROUNDS: usize = 5;
/// Streams that each thread reads side by side; one alone does not keep enough loads in flight.
const STREAMS: usize = 8;

/// Prints the bandwidth in bytes per second.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    if let Some(argument) = arguments.first() {
        bail!("bandwidth takes no options (got {argument:?})");
    }
    println!("{}", measure(BYTES, ROUNDS));
    Ok(())
}

/// Bytes per second that all cores together read from a buffer of `bytes`; the best of `rounds`.
fn measure(bytes: usize, rounds: usize) -> u64 {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    // Not zeros: those may all be one page of the kernel's.
    let buffer: Vec<u64> = (0..bytes as u64 / 8).collect();
    let part = buffer.len().div_ceil(threads).max(1);
    let mut best = f64::INFINITY;
    for _ in 0..rounds {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for share in buffer.chunks(part) {
                scope.spawn(move || black_box(sum(share)));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    (size_of_val(buffer.as_slice()) as f64 / best) as u64
}

/// The wrapping sum of all words, read as [`STREAMS`] runs side by side, a cache line of each at a time.
fn sum(words: &[u64]) -> u64 {
    const LINE: usize = 8;
    let run = words.len() / STREAMS / LINE * LINE;
    let mut sums = [0u64; LINE];
    let runs: [&[u64]; STREAMS] = std::array::from_fn(|stream| &words[stream * run..(stream + 1) * run]);
    for at in (0..run).step_by(LINE) {
        for stream in runs {
            for (sum, word) in sums.iter_mut().zip(&stream[at..at + LINE]) {
                *sum = sum.wrapping_add(*word);
            }
        }
    }
    let rest = words[STREAMS * run..].iter().fold(0u64, |sum, word| sum.wrapping_add(*word));
    sums.iter().fold(rest, |sum, word| sum.wrapping_add(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_once() {
        for len in [0, 1, 63, 64, 65, 1000, 4096] {
            let words: Vec<u64> = (0..len).map(|n| n * n + 1).collect();
            assert_eq!(sum(&words), words.iter().sum::<u64>(), "{len} words");
        }
    }

    #[test]
    fn a_small_buffer_gives_a_plausible_speed() {
        let speed = measure(1 << 20, 2);
        assert!(speed > 1_000_000, "{speed} bytes per second");
    }
}
