//! Element by element and row by row: what lies between the products, in one pass, in which every value of `out` is
//! written.

use crate::cpu::isa::Lanes;
use crate::cpu::isa::{Isa, cpu_isa, with_isa};
use crate::cpu::output::Output;
use crate::cpu::{pool, written};
use crate::math;
use std::mem::MaybeUninit;
use std::sync::Mutex;

/// Values that are worth a task of their own.
pub(in crate::cpu) const TASK: usize = 1 << 14;

/// Hands pieces of `out` of `len` values, and the place of each, to `task`: to all threads where there are several.
pub(in crate::cpu) fn in_pieces(
    out: &mut [MaybeUninit<f32>],
    len: usize,
    task: impl Fn(usize, &mut [MaybeUninit<f32>]) + Sync,
) {
    if len >= out.len() {
        return task(0, out);
    }
    let pieces: Vec<Mutex<&mut [MaybeUninit<f32>]>> = out.chunks_mut(len).map(Mutex::new).collect();
    pool::for_each(pieces.len(), |index| {
        // a piece belongs to one task, so the lock is free, and nobody has panicked holding it
        let mut piece = pieces[index].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        task(index * len, &mut piece);
    });
}

/// `out = gelu(gate) · up`.
pub(crate) fn geglu(isa: Isa, gate: &[f32], up: &[f32], out: &mut [MaybeUninit<f32>]) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(gate: &[f32], up: &[f32], out: &mut [MaybeUninit<f32>]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            out.write(math::gelu(*gate) * up);
        }
    }
    assert!(gate.len() == out.len() && up.len() == out.len(), "one gate per value");
    in_pieces(out, TASK, |first, out| {
        let (gate, up) = (&gate[first..first + out.len()], &up[first..first + out.len()]);
        with_isa!(isa, kernel(gate: &[f32], up: &[f32], out: &mut [MaybeUninit<f32>]));
    });
}

/// `1 / sqrt(mean(x²) + eps)` of a row.
///
/// # Safety
/// The CPU must have the lanes' instructions.
#[inline(always)]
unsafe fn inverse_of_row<L: Lanes>(x: &[f32], eps: f32) -> f32 {
    let whole = x.len() / (2 * L::N) * 2 * L::N;
    // SAFETY: the loads stay inside the row, and the lanes' instructions are available.
    let sum = unsafe {
        let mut sums = [L::splat(0.0); 2];
        for i in (0..whole).step_by(2 * L::N) {
            for (step, sum) in sums.iter_mut().enumerate() {
                let values = L::load(x.as_ptr().add(i + step * L::N));
                *sum = values.mul_add(values, *sum);
            }
        }
        sums[0].add(sums[1]).sum()
    };
    let sum = x[whole..].iter().fold(sum, |sum, value| sum + value * value);
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

/// A value of a row with this [inverse](inverse_of_row), normed.
#[inline(always)]
fn normed(x: f32, inverse: f32, weight: f32) -> f32 {
    x * inverse * (1.0 + weight)
}

/// `out = x / sqrt(mean(x²) + eps) · (1 + weight)` for each row, as long as `weight`.
pub(crate) fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [MaybeUninit<f32>]) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: &mut [MaybeUninit<f32>]) {
        for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            // SAFETY: as required of the caller.
            let inverse = unsafe { inverse_of_row::<L>(x, eps) };
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                out.write(normed(*x, inverse, *weight));
            }
        }
    }
    in_rows(out, x, weight, |x, out| {
        with_isa!(isa, kernel(x: &[f32], weight: &[f32], eps: f32, out: &mut [MaybeUninit<f32>]));
    });
}

/// A weight of [`rms_norm`], and its `eps`.
type Norm<'a> = (&'a [f32], f32);

