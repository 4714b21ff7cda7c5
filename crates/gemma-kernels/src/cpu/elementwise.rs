//! Element by element and row by row: what lies between the products, in one pass, in which every value of `out` is
//! written.

use crate::cpu::isa::Lanes;
use crate::cpu::isa::{Isa, with_isa};
use crate::cpu::pool;
use crate::math;
use std::mem::MaybeUninit;
use std::sync::Mutex;

/// Values that are worth a task of their own.
const TASK: usize = 1 << 14;

/// Hands pieces of `out` of `len` values, and the place of each, to `task`: to all threads where there are several.
fn in_pieces(out: &mut [MaybeUninit<f32>], len: usize, task: impl Fn(usize, &mut [MaybeUninit<f32>]) + Sync) {
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

/// `out = gelu(gate) · up`, GELU in its tanh form: `½ (1 + tanh u) = 1 / (1 + e^(−2u))`.
pub(crate) fn geglu(isa: Isa, gate: &[f32], up: &[f32], out: &mut [MaybeUninit<f32>]) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(gate: &[f32], up: &[f32], out: &mut [MaybeUninit<f32>]) {
        const ROOT_2_OVER_PI: f32 = 0.797_884_6;
        for ((out, z), up) in out.iter_mut().zip(gate).zip(up) {
            let u = ROOT_2_OVER_PI * (z + 0.044715 * z * z * z);
            // `exp` does not grow without limit, but this far down nothing is left; times zero, infinity still shows
            let kept = if *z < -1e4 { z * 0.0 } else { *z };
            out.write(kept / (1.0 + math::exp(-2.0 * u)) * up);
        }
    }
    assert!(gate.len() == out.len() && up.len() == out.len(), "one gate per value");
    in_pieces(out, TASK, |first, out| {
        let (gate, up) = (&gate[first..first + out.len()], &up[first..first + out.len()]);
        with_isa!(isa, kernel(gate: &[f32], up: &[f32], out: &mut [MaybeUninit<f32>]));
    });
}

/// `out = x / sqrt(mean(x²) + eps) · (1 + weight)` for each row, as long as `weight`.
pub(crate) fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [MaybeUninit<f32>]) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: &mut [MaybeUninit<f32>]) {
        let width = weight.len();
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let whole = width / (2 * L::N) * 2 * L::N;
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
            let inverse = 1.0 / (sum / width as f32 + eps).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                out.write(x * inverse * (1.0 + weight));
            }
        }
    }
    let width = weight.len().max(1);
    assert!(x.len() == out.len() && x.len().is_multiple_of(width), "whole rows");
    in_pieces(out, TASK.div_ceil(width) * width, |first, out| {
        let x = &x[first..first + out.len()];
        with_isa!(isa, kernel(x: &[f32], weight: &[f32], eps: f32, out: &mut [MaybeUninit<f32>]));
    });
}

/// Turns `x` `[tokens, heads, head_dim]` by `angles`, the cosines and the sines, `[tokens, half]` each; `dims` are heads,
/// head_dim and half.
pub(crate) fn rotate(isa: Isa, x: &[f32], angles: [&[f32]; 2], dims: [usize; 3], out: &mut [MaybeUninit<f32>]) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(x: &[f32], angles: [&[f32]; 2], dims: [usize; 3], out: &mut [MaybeUninit<f32>]) {
        let [heads, head_dim, half] = dims;
        for (index, (x, out)) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
            let [cos, sin] = angles.map(|angles| &angles[index / heads * half..][..half]);
            let ((a, b), rest) = (x[..2 * half].split_at(half), &x[2 * half..]);
            let (turned, passed) = out.split_at_mut(2 * half);
            let (first, second) = turned.split_at_mut(half);
            for i in 0..half {
                first[i].write(a[i] * cos[i] - b[i] * sin[i]);
                second[i].write(b[i] * cos[i] + a[i] * sin[i]);
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
        with_isa!(isa, kernel(x: &[f32], angles: [&[f32]; 2], dims: [usize; 3], out: &mut [MaybeUninit<f32>]));
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
                rms_norm(isa, &x, &weight, 1e-6, places(&mut out));
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
                rotate(isa, &x, [&angles[0], &angles[1]], [heads, head_dim, half], places(&mut out));
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
            }
        }
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
            geglu(isa, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0], &[1.0; 4], places(&mut out));
            assert!(out[..3].iter().all(|value| !value.is_finite()) && out[3].is_finite(), "{isa:?} {out:?}");
        }
    }
}
