//! With AVX2: 16-bit numbers, sixteen at a time, or bytes, 32 at a time.

use super::avxvnni::{Dot, Group, Iq4Nl, Q80, below_32, load, row};
use super::unsigned_layout;
use crate::Format;
use crate::cpu::gemv::row::{Call, levels};
use crate::cpu::isa::{Avx2, Lanes};
use crate::cpu::quantize::{GROUP, Order, Split, Words};
use crate::format::low_bits::IQ4_LEVELS;
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) fn words(x: &[f32], part: usize) -> Words {
    Words::new(x, part)
}

/// # Safety
/// The call's row has the blocks of its shape, and `x` has `M` tokens from the call's on.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn of_words<const M: usize>(x: &Words, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        // without `map`, which does not have the instructions
        match call.shape.format {
            Format::Q8_0 => rows::<M, 34>(x, call, |block| {
                let half = |quants: *const u8| _mm256_cvtepi8_epi16(_mm_loadu_si128(quants.cast()));
                [half(block.add(2)), half(block.add(18))]
            }),
            _ => rows::<M, 18>(x, call, |block| levels(block.add(2), &IQ4_LEVELS)),
        }
    }
}

/// Numbers below 32, whose pairs are added before they are widened.
struct Pairs;

impl Pairs {
    /// The sums of pairs, at most 2 · 2 · 31 · 128 with those of both vectors.
    ///
    /// # Safety
    /// As [`Dot`].
    #[inline(always)]
    unsafe fn sums<G: Group>(weights: [__m256i; 2], activations: *const i8) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe {
            let first = _mm256_maddubs_epi16(weights[0], load(activations));
            match G::HALVES {
                true => _mm256_add_epi16(first, _mm256_maddubs_epi16(weights[1], load(activations.add(GROUP / 2)))),
                false => first,
            }
        }
    }
}

impl Dot for Pairs {
    #[inline(always)]
    unsafe fn dot<G: Group>(weights: [__m256i; 2], activations: *const i8) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe { _mm256_madd_epi16(Self::sums::<G>(weights, activations), _mm256_set1_epi16(1)) }
    }

    #[inline(always)]
    unsafe fn fine<G: Group>(weights: [__m256i; 2], low: *const i8, high: *const i8) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe {
            let high = _mm256_madd_epi16(Self::sums::<G>(weights, high), _mm256_set1_epi16(256));
            _mm256_add_epi32(Self::dot::<G>(weights, low), high)
        }
    }
}

/// Signed weights and activations of 8 bits: the pairs are at most 2 · 127 · 128, and nothing can be added to them.
struct SignedPairs;

impl Dot for SignedPairs {
    #[inline(always)]
    unsafe fn dot<G: Group>(weights: [__m256i; 2], activations: *const i8) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe {
            let dot = |weights: __m256i, activations: *const i8| {
                let activations = _mm256_sign_epi8(load(activations), weights);
                _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(weights), activations), _mm256_set1_epi16(1))
            };
            let first = dot(weights[0], activations);
            match G::HALVES {
                true => _mm256_add_epi32(first, dot(weights[1], activations.add(GROUP / 2))),
                false => first,
            }
        }
    }
}

/// How [`bytes`] needs activations: their order, and the offset; `None`: it does not multiply this.
pub(in crate::cpu) fn layout(format: Format, fine: bool) -> Option<(Order, i32)> {
    match format {
        Format::Q8_0 if !fine => Some((Order::Blocks, 0)),
        Format::Iq4Nl if !fine => Some((Order::Halves, 0)),
        Format::Q8_0 | Format::Iq4Nl => None,
        format => unsigned_layout(format),
    }
}

/// A row times `M` tokens.
///
/// # Safety
/// The call's row has the blocks of its shape, and `x`, made with the format's [`layout`], has `M` tokens from the call's on.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn bytes<const M: usize, const FINE: bool>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        match call.shape.format {
            Format::Q8_0 => row::<SignedPairs, Q80, M, false, 34, 136>(x, call),
            Format::Iq4Nl => row::<SignedPairs, Iq4Nl, M, false, 18, 72>(x, call),
            _ => below_32::<Pairs, M, FINE>(x, call),
        }
    }
}

/// # Safety
/// As [`of_words`], with the instructions at hand where this is expanded; `load` gives a block's values.
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
            call.request(b * SIZE, SIZE);
            let [low, high] = load(from);
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
            call.write(0, t, Avx2::from(sum).sum());
        }
    }
}
