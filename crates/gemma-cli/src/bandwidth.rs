//! How fast this machine reads memory: the yardstick of decoding, which reads every weight once per token.

use std::hint::black_box;
use std::time::Instant;

use crate::machine;

/// Read per round: far beyond any cache that one program has to itself.
const BYTES: u64 = 2 << 30;
/// One part in so many of the memory that is left is the most that is taken.
const PART: u64 = 4;
/// The best round counts: a slower one was disturbed.
const ROUNDS: usize = 5;
/// Streams that each thread reads side by side; one alone does not keep enough loads in flight.
const STREAMS: usize = 8;

/// Bytes per second that so many threads read together.
pub(crate) fn of_memory(threads: usize) -> u64 {
    let bytes = machine::available_memory().map_or(BYTES, |left| BYTES.min(left / PART));
    measure(bytes, threads, ROUNDS)
}

/// Bytes per second that `threads` read together from a buffer of `bytes`; the best of `rounds`.
fn measure(bytes: u64, threads: usize, rounds: usize) -> u64 {
    // Not zeros: those may all be one page of the kernel's.
    let buffer: Vec<u64> = (0..bytes / 8).collect();
    let part = buffer.len().div_ceil(threads.max(1)).max(1);
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
        let speed = measure(1 << 20, 3, 2);
        assert!(speed > 1_000_000, "{speed} bytes per second");
    }
}