/// `sums = residual + branch`, or plus the [`rms_norm`] of `branch` where it has one, and `out` the norm of the sums, for each row, as long as
/// the weight: a row is normed while it is in a cache.
pub(crate) fn add_then_norm(
    isa: Isa,
    [residual, branch]: [&[f32]; 2],
    branch_norm: Option<Norm<'_>>,
    norm: Norm<'_>,
    sums: &mut [MaybeUninit<f32>],
    out: &mut [MaybeUninit<f32>],
) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(
        residual: &[f32],
        branch: &[f32],
        branch_norm: Option<Norm<'_>>,
        norm: Norm<'_>,
        sums: &mut [MaybeUninit<f32>],
        out: &mut [MaybeUninit<f32>],
    ) {
        let width = norm.0.len();
        let operands = residual.chunks_exact(width).zip(branch.chunks_exact(width));
        let rows = sums.chunks_exact_mut(width).zip(out.chunks_exact_mut(width));
        for ((residual, branch), (sums, out)) in operands.zip(rows) {
            let values = sums.iter_mut().zip(residual).zip(branch);
            match branch_norm {
                None => {
                    for ((sum, residual), branch) in values {
                        sum.write(residual + branch);
                    }
                }
                Some((weight, eps)) => {
                    // SAFETY: as required of the caller.
                    let inverse = unsafe { inverse_of_row::<L>(branch, eps) };
                    for (((sum, residual), branch), weight) in values.zip(weight) {
                        sum.write(residual + normed(*branch, inverse, *weight));
                    }
                }
            }
            // SAFETY: each was just written.
            let sums = unsafe { std::slice::from_raw_parts(sums.as_ptr().cast::<f32>(), width) };
            // SAFETY: as above.
            let inverse = unsafe { inverse_of_row::<L>(sums, norm.1) };
            for ((out, sum), weight) in out.iter_mut().zip(sums).zip(norm.0) {
                out.write(normed(*sum, inverse, *weight));
            }
        }
    }
    let (width, len) = (norm.0.len().max(1), out.len());
    assert!([residual.len(), branch.len(), sums.len()] == [len; 3] && len.is_multiple_of(width), "whole rows");
    assert!(branch_norm.is_none_or(|(weight, _)| weight.len() == norm.0.len()), "a weight for every column");
    let all = Output(sums.as_mut_ptr().cast());
    in_pieces(out, TASK.div_ceil(width) * width, |first, out| {
        let [residual, branch] = [residual, branch].map(|values| &values[first..first + out.len()]);
        // SAFETY: this task has these sums to itself.
        let sums = unsafe { std::slice::from_raw_parts_mut(all.at(first).cast(), out.len()) };
        with_isa!(isa, kernel(
            residual: &[f32],
            branch: &[f32],
            branch_norm: Option<Norm<'_>>,
            norm: Norm<'_>,
            sums: &mut [MaybeUninit<f32>],
            out: &mut [MaybeUninit<f32>],
        ));
    });
}

/// `out = x + bias` for each row, as long as `bias`.
pub(crate) fn add_bias(isa: Isa, x: &[f32], bias: &[f32], out: &mut [MaybeUninit<f32>]) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(x: &[f32], bias: &[f32], out: &mut [MaybeUninit<f32>]) {
        each_with_bias(x, bias, out, |x| x);
    }
    in_rows(out, x, bias, |x, out| {
        with_isa!(isa, kernel(x: &[f32], bias: &[f32], out: &mut [MaybeUninit<f32>]));
    });
}

/// [`add_bias`] where there is one.
pub(crate) fn biased(isa: Isa, x: Vec<f32>, bias: Option<&[f32]>) -> Vec<f32> {
    let Some(bias) = bias else { return x };
    // SAFETY: it writes every value.
    unsafe { written(x.len(), |out| add_bias(isa, &x, bias, out)) }
}

/// `out = gelu(x + bias)` for each row, as long as `bias`.
pub(crate) fn gelu_of_biased(isa: Isa, x: &[f32], bias: &[f32], out: &mut [MaybeUninit<f32>]) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(x: &[f32], bias: &[f32], out: &mut [MaybeUninit<f32>]) {
        each_with_bias(x, bias, out, math::gelu);
    }
    in_rows(out, x, bias, |x, out| {
        with_isa!(isa, kernel(x: &[f32], bias: &[f32], out: &mut [MaybeUninit<f32>]));
    });
}

#[inline(always)]
fn each_with_bias(x: &[f32], bias: &[f32], out: &mut [MaybeUninit<f32>], function: impl Fn(f32) -> f32) {
    for (x, out) in x.chunks_exact(bias.len()).zip(out.chunks_exact_mut(bias.len())) {
        for ((out, x), bias) in out.iter_mut().zip(x).zip(bias) {
            out.write(function(x + bias));
        }
    }
}

