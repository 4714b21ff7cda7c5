//! The linear recurrence: one unit follows one channel of one segment from token to token.
//!
//! Neighbouring units have neighbouring channels, so that each step of theirs reads and writes whole lines. The
//! order of operations does not depend on how a sequence is cut into chunks: a state read in pieces has the bits of one
//! read whole. A scan that computes chunks of the time side by side and then adds up what they carry multiplies in
//! another order, and its bits would tell where a call began; so there is none, in either direction. What makes a walk
//! slow is not its arithmetic, one multiplication and addition a token, but waiting for memory at every token. A unit
//! therefore loads the factors and addends of [`AHEAD`] tokens before it uses the first of them.

use super::{cube_count, floats, is_empty, output};
use burn::backend::ops::IntTensorOps;
use burn::tensor::TensorData;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::prelude::*;

/// Units of a cube: few, since channels are a few thousand, and many parts of a GPU are to have some.
const UNITS: usize = 32;
/// Tokens whose factors and addends are loaded together: 64 registers, of which a unit has plenty with so few in flight.
const AHEAD: usize = 32;
/// Segments up to this long are walked token by token, so that nothing is loaded that is not there.
const SHORT: usize = 4;

/// `h[t] = a[t] h[t-1] + b[t]` within each segment, from its row of `initial`; `backwards`, for the gradient,
/// `g[t] = a[t+1] g[t+1] + b[t]` from nothing.
///
/// `a` and `b` are `[tokens, channels]`, `initial` is `[segments, channels]`; `bounds` holds the first token of each
/// segment and then the number of tokens.
///
/// # Panics
/// When the shapes contradict each other.
pub(crate) fn linear_recurrence(
    a: CubeTensor,
    b: CubeTensor,
    initial: CubeTensor,
    bounds: &[usize],
    backwards: bool,
) -> CubeTensor {
    let [tokens, channels] = a.meta.shape().dims::<2>();
    let segments = bounds.len() - 1;
    assert_eq!(b.meta.shape().dims::<2>(), [tokens, channels], "addends");
    assert_eq!(initial.meta.shape().dims::<2>(), [segments, channels], "initial states");
    assert!(bounds[0] == 0 && bounds.is_sorted() && bounds[segments] == tokens, "bounds");
    let out = output(&a, [tokens, channels]);
    if is_empty(&out) {
        return out;
    }
    let client = a.client.clone();
    let longest = bounds.windows(2).map(|ends| ends[1] - ends[0]).max().unwrap_or(0);
    let ends: Vec<u32> = bounds.iter().map(|bound| *bound as u32).collect();
    let bounds = CubeBackend::int_from_data(TensorData::new(ends, [segments + 1]), &a.device);
    // SAFETY: units past the last channel of the last segment do nothing, and tokens lie between bounds that were
    // asserted to lie inside the buffers.
    unsafe {
        recurrence_kernel::launch_unchecked(
            &client,
            cube_count((segments * channels).div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            floats(a).into_buffer_arg(),
            floats(b).into_buffer_arg(),
            floats(initial).into_buffer_arg(),
            bounds.into_buffer_arg(),
            out.clone().into_buffer_arg(),
            segments * channels,
            channels,
            if longest <= SHORT { 1 } else { AHEAD },
            backwards,
        );
    }
    out
}

#[cube(launch_unchecked)]
fn recurrence_kernel(
    a: &[f32],
    b: &[f32],
    initial: &[f32],
    bounds: &[u32],
    out: &mut [f32],
    work: usize,
    channels: usize,
    #[comptime] ahead: usize,
    #[comptime] backwards: bool,
) {
    if ABSOLUTE_POS >= work {
        terminate!();
    }
    let segment = ABSOLUTE_POS / channels;
    let channel = ABSOLUTE_POS % channels;
    let first = bounds[segment] as usize;
    let end = bounds[segment + 1] as usize;
    // fma, since a driver that may round a product and a sum together would else be free to do so here and not there;
    // walked from the last token to the first, what is multiplied with a state is the factor of the token before
    let mut state = 0.0f32;
    let mut factor = 0.0f32;
    if comptime!(!backwards) {
        state = initial[ABSOLUTE_POS];
    }
    let len = end - first;
    let mut factors = Array::<f32>::new(ahead);
    let mut addends = Array::<f32>::new(ahead);
    let mut done = 0usize;
    while done < len {
        #[unroll]
        for i in 0..ahead {
            // past the last token it is loaded again, and not used
            let at = place(min(done + i, len - 1), first, end, backwards) * channels + channel;
            factors[i] = a[at];
            addends[i] = b[at];
        }
        #[unroll]
        for i in 0..ahead {
            if done + i < len {
                if comptime!(backwards) {
                    state = fma(factor, state, addends[i]);
                    factor = factors[i];
                } else {
                    state = fma(factors[i], state, addends[i]);
                }
                out[place(done + i, first, end, backwards) * channels + channel] = state;
            }
        }
        done += ahead;
    }
}

/// The token that comes after `steps` others.
#[cube]
fn place(steps: usize, first: usize, end: usize, #[comptime] backwards: bool) -> usize {
    if comptime!(backwards) { end - 1 - steps } else { first + steps }
}
