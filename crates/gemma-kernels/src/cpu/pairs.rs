//! Products of many tokens in bf16: both sides are rounded to it, which weights may be already.
//!
//! Two values side by side are a word of 32 bits; what multiplies words pair by pair is otherwise just like
//! [`blocked`](super::blocked) products of f32.

use super::amx;
use super::blocked::{self, DEPTH, Scratch, Unit, Work, with_scratch};
use super::buffer::Buffer;
use super::decode::decode;
use super::lanes::{Avx512, Pairs};
use super::level::Level;
use super::linear::Shape;
use super::output::Output;
use super::pool;
use super::tile::{self, Ahead, Left, Right, Sums};
use crate::Format;
use half::bf16;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_permutexvar_epi16,
    _mm512_storeu_ps, _mm512_storeu_si512,
};
use std::ops::Range;

/// `out[t, r] = Σ_c x[t, c] w[r, c]`, at [`Level::Avx512Bf16`] and above, for an even number of columns; see
/// [`linear`](super::linear()).
pub(super) fn multiply(level: Level, x: &[f32], weight: &[u8], shape: Shape, out: Output) {
    assert!(level >= Level::Avx512Bf16 && shape.cols.is_multiple_of(2), "pairs");
    if level >= Level::Amx {
        // SAFETY: the level says that the CPU has the instructions.
        with_unit::<amx::Tiled<amx::Hardware>>(level, x, weight, shape, out, |work, range, scratch| unsafe {
            tiles(work, range, scratch)
        });
    } else {
        // SAFETY: as above.
        with_unit::<Vectors>(level, x, weight, shape, out, |work, range, scratch| unsafe {
            vectors(work, range, scratch)
        });
    }
}

/// `stretch` is called with whole panels of the unit.
fn with_unit<U: Unit>(
    level: Level,
    x: &[f32],
    weight: &[u8],
    shape: Shape,
    out: Output,
    stretch: impl Fn(&Work<'_>, Range<usize>, &mut Scratch) + Sync,
) {
    let words = paired(x, shape);
    let packed = blocked::pack(level, &words, shape.tokens, shape.cols / 2, U::STEP);
    let work = Work { packed: &packed, weight, shape, out };
    with_scratch(shape, U::PANEL, |range, scratch| stretch(&work, range, scratch));
}

/// # Safety
/// As [`blocked::stretch`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn vectors(work: &Work<'_>, range: Range<usize>, scratch: &mut Scratch) {
    // SAFETY: as required of the caller.
    unsafe { blocked::stretch::<Vectors>(work, range, scratch) };
}

/// # Safety
/// As [`blocked::stretch`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn tiles(work: &Work<'_>, range: Range<usize>, scratch: &mut Scratch) {
    // SAFETY: as required of the caller.
    unsafe { blocked::stretch::<amx::Tiled<amx::Hardware>>(work, range, scratch) };
}

/// Pairs in vectors.
struct Vectors;

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

/// A stretch of a packed row as words of two bf16 values.
///
/// # Safety
/// As [`decode`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn decode_pairs(format: Format, bytes: &[u8], words: &mut [f32]) {
    if format == Format::Bf16 {
        // SAFETY: as required of the caller; these are words as they lie.
        return unsafe { decode::<Avx512>(Format::F32, bytes, words) };
    }
    let mut values = [0f32; 2 * DEPTH];
    let values = &mut values[..2 * words.len()];
    // SAFETY: as required of the caller.
    unsafe { decode::<Avx512>(format, bytes, values) };
    pair(values, words);
}

/// ActivationPrecision `[tokens, cols]` as words, `[tokens, cols / 2]`.
fn paired(x: &[f32], shape: Shape) -> Buffer<f32> {
    let cols = shape.cols;
    let mut words = Buffer::<f32>::zeroed(x.len() / 2);
    let to = Output(words.as_mut_ptr());
    pool::for_each(shape.tokens, |token| {
        // SAFETY: a token's words belong to its task, and the CPU has the instructions.
        unsafe {
            let row = std::slice::from_raw_parts_mut(to.at(token * cols / 2), cols / 2);
            pair(&x[token * cols..(token + 1) * cols], row);
        }
    });
    words
}

