//! The vectors of x86: AVX2 and AVX-512.

use super::lanes::Lanes;
use std::arch::x86_64::*;

/// AVX2 with FMA and F16C.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Avx2(__m256);

impl Avx2 {
    /// `N` bytes, each in a lane.
    ///
    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())) }
    }

    /// Four bits of each byte, from bit `shift` on.
    ///
    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    unsafe fn nibbles(from: *const u8, shift: u32) -> __m256i {
        // SAFETY: as required of the caller.
        unsafe {
            let moved = _mm256_srl_epi32(Self::bytes(from), _mm_cvtsi32_si128(shift.cast_signed()));
            _mm256_and_si256(moved, _mm256_set1_epi32(15))
        }
    }
}

impl From<__m256> for Avx2 {
    fn from(lanes: __m256) -> Self {
        Self(lanes)
    }
}

// SAFETY (for every block below): `Lanes` demands the instruction set and readable pointers of its callers.
#[allow(clippy::undocumented_unsafe_blocks, reason = "said once, above")]
impl Lanes for Avx2 {
    const N: usize = 8;
    const TILE: (usize, usize) = (6, 2);

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(_mm256_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves)))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        unsafe { Self(_mm256_cvtph_ps(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self {
        unsafe { Self(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn load_low_nibbles(from: *const u8) -> Self {
        unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
            let nibbles = _mm256_and_si256(bytes, _mm256_set1_epi32(15));
            Self(_mm256_cvtepi32_ps(_mm256_sub_epi32(nibbles, _mm256_set1_epi32(8))))
        }
    }

    #[inline(always)]
    unsafe fn load_high_nibbles(from: *const u8) -> Self {
        unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
            let nibbles = _mm256_srli_epi32::<4>(bytes);
            Self(_mm256_cvtepi32_ps(_mm256_sub_epi32(nibbles, _mm256_set1_epi32(8))))
        }
    }

    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8, shift: u32) -> Self {
        unsafe { Self(_mm256_cvtepi32_ps(Self::nibbles(from, shift))) }
    }

    #[inline(always)]
    unsafe fn load_five_bits(from: *const u8, shift: u32, fifth: u32) -> Self {
        unsafe {
            // each lane shifts by its own number
            let bits =
                _mm256_srlv_epi32(_mm256_set1_epi32(fifth.cast_signed()), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            let sixteen = _mm256_and_si256(_mm256_slli_epi32::<4>(bits), _mm256_set1_epi32(16));
            Self(_mm256_cvtepi32_ps(_mm256_or_si256(Self::nibbles(from, shift), sixteen)))
        }
    }

    #[inline(always)]
    unsafe fn load_split<const MASK: i32>(low: *const u8, shift: u32, high: *const u8, high_shift: u32) -> Self {
        unsafe {
            let moved = _mm256_srl_epi32(Self::bytes(high), _mm_cvtsi32_si128(high_shift.cast_signed()));
            let high = _mm256_slli_epi32::<4>(_mm256_and_si256(moved, _mm256_set1_epi32(MASK)));
            Self(_mm256_cvtepi32_ps(_mm256_or_si256(Self::nibbles(low, shift), high)))
        }
    }

    #[inline(always)]
    unsafe fn mul(self, factor: Self) -> Self {
        unsafe { Self(_mm256_mul_ps(self.0, factor.0)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        unsafe { Self(_mm256_fmadd_ps(self.0, factor.0, addend.0)) }
    }

    #[inline(always)]
    unsafe fn add(self, addend: Self) -> Self {
        unsafe { Self(_mm256_add_ps(self.0, addend.0)) }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_step: usize, to: *mut f32, to_step: usize) {
        unsafe {
            let row = |i: usize| _mm256_loadu_ps(from.add(i * from_step));
            // pairs of rows interleaved, then pairs of pairs, then the halves exchanged
            let mut quads = [_mm256_setzero_ps(); 8];
            for half in 0..2 {
                let r = 4 * half;
                let (a, b) = (_mm256_unpacklo_ps(row(r), row(r + 1)), _mm256_unpackhi_ps(row(r), row(r + 1)));
                let (c, d) = (_mm256_unpacklo_ps(row(r + 2), row(r + 3)), _mm256_unpackhi_ps(row(r + 2), row(r + 3)));
                quads[r] = _mm256_shuffle_ps::<0b01_00_01_00>(a, c);
                quads[r + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(a, c);
                quads[r + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(b, d);
                quads[r + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(b, d);
            }
            for i in 0..4 {
                _mm256_storeu_ps(to.add(i * to_step), _mm256_permute2f128_ps::<0x20>(quads[i], quads[i + 4]));
                _mm256_storeu_ps(to.add((i + 4) * to_step), _mm256_permute2f128_ps::<0x31>(quads[i], quads[i + 4]));
            }
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let pairs = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let pairs = _mm_add_ps(pairs, _mm_movehl_ps(pairs, pairs));
            _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs)))
        }
    }
}

/// AVX-512 F, BW, VL and DQ.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Avx512(__m512);

impl Avx512 {
    /// The lanes.
    #[inline(always)]
    pub(in crate::cpu) fn vector(self) -> __m512 {
        self.0
    }

    /// `N` bytes, each in a lane.
    ///
    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> __m512i {
        // SAFETY: as required of the caller.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
    }

    /// Four bits of each byte, from bit `shift` on.
    ///
    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    unsafe fn nibbles(from: *const u8, shift: u32) -> __m512i {
        // SAFETY: as required of the caller.
        unsafe {
            let moved = _mm512_srl_epi32(Self::bytes(from), _mm_cvtsi32_si128(shift.cast_signed()));
            _mm512_and_si512(moved, _mm512_set1_epi32(15))
        }
    }
}

// SAFETY (for every block below): `Lanes` demands the instruction set and readable pointers of its callers.
#[allow(clippy::undocumented_unsafe_blocks, reason = "said once, above")]
impl Lanes for Avx512 {
    const N: usize = 16;
    const TILE: (usize, usize) = (12, 2);

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(_mm512_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm512_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves)))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self {
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn load_low_nibbles(from: *const u8) -> Self {
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            let nibbles = _mm512_and_si512(bytes, _mm512_set1_epi32(15));
            Self(_mm512_cvtepi32_ps(_mm512_sub_epi32(nibbles, _mm512_set1_epi32(8))))
        }
    }

    #[inline(always)]
    unsafe fn load_high_nibbles(from: *const u8) -> Self {
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            let nibbles = _mm512_srli_epi32::<4>(bytes);
            Self(_mm512_cvtepi32_ps(_mm512_sub_epi32(nibbles, _mm512_set1_epi32(8))))
        }
    }

    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8, shift: u32) -> Self {
        unsafe { Self(_mm512_cvtepi32_ps(Self::nibbles(from, shift))) }
    }

    #[inline(always)]
    unsafe fn load_five_bits(from: *const u8, shift: u32, fifth: u32) -> Self {
        unsafe {
            let nibbles = Self::nibbles(from, shift);
            Self(_mm512_cvtepi32_ps(_mm512_mask_add_epi32(nibbles, fifth as __mmask16, nibbles, _mm512_set1_epi32(16))))
        }
    }

    #[inline(always)]
    unsafe fn load_split<const MASK: i32>(low: *const u8, shift: u32, high: *const u8, high_shift: u32) -> Self {
        unsafe {
            let moved = _mm512_srl_epi32(Self::bytes(high), _mm_cvtsi32_si128(high_shift.cast_signed()));
            let high = _mm512_slli_epi32::<4>(_mm512_and_si512(moved, _mm512_set1_epi32(MASK)));
            Self(_mm512_cvtepi32_ps(_mm512_or_si512(Self::nibbles(low, shift), high)))
        }
    }

    #[inline(always)]
    unsafe fn mul(self, factor: Self) -> Self {
        unsafe { Self(_mm512_mul_ps(self.0, factor.0)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
    }

    #[inline(always)]
    unsafe fn add(self, addend: Self) -> Self {
        unsafe { Self(_mm512_add_ps(self.0, addend.0)) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_step: usize, to: *mut f32, to_step: usize) {
        unsafe {
            let row = |i: usize| _mm512_loadu_ps(from.add(i * from_step));
            // pairs of rows interleaved, then pairs of pairs: quads[4 g + j] holds in each of its four 128-bit lanes
            // l column 4 l + j of rows 4 g to 4 g + 3
            let mut quads = [_mm512_setzero_ps(); 16];
            for g in 0..4 {
                let r = 4 * g;
                let (a, b) = (_mm512_unpacklo_ps(row(r), row(r + 1)), _mm512_unpackhi_ps(row(r), row(r + 1)));
                let (c, d) = (_mm512_unpacklo_ps(row(r + 2), row(r + 3)), _mm512_unpackhi_ps(row(r + 2), row(r + 3)));
                quads[r] = _mm512_shuffle_ps::<0b01_00_01_00>(a, c);
                quads[r + 1] = _mm512_shuffle_ps::<0b11_10_11_10>(a, c);
                quads[r + 2] = _mm512_shuffle_ps::<0b01_00_01_00>(b, d);
                quads[r + 3] = _mm512_shuffle_ps::<0b11_10_11_10>(b, d);
            }
            // lanes of the four groups exchanged
            for j in 0..4 {
                let [a, b, c, d] = [quads[j], quads[4 + j], quads[8 + j], quads[12 + j]];
                let ab_low = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                let ab_high = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
                let cd_low = _mm512_shuffle_f32x4::<0b10_00_10_00>(c, d);
                let cd_high = _mm512_shuffle_f32x4::<0b11_01_11_01>(c, d);
                _mm512_storeu_ps(to.add(j * to_step), _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_low, cd_low));
                _mm512_storeu_ps(to.add((4 + j) * to_step), _mm512_shuffle_f32x4::<0b10_00_10_00>(ab_high, cd_high));
                _mm512_storeu_ps(to.add((8 + j) * to_step), _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_low, cd_low));
                _mm512_storeu_ps(to.add((12 + j) * to_step), _mm512_shuffle_f32x4::<0b11_01_11_01>(ab_high, cd_high));
            }
        }
    }
}

/// AVX-512 BF16: lanes of two bf16 values each, the earlier one in the lower half, that are multiplied and added to an
/// f32; all else treats a lane as 32 bits. Subnormal values count as zero.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Pairs(Avx512);

impl Pairs {
    /// The sums of the lanes' products, which are f32.
    #[inline(always)]
    pub(in crate::cpu) fn sums(self) -> Avx512 {
        self.0
    }
}

// SAFETY (for every block below): `Lanes` demands the instruction set and readable pointers of its callers.
#[allow(clippy::undocumented_unsafe_blocks, reason = "said once, above")]
impl Lanes for Pairs {
    const N: usize = Avx512::N;
    const EACH: usize = 2;
    const TILE: (usize, usize) = Avx512::TILE;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Self(Avx512::splat(value)) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(Avx512::load(from)) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { self.0.store(to) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        unsafe { Self(Avx512::load_bf16(from)) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        unsafe { Self(Avx512::load_f16(from)) }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self {
        unsafe { Self(Avx512::load_i8(from)) }
    }

    #[inline(always)]
    unsafe fn load_low_nibbles(from: *const u8) -> Self {
        unsafe { Self(Avx512::load_low_nibbles(from)) }
    }

    #[inline(always)]
    unsafe fn load_high_nibbles(from: *const u8) -> Self {
        unsafe { Self(Avx512::load_high_nibbles(from)) }
    }

    #[inline(always)]
    unsafe fn load_nibbles(from: *const u8, shift: u32) -> Self {
        unsafe { Self(Avx512::load_nibbles(from, shift)) }
    }

    #[inline(always)]
    unsafe fn load_five_bits(from: *const u8, shift: u32, fifth: u32) -> Self {
        unsafe { Self(Avx512::load_five_bits(from, shift, fifth)) }
    }

    #[inline(always)]
    unsafe fn load_split<const MASK: i32>(low: *const u8, shift: u32, high: *const u8, high_shift: u32) -> Self {
        unsafe { Self(Avx512::load_split::<MASK>(low, shift, high, high_shift)) }
    }

    #[inline(always)]
    unsafe fn mul(self, factor: Self) -> Self {
        unsafe { self.mul_add(factor, Self::splat(0.0)) }
    }

    /// The sum of both halves' products and an f32.
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        unsafe {
            let pairs = |lanes: Self| std::mem::transmute::<__m512, __m512bh>(lanes.0.0);
            Self(Avx512(_mm512_dpbf16_ps(addend.0.0, pairs(self), pairs(factor))))
        }
    }

    #[inline(always)]
    unsafe fn add(self, addend: Self) -> Self {
        unsafe { Self(self.0.add(addend.0)) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { self.0.sum() }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_step: usize, to: *mut f32, to_step: usize) {
        unsafe { Avx512::transpose(from, from_step, to, to_step) }
    }
}