/// Hands rows of `x`, as long as `row`, and their places in `out` to `task`: to all threads where there are several.
fn in_rows(
    out: &mut [MaybeUninit<f32>],
    x: &[f32],
    row: &[f32],
    task: impl Fn(&[f32], &mut [MaybeUninit<f32>]) + Sync,
) {
    let width = row.len().max(1);
    assert!(x.len() == out.len() && x.len().is_multiple_of(width), "whole rows");
    in_pieces(out, TASK.div_ceil(width) * width, |first, out| task(&x[first..first + out.len()], out));
}

/// `out = (x - mean) / sqrt(variance + eps) · weight + bias` for each row, as long as `weight` and `bias`.
pub(crate) fn layer_norm(isa: Isa, x: &[f32], [weight, bias]: [&[f32]; 2], eps: f32, out: &mut [MaybeUninit<f32>]) {
    /// The sum of `value(x)`, in sixteen parts that vectors hold.
    #[inline(always)]
    fn sum(row: &[f32], value: impl Fn(f32) -> f32) -> f32 {
        let (parts, rest) = row.as_chunks::<16>();
        let mut sums = [0f32; 16];
        for part in parts {
            for (sum, x) in sums.iter_mut().zip(part) {
                *sum += value(*x);
            }
        }
        sums.into_iter().sum::<f32>() + rest.iter().map(|x| value(*x)).sum::<f32>()
    }
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [MaybeUninit<f32>]) {
        let width = weight.len();
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let mean = sum(x, |x| x) / width as f32;
            let variance = sum(x, |x| (x - mean) * (x - mean)) / width as f32;
            let inverse = 1.0 / (variance + eps).sqrt();
            for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                out.write((x - mean) * inverse * weight + bias);
            }
        }
    }
    assert_eq!(bias.len(), weight.len(), "whole rows");
    in_rows(out, x, weight, |x, out| {
        with_isa!(isa, kernel(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [MaybeUninit<f32>]));
    });
}

/// `out = cap · tanh(x / cap)`.
pub(crate) fn softcap(isa: Isa, x: &[f32], cap: f32, out: &mut [MaybeUninit<f32>]) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(x: &[f32], cap: f32, out: &mut [MaybeUninit<f32>]) {
        for (out, x) in out.iter_mut().zip(x) {
            out.write(math::softcap(*x, cap));
        }
    }
    assert_eq!(x.len(), out.len(), "a value for each");
    in_pieces(out, TASK, |first, out| {
        let x = &x[first..first + out.len()];
        with_isa!(isa, kernel(x: &[f32], cap: f32, out: &mut [MaybeUninit<f32>]));
    });
}

/// The gradients of [`geglu`] with respect to `gate` and `up`, in their places: with `σ` the logistic function and `u` as
/// there, `gelu(z) = z σ(2u)` and `gelu'(z) = σ(2u) + 2 z σ(2u) (1 − σ(2u)) u'(z)`.
pub(crate) fn geglu_gradient(isa: Isa, from_above: &[f32], gate: &mut [f32], up: &mut [f32]) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(g: &[f32], gate: &mut [f32], up: &mut [f32]) {
        const ROOT_2_OVER_PI: f32 = 0.797_884_6;
        for ((g, gate), up) in g.iter().zip(gate).zip(up) {
            let z = *gate;
            let square = z * z;
            let u = ROOT_2_OVER_PI * (z + 0.044715 * z * square);
            let logistic = 1.0 / (1.0 + math::exp(-2.0 * u));
            let slope = 2.0 * ROOT_2_OVER_PI * z * (1.0 + 3.0 * 0.044715 * square) * logistic * (1.0 - logistic);
            // further out the curve is straight, and its square may be infinite
            let slope = if z.abs() < 30.0 { slope } else { 0.0 };
            let kept = if z < -1e4 { z * 0.0 } else { z };
            *gate = g * *up * (logistic + slope);
            *up = g * kept * logistic;
        }
    }
    assert!(from_above.len() == gate.len() && up.len() == gate.len(), "one gate per value");
    let (gates, ups) = (Output(gate.as_mut_ptr()), Output(up.as_mut_ptr()));
    let len = gate.len();
    pool::for_each(len.div_ceil(TASK), |task| {
        let range = task * TASK..((task + 1) * TASK).min(len);
        let g = &from_above[range.clone()];
        // SAFETY: this task owns these values of both.
        let [gate, up] =
            [gates, ups].map(|values| unsafe { std::slice::from_raw_parts_mut(values.at(range.start), range.len()) });
        with_isa!(isa, kernel(g: &[f32], gate: &mut [f32], up: &mut [f32]));
    });
}