/// Words of two values each.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn pair(values: &[f32], words: &mut [f32]) {
    let (vectors, rest) = values.as_chunks::<32>();
    let (wide, narrow) = words.as_chunks_mut::<16>();
    for (values, words) in vectors.iter().zip(wide) {
        // SAFETY: 32 values and 16 words are there.
        unsafe {
            let (first, second) = (_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16)));
            let pairs = _mm512_cvtne2ps_pbh(second, first);
            _mm512_storeu_ps(words.as_mut_ptr(), std::mem::transmute::<__m512bh, __m512>(pairs));
        }
    }
    for (pair, word) in rest.as_chunks::<2>().0.iter().zip(narrow) {
        let [low, high] = pair.map(|value| u32::from(bf16::from_f32(value).to_bits()));
        *word = f32::from_bits(low | high << 16);
    }
}

/// `len` words, each of a value of `first` and the one of `second` at the same place. They may replace `first`.
///
/// # Safety
/// The CPU must have the instructions, and all values and words must be there.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn interleave(first: *const f32, second: *const f32, len: usize, words: *mut f32) {
    // value `i` of `first` in place 2 i, that of `second` behind it
    let places: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 16) as u16);
    // SAFETY: as required of the caller; each vector is read before it is written.
    unsafe {
        let places = _mm512_loadu_si512(places.as_ptr().cast());
        let whole = len / 16 * 16;
        for i in (0..whole).step_by(16) {
            let halves = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(second.add(i)), _mm512_loadu_ps(first.add(i)));
            let pairs = _mm512_permutexvar_epi16(places, std::mem::transmute::<__m512bh, __m512i>(halves));
            _mm512_storeu_si512(words.add(i).cast(), pairs);
        }
        for i in whole..len {
            let [low, high] = [first, second].map(|from| u32::from(bf16::from_f32(*from.add(i)).to_bits()));
            *words.add(i) = f32::from_bits(low | high << 16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the CPU multiplies pairs faster or not: the products are those of both sides' nearest bf16, in
    /// vectors, in tiles where there are any, and in modelled ones.
    #[test]
    fn pairs_are_multiplied_as_bf16_values() {
        /// # Safety
        /// As [`blocked::stretch`].
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
        unsafe fn modelled(work: &Work<'_>, range: Range<usize>, scratch: &mut Scratch) {
            // SAFETY: as required of the caller.
            unsafe { blocked::stretch::<amx::Tiled<amx::tests::Modelled>>(work, range, scratch) };
        }
        type Multiply = fn(Level, &[f32], &[u8], Shape, Output);
        let in_the_model: Multiply = |level, x, weight, shape, out| {
            // SAFETY: the level says that the CPU has the instructions.
            with_unit::<amx::Tiled<amx::tests::Modelled>>(
                level,
                x,
                weight,
                shape,
                out,
                |work, range, scratch| unsafe { modelled(work, range, scratch) },
            );
        };
        let shapes = [(1, 1, 2), (9, 13, 66), (33, 40, 514), (70, 25, 1030), (5, 7, 96), (17, 30, 1280), (530, 70, 32)];
        for level in Level::available().into_iter().filter(|level| *level >= Level::Avx512Bf16) {
            let ways: [(&str, Multiply); 2] = [("the level's", multiply), ("modelled", in_the_model)];
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
                    multiply(level, &x, &weight, shape, Output(out.as_mut_ptr()));
                    for (i, found) in out.iter().enumerate() {
                        let value = |value: f32| bf16::from_f32(value).to_f64();
                        let (x, w) = (&x[i / rows * cols..][..cols], &values[i % rows * cols..][..cols]);
                        let exact: f64 = x.iter().zip(w).map(|(x, w)| value(*x) * value(*w)).sum();
                        // a decoded value next to the middle of two bf16 may be rounded to either
                        let near = if format.block_len() == 1 { 1e-4 } else { 1e-2 };
                        let context = format!("{way}: {format} {tokens} {rows} {cols} at {i}");
                        assert!((f64::from(*found) - exact).abs() < near, "{context}: {found} {exact}");
                    }
                }
            }
        }
    }
}
