//! Whether a process may use Intel's matrix unit (AMX).

use std::arch::asm;

/// Whether the CPU has tiles and bf16 products of them, and the system lets this process use them, which it is
/// asked here.
#[cfg(target_os = "linux")]
pub(in crate::cpu) fn is_available() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    let has = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (BF16 | TILE) == BF16 | TILE;
    // arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA): for all threads of the process
    const ARCH_PRCTL: i64 = 158;
    const REQUEST: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    has && {
        let refused: i64;
        // SAFETY: the call touches no memory of this process; it overwrites these two registers.
        unsafe {
            asm!("syscall", inlateout("rax") ARCH_PRCTL => refused, in("rdi") REQUEST, in("rsi") TILE_DATA,
                 out("rcx") _, out("r11") _, options(nostack));
        }
        refused == 0
    }
}

/// Other systems are not asked.
#[cfg(not(target_os = "linux"))]
pub(in crate::cpu) fn is_available() -> bool {
    false
}
