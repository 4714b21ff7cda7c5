//! Products of few tokens with quantized weights, in whole numbers.
//!
//! Within a block of 32 values the sum is exact; it is turned into f32 once, times the scales of both sides. With
//! VNNI, 16-bit activations are two products of bytes; elsewhere 16-bit numbers are multiplied as they are.

use super::level::Level;
use super::linear::{Output, Shape};
#[cfg(target_arch = "x86_64")]
use super::quantize::Split;
use super::quantize::Words;
#[cfg(target_arch = "x86_64")]
use super::superblocks;
use crate::{Activations, Format};
use half::f16;
use std::ops::Range;

/// The activations of a product, in the form that the level's kernel reads.
pub(super) enum Prepared {
    Words(Words),
    #[cfg(target_arch = "x86_64")]
    Split(Split),
}

/// Whether there are integer kernels for this format.
pub(super) fn has(level: Level, format: Format) -> bool {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512Vnni && superblocks::has(format) {
        return true;
    }
    let _ = level;
    matches!(format, Format::Q8_0 | Format::Q4_0)
}

/// Quantizes `x` `[tokens, cols]`.
pub(super) fn prepare(level: Level, x: &[f32], shape: Shape, activations: Activations) -> Prepared {
    #[cfg(target_arch = "x86_64")]
    let fine = activations != Activations::Coarse;
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (activations, shape);
    match level {
        #[cfg(target_arch = "x86_64")]
        level if level >= Level::Avx512Vnni => {
            let (format, cols) = (shape.format, shape.cols);
            // SAFETY: the level says that the processor has the instructions.
            Prepared::Split(unsafe {
                match format {
                    Format::Q4_0 => vnni::split(x, cols, fine, true, 8),
                    Format::Q8_0 => vnni::split(x, cols, fine, false, 128),
                    _ => superblocks::split(x, cols, fine, superblocks::part(format)),
                }
            })
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 | Level::Avx512 => Prepared::Words(unsafe { avx2::words(x) }),
        _ => Prepared::Words(Words::new(x)),
    }
}

/// The rows `range` of `out[t, r] = Σ_c x[t, c] w[r, c]`.
pub(super) fn multiply(level: Level, x: &Prepared, weight: &[u8], shape: Shape, range: Range<usize>, out: Output) {
    for row in range {
        let bytes = &weight[row * shape.row_bytes..(row + 1) * shape.row_bytes];
        let mut token = 0;
        while token < shape.tokens {
            let call = Call { bytes, shape, token, row, out };
            token += match shape.tokens - token {
                1 => tokens::<1>(level, x, &call),
                2 | 3 => tokens::<2>(level, x, &call),
                _ => tokens::<4>(level, x, &call),
            };
        }
    }
}

/// One row times some tokens, from `token` on. The calling task owns the row.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) shape: Shape,
    pub(super) token: usize,
    row: usize,
    out: Output,
}

impl Call<'_> {
    /// # Safety
    /// `t` must be one of the call's tokens.
    #[inline(always)]
    pub(super) unsafe fn write(&self, t: usize, sum: f32) {
        // SAFETY: the task owns the row, and the token exists.
        unsafe { *self.out.at((self.token + t) * self.shape.rows + self.row) = sum };
    }
}

