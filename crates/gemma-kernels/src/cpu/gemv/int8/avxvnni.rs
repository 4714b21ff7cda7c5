//! With the VNNI of AVX: bytes, four products in each of eight lanes. [`row`] serves AVX2 as well, which adds in two steps.

use super::e8m0_scales;
use super::vnni::{self, Nibbles};
use crate::Format;
use crate::cpu::gemv::row::{self, Call, f16_scales};
use crate::cpu::isa::{Avx2, Lanes};
use crate::cpu::quantize::{Bytes, GROUP, Order, Split};
use crate::format::low_bits::{FP4_LEVELS, IQ4_LEVELS};
use std::arch::x86_64::*;
use std::marker::PhantomData;

#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) fn split(x: &[f32], cols: usize, fine: bool, order: Order, offset: i32) -> Split {
    Split::new(x, cols, fine, (order, offset, 32), |x, limit| Bytes::with_avx2(x, limit))
}

/// The scales of four blocks of `SIZE` bytes.
///
/// # Safety
/// Four blocks must be readable, and F16C enabled where this is expanded.
#[inline(always)]
unsafe fn scales<const SIZE: usize>(group: *const u8) -> __m128 {
    // SAFETY: as required of the caller.
    unsafe { _mm_cvtph_ps(_mm_cvtsi64_si128(f16_scales::<SIZE>(group).cast_signed())) }
}

/// How bytes are multiplied and added, four to a lane.
///
/// # Safety
/// Every method requires that the CPU has the instructions and that 32 bytes are readable at the pointers, with halves also half a group
/// further on, and is expanded where the instructions are enabled.
pub(super) trait Dot {
    /// `Σ weights activations`, each lane over its four bytes, with halves over those of both vectors.
    unsafe fn dot<G: Group>(weights: [__m256i; 2], activations: *const i8) -> __m256i;

    /// The same for activations of 16 bits.
    #[inline(always)]
    unsafe fn fine<G: Group>(weights: [__m256i; 2], low: *const i8, high: *const i8) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe {
            let high = _mm256_slli_epi32::<8>(Self::dot::<G>(weights, high));
            _mm256_add_epi32(Self::dot::<G>(weights, low), high)
        }
    }
}

/// A quarter of a token's group of low or high bytes.
///
/// # Safety
/// 32 bytes must be readable at the place, aligned, and AVX2 enabled where this is expanded.
#[inline(always)]
pub(super) unsafe fn load(bytes: *const i8) -> __m256i {
    // SAFETY: as required of the caller.
    unsafe { _mm256_load_si256(bytes.cast()) }
}

/// In one instruction: unsigned weights, signed activations.
struct Vnni;

impl Dot for Vnni {
    #[inline(always)]
    unsafe fn dot<G: Group>(weights: [__m256i; 2], activations: *const i8) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe {
            let sum = _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), weights[0], load(activations));
            match G::HALVES {
                true => _mm256_dpbusd_avx_epi32(sum, weights[1], load(activations.add(GROUP / 2))),
                false => sum,
            }
        }
    }
}

/// A row times `M` tokens.
///
/// # Safety
/// The call's row has the blocks of its shape, and `x`, made with the layout of unsigned bytes, has `M` tokens from the call's on.
#[target_feature(enable = "avxvnni,avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn bytes<const M: usize, const FINE: bool>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        match call.shape.format {
            Format::Q8_0 => row::<Vnni, Unsigned<Q80>, M, FINE, 34, 136>(x, call),
            Format::Iq4Nl => row::<Vnni, Unsigned<Iq4Nl>, M, FINE, 18, 72>(x, call),
            _ => below_32::<Vnni, M, FINE>(x, call),
        }
    }
}

/// A row of a format whose numbers are less than 32.
///
/// # Safety
/// As [`row`], with `x` made with the layout of unsigned bytes.
#[inline(always)]
pub(super) unsafe fn below_32<D: Dot, const M: usize, const FINE: bool>(x: &Split, call: &Call<'_>) {
    // SAFETY: as required of the caller.
    unsafe {
        match call.shape.format {
            Format::Q4_0 => row::<D, Q40, M, FINE, 18, 72>(x, call),
            Format::Q4_1 => row::<D, WithAddend<Q40>, M, FINE, 20, 80>(x, call),
            Format::Q5_0 => row::<D, Q50, M, FINE, 22, 88>(x, call),
            Format::Q5_1 => row::<D, WithAddend<Q50>, M, FINE, 24, 96>(x, call),
            Format::Mxfp4 => row::<D, Mxfp4, M, FINE, 17, 68>(x, call),
            other => unreachable!("{other} has no such blocks"),
        }
    }
}

