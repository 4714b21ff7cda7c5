//! Asking for memory ahead of its use.

/// Asks for the cache line at `from`; never faults.
#[inline(always)]
pub(in crate::cpu) fn prefetch(from: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; the address need not be valid.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(from.cast());
    }
    #[cfg(target_arch = "aarch64")]
    super::neon::prefetch(from);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = from;
}

/// Asks for the cache line at `from` to be brought into the L2 cache, where the CPU has an instruction for that, else as [`prefetch`]; never
/// faults.
#[inline(always)]
pub(in crate::cpu) fn prefetch_into_l2(from: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; the address need not be valid.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(from.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    prefetch(from);
}
