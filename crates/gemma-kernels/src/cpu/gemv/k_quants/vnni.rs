//! The same with AVX-512 VNNI: the parts of a block have a scale and an addend of their own, while 32 activations share a scale. So a
//! part's sum over integers is exact, is turned into f32 once and weighted by both scales; what the addends contribute is one
//! product per block, with the sums of the activations of each part.

mod low_bits;

use super::grids::{Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs};
use super::{BLOCK, part};
use crate::Format;
use crate::cpu::gemv::row::Call;
use crate::cpu::quantize::{Bytes, Order, SUMS, Split};
use crate::cpu::sub_blocks::six_bits_in_vector;
use low_bits::{Iq4Xs, Q2K, Q3K, Signed};
use std::arch::x86_64::*;

/// How activations lie: as the numbers that [`Block::numbers`] gives.
const fn order(format: Format) -> Order {
    match format {
        Format::Q4K | Format::Q5K => Order::Alternate,
        _ => Order::Blocks,
    }
}

/// The activations `x` `[tokens, cols]` as these kernels read them.
///
/// # Safety
/// The CPU must have the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(in crate::cpu) unsafe fn split(x: &[f32], cols: usize, fine: bool, format: Format) -> Split {
    Split::new(x, cols, fine, (order(format), SUMS, part(format)), |x, limit| Bytes::with_avx512(x, limit))
}

/// `R` rows times `M` tokens.
///
/// # Safety
/// The CPU must have the instructions; the call's rows have the blocks of its shape, and `x`, of [`split`]
/// with the format's part, has `M` tokens from the call's on.
pub(in crate::cpu) unsafe fn rows<const R: usize, const M: usize>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe { with_block!(call.shape.format, B => of_blocks::<B, R, M>(x, call)) }
}

/// # Safety
/// As [`rows`].
#[inline(always)]
unsafe fn of_blocks<B: Block, const R: usize, const M: usize>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        match x.high.is_empty() {
            true => products::<B, R, M, false>(x, call),
            false => products::<B, R, M, true>(x, call),
        }
    }
}