/// Blocks of a row as unsigned bytes, in the order of the columns, their scales, and what the kernels here multiply the sums
/// of activations by: the scales, or addends.
///
/// # Safety
/// As [`Group`]; there must be whole blocks, and room for what they would hold were their number a multiple of four.
#[inline(always)]
pub(super) unsafe fn take_apart(
    format: Format,
    blocks: &[u8],
    numbers: &mut [u8],
    scales: &mut [f32],
    of_sums: &mut [f32],
) {
    // SAFETY: as required of the caller.
    unsafe {
        match format {
            Format::Q8_0 => apart::<Unsigned<Q80>, 34, 136>(blocks, numbers, scales, of_sums),
            Format::Iq4Nl => apart::<Unsigned<Iq4Nl>, 18, 72>(blocks, numbers, scales, of_sums),
            Format::Q4_0 => apart::<Q40, 18, 72>(blocks, numbers, scales, of_sums),
            Format::Q4_1 => apart::<WithAddend<Q40>, 20, 80>(blocks, numbers, scales, of_sums),
            Format::Q5_0 => apart::<Q50, 22, 88>(blocks, numbers, scales, of_sums),
            Format::Q5_1 => apart::<WithAddend<Q50>, 24, 96>(blocks, numbers, scales, of_sums),
            Format::Mxfp4 => apart::<Mxfp4, 17, 68>(blocks, numbers, scales, of_sums),
            other => unreachable!("{other} has no such blocks"),
        }
    }
}

/// # Safety
/// As [`take_apart`].
#[inline(always)]
unsafe fn apart<G: Group, const SIZE: usize, const FOUR: usize>(
    blocks: &[u8],
    numbers: &mut [u8],
    scales: &mut [f32],
    of_sums: &mut [f32],
) {
    const { assert!(FOUR == 4 * SIZE) };
    let mut last = [0; FOUR];
    let scales = scales.as_chunks_mut::<4>().0.iter_mut().zip(of_sums.as_chunks_mut::<4>().0);
    let numbers = numbers.as_chunks_mut::<GROUP>().0;
    for ((group, numbers), (scales, of_sums)) in blocks.chunks(FOUR).zip(numbers).zip(scales) {
        let mut from = group.as_ptr();
        if group.len() < FOUR {
            last[..group.len()].copy_from_slice(group);
            from = last.as_ptr();
        }
        // SAFETY: as required of the caller; four blocks are there.
        unsafe {
            let [of_numbers, of_starts] = G::scales::<SIZE>(from);
            _mm_storeu_ps(scales.as_mut_ptr(), of_numbers);
            _mm_storeu_ps(of_sums.as_mut_ptr(), of_starts);
            for (pair, to) in numbers.as_chunks_mut::<64>().0.iter_mut().enumerate() {
                let both = match G::HALVES {
                    true => {
                        let [first, second] = G::numbers::<SIZE>(from, pair);
                        let block = _mm256_permute2x128_si256::<0x20>(first, second);
                        [block, _mm256_permute2x128_si256::<0x31>(first, second)]
                    }
                    false => [G::numbers::<SIZE>(from, 2 * pair)[0], G::numbers::<SIZE>(from, 2 * pair + 1)[0]],
                };
                for (to, block) in to.as_chunks_mut::<32>().0.iter_mut().zip(both) {
                    _mm256_storeu_si256(to.as_mut_ptr().cast(), block);
                }
            }
        }
    }
}

/// How four blocks of a format, of `SIZE` bytes each, are taken apart.
///
/// # Safety
/// Every method requires that the blocks are readable, and is expanded where AVX2 and F16C are enabled.
pub(super) trait Group {
    /// Whether a vector holds the first halves of two blocks, and a second one the other halves; else it holds a block.
    const HALVES: bool = true;

    /// The scales of the blocks, and what their starts are multiplied by.
    #[inline(always)]
    unsafe fn scales<const SIZE: usize>(group: *const u8) -> [__m128; 2] {
        // SAFETY: as required of the caller.
        unsafe { [scales::<SIZE>(group); 2] }
    }

    /// The numbers of block `i`, twice, or of pair `i` of blocks.
    unsafe fn numbers<const SIZE: usize>(group: *const u8, i: usize) -> [__m256i; 2];
}

pub(super) struct Q80;

