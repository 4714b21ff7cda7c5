//! Products of many tokens in bf16: activations are rounded to it, and so are weights that are not bf16 already, unless they
//! are [`scaled`] afterwards. With weights that are, activations can be the sum of two [terms](Terms) in bf16, which is nearly
//! exact and costs twice the multiplications.
//!
//! Two values side by side are a word of 32 bits; what multiplies words pair by pair is otherwise just like
//! [`panel`](super::panel) products of f32.

use crate::Format;
use crate::cpu::bf16::{decode_pairs, decode_rows, pair, pair_rest};
use crate::cpu::buffer::Buffer;
use crate::cpu::gemm::amx;
use crate::cpu::gemm::panel::{self, Scratch, Work, with_scratch};
use crate::cpu::gemm::scaled::{self, Scaled};
use crate::cpu::gemm::tile::{self, Ahead, Left, Right, Sums};
use crate::cpu::gemm::unit::{Across, DEPTH, Unit};
use crate::cpu::isa::{Isa, Pairs, pairs_are_faster};
use crate::cpu::product::{Product, joint};
use crate::cpu::shape::Shape;
use std::ops::Range;

/// Whether products of bf16 with bf16 can be had and are worth it.
pub(in crate::cpu) fn pays(isa: Isa) -> bool {
    isa >= Isa::Amx || isa >= Isa::Avx512Bf16 && pairs_are_faster()
}

/// What stands for an activation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::cpu) enum Terms {
    /// The nearest bf16.
    One,
    /// The nearest bf16, and the bf16 nearest to what it leaves: a relative error of at most 2^-17, 2.5e-6 of a product (rms).
    Two,
}

/// Whether products with these weights in two terms can be had and are faster than in f32: twice the multiplications are on
/// tiles, of which a CPU does ten times as many as with vectors of f32, and not with vectors of pairs, of which it does twice as
/// many.
pub(in crate::cpu) fn pays_twice(isa: Isa, format: Format) -> bool {
    isa >= Isa::Amx && format == Format::Bf16
}

/// `$function` with the unit that multiplies weights of a format.
macro_rules! with_unit_of {
    ($isa:expr, $format:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match scaled::parts($format) {
            _ if $isa >= Isa::Amx => $function::<amx::Tiled<amx::Hardware>>($($argument),*),
            Some((16, false)) => $function::<Scaled<16, false>>($($argument),*),
            Some((16, true)) => $function::<Scaled<16, true>>($($argument),*),
            Some((8, false)) => $function::<Scaled<8, false>>($($argument),*),
            _ => $function::<Vectors>($($argument),*),
        }
    };
}
pub(super) use with_unit_of;