/// The gradient of [`rms_norm`] with respect to `x`: with `h = g (1 + weight)` and `s = 1 / sqrt(mean(x²) + eps)`,
/// `s h − x s³ mean(h x)`.
pub(crate) fn rms_norm_gradient(
    isa: Isa,
    from_above: &[f32],
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [MaybeUninit<f32>],
) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(g: &[f32], x: &[f32], weight: &[f32], eps: f32, out: &mut [MaybeUninit<f32>]) {
        let width = weight.len();
        let rows = g.chunks_exact(width).zip(x.chunks_exact(width));
        for ((g, x), out) in rows.zip(out.chunks_exact_mut(width)) {
            let whole = width / L::N * L::N;
            // SAFETY: the loads stay inside the rows, and the lanes' instructions are available.
            let (mut squares, mut products) = unsafe {
                let one = L::splat(1.0);
                let (mut squares, mut products) = (L::splat(0.0), L::splat(0.0));
                for i in (0..whole).step_by(L::N) {
                    let values = L::load(x.as_ptr().add(i));
                    let h = L::load(g.as_ptr().add(i)).mul(L::load(weight.as_ptr().add(i)).add(one));
                    squares = values.mul_add(values, squares);
                    products = values.mul_add(h, products);
                }
                (squares.sum(), products.sum())
            };
            for i in whole..width {
                squares += x[i] * x[i];
                products += x[i] * g[i] * (1.0 + weight[i]);
            }
            let inverse = 1.0 / (squares / width as f32 + eps).sqrt();
            let back = inverse * inverse * inverse * (products / width as f32);
            for (((out, g), x), weight) in out.iter_mut().zip(g).zip(x).zip(weight) {
                out.write(inverse * g * (1.0 + weight) - x * back);
            }
        }
    }
    let width = weight.len().max(1);
    assert!(x.len() == out.len() && from_above.len() == out.len() && x.len().is_multiple_of(width), "whole rows");
    in_pieces(out, TASK.div_ceil(width) * width, |first, out| {
        let [g, x] = [from_above, x].map(|values| &values[first..first + out.len()]);
        with_isa!(isa, kernel(g: &[f32], x: &[f32], weight: &[f32], eps: f32, out: &mut [MaybeUninit<f32>]));
    });
}

/// Turns logits, capped to `cap tanh(logit / cap)` where there is a cap, into `e^(logit − largest)` times the slope of the
/// cap, and minus infinity into nothing. `largest` is that of these and of what is given. Returns it and the sum of the
/// exponentials.
pub fn softmax_terms(logits: &mut [f32], largest: f32, softcap: Option<f32>) -> (f32, f64) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(logits: &mut [f32], largest: f32, softcap: Option<f32>) -> (f32, f64) {
        const SUMS: usize = 16;
        if let Some(cap) = softcap {
            for logit in &mut *logits {
                let capped = math::softcap(*logit, cap);
                *logit = if *logit == f32::NEG_INFINITY { *logit } else { capped };
            }
        }
        let mut most = [largest; SUMS];
        for part in logits.chunks(SUMS) {
            for (most, logit) in most.iter_mut().zip(part) {
                *most = if *logit > *most { *logit } else { *most };
            }
        }
        let largest = most.into_iter().fold(largest, f32::max);
        let mut sum = 0.0f64;
        // a few hundred terms at a time in f32, whose sums are f64
        for part in logits.chunks_mut(1024) {
            let mut sums = [0f32; SUMS];
            for part in part.chunks_mut(SUMS) {
                for (sum, logit) in sums.iter_mut().zip(part) {
                    let exponential = math::exp(*logit - largest);
                    *sum += exponential;
                    let slope = softcap.map_or(1.0, |cap| 1.0 - (*logit / cap) * (*logit / cap));
                    *logit = if exponential > 0.0 { exponential * slope } else { exponential };
                }
            }
            sum += f64::from(sums.into_iter().sum::<f32>());
        }
        (largest, sum)
    }
    let isa = cpu_isa();
    with_isa!(isa, kernel(logits: &mut [f32], largest: f32, softcap: Option<f32>) -> (f32, f64))
}

