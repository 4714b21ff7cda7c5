//! Rows of a matrix, and what kernels read of them.

use crate::cpu::gemv::prefetch::Prefetch;
use crate::cpu::output::Output;
use crate::cpu::shape::Shape;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use std::ops::Range;

/// Some rows, one after the other in memory, times some tokens, from `token` on. The calling task owns the rows.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Call<'a> {
    pub(in crate::cpu) bytes: &'a [u8],
    pub(in crate::cpu) shape: Shape,
    pub(in crate::cpu) token: usize,
    pub(in crate::cpu) row: usize,
    pub(in crate::cpu) out: Output,
    /// How the rows are requested.
    pub(in crate::cpu) prefetch: Prefetch,
}

impl<'a> Call<'a> {
    /// The bytes of the call's row `r`.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[inline(always)]
    pub(in crate::cpu) fn row(&self, r: usize) -> &'a [u8] {
        &self.bytes[r * self.shape.row_bytes..(r + 1) * self.shape.row_bytes]
    }

    /// Writes the sum of row `r` and token `t` of the call.
    ///
    /// # Safety
    /// They must be rows and tokens of the call.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn write(&self, r: usize, t: usize, sum: f32) {
        // SAFETY: the task owns the row, and the token exists.
        unsafe { *self.out.at((self.token + t) * self.shape.rows + self.row + r) = sum };
    }

    /// Requests as many bytes as a kernel reads next, when it has read `read` bytes of the call's rows: once, with the first tokens. Rows
    /// that are read side by side are requested in the order in which they lie, which is one stream for the memory.
    #[inline(always)]
    pub(in crate::cpu) fn request(&self, read: usize, bytes: usize) {
        if self.token == 0 {
            self.prefetch.request(self.bytes.as_ptr().wrapping_add(read), bytes);
        }
    }
}

/// Where groups of `FOUR` bytes of the call's `R` rows lie: those within them, then, where a row ends within a group, that one, filled up with
/// zeros in `last`. For either their numbers, and where each row's group 0 would begin if all lay as these do, so that the loop over groups
/// neither branches nor chooses.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(in crate::cpu) fn groups<const R: usize, const FOUR: usize>(
    call: &Call<'_>,
    last: &mut [[u8; FOUR]; R],
) -> [(Range<usize>, [*const u8; R]); 2] {
    let (whole, rest) = (call.shape.row_bytes / FOUR, call.shape.row_bytes % FOUR);
    let mut firsts = [[std::ptr::null(); R]; 2];
    for (r, last) in last.iter_mut().enumerate() {
        let row = call.row(r);
        firsts[0][r] = row.as_ptr();
        last[..rest].copy_from_slice(&row[whole * FOUR..]);
        firsts[1][r] = last.as_ptr().wrapping_sub(whole * FOUR);
    }
    [(0..whole, firsts[0]), (whole..whole + usize::from(rest > 0), firsts[1])]
}

/// The scales of a group's blocks of `SIZE` bytes, halves as they lie, the first one lowest. Scalar loads leave the vector
/// units to the products.
///
/// # Safety
/// Four blocks must be readable.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(in crate::cpu) unsafe fn f16_scales<const SIZE: usize>(group: *const u8) -> u64 {
    // SAFETY: as required of the caller.
    let half = |b: usize| unsafe { u64::from(group.add(b * SIZE).cast::<u16>().read_unaligned()) };
    half(0) | half(1) << 16 | half(2) << 32 | half(3) << 48
}

/// The levels that the nibbles of sixteen bytes name as 16-bit numbers: the low ones, then the high ones.
///
/// # Safety
/// Sixteen bytes must be readable, and AVX2 enabled where this is expanded.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(in crate::cpu) unsafe fn levels(from: *const u8, levels: &[i8; 16]) -> [std::arch::x86_64::__m256i; 2] {
    use std::arch::x86_64::*;
    // SAFETY: as required of the caller; there are sixteen levels.
    unsafe {
        let bytes = _mm_loadu_si128(from.cast());
        let (nibble, levels) = (_mm_set1_epi8(15), _mm_loadu_si128(levels.as_ptr().cast()));
        let (low, high) = (_mm_and_si128(bytes, nibble), _mm_and_si128(_mm_srli_epi16::<4>(bytes), nibble));
        [_mm256_cvtepi8_epi16(_mm_shuffle_epi8(levels, low)), _mm256_cvtepi8_epi16(_mm_shuffle_epi8(levels, high))]
    }
}

/// The levels that the nibbles of sixteen bytes name: the low ones, then the high ones.
///
/// # Safety
/// Sixteen bytes must be readable.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(in crate::cpu) unsafe fn levels(from: *const u8, levels: &[i8; 16]) -> [std::arch::aarch64::int8x16_t; 2] {
    use std::arch::aarch64::*;
    // SAFETY: as required of the caller; there are sixteen levels.
    unsafe {
        let (bytes, levels) = (vld1q_u8(from), vld1q_s8(levels.as_ptr()));
        [vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes)].map(|nibbles| vqtbl1q_s8(levels, nibbles))
    }
}
