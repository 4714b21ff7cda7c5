//! The linear recurrence: a multiplication and an addition per channel and token.
//!
//! Tokens follow from one another, channels do not: lanes and threads divide the channels, and each row is computed
//! from the row before it while that is still in the L1 cache. A channel goes through the same operations
//! in the same order whatever the chunk, so reading in chunks changes no bit.

use crate::cpu::isa::Lanes;
use crate::cpu::isa::{Isa, with_isa};
use crate::cpu::output::Output;
use crate::cpu::pool;

/// Channels that one task takes along the tokens: 1 KiB of each row.
const BLOCK: usize = 256;

/// The operands of a recurrence over `[tokens, channels]`.
#[derive(Clone, Copy)]
pub(crate) struct Recurrence<'a> {
    /// Factors, `[tokens, channels]`.
    pub(crate) a: &'a [f32],
    /// Addends, `[tokens, channels]`.
    pub(crate) b: &'a [f32],
    /// What each segment begins with, `[segments, channels]`.
    pub(crate) initial: &'a [f32],
    /// First token of each segment, then the number of tokens.
    pub(crate) bounds: &'a [usize],
    pub(crate) channels: usize,
}

/// Forwards: `h[t] = a[t] h[t-1] + b[t]`, from `initial`. Backwards, for the gradient: `g[t] = a[t+1] g[t+1] + b[t]`,
/// from nothing. Both within each segment.
///
/// # Panics
/// When a slice does not have the size of its shape, or the bounds do not rise from 0 to the number of tokens.
pub(crate) fn linear_recurrence(isa: Isa, operands: Recurrence<'_>, backwards: bool, out: &mut [f32]) {
    let Recurrence { a, b, initial, bounds, channels } = operands;
    let segments = bounds.len() - 1;
    assert_eq!(a.len(), out.len(), "factors");
    assert_eq!(b.len(), out.len(), "addends");
    assert_eq!(initial.len(), segments * channels, "initial states");
    assert!(bounds[0] == 0 && bounds.is_sorted() && bounds[segments] * channels == out.len(), "bounds");
    let blocks = channels.div_ceil(BLOCK);
    let output = Output(out.as_mut_ptr());
    let one = |task: usize| {
        let (segment, first) = (task / blocks, task % blocks * BLOCK);
        run(isa, operands, segment, first, BLOCK.min(channels - first), backwards, output);
    };
    pool::for_work(out.len(), segments * blocks, one);
}

/// One segment of some channels.
fn run(
    isa: Isa,
    operands: Recurrence<'_>,
    segment: usize,
    first: usize,
    count: usize,
    backwards: bool,
    output: Output,
) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(
        operands: Recurrence<'_>,
        segment: usize,
        first: usize,
        count: usize,
        backwards: bool,
        output: Output,
    ) {
        let Recurrence { a, b, initial, bounds, channels } = operands;
        let tokens = bounds[segment]..bounds[segment + 1];
        // rows are tokens of this segment and `first + count <= channels`, so that all places lie inside the slices,
        // whose sizes were asserted; a row of the output is read only after this task has written it, and no other task
        // touches these channels of these rows
        // SAFETY: as above.
        let row = |slice: &[f32], token: usize| unsafe { slice.as_ptr().add(token * channels + first) };
        // SAFETY: as above.
        let to = |token: usize| unsafe { output.at(token * channels + first) };
        // SAFETY: as above; the lanes are those of the instruction set that this is compiled for.
        let step = |factors: *const f32, last: *const f32, token: usize| unsafe {
            multiply_add::<L>(factors, last, row(b, token), to(token), count);
        };
        if backwards {
            let nothing = [0.0; BLOCK];
            for token in tokens.clone().rev() {
                match token + 1 < tokens.end {
                    true => step(row(a, token + 1), to(token + 1), token),
                    false => step(nothing.as_ptr(), nothing.as_ptr(), token),
                }
            }
        } else {
            for token in tokens.clone() {
                let last = if token == tokens.start { row(initial, segment) } else { to(token - 1).cast_const() };
                step(row(a, token), last, token);
            }
        }
    }
    with_isa!(isa, kernel(operands: Recurrence<'_>, segment: usize, first: usize, count: usize, backwards: bool, output: Output));
}

/// `to = a * last + b`, `count` values each.
///
/// # Safety
/// The lanes' instruction set must be available, and the pointers valid for `count` values.
#[inline(always)]
unsafe fn multiply_add<L: Lanes>(a: *const f32, last: *const f32, b: *const f32, to: *mut f32, count: usize) {
    let whole = count / L::N * L::N;
    // SAFETY: as required of the caller.
    unsafe {
        for i in (0..whole).step_by(L::N) {
            L::load(a.add(i)).mul_add(L::load(last.add(i)), L::load(b.add(i))).store(to.add(i));
        }
        for i in whole..count {
            *to.add(i) = *a.add(i) * *last.add(i) + *b.add(i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_isa_follows_every_channel_both_ways() {
        for isa in Isa::available() {
            for channels in [1, 7, 40, 600] {
                let bounds = [0, 3, 4, 9];
                let values = |len: usize, seed: usize| -> Vec<f32> {
                    (0..len).map(|i| ((i * 37 + seed) % 101) as f32 / 101.0).collect()
                };
                let (a, b, initial) = (values(9 * channels, 1), values(9 * channels, 50), values(3 * channels, 77));
                let operands = Recurrence { a: &a, b: &b, initial: &initial, bounds: &bounds, channels };
                let run = |backwards| {
                    let mut out = vec![f32::NAN; 9 * channels];
                    linear_recurrence(isa, operands, backwards, &mut out);
                    out
                };
                let (h, g) = (run(false), run(true));
                for channel in 0..channels {
                    let at = |values: &[f32], row: usize| f64::from(values[row * channels + channel]);
                    for segment in 0..3 {
                        let (first, end) = (bounds[segment], bounds[segment + 1]);
                        let mut state = at(&initial, segment);
                        for token in first..end {
                            state = at(&a, token) * state + at(&b, token);
                            assert!((at(&h, token) - state).abs() < 1e-5, "{isa:?} {channels} token {token}");
                        }
                        let mut state = at(&b, end - 1);
                        for token in (first..end).rev() {
                            if token + 1 < end {
                                state = at(&a, token + 1) * state + at(&b, token);
                            }
                            assert!((at(&g, token) - state).abs() < 1e-5, "{isa:?} {channels} back {token}");
                        }
                    }
                }
            }
        }
    }
}
