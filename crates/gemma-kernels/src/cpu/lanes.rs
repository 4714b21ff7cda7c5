//! A vector of f32 lanes, for each instruction set.
//!
//! The kernels are written once, over this trait. Its methods are `unsafe` for two reasons that hold for all of
//! them: the processor must have the instruction set of the type, and pointers must be readable for the lanes.

/// `N` f32 values that are computed with together.
///
/// # Safety
/// Every method requires that the processor has the instruction set of the implementing type. Methods that take a
/// pointer read `N` values of the named kind from it, at any alignment.
pub(super) trait Lanes: Copy {
    /// Number of lanes.
    const N: usize;
    /// Weight rows, then activation rows, of the product's register tile.
    const TILE: (usize, usize);
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn load_bf16(from: *const u8) -> Self;
    unsafe fn load_f16(from: *const u8) -> Self;
    unsafe fn load_i8(from: *const u8) -> Self;
    /// The low four bits of `N` bytes, minus 8.
    unsafe fn load_low_nibbles(from: *const u8) -> Self;
    /// The high four bits of `N` bytes, minus 8.
    unsafe fn load_high_nibbles(from: *const u8) -> Self;
    /// `self * factor`.
    unsafe fn mul(self, factor: Self) -> Self;
    /// `self * factor + addend`.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn sum(self) -> f32;
}

/// Asks for the cache line at `from`; never faults.
#[inline(always)]
pub(super) fn prefetch(from: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; the address need not be valid.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(from.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}

/// Plain Rust: eight values in an array.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; 8]);

impl Plain {
    #[inline(always)]
    unsafe fn from_bytes(from: *const u8, value: impl Fn(u8) -> f32) -> Self {
        // SAFETY: the caller gives eight readable bytes.
        let bytes = unsafe { from.cast::<[u8; 8]>().read_unaligned() };
        Self(bytes.map(value))
    }
}

impl Lanes for Plain {
    const N: usize = 8;
    const TILE: (usize, usize) = (2, 2);

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller gives eight readable values.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller gives room for eight values.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: the caller gives eight readable values.
        let halves = unsafe { from.cast::<[u16; 8]>().read_unaligned() };
        Self(halves.map(|half| f32::from_bits(u32::from(u16::from_le(half)) << 16)))
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: the caller gives eight readable values.
        let halves = unsafe { from.cast::<[u16; 8]>().read_unaligned() };
        Self(halves.map(|half| half::f16::from_bits(u16::from_le(half)).to_f32()))
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self {
        // SAFETY: as required of the caller.
        unsafe { Self::from_bytes(from, |byte| f32::from(byte.cast_signed())) }
    }

    #[inline(always)]
    unsafe fn load_low_nibbles(from: *const u8) -> Self {
        // SAFETY: as required of the caller.
        unsafe { Self::from_bytes(from, |byte| f32::from(byte & 15) - 8.0) }
    }

    #[inline(always)]
    unsafe fn load_high_nibbles(from: *const u8) -> Self {
        // SAFETY: as required of the caller.
        unsafe { Self::from_bytes(from, |byte| f32::from(byte >> 4) - 8.0) }
    }

    #[inline(always)]
    unsafe fn mul(self, factor: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * factor.0[i]))
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // not `f32::mul_add`: without the instruction that is a library call
        Self(std::array::from_fn(|i| self.0[i] * factor.0[i] + addend.0[i]))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        self.0.iter().sum()
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    /// AVX2 with FMA and F16C.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(__m256);

    // SAFETY (for every block below): `Lanes` demands the instruction set and readable pointers of its callers.
    #[allow(clippy::undocumented_unsafe_blocks, reason = "said once, above")]
    impl Lanes for Avx2 {
        const N: usize = 8;
        const TILE: (usize, usize) = (4, 2);

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
        unsafe fn mul(self, factor: Self) -> Self {
            unsafe { Self(_mm256_mul_ps(self.0, factor.0)) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
            unsafe { Self(_mm256_fmadd_ps(self.0, factor.0, addend.0)) }
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
    pub(in super::super) struct Avx512(__m512);

    // SAFETY (for every block below): `Lanes` demands the instruction set and readable pointers of its callers.
    #[allow(clippy::undocumented_unsafe_blocks, reason = "said once, above")]
    impl Lanes for Avx512 {
        const N: usize = 16;
        const TILE: (usize, usize) = (4, 4);

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
        unsafe fn mul(self, factor: Self) -> Self {
            unsafe { Self(_mm512_mul_ps(self.0, factor.0)) }
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
            unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
        }

        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe { _mm512_reduce_add_ps(self.0) }
        }
    }
}