/// Products of `x` with matrices, at [`Isa::Avx512Bf16`] and above, for an even number of columns; see
/// [`linear`](crate::cpu::linear()). Two terms are for weights in bf16.
pub(in crate::cpu) fn multiply(isa: Isa, terms: Terms, x: &[f32], products: &[Product<'_>]) {
    let shape = joint(products);
    assert!(isa >= Isa::Avx512Bf16 && shape.cols.is_multiple_of(2), "pairs");
    assert!(terms == Terms::One || shape.format == Format::Bf16, "weights that are exact");
    // SAFETY: the ISA says that the CPU has the instructions.
    unsafe { with_unit_of!(isa, shape.format, multiply_with(isa, terms, x, products)) };
}

/// [`multiply`] with a unit.
///
/// # Safety
/// The CPU must have the unit's instructions.
pub(super) unsafe fn multiply_with<U: Unit>(isa: Isa, terms: Terms, x: &[f32], products: &[Product<'_>]) {
    let shape = joint(products);
    // SAFETY: as required of the caller.
    let mut packed = vec![unsafe { pack::<U>(isa, x, shape) }];
    if terms == Terms::Two {
        packed.push(pack_with::<U>(isa, x, shape, |values, words| {
            // SAFETY: as above.
            unsafe { pair_rest(values, words) }
        }));
    }
    // SAFETY: as above; the activations are packed for the unit, and each task has rows of its own.
    unsafe { multiply_packed::<U>(&packed, products) };
}

/// The products of activations that are packed already, for the unit.
///
/// # Safety
/// As [`panel::stretch`].
pub(super) unsafe fn multiply_packed<U: Unit>(packed: &[Buffer<f32>], products: &[Product<'_>]) {
    /// # Safety
    /// As [`panel::stretch`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    unsafe fn stretch<U: Unit>(work: &Work<'_>, range: Range<usize>, scratch: &mut Scratch) {
        // SAFETY: as required of the caller.
        unsafe { panel::stretch::<U>(work, range, scratch) };
    }
    with_scratch(products, U::PANEL, |product, range, scratch| {
        // SAFETY: as required of the caller.
        unsafe { stretch::<U>(&Work { packed, product }, range, scratch) };
    });
}

/// Activations `[tokens, cols]`, rounded to bf16, as the unit multiplies them.
///
/// # Safety
/// As [`multiply_with`].
pub(super) unsafe fn pack<U: Unit>(isa: Isa, x: &[f32], shape: Shape) -> Buffer<f32> {
    let (row, rows) = (shape.cols / 2, U::right(shape.cols / 2));
    if rows > row {
        let words = scaled::with_sums(x, shape, row / (rows - row));
        return panel::pack(isa, shape.tokens, rows, U::STEP, |tokens, columns, _| {
            (words[tokens.start * rows + columns.start..].as_ptr(), rows)
        });
    }
    pack_with::<U>(isa, x, shape, |values, words| {
        // SAFETY: as required of the caller.
        unsafe { pair(values, words) }
    })
}

/// Activations as words that `words_of` makes of values.
fn pack_with<U: Unit>(isa: Isa, x: &[f32], shape: Shape, words_of: impl Fn(&[f32], &mut [f32]) + Sync) -> Buffer<f32> {
    panel::pack(isa, shape.tokens, shape.cols / 2, U::STEP, |tokens, columns, words| {
        for (token, words) in tokens.zip(words.chunks_exact_mut(DEPTH)) {
            let values = &x[token * shape.cols..][2 * columns.start..2 * columns.end];
            words_of(values, &mut words[..columns.len()]);
        }
        (words.as_ptr(), DEPTH)
    })
}

/// Pairs in vectors.
pub(in crate::cpu) struct Vectors;

impl Unit for Vectors {
    type Lanes = Pairs;
    const EACH: usize = 2;
    const PANEL: usize = 12;
    const STEP: usize = 1;

    #[inline(always)]
    unsafe fn decode(format: Format, bytes: &[u8], words: &mut [f32]) {
        // SAFETY: as required of the caller.
        unsafe { decode_pairs(format, bytes, words) };
    }

    #[inline(always)]
    unsafe fn multiply(panel: Left, rows: usize, block: Right, depth: usize, vectors: usize, sums: Sums, ahead: Ahead) {
        // SAFETY: as required of the caller.
        unsafe { tile::multiply::<Pairs>(panel, rows, block, depth, vectors, sums, ahead) };
    }
}

impl Across for Vectors {
    #[inline(always)]
    unsafe fn decode_across(format: Format, row: &[u8], next: Option<&[u8]>, words: &mut [f32]) {
        // SAFETY: as required of the caller.
        unsafe { decode_rows(format, row, next, words) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::output::Output;
    use half::bf16;

    type ModelledTiles = amx::Tiled<amx::tests::Modelled>;
    type Multiply = fn(Isa, Terms, &[f32], &[Product<'_>]);

    /// Whether the CPU multiplies pairs faster or not: the products are those of both sides' nearest bf16, or of the
    /// weights as they are where they are scaled afterwards, in vectors, in tiles where there are any, and in modelled ones.
    #[test]
    fn pairs_are_multiplied_as_bf16_values() {
        let in_the_model: Multiply = |isa, terms, x, products| {
            // SAFETY: the ISA says that the CPU has the instructions.
            unsafe { multiply_with::<ModelledTiles>(isa, terms, x, products) };
        };
        let shapes = [(1, 1, 2), (9, 13, 66), (33, 40, 514), (70, 25, 1030), (5, 7, 96), (17, 30, 1280), (530, 70, 32)];
        for isa in Isa::available().into_iter().filter(|isa| *isa >= Isa::Avx512Bf16) {
            let ways: [(&str, Multiply); 2] = [("the isa's", multiply), ("modelled", in_the_model)];
            for (format, (tokens, rows, cols)) in Format::ALL.into_iter().flat_map(|format| shapes.map(|s| (format, s)))
            {
                let Some(row_bytes) = format.row_bytes(cols) else { continue };
                let wave = |len: usize, step: usize| -> Vec<f32> {
                    (0..len).map(|i| (i * step % 1009) as f32 / 504.0 - 1.0).collect()
                };
                let (x, mut values) = (wave(tokens * cols, 37), wave(rows * cols, 61));
                let mut weight = vec![0; rows * row_bytes];
                for (values, bytes) in values.chunks_mut(cols).zip(weight.chunks_mut(row_bytes)) {
                    format.encode_row(values, bytes);
                    format.decode_row(bytes, values);
                }
                let shape = Shape { format, tokens, rows, cols, row_bytes };
                for (way, multiply) in ways {
                    let mut out = vec![f32::NAN; tokens * rows];
                    let product = Product { weight: &weight, shape, out: Output(out.as_mut_ptr()) };
                    multiply(isa, Terms::One, &x, &[product]);
                    for (i, found) in out.iter().enumerate() {
                        let value = |value: f32| bf16::from_f32(value).to_f64();
                        let scaled = way != "modelled" && isa < Isa::Amx && scaled::parts(format).is_some();
                        let weight = |weight: f32| if scaled { f64::from(weight) } else { value(weight) };
                        let (x, w) = (&x[i / rows * cols..][..cols], &values[i % rows * cols..][..cols]);
                        let exact: f64 = x.iter().zip(w).map(|(x, w)| value(*x) * weight(*w)).sum();
                        // a decoded value next to the middle of two bf16 may be rounded to either
                        let near = if scaled || format.block_len() == 1 { 1e-4 } else { 1e-2 };
                        let context = format!("{way}: {format} {tokens} {rows} {cols} at {i}");
                        assert!((f64::from(*found) - exact).abs() < near, "{context}: {found} {exact}");
                    }
                }
            }
        }
    }

    /// The error of a product with one term, and of one with two, which is docs/numerics.md's; in vectors and in modelled tiles.
    #[test]
    fn two_terms_are_nearly_exact() {
        let (tokens, rows, cols) = (37, 40, 1030);
        let row_bytes = Format::Bf16.row_bytes(cols).unwrap();
        let (x, mut values) = (crate::cpu::noise(tokens * cols, 1), crate::cpu::noise(rows * cols, 2));
        let mut weight = vec![0; rows * row_bytes];
        for (values, bytes) in values.chunks_mut(cols).zip(weight.chunks_mut(row_bytes)) {
            Format::Bf16.encode_row(values, bytes);
            Format::Bf16.decode_row(bytes, values);
        }
        let shape = Shape { format: Format::Bf16, tokens, rows, cols, row_bytes };
        for isa in Isa::available().into_iter().filter(|isa| *isa >= Isa::Avx512Bf16) {
            // SAFETY: the ISA says that the CPU has the instructions.
            let vectors: Multiply =
                |isa, terms, x, products| unsafe { multiply_with::<Vectors>(isa, terms, x, products) };
            // SAFETY: as above.
            let tiles: Multiply =
                |isa, terms, x, products| unsafe { multiply_with::<ModelledTiles>(isa, terms, x, products) };
            let ways = [multiply, vectors, tiles];
            for (way, multiply) in ways.into_iter().enumerate() {
                let error = |terms| {
                    let mut out = vec![f32::NAN; tokens * rows];
                    let product = Product { weight: &weight, shape, out: Output(out.as_mut_ptr()) };
                    multiply(isa, terms, &x, &[product]);
                    let exact = |i: usize| -> f64 {
                        let (x, w) = (&x[i / rows * cols..][..cols], &values[i % rows * cols..][..cols]);
                        x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
                    };
                    let squares = |value: f64| value * value;
                    let wrong: f64 = out.iter().enumerate().map(|(i, y)| squares(f64::from(*y) - exact(i))).sum();
                    (wrong / (0..out.len()).map(|i| squares(exact(i))).sum::<f64>()).sqrt()
                };
                let (one, two) = (error(Terms::One), error(Terms::Two));
                assert!((1e-3..4e-3).contains(&one), "{isa:?} {way}: {one}");
                assert!(two < 4e-6, "{isa:?} {way}: {two}");
            }
        }
    }

    /// What is not finite in an activation is so in the product, and only there.
    #[test]
    fn two_terms_keep_what_is_not_finite() {
        for isa in Isa::available().into_iter().filter(|isa| *isa >= Isa::Avx512Bf16) {
            let shape = Shape { format: Format::Bf16, tokens: 3, rows: 1, cols: 64, row_bytes: 128 };
            let weight: Vec<u8> = (0..64).flat_map(|_| bf16::from_f32(1.0).to_le_bytes()).collect();
            let mut x = vec![1.0f32; 3 * 64];
            (x[5], x[64 + 7]) = (f32::INFINITY, f32::NAN);
            let mut out = vec![0.0f32; 3];
            let product = Product { weight: &weight, shape, out: Output(out.as_mut_ptr()) };
            // SAFETY: the ISA says that the CPU has the instructions.
            unsafe { multiply_with::<Vectors>(isa, Terms::Two, &x, &[product]) };
            assert!(out[0] == f32::INFINITY && out[1].is_nan() && out[2] == 64.0, "{isa:?}: {out:?}");
        }
    }
}
