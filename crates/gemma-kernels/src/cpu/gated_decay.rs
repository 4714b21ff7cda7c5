//! The coefficients of a gated recurrence: two block-diagonal products and what is made of them, in one pass.
//!
//! A panel of both gates' columns stays in the L1 cache while it meets all tokens; four tokens and a vector of
//! columns are summed in registers, and the sums become coefficients before they are stored. The exponential is
//! branchless arithmetic, which the compiler turns into vector instructions.

use crate::cpu::isa::Lanes;
use crate::cpu::isa::{Isa, with_isa};
use crate::cpu::output::Output;
use crate::cpu::pool;
use crate::math::{exp, softplus};
use crate::ops::recurrence::STRENGTH;

/// Tokens that one task takes.
const TOKENS: usize = 64;
/// The most values of a register tile, in all instruction sets: four vectors of sixteen.
const TILE: usize = 64;

/// The operands: `x` `[tokens, channels]`, gates of `blocks` blocks `[blocks, in, out]` with biases `[channels]`, `Λ`
/// `[channels]`, and which tokens begin a sequence.
#[derive(Clone, Copy)]
pub(crate) struct Gates<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) input: (&'a [f32], &'a [f32]),
    pub(crate) recurrent: (&'a [f32], &'a [f32]),
    pub(crate) recurrent_param: &'a [f32],
    pub(crate) begins: &'a [bool],
    pub(crate) blocks: usize,
}

/// `a = exp(-8 softplus(Λ) σ(recurrent))` and `b = √(1 - a²) σ(input) x`, with 1 for the root where a sequence begins.
///
/// # Panics
/// When a slice does not have the size of its shape.
pub(crate) fn gated_decay(isa: Isa, gates: Gates<'_>, a: &mut [f32], b: &mut [f32]) {
    let Gates { x, input, recurrent, recurrent_param, begins, blocks } = gates;
    let (tokens, channels) = (begins.len(), recurrent_param.len());
    assert!(blocks > 0 && channels.is_multiple_of(blocks), "blocks are equal");
    let size = channels / blocks;
    for (weight, bias) in [input, recurrent] {
        assert_eq!((weight.len(), bias.len()), (channels * size, channels), "gates");
    }
    assert!(x.len() == tokens * channels && a.len() == x.len() && b.len() == x.len(), "activations");
    if x.is_empty() {
        return;
    }
    let outputs = [Output(a.as_mut_ptr()), Output(b.as_mut_ptr())];
    let ranges = tokens.div_ceil(TOKENS);
    let one = |task: usize| {
        let first = task % ranges * TOKENS;
        run(isa, gates, task / ranges, first, TOKENS.min(tokens - first), outputs);
    };
    pool::for_work(x.len() * size, blocks * ranges, one);
}

