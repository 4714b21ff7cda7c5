//! The same with AVX2, with or without VNNI: bytes, 32 at a time. The numbers are not negative; what moves them down is an addend. Without
//! VNNI, IQ4_XS is multiplied in 16 bits: its numbers are too large for pairs of products.

mod low_bits;

use super::grids::{Iq2S, Iq2Xs, Iq2Xxs, Iq3S, Iq3Xxs};
use super::{BLOCK, part};
use crate::Format;
use crate::cpu::gemv::row::Call;
use crate::cpu::isa::{Avx2, Lanes};
use crate::cpu::quantize::{Bytes, Order, SUMS, Split, Words};
use crate::cpu::sub_blocks::six_bits_in_vector;
use low_bits::{Iq4Xs, Q2K, Q3K, Signed};
use std::arch::x86_64::*;
use std::marker::PhantomData;

/// Stretches of a block whose activations share a scale.
const STRETCHES: usize = BLOCK / 32;
/// Stretches whose code is written out, so that their shifts are by constants: as many as share bytes in most formats. (A fifth bit
/// of Q5_K or a third of Q3_K, of which eight stretches share a byte, is shifted by a number in a register.)
const TOGETHER: usize = 4;

/// The activations `x` `[tokens, cols]` as these kernels read them.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) fn split(x: &[f32], cols: usize, fine: bool, format: Format) -> Split {
    Split::new(x, cols, fine, (Order::Blocks, SUMS, part(format)), |x, limit| Bytes::with_avx2(x, limit))
}

/// A row times `M` tokens, but for IQ4_XS.
///
/// # Safety
/// The CPU must have the instructions; the call's row has the blocks of its shape, and `x`, of
/// [`split`], has `M` tokens from the call's on.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn row<const M: usize>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe { with_block_below_128!(call.shape.format, B => of_blocks::<Pairs, B, M>(x, call)) }
}

/// The same with VNNI.
///
/// # Safety
/// As [`row`].
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn row_with_vnni<const M: usize>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe { with_block!(call.shape.format, B => of_blocks::<Vnni, B, M>(x, call)) }
}

/// The largest number of a format.
pub(in crate::cpu) fn largest(format: Format) -> u8 {
    with_block!(format, B => B::LARGEST)
}

/// Blocks of a row as their numbers, in the order of the columns, and the factor and the addend of every part.
///
/// # Safety
/// As [`Block`]; there must be whole blocks, and room for what they hold.
#[inline(always)]
pub(in crate::cpu) unsafe fn take_apart(
    format: Format,
    blocks: &[u8],
    numbers: &mut [u8],
    factors: &mut [f32],
    addends: &mut [f32],
) {
    // SAFETY: as required of the caller.
    unsafe { with_block!(format, B => apart::<B>(blocks, numbers, factors, addends)) }
}

/// # Safety
/// As [`take_apart`].
#[inline(always)]
unsafe fn apart<B: Block>(blocks: &[u8], numbers: &mut [u8], factors: &mut [f32], addends: &mut [f32]) {
    let parts = BLOCK / B::PART;
    let scales = factors.chunks_exact_mut(parts).zip(addends.chunks_exact_mut(parts));
    let blocks = blocks.chunks_exact(B::FORMAT.block_bytes());
    for ((block, numbers), (factors, addends)) in blocks.zip(numbers.chunks_exact_mut(BLOCK)).zip(scales) {
        // SAFETY: as required of the caller.
        unsafe {
            let block = block.as_ptr();
            for (to, from) in [factors, addends].into_iter().zip(B::scales(block)) {
                for (to, from) in to.as_chunks_mut::<8>().0.iter_mut().zip(from) {
                    _mm256_storeu_ps(to.as_mut_ptr(), from);
                }
            }
            for (stretch, to) in numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                _mm256_storeu_si256(to.as_mut_ptr().cast(), B::numbers(block, stretch));
            }
        }
    }
}

/// A row of IQ4_XS times `M` tokens in 16 bits.
///
/// # Safety
/// As [`row`], with `x` the sums of parts of 32 values.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn row_of_words<const M: usize>(x: &Words, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe { products::<_, Iq4Xs, M>(&x.scales, &x.sums, &Wide(x), call) }
}

/// # Safety
/// As [`row`], with the instructions at hand where this is expanded.
#[inline(always)]
unsafe fn of_blocks<D: Dot, B: Block, const M: usize>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        match x.high.is_empty() {
            true => products::<_, B, M>(&x.scales, &x.starts, &Coarse::<D>(x, PhantomData), call),
            false => products::<_, B, M>(&x.scales, &x.starts, &Fine::<D>(x, PhantomData), call),
        }
    }
}