/// Turns `x` `[tokens, heads, head_dim]` by `angles`, the cosines and the sines, `[tokens, half]` each, forwards (1) or back
/// (−1); `dims` are heads, head_dim and half.
pub(crate) fn rotate(
    isa: Isa,
    x: &[f32],
    angles: [&[f32]; 2],
    dims: [usize; 3],
    direction: f32,
    out: &mut [MaybeUninit<f32>],
) {
    type Angles<'a> = [&'a [f32]; 2];
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(
        x: &[f32],
        angles: Angles<'_>,
        dims: [usize; 3],
        way: f32,
        out: &mut [MaybeUninit<f32>],
    ) {
        let [heads, head_dim, half] = dims;
        for (index, (x, out)) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
            let [cos, sin] = angles.map(|angles| &angles[index / heads * half..][..half]);
            let ((a, b), rest) = (x[..2 * half].split_at(half), &x[2 * half..]);
            let (turned, passed) = out.split_at_mut(2 * half);
            let (first, second) = turned.split_at_mut(half);
            for i in 0..half {
                let sin = way * sin[i];
                first[i].write(a[i] * cos[i] - b[i] * sin);
                second[i].write(b[i] * cos[i] + a[i] * sin);
            }
            passed.write_copy_of_slice(rest);
        }
    }
    let [heads, head_dim, half] = dims;
    let token = heads * head_dim;
    assert!(x.len() == out.len() && x.len().is_multiple_of(token.max(1)) && 2 * half <= head_dim, "whole heads");
    in_pieces(out, TASK.div_ceil(token.max(1)) * token, |first, out| {
        let x = &x[first..first + out.len()];
        let angles = angles.map(|angles| &angles[first / token * half..]);
        let way = direction;
        with_isa!(isa, kernel(x: &[f32], angles: Angles<'_>, dims: [usize; 3], way: f32, out: &mut [MaybeUninit<f32>]));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::places;

    fn wave(len: usize, step: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * step % 211) as f32 / 105.0 - 1.0) * 5.0).collect()
    }

    /// Every instruction set against f64, sizes around the vectors and the pieces.
    #[test]
    fn every_isa_agrees_with_f64() {
        for (rows, width) in [(1, 1), (3, 17), (2, 64), (5, 100), (9, 4099)] {
            let (x, y, weight) = (wave(rows * width, 37), wave(rows * width, 53), wave(width, 11));
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; x.len()];
                geglu(isa, &x, &y, places(&mut out));
                for (i, out) in out.iter().enumerate() {
                    let (z, up) = (f64::from(x[i]), f64::from(y[i]));
                    let inner = (2.0 / std::f64::consts::PI).sqrt() * (z + 0.044715 * z.powi(3));
                    let exact = 0.5 * z * (1.0 + inner.tanh()) * up;
                    assert!((f64::from(*out) - exact).abs() < 2e-5, "{isa:?} geglu({z}, {up}) = {out}");
                }
                gelu_of_biased(isa, &x, &weight, places(&mut out));
                for (i, out) in out.iter().enumerate() {
                    let z = f64::from(x[i]) + f64::from(weight[i % width]);
                    let inner = (2.0 / std::f64::consts::PI).sqrt() * (z + 0.044715 * z.powi(3));
                    let exact = 0.5 * z * (1.0 + inner.tanh());
                    assert!((f64::from(*out) - exact).abs() < 4e-6, "{isa:?} gelu({z}) = {out}");
                }
                rms_norm(isa, &x, &weight, 1e-6, places(&mut out));
                for branch_norm in [None, Some((&weight[..], 1e-6))] {
                    let branch = if branch_norm.is_some() { &out } else { &x };
                    let expected: Vec<f32> = y.iter().zip(branch).map(|(y, branch)| y + branch).collect();
                    let [mut sums, mut normed, mut expected_norm] = [(); 3].map(|()| vec![f32::NAN; x.len()]);
                    rms_norm(isa, &expected, &weight, 1e-3, places(&mut expected_norm));
                    let places_of_sums = places(&mut sums);
                    add_then_norm(isa, [&y, &x], branch_norm, (&weight, 1e-3), places_of_sums, places(&mut normed));
                    let context = format!("{isa:?} {rows} x {width} {}", branch_norm.is_some());
                    assert!(sums == expected && normed == expected_norm, "{context}");
                }
                for (row, out) in x.chunks(width).zip(out.chunks(width)) {
                    let square: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
                    let inverse = 1.0 / (square / width as f64 + 1e-6).sqrt();
                    for ((x, out), weight) in row.iter().zip(out).zip(&weight) {
                        let exact = f64::from(*x) * inverse * (1.0 + f64::from(*weight));
                        assert!((f64::from(*out) - exact).abs() < 1e-5, "{isa:?} norm {out} {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn heads_turn_by_the_angles_of_their_token() {
        for (tokens, heads, head_dim, half) in [(1, 1, 2, 1), (3, 2, 7, 3), (40, 8, 64, 16), (5, 3, 256, 128)] {
            let x = wave(tokens * heads * head_dim, 37);
            let angles = [wave(tokens * half, 13), wave(tokens * half, 29)];
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; x.len()];
                rotate(isa, &x, [&angles[0], &angles[1]], [heads, head_dim, half], 1.0, places(&mut out));
                for (i, out) in out.iter().enumerate() {
                    let (token, d) = (i / (heads * head_dim), i % head_dim);
                    let (c, s) = (angles[0][token * half + d % half], angles[1][token * half + d % half]);
                    let exact = match d / half {
                        0 => x[i] * c - x[i + half] * s,
                        1 => x[i] * c + x[i - half] * s,
                        _ => x[i],
                    };
                    assert!((out - exact).abs() < 1e-4, "{isa:?} {tokens} {heads} {head_dim} {half} at {i}");
                }
                // back by the same angles, which are no unit vectors here
                let mut back = vec![f32::NAN; x.len()];
                rotate(isa, &out, [&angles[0], &angles[1]], [heads, head_dim, half], -1.0, places(&mut back));
                for (i, back) in back.iter().enumerate() {
                    let (token, d) = (i / (heads * head_dim), i % head_dim);
                    let (c, s) = (angles[0][token * half + d % half], angles[1][token * half + d % half]);
                    let stretched = if d < 2 * half { x[i] * (c * c + s * s) } else { x[i] };
                    assert!((back - stretched).abs() < 1e-2, "{isa:?} {tokens} {heads} {head_dim} {half} at {i}");
                }
            }
        }
    }

    /// Against the difference quotients of the formulas in f64.
    #[test]
    fn gradients_are_those_of_finite_differences() {
        let gelu = |z: f64| 0.5 * z * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (z + 0.044715 * z.powi(3))).tanh());
        for (rows, width) in [(1, 1), (3, 17), (2, 64), (9, 4099)] {
            let (x, y, weight) = (wave(rows * width, 37), wave(rows * width, 53), wave(width, 11));
            let above = wave(rows * width, 71);
            for isa in Isa::available() {
                let (mut of_gate, mut of_up) = (x.clone(), y.clone());
                geglu_gradient(isa, &above, &mut of_gate, &mut of_up);
                for i in 0..x.len() {
                    let (g, z, up) = (f64::from(above[i]), f64::from(x[i]), f64::from(y[i]));
                    let slope = (gelu(z + 1e-5) - gelu(z - 1e-5)) / 2e-5;
                    assert!((f64::from(of_gate[i]) - g * up * slope).abs() < 1e-4, "{isa:?} gate {z} {up}");
                    assert!((f64::from(of_up[i]) - g * gelu(z)).abs() < 1e-4, "{isa:?} up {z}");
                }
                let mut out = vec![f32::NAN; x.len()];
                rms_norm_gradient(isa, &above, &x, &weight, 1e-6, places(&mut out));
                for (row, found) in out.chunks(width).enumerate() {
                    let part = |values: &[f32]| -> Vec<f64> {
                        values[row * width..][..width].iter().map(|value| f64::from(*value)).collect()
                    };
                    let (x, above) = (part(&x), part(&above));
                    let along = |x: &[f64]| -> f64 {
                        let root = (x.iter().map(|x| x * x).sum::<f64>() / width as f64 + 1e-6).sqrt();
                        let terms = x.iter().zip(&above).zip(&weight);
                        terms.map(|((x, g), weight)| g * x / root * (1.0 + f64::from(*weight))).sum()
                    };
                    for place in [0, width / 2, width - 1] {
                        let moved = |by: f64| {
                            let mut x = x.clone();
                            x[place] += by;
                            along(&x)
                        };
                        let slope = (moved(1e-4) - moved(-1e-4)) / 2e-4;
                        let error = (f64::from(found[place]) - slope).abs();
                        assert!(error < 1e-3 * (1.0 + slope.abs()), "{isa:?} {width}: {} {slope}", found[place]);
                    }
                }
            }
        }
    }

    #[test]
    fn softmax_terms_are_exponentials_and_slopes() {
        let logits = wave(1031, 37);
        for (largest, softcap) in
            [(f32::NEG_INFINITY, None), (9.0, None), (f32::NEG_INFINITY, Some(2.0)), (1.0, Some(7.0))]
        {
            let capped = |logit: f32| match softcap {
                Some(cap) => f64::from(cap) * (f64::from(logit) / f64::from(cap)).tanh(),
                None => f64::from(logit),
            };
            let most = logits.iter().map(|logit| capped(*logit)).fold(f64::from(largest), f64::max);
            let mut terms = logits.clone();
            let (found, sum) = softmax_terms(&mut terms, largest, softcap);
            assert!((f64::from(found) - most).abs() < 1e-5, "{found} {most}");
            let expected: f64 = logits.iter().map(|logit| (capped(*logit) - most).exp()).sum();
            assert!((sum - expected).abs() < 1e-5 * expected, "{sum} {expected}");
            for (term, logit) in terms.iter().zip(&logits) {
                let slope = softcap.map_or(1.0, |cap| 1.0 - (capped(*logit) / f64::from(cap)).powi(2));
                assert!((f64::from(*term) - (capped(*logit) - most).exp() * slope).abs() < 1e-5, "{logit}");
            }
        }
        for softcap in [None, Some(1.0)] {
            let mut terms = [0.0, f32::NEG_INFINITY];
            assert_eq!(softmax_terms(&mut terms, 0.0, softcap), (0.0, 1.0));
            assert_eq!(terms, [1.0, 0.0], "minus infinity is nothing");
        }
        let (_, sum) = softmax_terms(&mut [0.0, f32::NAN], 0.0, None);
        assert!(sum.is_nan(), "what is no number shows");
    }

    #[test]
    fn large_gates_saturate() {
        for isa in Isa::available() {
            let large = [100.0, 1e4, 1e30, f32::MAX];
            let mut out = [f32::NAN; 4];
            geglu(isa, &large, &[1.0; 4], places(&mut out));
            assert_eq!(out, large, "{isa:?}");
            geglu(isa, &large.map(|gate| -gate), &[1.0; 4], places(&mut out));
            assert!(out.iter().all(|value| value.abs() < 1e-30), "{isa:?} {out:?}");
            let (mut of_gate, mut of_up) = (large, [1.0; 4]);
            geglu_gradient(isa, &[1.0; 4], &mut of_gate, &mut of_up);
            assert_eq!((of_gate, of_up), ([1.0; 4], large), "{isa:?}");
            let (mut of_gate, mut of_up) = (large.map(|gate| -gate), [1.0; 4]);
            geglu_gradient(isa, &[1.0; 4], &mut of_gate, &mut of_up);
            assert!(of_gate.iter().chain(&of_up).all(|value| value.abs() < 1e-30), "{isa:?} {of_gate:?} {of_up:?}");
            geglu(isa, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0], &[1.0; 4], places(&mut out));
            assert!(out[..3].iter().all(|value| !value.is_finite()) && out[3].is_finite(), "{isa:?} {out:?}");
        }
    }
}