/// One block and some tokens.
fn run(isa: Isa, gates: Gates<'_>, block: usize, first: usize, count: usize, outputs: [Output; 2]) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(gates: Gates<'_>, block: usize, first: usize, count: usize, outputs: [Output; 2]) {
        let size = gates.recurrent_param.len() / gates.blocks;
        let last = first + count;
        // SAFETY: the lanes are available where this is expanded; columns and tokens lie inside
        // the block and the range, which lie inside the slices, and no other task has the same.
        unsafe {
            let mut column = 0;
            if count < 4 {
                while column + 4 * L::N <= size {
                    (first..last).for_each(|token| tile::<L, 1, 4>(gates, block, token, column, outputs));
                    column += 4 * L::N;
                }
            }
            while column + L::N <= size {
                let mut token = first;
                while token + 4 <= last {
                    tile::<L, 4, 1>(gates, block, token, column, outputs);
                    token += 4;
                }
                (token..last).for_each(|token| tile::<L, 1, 1>(gates, block, token, column, outputs));
                column += L::N;
            }
            for column in column..size {
                (first..last).for_each(|token| single(gates, block, token, column, outputs));
            }
        }
    }
    with_isa!(isa, kernel(gates: Gates<'_>, block: usize, first: usize, count: usize, outputs: [Output; 2]));
}

/// `ROWS` tokens from `token` on, `COLS` vectors of columns from `column` on, both within a block.
///
/// # Safety
/// The lanes' instruction set must be available, and tokens and columns exist.
#[inline(always)]
unsafe fn tile<L: Lanes, const ROWS: usize, const COLS: usize>(
    gates: Gates<'_>,
    block: usize,
    token: usize,
    column: usize,
    outputs: [Output; 2],
) {
    let channels = gates.recurrent_param.len();
    let size = channels / gates.blocks;
    let (mut input, mut recurrent) = ([0.0; TILE], [0.0; TILE]);
    // SAFETY: as required of the caller; the tile has at most four vectors.
    unsafe {
        let mut sums = [[[L::splat(0.0); COLS]; ROWS]; 2];
        let weights = [gates.input.0, gates.recurrent.0].map(|w| w.as_ptr().add(block * size * size + column));
        let x = gates.x.as_ptr().add(token * channels + block * size);
        for i in 0..size {
            let mut columns = [[L::splat(0.0); COLS]; 2];
            for (columns, weights) in columns.iter_mut().zip(weights) {
                for (col, values) in columns.iter_mut().enumerate() {
                    *values = L::load(weights.add(i * size + col * L::N));
                }
            }
            let [input_sums, recurrent_sums] = &mut sums;
            for (row, (of_input, of_recurrent)) in input_sums.iter_mut().zip(recurrent_sums).enumerate() {
                let factor = L::splat(*x.add(row * channels + i));
                for (sums, columns) in [of_input, of_recurrent].into_iter().zip(&columns) {
                    for (sum, values) in sums.iter_mut().zip(columns) {
                        *sum = values.mul_add(factor, *sum);
                    }
                }
            }
        }
        for (sums, to) in sums.iter().zip([&mut input, &mut recurrent]) {
            for (vector, sum) in sums.iter().flatten().enumerate() {
                sum.store(to.as_mut_ptr().add(vector * L::N));
            }
        }
    }
    let width = COLS * L::N;
    let channel = block * size + column;
    let mut decays = [0.0; TILE];
    for (to, param) in decays.iter_mut().zip(&gates.recurrent_param[channel..channel + width]) {
        *to = decay(*param);
    }
    let over = |slice: &'_ [f32], start: usize| slice[start..start + width].as_ptr();
    for row in 0..ROWS {
        let at = (token + row) * channels + channel;
        let (x, bias_i, bias_r) = (over(gates.x, at), over(gates.input.1, channel), over(gates.recurrent.1, channel));
        let begins = gates.begins[token + row];
        for j in 0..width {
            // SAFETY: `j` is below the width of the slices just taken, and the outputs are as large as `x`.
            unsafe {
                let sums = (input[row * width + j] + *bias_i.add(j), recurrent[row * width + j] + *bias_r.add(j));
                let (a, b) = coefficients(sums, decays[j], *x.add(j), begins);
                *outputs[0].at(at + j) = a;
                *outputs[1].at(at + j) = b;
            }
        }
    }
}

/// One token and one column.
///
/// # Safety
/// Token and column must exist.
#[inline(always)]
unsafe fn single(gates: Gates<'_>, block: usize, token: usize, column: usize, outputs: [Output; 2]) {
    let channels = gates.recurrent_param.len();
    let size = channels / gates.blocks;
    let channel = block * size + column;
    let x = &gates.x[token * channels + block * size..][..size];
    let sum = |(weight, bias): (&[f32], &[f32])| {
        let weights = weight[block * size * size + column..].iter().step_by(size);
        x.iter().zip(weights).map(|(x, w)| x * w).sum::<f32>() + bias[channel]
    };
    let sums = (sum(gates.input), sum(gates.recurrent));
    let (a, b) = coefficients(sums, decay(gates.recurrent_param[channel]), x[column], gates.begins[token]);
    // SAFETY: the outputs are as large as `x`, in which this place exists.
    unsafe {
        *outputs[0].at(token * channels + channel) = a;
        *outputs[1].at(token * channels + channel) = b;
    }
}

/// The logarithm of the strongest decay of a channel, `-8 softplus(Λ)`.
#[inline(always)]
fn decay(recurrent_param: f32) -> f32 {
    -STRENGTH * softplus(recurrent_param)
}

/// `a` and `b` of one channel from the gates before their sigmoids.
#[inline(always)]
fn coefficients((input, recurrent): (f32, f32), decay: f32, x: f32, begins: bool) -> (f32, f32) {
    let log_a = decay * sigmoid(recurrent);
    let a = exp(log_a);
    // 1 - exp(y), by its series where the difference would cancel
    let y = 2.0 * log_a;
    let series = -y
        * (1.0
            + y * (1.0 / 2.0
                + y * (1.0 / 6.0 + y * (1.0 / 24.0 + y * (1.0 / 120.0 + y * (1.0 / 720.0 + y / 5040.0))))));
    let rest = if y > -0.5 { series } else { 1.0 - a * a };
    let root = if begins { 1.0 } else { rest.sqrt() };
    (a, root * sigmoid(input) * x)
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::noise;

    #[test]
    fn every_isa_computes_the_formula_in_every_tile() {
        for isa in Isa::available() {
            for (blocks, size, tokens) in [(1, 1, 1), (2, 67, 3), (2, 67, 6), (1, 130, 70)] {
                let channels = blocks * size;
                let x = noise(tokens * channels, 1);
                let recurrent_param: Vec<f32> = noise(channels, 2).iter().map(|value| 6.0 * value - 6.0).collect();
                let weights = [noise(channels * size, 3), noise(channels * size, 4)];
                let biases = [noise(channels, 5), noise(channels, 6)];
                let begins: Vec<bool> = (0..tokens).map(|token| token % 3 == 1).collect();
                let gates = Gates {
                    x: &x,
                    input: (&weights[0], &biases[0]),
                    recurrent: (&weights[1], &biases[1]),
                    recurrent_param: &recurrent_param,
                    begins: &begins,
                    blocks,
                };
                let (mut a, mut b) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
                gated_decay(isa, gates, &mut a, &mut b);
                for (at, (a, b)) in a.iter().zip(&b).enumerate() {
                    let (token, channel) = (at / channels, at % channels);
                    let (block, column) = (channel / size, channel % size);
                    let [input, recurrent] = [0, 1].map(|gate| {
                        let term = |i: usize| {
                            let weight = weights[gate][(block * size + i) * size + column];
                            f64::from(x[token * channels + block * size + i]) * f64::from(weight)
                        };
                        let sum = (0..size).map(term).sum::<f64>() + f64::from(biases[gate][channel]);
                        1.0 / (1.0 + (-sum).exp())
                    });
                    let log_a = -8.0 * f64::from(recurrent_param[channel]).exp().ln_1p() * recurrent;
                    let root = if begins[token] { 1.0 } else { (-(2.0 * log_a).exp_m1()).sqrt() };
                    let context = format!("{isa:?}, {blocks} blocks of {size}, token {token}, channel {channel}");
                    assert!((f64::from(*a) - log_a.exp()).abs() < 1e-5, "{context}: {a}");
                    assert!((f64::from(*b) - root * input * f64::from(x[at])).abs() < 1e-5, "{context}: {b}");
                }
            }
        }
    }

    /// Where `1 - a²` is a few millionths, its root keeps all digits.
    #[test]
    fn a_state_that_lasts_takes_up_little_but_exactly() {
        for decay in [-1e-7f32, -1e-5, -1e-3, -0.1, -0.249, -0.251, -1.0, -30.0] {
            let (a, b) = coefficients((0.0, 0.0), decay, 2.0, false);
            let log_a = f64::from(decay) / 2.0;
            let root = (-(2.0 * log_a).exp_m1()).sqrt();
            assert!((f64::from(a) - log_a.exp()).abs() < 2e-7, "{decay}: {a}");
            assert!((f64::from(b) / root - 1.0).abs() < 1e-6, "{decay}: {b} for {root}");
        }
        assert_eq!(coefficients((0.0, 0.0), -1.0, 2.0, true).1, 1.0);
    }
}