/// With the scales of activations, the sums of each part's and the activations themselves.
///
/// # Safety
/// As [`row`], with the instructions at hand where this is expanded.
#[inline(always)]
unsafe fn products<X: Activations, B: Block, const M: usize>(x_scales: &[f32], x_sums: &[i32], x: &X, call: &Call<'_>) {
    let (size, parts) = (B::FORMAT.block_bytes(), BLOCK / B::PART);
    let (token, blocks) = (call.token, call.bytes.len() / size);
    // SAFETY: block `b` has `size` bytes of a row; each token has for it 256 values, 8 scales and a sum per part.
    unsafe {
        // two sums, so that an addition need not wait for the one before
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        let mut factors = [[0f32; 16]; M];
        for b in 0..blocks {
            let block = call.bytes.as_ptr().add(b * size);
            call.request(b * size, size);
            let [of_numbers, addends] = B::scales(block);
            for t in 0..M {
                let at = (token + t) * blocks + b;
                let scales = _mm256_load_ps(x_scales.as_ptr().add(at * STRETCHES));
                for i in 0..parts / 8 {
                    // two parts of 16 share a scale
                    let of_pair = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
                    let of_pair = _mm256_add_epi32(of_pair, _mm256_set1_epi32(4 * i as i32));
                    let scales = if B::PART == 32 { scales } else { _mm256_permutevar8x32_ps(scales, of_pair) };
                    let to = factors[t].as_mut_ptr().add(8 * i);
                    _mm256_storeu_ps(to, _mm256_mul_ps(of_numbers[i], scales));
                    let x_sums = _mm256_load_si256(x_sums.as_ptr().add(at * parts + 8 * i).cast());
                    let addends = _mm256_mul_ps(addends[i], scales);
                    sums[t][1] = _mm256_fmadd_ps(addends, _mm256_cvtepi32_ps(x_sums), sums[t][1]);
                }
            }
            let at = (token * blocks + b) * BLOCK;
            for group in 0..STRETCHES / TOGETHER {
                macro_rules! each {
                    ($($i:literal)*) => {
                        const { assert!([$($i),*].len() == TOGETHER) };
                        $(of_stretch::<X, B, M>(x, block, TOGETHER * group + $i, at, blocks * BLOCK, &factors, &mut sums);)*
                    };
                }
                each!(0 1 2 3);
            }
        }
        for (t, [first, second]) in sums.into_iter().enumerate() {
            call.write(0, t, Avx2::from(_mm256_add_ps(first, second)).sum());
        }
    }
}

/// The 32 columns of a block from `32 stretch` on, activations being `row` apart from token to token.
///
/// # Safety
/// As [`products`].
#[inline(always)]
unsafe fn of_stretch<X: Activations, B: Block, const M: usize>(
    x: &X,
    block: *const u8,
    stretch: usize,
    at: usize,
    row: usize,
    factors: &[[f32; 16]; M],
    sums: &mut [[__m256; 2]; M],
) {
    // SAFETY: as required of the caller.
    unsafe {
        let numbers = B::numbers(block, stretch);
        for (t, (factors, sums)) in factors.iter().zip(sums).enumerate() {
            let exact = _mm256_cvtepi32_ps(x.times::<B>(numbers, at + t * row + 32 * stretch));
            let factor = match B::PART {
                32 => _mm256_broadcast_ss(&factors[stretch]),
                _ => {
                    let [first, second] = [2 * stretch, 2 * stretch + 1].map(|part| &factors[part]);
                    let first = _mm256_castps128_ps256(_mm_broadcast_ss(first));
                    _mm256_insertf128_ps::<1>(first, _mm_broadcast_ss(second))
                }
            };
            sums[stretch % 2] = _mm256_fmadd_ps(exact, factor, sums[stretch % 2]);
        }
    }
}

/// Activations of 8 or 16 bits.
///
/// # Safety
/// The method is expanded where the instructions are enabled; 32 activations must be there from `at` on.
trait Activations {
    /// `Σ numbers activations`, each lane over four bytes, or all lanes of a half over its sixteen.
    unsafe fn times<B: Block>(&self, numbers: __m256i, at: usize) -> __m256i;
}

/// Of 8 bits.
struct Coarse<'a, D>(&'a Split, PhantomData<D>);