impl Group for Q80 {
    const HALVES: bool = false;

    #[inline(always)]
    unsafe fn numbers<const SIZE: usize>(group: *const u8, i: usize) -> [__m256i; 2] {
        // SAFETY: as required of the caller.
        [unsafe { _mm256_loadu_si256(group.add(i * SIZE + 2).cast()) }; 2]
    }
}

struct Q40;

impl Group for Q40 {
    #[inline(always)]
    unsafe fn numbers<const SIZE: usize>(group: *const u8, i: usize) -> [__m256i; 2] {
        // SAFETY: as required of the caller.
        unsafe { nibbles::<SIZE>(group, i) }
    }
}

struct Q50;

impl Group for Q50 {
    #[inline(always)]
    unsafe fn numbers<const SIZE: usize>(group: *const u8, i: usize) -> [__m256i; 2] {
        // SAFETY: as required of the caller; the fifth bits and the nibbles are the last twenty bytes.
        unsafe { five_bits::<SIZE>(group, i) }
    }
}

/// Q4_1 and Q5_1 have what Q4_0 and Q5_0 have behind two scales.
struct WithAddend<G>(PhantomData<G>);

impl<G: Group> Group for WithAddend<G> {
    #[inline(always)]
    unsafe fn scales<const SIZE: usize>(group: *const u8) -> [__m128; 2] {
        // SAFETY: as required of the caller.
        unsafe { [scales::<SIZE>(group), scales::<SIZE>(group.add(2))] }
    }

    #[inline(always)]
    unsafe fn numbers<const SIZE: usize>(group: *const u8, i: usize) -> [__m256i; 2] {
        // SAFETY: as required of the caller.
        unsafe { G::numbers::<SIZE>(group, i) }
    }
}

pub(super) struct Iq4Nl;

impl Group for Iq4Nl {
    #[inline(always)]
    unsafe fn numbers<const SIZE: usize>(group: *const u8, i: usize) -> [__m256i; 2] {
        // SAFETY: as required of the caller.
        unsafe { levels(&IQ4_LEVELS, nibbles::<SIZE>(group, i)) }
    }
}

struct Mxfp4;

impl Group for Mxfp4 {
    #[inline(always)]
    unsafe fn scales<const SIZE: usize>(group: *const u8) -> [__m128; 2] {
        // SAFETY: as required of the caller.
        unsafe { [e8m0_scales::<SIZE>(group); 2] }
    }

    #[inline(always)]
    unsafe fn numbers<const SIZE: usize>(group: *const u8, i: usize) -> [__m256i; 2] {
        // SAFETY: as required of the caller.
        unsafe { moved_up(levels(&FP4_LEVELS, nibbles::<SIZE>(group, i)), vnni::Mxfp4::OFFSET) }
    }
}

/// Signed numbers, moved up by 128.
struct Unsigned<G>(PhantomData<G>);

impl<G: Group> Group for Unsigned<G> {
    const HALVES: bool = G::HALVES;

    #[inline(always)]
    unsafe fn numbers<const SIZE: usize>(group: *const u8, i: usize) -> [__m256i; 2] {
        // SAFETY: as required of the caller.
        unsafe { moved_up(G::numbers::<SIZE>(group, i), 128) }
    }
}

/// # Safety
/// As [`Group`].
#[inline(always)]
unsafe fn moved_up(numbers: [__m256i; 2], offset: i32) -> [__m256i; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let offset = _mm256_set1_epi8(offset as i8);
        [_mm256_add_epi8(numbers[0], offset), _mm256_add_epi8(numbers[1], offset)]
    }
}

/// The nibbles of a pair of blocks of `SIZE` bytes: the low ones, which are the first halves of both, then the high ones.
///
/// # Safety
/// As [`Group`].
#[inline(always)]
unsafe fn nibbles<const SIZE: usize>(group: *const u8, pair: usize) -> [__m256i; 2] {
    // SAFETY: as required of the caller; they are the last sixteen bytes of each block.
    unsafe {
        let block = |b: usize| _mm_loadu_si128(group.add((2 * pair + b + 1) * SIZE - 16).cast());
        let bytes = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(block(0)), block(1));
        let nibble = _mm256_set1_epi8(15);
        [_mm256_and_si256(bytes, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble)]
    }
}

