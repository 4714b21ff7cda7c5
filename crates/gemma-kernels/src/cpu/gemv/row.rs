//! One row of a quantized matrix, and what kernels read of it.

use crate::cpu::output::Output;
use crate::cpu::shape::Shape;

/// One row times some tokens, from `token` on. The calling task owns the row.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Call<'a> {
    pub(in crate::cpu) bytes: &'a [u8],
    pub(in crate::cpu) shape: Shape,
    pub(in crate::cpu) token: usize,
    pub(in crate::cpu) row: usize,
    pub(in crate::cpu) out: Output,
}

impl Call<'_> {
    /// # Safety
    /// `t` must be one of the call's tokens.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn write(&self, t: usize, sum: f32) {
        // SAFETY: the task owns the row, and the token exists.
        unsafe { *self.out.at((self.token + t) * self.shape.rows + self.row) = sum };
    }
}

/// The bytes of group `g` of a row, which are `FOUR`: in the row, or, where the row ends within the group, in `last`,
/// filled up with zeros.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(in crate::cpu) fn group<const FOUR: usize>(row: &[u8], g: usize, last: &mut [u8; FOUR]) -> *const u8 {
    let rest = &row[g * FOUR..];
    if rest.len() >= FOUR {
        return rest.as_ptr();
    }
    last[..rest.len()].copy_from_slice(rest);
    last[rest.len()..].fill(0);
    last.as_ptr()
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
