//! Two bf16 values in a word of 32 bits, the earlier one in the lower half.

use crate::Format;
use crate::cpu::dequantize::decode;
use crate::cpu::isa::Avx512;
use half::bf16;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_permutexvar_epi16,
    _mm512_storeu_ps, _mm512_storeu_si512,
};

/// The most words that [`decode_pairs`] takes at once.
pub(in crate::cpu) const MOST_WORDS: usize = 256;

/// A stretch of a packed row as words of two bf16 values.
///
/// # Safety
/// As [`decode`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn decode_pairs(format: Format, bytes: &[u8], words: &mut [f32]) {
    if format == Format::Bf16 {
        // SAFETY: as required of the caller; these are words as they lie.
        return unsafe { decode::<Avx512>(Format::F32, bytes, words) };
    }
    // SAFETY: as required of the caller.
    unsafe {
        match words.len() {
            ..=32 => through_values::<64>(format, bytes, words),
            _ => through_values::<{ 2 * MOST_WORDS }>(format, bytes, words),
        }
    }
}

/// Up to half as many words as `MOST`, from values in f32.
///
/// # Safety
/// As [`decode`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn through_values<const MOST: usize>(format: Format, bytes: &[u8], words: &mut [f32]) {
    let mut values = [0f32; MOST];
    let values = &mut values[..2 * words.len()];
    // SAFETY: as required of the caller.
    unsafe { decode::<Avx512>(format, bytes, values) };
    pair(values, words);
}

/// The same stretch of a packed row and of the next one as words, each of a value of the first and the one of the second
/// at the same place; zeros where there is no next row.
///
/// # Safety
/// As [`decode`]; there are at most [`MOST_WORDS`] words.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn decode_rows(format: Format, row: &[u8], next: Option<&[u8]>, words: &mut [f32]) {
    let len = words.len();
    if let (Format::Bf16, Some(next)) = (format, next) {
        let (halves, others) = (&row.as_chunks::<2>().0[..len], &next.as_chunks::<2>().0[..len]);
        for ((word, low), high) in words.iter_mut().zip(halves).zip(others) {
            let [low, high] = [low, high].map(|half| u32::from(u16::from_le_bytes(*half)));
            *word = f32::from_bits(low | high << 16);
        }
        return;
    }
    let mut values = [[0f32; MOST_WORDS]; 2];
    // SAFETY: as required of the caller.
    unsafe {
        decode::<Avx512>(format, row, &mut values[0][..len]);
        if let Some(next) = next {
            decode::<Avx512>(format, next, &mut values[1][..len]);
        }
        interleave(values[0].as_ptr(), values[1].as_ptr(), len, words.as_mut_ptr());
    }
}

/// Words of two values each.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(in crate::cpu) fn pair(values: &[f32], words: &mut [f32]) {
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

/// Words of what the nearest bf16 of each value leaves of it, rounded to bf16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(in crate::cpu) fn pair_rest(values: &[f32], words: &mut [f32]) {
    for (values, words) in values.chunks(64).zip(words.chunks_mut(32)) {
        let mut rest = [0f32; 64];
        pair(values, words);
        for ((rest, values), word) in rest.as_chunks_mut::<2>().0.iter_mut().zip(values.as_chunks::<2>().0).zip(&*words)
        {
            let first = of_word(*word);
            // what is not finite is so in the first term
            *rest =
                [0, 1].map(|i| if values[i].is_finite() && first[i].is_finite() { values[i] - first[i] } else { 0.0 });
        }
        pair(&rest[..values.len()], words);
    }
}

/// The two values of a word.
pub(in crate::cpu) fn of_word(word: f32) -> [f32; 2] {
    let bits = word.to_bits();
    [bits << 16, bits & 0xffff_0000].map(f32::from_bits)
}

/// `len` words, each of a value of `first` and the one of `second` at the same place. They may replace `first`.
///
/// # Safety
/// The CPU must have the instructions, and all values and words must be there.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(in crate::cpu) unsafe fn interleave(first: *const f32, second: *const f32, len: usize, words: *mut f32) {
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
