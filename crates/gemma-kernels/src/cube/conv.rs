//! The short convolution over time: each unit one channel of one row.

use super::{cube_count, floats, is_empty, output};
use burn::tensor::DType;
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::*;

/// Units of a cube.
const UNITS: usize = 64;

/// `y[r] = b + Σ w[k] ⊙ line[firsts[r] + k]`: `line` `[rows, channels]`, `weight` `[channels * taps]`.
///
/// # Panics
/// When the shapes contradict each other.
pub(crate) fn causal_conv(line: CubeTensor, weight: CubeTensor, bias: CubeTensor, firsts: CubeTensor) -> CubeTensor {
    let [_, channels] = line.meta.shape().dims::<2>();
    let [values] = weight.meta.shape().dims::<1>();
    let [rows] = firsts.meta.shape().dims::<1>();
    assert!(values.is_multiple_of(channels) && firsts.dtype == DType::U32, "taps and rows");
    assert_eq!(bias.meta.shape().dims::<1>(), [channels], "a bias for every channel");
    let out = output(&line, [rows, channels]);
    if is_empty(&out) {
        return out;
    }
    let client = line.client.clone();
    // SAFETY: units past the last value do nothing, and the caller asserted that the taps lie in the line.
    unsafe {
        conv_kernel::launch_unchecked(
            &client,
            cube_count((rows * channels).div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            floats(line).into_buffer_arg(),
            floats(weight).into_buffer_arg(),
            floats(bias).into_buffer_arg(),
            into_contiguous(firsts).into_buffer_arg(),
            out.clone().into_buffer_arg(),
            rows * channels,
            channels,
            values / channels,
        );
    }
    out
}

#[cube(launch_unchecked)]
fn conv_kernel(
    line: &[f32],
    weight: &[f32],
    bias: &[f32],
    firsts: &[u32],
    out: &mut [f32],
    work: usize,
    channels: usize,
    taps: usize,
) {
    if ABSOLUTE_POS >= work {
        terminate!();
    }
    let channel = ABSOLUTE_POS % channels;
    let first = firsts[ABSOLUTE_POS / channels] as usize * channels + channel;
    let mut sum = bias[channel];
    for tap in 0..taps {
        sum += line[first + tap * channels] * weight[channel * taps + tap];
    }
    out[ABSOLUTE_POS] = sum;
}
