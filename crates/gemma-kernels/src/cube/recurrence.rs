//! The linear recurrence: one unit follows one channel of one segment from token to token.
//!
//! Neighbouring units have neighbouring channels, so that each step of theirs reads and writes whole lines. The
//! order of operations does not depend on how a sequence is cut into chunks.

use super::{cube_count, floats, is_empty, output};
use burn::backend::ops::IntTensorOps;
use burn::tensor::TensorData;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::prelude::*;

/// Units of a cube.
const UNITS: usize = 64;

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
    #[comptime] backwards: bool,
) {
    if ABSOLUTE_POS >= work {
        terminate!();
    }
    let segment = ABSOLUTE_POS / channels;
    let channel = ABSOLUTE_POS % channels;
    let first = bounds[segment] as usize;
    let end = bounds[segment + 1] as usize;
    if backwards {
        let mut state = 0.0f32;
        let mut factor = 0.0f32;
        let mut left = end - first;
        while left > 0 {
            left -= 1;
            let at = (first + left) * channels + channel;
            state = factor * state + b[at];
            factor = a[at];
            out[at] = state;
        }
    } else {
        let mut state = initial[ABSOLUTE_POS];
        let mut at = first * channels + channel;
        for _token in first..end {
            state = a[at] * state + b[at];
            out[at] = state;
            at += channels;
        }
    }
}