/// # Safety
/// As [`rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
unsafe fn products<B: Block, const R: usize, const M: usize, const FINE: bool>(x: &Split, call: &Call<'_>) {
    let (size, parts) = (B::FORMAT.block_bytes(), BLOCK / B::PART);
    let (token, blocks) = (call.token, call.shape.row_bytes / size);
    let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    // the part that each lane of four values belongs to, and the 32 activations that each part does
    let shift = |by: u32| _mm_cvtsi32_si128(by.cast_signed());
    let part_of_lane = |vector: i32| match order(B::FORMAT) {
        // two parts of 32 in each vector: 0 and 2, 1 and 3, 4 and 6, 5 and 7
        Order::Alternate => {
            let second = _mm512_and_si512(_mm512_srli_epi32::<2>(lanes), _mm512_set1_epi32(2));
            _mm512_add_epi32(second, _mm512_set1_epi32(vector % 2 + vector / 2 * 4))
        }
        _ => {
            let lane = _mm512_add_epi32(lanes, _mm512_set1_epi32(16 * vector));
            _mm512_srl_epi32(lane, shift((B::PART / 4).ilog2()))
        }
    };
    let spread = [part_of_lane(0), part_of_lane(1), part_of_lane(2), part_of_lane(3)];
    let scale_of_part = _mm512_srl_epi32(lanes, shift((32 / B::PART).ilog2()));
    let there = (1u32 << parts).wrapping_sub(1) as __mmask16;
    let mut sums = [[[_mm512_setzero_ps(); 2]; R]; M];
    let mut added = [[_mm512_setzero_ps(); R]; M];
    // SAFETY: block `b` has `size` bytes of a row; each token has for it 256 values, 8 scales and a start per part,
    // which follow each other.
    unsafe {
        for b in 0..blocks {
            call.request(R * b * size, R * size);
            let (mut numbers, mut of_parts) = ([[_mm512_setzero_si512(); 4]; R], [[_mm512_setzero_ps(); 2]; R]);
            for r in 0..R {
                let block = call.bytes.as_ptr().add((r * blocks + b) * size);
                of_parts[r] = B::scales(block);
                numbers[r] = B::numbers(block);
            }
            for t in 0..M {
                let at = (token + t) * blocks + b;
                let scales = _mm256_load_ps(x.scales.as_ptr().add(at * 8));
                let starts = x.starts.as_ptr().add(at * parts);
                // what each row's factors and addends are multiplied by, and then the addends
                let (scales, x_sums) = if B::TOGETHER {
                    // the sums in the addends' lanes
                    (_mm512_broadcast_f32x8(scales), _mm512_maskz_loadu_epi32(0xff00, starts.wrapping_sub(8)))
                } else {
                    let scales = _mm512_castps256_ps512(scales);
                    let scales = _mm512_maskz_permutexvar_ps(there, scale_of_part, scales);
                    (scales, _mm512_maskz_loadu_epi32(there, starts))
                };
                let x_sums = _mm512_cvtepi32_ps(x_sums);
                let mut factors = [_mm512_setzero_ps(); R];
                for r in 0..R {
                    factors[r] = _mm512_mul_ps(of_parts[r][0], scales);
                    let addends = if B::TOGETHER { factors[r] } else { _mm512_mul_ps(of_parts[r][1], scales) };
                    added[t][r] = _mm512_fmadd_ps(addends, x_sums, added[t][r]);
                }
                for v in 0..4 {
                    let load = |bytes: &[i8]| _mm512_load_si512(bytes.as_ptr().add(at * BLOCK + 64 * v).cast());
                    for r in 0..R {
                        let mut sum = _mm512_setzero_si512();
                        if FINE {
                            sum = _mm512_slli_epi32::<8>(_mm512_dpbusd_epi32(sum, numbers[r][v], load(&x.high)));
                        }
                        let sum = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(sum, numbers[r][v], load(&x.low)));
                        let factor = _mm512_permutexvar_ps(spread[v], factors[r]);
                        sums[t][r][v % 2] = _mm512_fmadd_ps(sum, factor, sums[t][r][v % 2]);
                    }
                }
            }
        }
        for t in 0..M {
            for r in 0..R {
                let sum = _mm512_add_ps(_mm512_add_ps(sums[t][r][0], sums[t][r][1]), added[t][r]);
                call.write(r, t, _mm512_reduce_add_ps(sum));
            }
        }
    }
}

/// How the blocks of a format are taken apart: a value is `factor number + addend` with its part's.
///
/// # Safety
/// Every method requires that the CPU has the instructions and that a block is readable at the pointer.
trait Block {
    const FORMAT: Format;
    /// Values that share a scale: 16 or 32.
    const PART: usize = part(Self::FORMAT);

    /// Whether [`scales`](Self::scales) gives the addends of eight parts behind their factors, in one vector.
    const TOGETHER: bool = false;

    /// The factors and the addends of the parts, in order; zero in lanes beyond them.
    unsafe fn scales(block: *const u8) -> [__m512; 2];

    /// All numbers of the block, in the order of the activations.
    unsafe fn numbers(block: *const u8) -> [__m512i; 4];
}

/// The half at byte `at`, in all lanes.
///
/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn half(block: *const u8, at: usize) -> __m512 {
    // SAFETY: as required of the caller.
    unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(block.add(at).cast::<i16>().read_unaligned())) }
}

/// The factors of eight parts, then their addends: scales and least values of six bits.
///
/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn six_bit_scales(block: *const u8) -> __m512 {
    // SAFETY: as required of the caller.
    unsafe {
        let parts = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(six_bits_in_vector(block)));
        // the halves that scale both; least values are subtracted
        let both = _mm_xor_si128(_mm_loadu_si128(block.cast()), _mm_setr_epi32(i32::MIN, 0, 0, 0));
        let both = _mm512_castps128_ps512(_mm_cvtph_ps(both));
        let eight = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        _mm512_mul_ps(parts, _mm512_permutexvar_ps(eight, both))
    }
}

