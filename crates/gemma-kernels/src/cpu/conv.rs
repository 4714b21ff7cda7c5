//! The short convolution over time of a recurrent block, in one pass.

use crate::cpu::elementwise::{TASK, in_pieces};
use crate::cpu::isa::Lanes;
use crate::cpu::isa::{Isa, with_isa};
use std::mem::MaybeUninit;

/// `out[r] = bias + Σ_k weight[k] ⊙ x[firsts[r] + k]`, channel by channel: `x` `[rows, channels]`, `weight` `[channels, taps]`.
///
/// # Panics
/// When a slice does not have the size of its shape, or a tap lies outside `x`.
pub(crate) fn causal_conv(
    isa: Isa,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    firsts: &[u32],
    out: &mut [MaybeUninit<f32>],
) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(x: &[f32], weight: &[f32], bias: &[f32], firsts: &[u32], out: &mut [MaybeUninit<f32>]) {
        let channels = bias.len();
        for (first, out) in firsts.iter().zip(out.chunks_exact_mut(channels)) {
            let lines = &x[*first as usize * channels..][..weight.len()];
            for column in (0..channels).step_by(L::N) {
                let width = L::N.min(channels - column);
                let mut sums = [0f32; 16];
                sums[..width].copy_from_slice(&bias[column..column + width]);
                for (line, weight) in lines.chunks_exact(channels).zip(weight.chunks_exact(channels)) {
                    let (line, weight) = (&line[column..column + width], &weight[column..column + width]);
                    for ((sum, x), weight) in sums.iter_mut().zip(line).zip(weight) {
                        *sum += x * weight;
                    }
                }
                for (out, sum) in out[column..column + width].iter_mut().zip(sums) {
                    out.write(sum);
                }
            }
        }
    }
    let channels = bias.len().max(1);
    assert!(weight.len().is_multiple_of(channels) && out.len() == firsts.len() * bias.len(), "taps and outputs");
    // tap by tap, as the inputs lie
    let weight = super::transpose(isa, weight, weight.len() / channels);
    let weight = weight.as_slice();
    let rows = TASK.div_ceil(channels);
    in_pieces(out, rows * channels, |first, out| {
        let firsts = &firsts[first / channels..][..out.len() / channels];
        with_isa!(
            isa,
            kernel(x: &[f32], weight: &[f32], bias: &[f32], firsts: &[u32], out: &mut [MaybeUninit<f32>])
        );
    });
}