impl<D: Dot> Activations for Coarse<'_, D> {
    #[inline(always)]
    unsafe fn times<B: Block>(&self, numbers: __m256i, at: usize) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe { D::dot::<B>(numbers, _mm256_load_si256(self.0.low.as_ptr().add(at).cast())) }
    }
}

/// Of 16 bits, in two bytes.
struct Fine<'a, D>(&'a Split, PhantomData<D>);

impl<D: Dot> Activations for Fine<'_, D> {
    #[inline(always)]
    unsafe fn times<B: Block>(&self, numbers: __m256i, at: usize) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe {
            let load = |bytes: &[i8]| _mm256_load_si256(bytes.as_ptr().add(at).cast());
            D::fine::<B>(numbers, load(&self.0.low), load(&self.0.high))
        }
    }
}

/// Of 16 bits, as they are.
struct Wide<'a>(&'a Words);

impl Activations for Wide<'_> {
    #[inline(always)]
    unsafe fn times<B: Block>(&self, numbers: __m256i, at: usize) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe {
            let load = |at: usize| _mm256_load_si256(self.0.values.as_ptr().add(at).cast());
            let first = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(numbers));
            let second = _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(numbers));
            _mm256_add_epi32(_mm256_madd_epi16(first, load(at)), _mm256_madd_epi16(second, load(at + 16)))
        }
    }
}

/// How bytes are multiplied and added, four to a lane: unsigned numbers, signed activations.
///
/// # Safety
/// Every method is expanded where the instructions are enabled.
trait Dot {
    unsafe fn dot<B: Block>(numbers: __m256i, x: __m256i) -> __m256i;

    /// With activations of 16 bits.
    unsafe fn fine<B: Block>(numbers: __m256i, low: __m256i, high: __m256i) -> __m256i;
}

/// In one instruction.
struct Vnni;

impl Dot for Vnni {
    #[inline(always)]
    unsafe fn dot<B: Block>(numbers: __m256i, x: __m256i) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe { _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), numbers, x) }
    }

    #[inline(always)]
    unsafe fn fine<B: Block>(numbers: __m256i, low: __m256i, high: __m256i) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe { _mm256_dpbusd_avx_epi32(_mm256_slli_epi32::<8>(Self::dot::<B>(numbers, high)), numbers, low) }
    }
}

/// In pairs, whose sums have 16 bits: at most 2 · 127 · 128.
struct Pairs;

impl Pairs {
    /// `weight` times the sums.
    ///
    /// # Safety
    /// As [`Dot`].
    #[inline(always)]
    unsafe fn weighted<B: Block>(numbers: __m256i, x: __m256i, weight: i16) -> __m256i {
        const { assert!(B::LARGEST < 128, "two products have 16 bits") };
        // SAFETY: as required of the caller.
        unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(numbers, x), _mm256_set1_epi16(weight)) }
    }
}

impl Dot for Pairs {
    #[inline(always)]
    unsafe fn dot<B: Block>(numbers: __m256i, x: __m256i) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe { Self::weighted::<B>(numbers, x, 1) }
    }

    #[inline(always)]
    unsafe fn fine<B: Block>(numbers: __m256i, low: __m256i, high: __m256i) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe { _mm256_add_epi32(Self::weighted::<B>(numbers, low, 1), Self::weighted::<B>(numbers, high, 256)) }
    }
}

/// How the blocks of a format are taken apart: a value is `factor number + addend` with its part's.
///
/// # Safety
/// Every method requires that a block is readable at the pointer, and is expanded where AVX2 and F16C are enabled.
trait Block {
    const FORMAT: Format;
    /// Values that share a scale: 16 or 32.
    const PART: usize = part(Self::FORMAT);
    /// No number is larger.
    const LARGEST: u8;

    /// The factors and the addends of the parts; those of eight parts are the first ones.
    unsafe fn scales(block: *const u8) -> [[__m256; 2]; 2];

    /// The numbers of the 32 values from `32 stretch` on.
    unsafe fn numbers(block: *const u8, stretch: usize) -> __m256i;
}

/// The half at byte `at`, in all lanes.
///
/// # Safety
/// As [`Block`], with F16C enabled as well.
#[inline(always)]
unsafe fn half(block: *const u8, at: usize) -> __m256 {
    // SAFETY: as required of the caller.
    unsafe { _mm256_cvtph_ps(_mm_set1_epi16(block.add(at).cast::<i16>().read_unaligned())) }
}