/// The low nibbles of 64 bytes, and the high ones.
///
/// # Safety
/// As [`Block`], with 64 bytes readable.
#[inline(always)]
unsafe fn nibbles(from: *const u8) -> [__m512i; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let (both, four) = (_mm512_loadu_si512(from.cast()), _mm512_set1_epi8(15));
        [_mm512_and_si512(both, four), _mm512_and_si512(_mm512_srli_epi16::<4>(both), four)]
    }
}

/// Bits of each of 32 bytes: rotated left by `first`, then by `second` instead, and masked.
///
/// # Safety
/// As [`Block`], with the bytes in both halves of the vector.
#[inline(always)]
unsafe fn bits<const MASK: i8>(bytes: __m512i, first: i64, second: i64) -> __m512i {
    // SAFETY: as required of the caller.
    unsafe {
        let by = _mm512_setr_epi64(first, first, first, first, second, second, second, second);
        _mm512_and_si512(_mm512_rolv_epi64(bytes, by), _mm512_set1_epi8(MASK))
    }
}

struct Q4K;

impl Block for Q4K {
    const FORMAT: Format = Format::Q4K;
    const TOGETHER: bool = true;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [__m512; 2] {
        // SAFETY: as required of the caller.
        unsafe { [six_bit_scales(block), _mm512_setzero_ps()] }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8) -> [__m512i; 4] {
        // SAFETY: as required of the caller; two parts share 32 bytes.
        unsafe {
            let ([a, b], [c, d]) = (nibbles(block.add(16)), nibbles(block.add(80)));
            [a, b, c, d]
        }
    }
}

struct Q5K;

impl Block for Q5K {
    const FORMAT: Format = Format::Q5K;
    const TOGETHER: bool = true;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [__m512; 2] {
        // SAFETY: as required of the caller.
        unsafe { [six_bit_scales(block), _mm512_setzero_ps()] }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8) -> [__m512i; 4] {
        // SAFETY: as required of the caller; bit `p` of the bytes at 16 is the fifth of part `p`'s numbers.
        unsafe {
            let fifth = _mm512_broadcast_i64x4(_mm256_loadu_si256(block.add(16).cast()));
            let ([a, b], [c, d]) = (nibbles(block.add(48)), nibbles(block.add(112)));
            [
                _mm512_or_si512(a, bits::<16>(fifth, 4, 2)),
                _mm512_or_si512(b, bits::<16>(fifth, 3, 1)),
                _mm512_or_si512(c, bits::<16>(fifth, 0, 62)),
                _mm512_or_si512(d, bits::<16>(fifth, 63, 61)),
            ]
        }
    }
}

struct Q6K;

impl Block for Q6K {
    const FORMAT: Format = Format::Q6K;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [__m512; 2] {
        // SAFETY: as required of the caller.
        unsafe {
            let scales = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(block.add(192).cast())));
            let factors = _mm512_mul_ps(scales, half(block, 208));
            [factors, _mm512_mul_ps(factors, _mm512_set1_ps(-32.0))]
        }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8) -> [__m512i; 4] {
        // SAFETY: as required of the caller. In each half of the block the low nibbles of 64 bytes are the first 64
        // numbers', the high ones the others'; 32 bytes hold the upper two bits of each 32 numbers in turn.
        unsafe {
            let ([a, a_high], [b, b_high]) = (nibbles(block), nibbles(block.add(64)));
            let (c, d) = (block.add(128), block.add(160));
            let c = _mm512_broadcast_i64x4(_mm256_loadu_si256(c.cast()));
            let d = _mm512_broadcast_i64x4(_mm256_loadu_si256(d.cast()));
            [
                _mm512_or_si512(a, bits::<0x30>(c, 4, 2)),
                _mm512_or_si512(a_high, bits::<0x30>(c, 0, 62)),
                _mm512_or_si512(b, bits::<0x30>(d, 4, 2)),
                _mm512_or_si512(b_high, bits::<0x30>(d, 0, 62)),
            ]
        }
    }
}
