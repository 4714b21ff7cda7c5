//! How fast this machine reads memory: what bounds decode, which reads every weight once per token.

use super::isa::prefetch;
use std::hint::black_box;
use std::time::Instant;

/// The best round counts: a slower one was disturbed.
const ROUNDS: usize = 3;
/// Streams that a thread reads side by side. Some machines are fastest with one, some with several: the best counts.
const STREAMS: [usize; 2] = [1, 8];
/// How far ahead of its use memory is requested, in bytes, over all streams.
const AHEAD: usize = 8192;

/// A cache line.
type Line = [u64; 8];

/// The bytes per second that `threads` together read from a buffer of `bytes`, the best of some rounds. The buffer should
/// be far larger than the caches.
pub fn memory_bandwidth(bytes: u64, threads: usize) -> u64 {
    // Not zeros: those may all be one page of the kernel's.
    let buffer: Vec<u64> = (0..bytes / 8).collect();
    let part = buffer.len().div_ceil(threads.max(1)).max(1);
    let mut best = f64::INFINITY;
    for streams in [STREAMS; ROUNDS].into_iter().flatten() {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for share in buffer.chunks(part) {
                scope.spawn(move || black_box(sum(share, streams)));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    (size_of_val(buffer.as_slice()) as f64 / best) as u64
}

/// The wrapping sum of all words, read as `streams` runs side by side, a line of each at a time.
fn sum(words: &[u64], streams: usize) -> u64 {
    let (lines, rest) = words.as_chunks::<8>();
    let run = lines.len() / streams;
    let mut sums = [0; 8];
    let mut add = |line: &Line| {
        prefetch(line.as_ptr().cast::<u8>().wrapping_add(AHEAD / streams));
        for (sum, word) in sums.iter_mut().zip(line) {
            *sum = word.wrapping_add(*sum);
        }
    };
    for at in 0..run {
        for stream in 0..streams {
            add(&lines[stream * run + at]);
        }
    }
    lines[run * streams..].iter().for_each(add);
    sums.iter().chain(rest).fold(0, |sum: u64, word| sum.wrapping_add(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_once() {
        for len in [0, 1, 63, 64, 65, 1000, 4096] {
            let words: Vec<u64> = (0..len).map(|n| n * n + 1).collect();
            for streams in [1, 3, 8] {
                assert_eq!(sum(&words, streams), words.iter().sum::<u64>(), "{len} words, {streams} streams");
            }
        }
    }

    #[test]
    fn a_small_buffer_gives_a_plausible_speed() {
        let speed = memory_bandwidth(1 << 20, 3);
        assert!(speed > 1_000_000, "{speed} bytes per second");
    }
}