#[inline(always)]
fn tokens<const M: usize>(level: Level, x: &Prepared, call: &Call<'_>) -> usize {
    #[cfg(target_arch = "x86_64")]
    let q4 = call.shape.format == Format::Q4_0;
    #[cfg(not(target_arch = "x86_64"))]
    let _ = level;
    match x {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level says that the processor has the instructions, `x` was prepared for this product, and it has
        // `M` tokens from the call's on.
        Prepared::Split(x) if superblocks::has(call.shape.format) => unsafe { superblocks::row::<M>(x, call) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Prepared::Split(x) => unsafe {
            match (q4, !x.high.is_empty()) {
                (false, true) => vnni::q8::<M, true>(x, call),
                (false, false) => vnni::q8::<M, false>(x, call),
                (true, true) => vnni::q4::<M, true>(x, call),
                (true, false) => vnni::q4::<M, false>(x, call),
            }
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Prepared::Words(x) if level >= Level::Avx2 => unsafe {
            if q4 { avx2::q4::<M>(x, call) } else { avx2::q8::<M>(x, call) }
        },
        Prepared::Words(x) => portable::<M>(x, call),
    }
    M
}

/// In plain Rust.
fn portable<const M: usize>(x: &Words, call: &Call<'_>) {
    let Shape { format, cols, .. } = call.shape;
    let block_bytes = format.block_bytes();
    let blocks = cols / 32;
    let mut sums = [0f32; M];
    for b in 0..blocks {
        let block = &call.bytes[b * block_bytes..(b + 1) * block_bytes];
        let mut weights = [0i16; 32];
        if format == Format::Q8_0 {
            weights.iter_mut().zip(&block[2..]).for_each(|(to, q)| *to = i16::from(q.cast_signed()));
        } else {
            for (i, q) in block[2..].iter().enumerate() {
                weights[i] = i16::from(q & 15) - 8;
                weights[i + 16] = i16::from(q >> 4) - 8;
            }
        }
        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        for (t, sum) in sums.iter_mut().enumerate() {
            let at = (call.token + t) * blocks + b;
            let x_block = &x.values[at * 32..(at + 1) * 32];
            let exact: i32 = x_block.iter().zip(&weights).map(|(x, w)| i32::from(*x) * i32::from(*w)).sum();
            *sum += exact as f32 * (scale * x.scales[at]);
        }
    }
    for (t, sum) in sums.into_iter().enumerate() {
        // SAFETY: `M` tokens exist.
        unsafe { call.write(t, sum) };
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Call, Words};
    use crate::cpu::lanes::{Avx2, Lanes, prefetch};
    use std::arch::x86_64::*;

    /// How far ahead of its use a line of weights is requested, in bytes.
    const AHEAD: usize = 3072;

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn words(x: &[f32]) -> Words {
        Words::new(x)
    }

    /// # Safety
    /// The call's row has the blocks of its shape, and `x` has `M` tokens from the call's on.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn q8<const M: usize>(x: &Words, call: &Call<'_>) {
        // SAFETY: as required of the caller.
        unsafe {
            rows::<M, 34>(x, call, |quants| {
                [0, 16].map(|i| _mm256_cvtepi8_epi16(_mm_loadu_si128(quants.add(i).cast())))
            });
        }
    }

    /// # Safety
    /// As [`q8`].
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn q4<const M: usize>(x: &Words, call: &Call<'_>) {
        // SAFETY: as required of the caller.
        unsafe {
            rows::<M, 18>(x, call, |quants| {
                let bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(quants.cast()));
                let eight = _mm256_set1_epi16(8);
                [
                    _mm256_sub_epi16(_mm256_and_si256(bytes, _mm256_set1_epi16(15)), eight),
                    _mm256_sub_epi16(_mm256_srli_epi16::<4>(bytes), eight),
                ]
            });
        }
    }

    /// # Safety
    /// As [`q8`], with the instructions at hand where this is expanded; `load` gives a block's values.
    #[inline(always)]
    unsafe fn rows<const M: usize, const SIZE: usize>(
        x: &Words,
        call: &Call<'_>,
        load: impl Fn(*const u8) -> [__m256i; 2],
    ) {
        let blocks = call.bytes.len() / SIZE;
        // SAFETY: block `b` has `SIZE` bytes of the row, and 32 values and a scale of each token.
        unsafe {
            let mut sums = [_mm256_setzero_ps(); M];
            for b in 0..blocks {
                let from = call.bytes.as_ptr().add(b * SIZE);
                if call.token == 0 {
                    prefetch(from.wrapping_add(AHEAD));
                }
                let [low, high] = load(from.add(2));
                let scale = _mm256_cvtph_ps(_mm_set1_epi16(from.cast::<i16>().read_unaligned()));
                for (t, sum) in sums.iter_mut().enumerate() {
                    let at = (call.token + t) * blocks + b;
                    let values = x.values.as_ptr().add(at * 32);
                    let exact = _mm256_add_epi32(
                        _mm256_madd_epi16(low, _mm256_loadu_si256(values.cast())),
                        _mm256_madd_epi16(high, _mm256_loadu_si256(values.add(16).cast())),
                    );
                    let scale = _mm256_mul_ps(scale, _mm256_broadcast_ss(&*x.scales.as_ptr().add(at)));
                    *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), scale, *sum);
                }
            }
            for (t, sum) in sums.into_iter().enumerate() {
                call.write(t, Avx2::from(sum).sum());
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use super::{Call, Split};
    use crate::cpu::lanes::prefetch;
    use crate::cpu::quantize::GROUP;
    use std::arch::x86_64::*;

    /// How far ahead of its use a line of weights is requested, in bytes.
    const AHEAD: usize = 7168;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
    pub(super) fn split(x: &[f32], cols: usize, fine: bool, halves: bool, offset: i32) -> Split {
        Split::new(x, cols, fine, halves, offset, 32)
    }

    /// The scales of four blocks of `SIZE` bytes. Scalar loads leave the vector units to the products.
    ///
    /// # Safety
    /// Four blocks must be readable.
    #[inline]
    #[target_feature(enable = "avx512f,f16c")]
    unsafe fn scales<const SIZE: usize>(group: *const u8) -> __m128 {
        // SAFETY: as required of the caller.
        let half = |b: usize| unsafe { u64::from(group.add(b * SIZE).cast::<u16>().read_unaligned()) };
        _mm_cvtph_ps(_mm_cvtsi64_si128((half(0) | half(1) << 16 | half(2) << 32 | half(3) << 48).cast_signed()))
    }

    /// The bytes of group `g` of a row: in the row, or, where the row ends within the group, in `last`, filled up
    /// with zeros.
    #[inline(always)]
    fn group<const SIZE: usize, const FOUR: usize>(row: &[u8], g: usize, last: &mut [u8; FOUR]) -> *const u8 {
        let rest = &row[g * FOUR..];
        if rest.len() >= FOUR {
            return rest.as_ptr();
        }
        last[..rest.len()].copy_from_slice(rest);
        last[rest.len()..].fill(0);
        last.as_ptr()
    }

    /// The first or second half of a token's group of low or high bytes.
    ///
    /// # Safety
    /// 64 bytes must be readable at the place.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(bytes: &[i8], at: usize) -> __m512i {
        // SAFETY: as required of the caller.
        unsafe { _mm512_load_si512(bytes.as_ptr().add(at).cast()) }
    }

    /// # Safety
    /// The call's row has the blocks of its shape, and `x`, made with offset 128 and blocks in order, has `M` tokens
    /// from the call's on.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
    pub(super) unsafe fn q8<const M: usize, const FINE: bool>(x: &Split, call: &Call<'_>) {
        let groups = call.shape.cols.div_ceil(GROUP);
        let mut last = [0u8; 4 * 34];
        // the sign bit flipped is 128 added
        let flip = _mm512_set1_epi8(-128);
        let spread = [
            _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
            _mm512_setr_epi32(2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3),
        ];
        let mut sums = [[_mm512_setzero_ps(); 2]; M];
        for g in 0..groups {
            let from = group::<34, 136>(call.bytes, g, &mut last);
            if call.token == 0 {
                // 136 bytes touch up to four lines; every line is asked for, some twice
                for line in 0..3 {
                    prefetch(from.wrapping_add(AHEAD + 64 * line));
                }
            }
            // SAFETY: the group has four blocks, and each token has a group.
            unsafe {
                let scale = scales::<34>(from);
                let weights = [0, 1].map(|pair| {
                    let block = |b: usize| _mm256_loadu_si256(from.add((2 * pair + b) * 34 + 2).cast());
                    let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(block(0)), block(1));
                    _mm512_xor_si512(both, flip)
                });
                for (t, sums) in sums.iter_mut().enumerate() {
                    let at = (call.token + t) * groups + g;
                    let scale = _mm_mul_ps(scale, _mm_load_ps(x.scales.as_ptr().add(at * 4)));
                    let scale = _mm512_castps128_ps512(scale);
                    let starts = _mm512_castsi128_si512(_mm_load_si128(x.starts.as_ptr().add(at * 4).cast()));
                    for pair in 0..2 {
                        // into the first lane of each block
                        let start = _mm512_maskz_permutexvar_epi32(0x0101, spread[pair], starts);
                        let mut sum = _mm512_dpbusd_epi32(start, weights[pair], load(&x.low, at * GROUP + pair * 64));
                        if FINE {
                            let high = load(&x.high, at * GROUP + pair * 64);
                            let high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), weights[pair], high);
                            sum = _mm512_add_epi32(sum, _mm512_slli_epi32::<8>(high));
                        }
                        let scale = _mm512_permutexvar_ps(spread[pair], scale);
                        sums[pair] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, sums[pair]);
                    }
                }
            }
        }
        for (t, sums) in sums.into_iter().enumerate() {
            // SAFETY: `M` tokens exist.
            unsafe { call.write(t, _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))) };
        }
    }

    /// # Safety
    /// As [`q8`], with `x` made with offset 8 and blocks in halves.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
    pub(super) unsafe fn q4<const M: usize, const FINE: bool>(x: &Split, call: &Call<'_>) {
        let groups = call.shape.cols.div_ceil(GROUP);
        let mut last = [0u8; 4 * 18];
        let nibble = _mm512_set1_epi8(15);
        // each 128-bit lane holds one block
        let spread = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
        let mut sums = [_mm512_setzero_ps(); M];
        for g in 0..groups {
            let from = group::<18, 72>(call.bytes, g, &mut last);
            if call.token == 0 {
                for line in 0..2 {
                    prefetch(from.wrapping_add(AHEAD + 64 * line));
                }
            }
            // SAFETY: the group has four blocks, and each token has a group.
            unsafe {
                let block = |b: usize| _mm_loadu_si128(from.add(b * 18 + 2).cast());
                let pair = |b: usize| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(block(b)), block(b + 1));
                let bytes = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(pair(0)), pair(2));
                let low = _mm512_and_si512(bytes, nibble);
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), nibble);
                // both halves of the blocks, which share lanes
                let dot = |start, bytes: &[i8], at| {
                    let sum = _mm512_dpbusd_epi32(start, low, load(bytes, at));
                    _mm512_dpbusd_epi32(sum, high, load(bytes, at + 64))
                };
                let scale = scales::<18>(from);
                for (t, sum) in sums.iter_mut().enumerate() {
                    let at = (call.token + t) * groups + g;
                    let scale = _mm_mul_ps(scale, _mm_load_ps(x.scales.as_ptr().add(at * 4)));
                    let scale = _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(scale));
                    let starts = _mm512_castsi128_si512(_mm_load_si128(x.starts.as_ptr().add(at * 4).cast()));
                    let start = _mm512_maskz_permutexvar_epi32(0x1111, spread, starts);
                    let mut exact = dot(start, &x.low, at * GROUP);
                    if FINE {
                        let high = dot(_mm512_setzero_si512(), &x.high, at * GROUP);
                        exact = _mm512_add_epi32(exact, _mm512_slli_epi32::<8>(high));
                    }
                    *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), scale, *sum);
                }
            }
        }
        for (t, sum) in sums.into_iter().enumerate() {
            // SAFETY: `M` tokens exist.
            unsafe { call.write(t, _mm512_reduce_add_ps(sum)) };
        }
    }
}