/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn negative(values: __m256) -> __m256 {
    // SAFETY: as required of the caller.
    unsafe { _mm256_xor_ps(values, _mm256_set1_ps(-0.0)) }
}

/// The scales and least values of Q4_K and Q5_K, of six bits.
///
/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn six_bit_scales(block: *const u8) -> [[__m256; 2]; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let six = six_bits_in_vector(block);
        let eight = |bytes: __m128i| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
        let scales = _mm256_mul_ps(eight(six), half(block, 0));
        let least = _mm256_mul_ps(eight(_mm_unpackhi_epi64(six, six)), negative(half(block, 2)));
        [[scales, _mm256_setzero_ps()], [least, _mm256_setzero_ps()]]
    }
}

/// Factors, and the addends that move numbers down by `offset`.
///
/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn moved_down(scales: [__m256i; 2], scale: __m256, offset: f32) -> [[__m256; 2]; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let factors = |scales| _mm256_mul_ps(_mm256_cvtepi32_ps(scales), scale);
        let (first, second) = (factors(scales[0]), factors(scales[1]));
        let offset = _mm256_set1_ps(-offset);
        [[first, second], [_mm256_mul_ps(first, offset), _mm256_mul_ps(second, offset)]]
    }
}

/// 32 bytes.
///
/// # Safety
/// As [`Block`], with the bytes readable.
#[inline(always)]
unsafe fn bytes(from: *const u8) -> __m256i {
    // SAFETY: as required of the caller.
    unsafe { _mm256_loadu_si256(from.cast()) }
}

/// The bits of `mask` of each of 32 bytes, moved right by `by`.
///
/// # Safety
/// As [`Block`].
#[inline(always)]
unsafe fn moved(bytes: __m256i, by: usize, mask: i8) -> __m256i {
    // SAFETY: as required of the caller.
    unsafe { _mm256_and_si256(_mm256_srl_epi16(bytes, _mm_cvtsi64_si128(by as i64)), _mm256_set1_epi8(mask)) }
}

struct Q4K;

impl Block for Q4K {
    const FORMAT: Format = Format::Q4K;
    const LARGEST: u8 = 15;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [[__m256; 2]; 2] {
        // SAFETY: as required of the caller.
        unsafe { six_bit_scales(block) }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, stretch: usize) -> __m256i {
        // SAFETY: as required of the caller; two parts share their bytes.
        unsafe { moved(bytes(block.add(16 + stretch / 2 * 32)), stretch % 2 * 4, 15) }
    }
}

struct Q5K;

impl Block for Q5K {
    const FORMAT: Format = Format::Q5K;
    const LARGEST: u8 = 31;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [[__m256; 2]; 2] {
        // SAFETY: as required of the caller.
        unsafe { six_bit_scales(block) }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, stretch: usize) -> __m256i {
        // SAFETY: as required of the caller; bit `p` of the bytes at 16 is the fifth of part `p`'s numbers.
        unsafe {
            let low = moved(bytes(block.add(48 + stretch / 2 * 32)), stretch % 2 * 4, 15);
            let fifth = moved(bytes(block.add(16)), stretch, 1);
            _mm256_or_si256(low, _mm256_slli_epi16::<4>(fifth))
        }
    }
}

struct Q6K;

impl Block for Q6K {
    const FORMAT: Format = Format::Q6K;
    const LARGEST: u8 = 63;

    #[inline(always)]
    unsafe fn scales(block: *const u8) -> [[__m256; 2]; 2] {
        // SAFETY: as required of the caller.
        unsafe {
            let scales = |i: usize| _mm256_cvtepi8_epi32(_mm_loadl_epi64(block.add(192 + i).cast()));
            moved_down([scales(0), scales(8)], half(block, 208), 32.0)
        }
    }

    #[inline(always)]
    unsafe fn numbers(block: *const u8, stretch: usize) -> __m256i {
        // SAFETY: as required of the caller. In each half of the block the low nibbles of 64 bytes are the first 64
        // numbers', the high ones the others'; 32 bytes hold the upper two bits of each 32 numbers in turn.
        unsafe {
            let (side, quarter) = (stretch / 4, stretch % 4);
            let low = moved(bytes(block.add(side * 64 + quarter % 2 * 32)), quarter / 2 * 4, 15);
            let high = moved(bytes(block.add(128 + side * 32)), 2 * quarter, 3);
            _mm256_or_si256(low, _mm256_slli_epi16::<4>(high))
        }
    }
}
