//! Which instructions this processor has: found out at run time, once.

use std::sync::OnceLock;

/// The instruction sets that the CPU kernels are compiled for. A processor that has one has all before it that its
/// architecture knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust, which the compiler vectorizes for the target's baseline.
    Portable,
    /// NEON, on 64-bit ARM: 8 lanes in two registers.
    Neon,
    /// NEON with dot products (ARMv8.2): products of bytes, four at a time.
    NeonDot,
    /// AVX2 with FMA and F16C: 8 lanes.
    Avx2,
    /// AVX-512 F, BW, VL and DQ: 16 lanes.
    Avx512,
    /// AVX-512 with VNNI: products of bytes, four at a time.
    Avx512Vnni,
    /// AVX-512 with VNNI and BF16: products of bf16, two at a time.
    Avx512Bf16,
    /// The same, and tiles of bf16 (AMX), which the system lets this process use.
    Amx,
}

impl Level {
    #[cfg(target_arch = "x86_64")]
    const ALL: &[Level] =
        &[Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Vnni, Level::Avx512Bf16, Level::Amx];
    #[cfg(target_arch = "aarch64")]
    const ALL: &[Level] = &[Level::Portable, Level::Neon, Level::NeonDot];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    const ALL: &[Level] = &[Level::Portable];

    /// The levels that this processor can run, slowest first.
    pub fn available() -> Vec<Level> {
        Level::ALL.iter().copied().filter(|level| *level <= cpu_level()).collect()
    }

    /// What these instruction sets are called.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Neon => "NEON",
            Level::NeonDot => "NEON with dot products",
            Level::Avx2 => "AVX2",
            Level::Avx512 => "AVX-512",
            Level::Avx512Vnni => "AVX-512 VNNI",
            Level::Avx512Bf16 => "AVX-512 BF16",
            Level::Amx => "AMX",
        }
    }

    /// Whether bytes are multiplied four at a time, so that activations of 8 bits are faster than those of 16.
    #[cfg(test)]
    pub(super) fn multiplies_bytes(self) -> bool {
        self == Level::NeonDot || self >= Level::Avx512Vnni
    }
}

/// The best level of this processor.
pub fn cpu_level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq");
    let (vnni, bf16) = (is_x86_feature_detected!("avx512vnni"), is_x86_feature_detected!("avx512bf16"));
    let steps = [avx2, avx512, vnni, bf16, super::amx::is_available()];
    Level::ALL[steps.iter().take_while(|has| **has).count()]
}

#[cfg(target_arch = "aarch64")]
fn detect() -> Level {
    let steps = [std::arch::is_aarch64_feature_detected!("neon"), std::arch::is_aarch64_feature_detected!("dotprod")];
    Level::ALL[steps.iter().take_while(|has| **has).count()]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> Level {
    Level::Portable
}

/// Runs a kernel that is generic over [`Lanes`](super::lanes::Lanes) with the instructions of a level.
///
/// The kernel is an `#[inline(always)]` function; this expands to one copy of it per level, each inside a function
/// that has the level's target features, so that the vector operations become single instructions.
macro_rules! with_level {
    ($level:expr, $kernel:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
        fn avx512($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the function has the target features that these lanes need.
            unsafe { $kernel::<$crate::cpu::lanes::Avx512>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the function has the target features that these lanes need.
            unsafe { $kernel::<$crate::cpu::lanes::Avx2>($($arg),*) }
        }
        match $level {
            // SAFETY: a level is chosen only when the processor was found to have its features.
            #[cfg(target_arch = "x86_64")]
            level if level >= $crate::cpu::Level::Avx512 => unsafe { avx512($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::Level::Avx2 => unsafe { avx2($($arg),*) },
            // SAFETY: as above; NEON is part of the target.
            #[cfg(target_arch = "aarch64")]
            level if level >= $crate::cpu::Level::Neon => unsafe { $kernel::<$crate::cpu::lanes::Neon>($($arg),*) },
            // SAFETY: plain Rust needs no features.
            _ => unsafe { $kernel::<$crate::cpu::lanes::Plain>($($arg),*) },
        }
    }};
}

pub(super) use with_level;