/// The same with the fifth bits of the numbers, which lie in the four bytes before the nibbles, a bit a value.
///
/// # Safety
/// As [`Group`].
#[inline(always)]
unsafe fn five_bits<const SIZE: usize>(group: *const u8, pair: usize) -> [__m256i; 2] {
    // SAFETY: as required of the caller.
    unsafe {
        let bits = |b: usize| _mm_set1_epi32(group.add((2 * pair + b + 1) * SIZE - 20).cast::<i32>().read_unaligned());
        let bits = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(bits(0)), bits(1));
        // each byte gets the eight bits that its own is among
        let bytes_of = |first: i8| {
            let eights = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
            _mm256_broadcastsi128_si256(_mm_add_epi8(eights, _mm_set1_epi8(first)))
        };
        let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
        let sixteen = _mm256_set1_epi8(16);
        let fifth = |first: i8| {
            let eight = _mm256_and_si256(_mm256_shuffle_epi8(bits, bytes_of(first)), own);
            _mm256_and_si256(_mm256_cmpeq_epi8(eight, own), sixteen)
        };
        let [low, high] = nibbles::<SIZE>(group, pair);
        [_mm256_or_si256(low, fifth(0)), _mm256_or_si256(high, fifth(2))]
    }
}

/// The levels that nibbles name.
///
/// # Safety
/// AVX2 must be enabled where this is expanded.
#[inline(always)]
unsafe fn levels(levels: &[i8; 16], nibbles: [__m256i; 2]) -> [__m256i; 2] {
    // SAFETY: as required of the caller; there are sixteen levels.
    unsafe {
        let levels = _mm256_broadcastsi128_si256(_mm_loadu_si128(levels.as_ptr().cast()));
        [_mm256_shuffle_epi8(levels, nibbles[0]), _mm256_shuffle_epi8(levels, nibbles[1])]
    }
}

/// A row of blocks of `SIZE` bytes, of which four have `FOUR`, times `M` tokens.
///
/// # Safety
/// As [`bytes`], with the instructions at hand where this is expanded, and `x` made for the group's numbers.
#[inline(always)]
pub(super) unsafe fn row<D: Dot, G: Group, const M: usize, const FINE: bool, const SIZE: usize, const FOUR: usize>(
    x: &Split,
    call: &Call<'_>,
) {
    const { assert!(FOUR == 4 * SIZE) };
    let (token, groups) = (call.token, call.shape.cols.div_ceil(GROUP));
    let mut last = [[0; FOUR]];
    let vectors = if G::HALVES { 2 } else { 4 };
    // SAFETY: as required of the caller; each token has a group.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; M];
        let mut added = [_mm_setzero_ps(); M];
        // the blocks whose products a vector holds: one, or two in its halves
        let spread: [__m256i; 4] = std::array::from_fn(|i| {
            let i = i as i32;
            match G::HALVES {
                true => _mm256_setr_epi32(2 * i, 2 * i, 2 * i, 2 * i, 2 * i + 1, 2 * i + 1, 2 * i + 1, 2 * i + 1),
                false => _mm256_set1_epi32(i),
            }
        });
        for (range, [first]) in row::groups(call, &mut last) {
            for g in range {
                let from = first.wrapping_add(g * FOUR);
                call.request(g * FOUR, FOUR);
                let [scale, of_starts] = G::scales::<SIZE>(from);
                let mut scales = [_mm_setzero_ps(); M];
                for t in 0..M {
                    let at = ((token + t) * groups + g) * 4;
                    let x_scale = _mm_load_ps(x.scales.as_ptr().add(at));
                    scales[t] = _mm_mul_ps(scale, x_scale);
                    let starts = _mm_cvtepi32_ps(_mm_load_si128(x.starts.as_ptr().add(at).cast()));
                    added[t] = _mm_fmadd_ps(starts, _mm_mul_ps(of_starts, x_scale), added[t]);
                }
                for i in 0..vectors {
                    let weights = G::numbers::<SIZE>(from, i);
                    for t in 0..M {
                        let place = ((token + t) * groups + g) * GROUP + i * 32;
                        let low = x.low.as_ptr().add(place);
                        let exact = match FINE {
                            true => D::fine::<G>(weights, low, x.high.as_ptr().add(place)),
                            false => D::dot::<G>(weights, low),
                        };
                        let scale = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(scales[t]), spread[i]);
                        let sum = &mut sums[t][i % 2];
                        *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), scale, *sum);
                    }
                }
            }
        }
        for (t, (sums, added)) in sums.into_iter().zip(added).enumerate() {
            let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_zextps128_ps256(added));
            call.write(0, t, Avx2::from(sum).sum());
        }
    }
}
