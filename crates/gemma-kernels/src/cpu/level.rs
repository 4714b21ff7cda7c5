//! Which instructions this CPU has: found out at run time, once.

use std::fmt::{self, Display, Formatter};
use std::sync::OnceLock;

/// The environment variable that names the best instruction set to use, of those that the CPU has:
/// `GEMMA_INSTRUCTIONS=avx2`.
const ENVIRONMENT: &str = "GEMMA_INSTRUCTIONS";

/// The instruction sets that the CPU kernels are compiled for. A CPU that has one has all before it that its
/// architecture knows, but for [`AvxVnni`](Level::AvxVnni).
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
    /// The same with VNNI for these lanes, which not every CPU with AVX-512 has: products of bytes, four at a
    /// time.
    AvxVnni,
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
    const ALL: &[Level] = &[
        Level::Portable,
        Level::Avx2,
        Level::AvxVnni,
        Level::Avx512,
        Level::Avx512Vnni,
        Level::Avx512Bf16,
        Level::Amx,
    ];
    #[cfg(target_arch = "aarch64")]
    const ALL: &[Level] = &[Level::Portable, Level::Neon, Level::NeonDot];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    const ALL: &[Level] = &[Level::Portable];

    /// The levels that this CPU can run, slowest first.
    pub fn available() -> Vec<Level> {
        Level::ALL.iter().copied().filter(|level| *level <= cpu_level() && level.is_there()).collect()
    }

    /// What these instruction sets are called.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Neon => "NEON",
            Level::NeonDot => "NEON with dot products",
            Level::Avx2 => "AVX2",
            Level::AvxVnni => "AVX VNNI",
            Level::Avx512 => "AVX-512",
            Level::Avx512Vnni => "AVX-512 VNNI",
            Level::Avx512Bf16 => "AVX-512 BF16",
            Level::Amx => "AMX",
        }
    }

    /// Whether bytes are multiplied four at a time, so that activations of 8 bits are faster than those of 16.
    #[cfg(test)]
    pub(super) fn multiplies_bytes(self) -> bool {
        matches!(self, Level::NeonDot | Level::AvxVnni) || self >= Level::Avx512Vnni
    }
}

impl Display for Level {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `GEMMA_INSTRUCTIONS` names no instruction set that this CPU has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{ENVIRONMENT}={0} is no instruction set of this CPU; use one of {known}, or leave it out", known = known())]
pub struct LevelError(String);

/// The words for the levels of this CPU.
fn known() -> String {
    let levels = Level::ALL.iter().filter(|level| level.is_there());
    levels.map(|level| word(level.name())).collect::<Vec<_>>().join(", ")
}

/// Letters and digits, in small letters: the name as somebody would type it.
fn word(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// The level that is computed with: the best of this CPU, or the one that `GEMMA_INSTRUCTIONS` names, for
/// comparing with another CPU.
///
/// # Errors
/// When it names none that this CPU has.
pub fn chosen_level() -> Result<Level, LevelError> {
    choose(std::env::var(ENVIRONMENT).ok().as_deref())
}

fn choose(name: Option<&str>) -> Result<Level, LevelError> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(detected()) };
    let named = Level::ALL.iter().copied().find(|level| word(level.name()) == word(name));
    named.filter(|level| level.is_there()).ok_or_else(|| LevelError(name.to_owned()))
}

/// The level that is computed with: [`chosen_level`], or where that is an error the best of this CPU. Found out once.
pub fn cpu_level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| chosen_level().unwrap_or_else(|_| detected()))
}

fn detected() -> Level {
    Level::ALL.iter().copied().rev().find(|level| level.is_there()).unwrap_or(Level::Portable)
}

impl Level {
    /// Whether the CPU has these instructions.
    #[cfg(target_arch = "x86_64")]
    fn is_there(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        match self {
            Level::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
            Level::AvxVnni => Level::Avx2.is_there() && has!("avxvnni"),
            Level::Avx512 => {
                let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq");
                Level::Avx2.is_there() && avx512
            }
            Level::Avx512Vnni => Level::Avx512.is_there() && has!("avx512vnni"),
            Level::Avx512Bf16 => Level::Avx512Vnni.is_there() && has!("avx512bf16"),
            Level::Amx => Level::Avx512Bf16.is_there() && super::amx::is_available(),
            level => level == Level::Portable,
        }
    }

    /// Whether the CPU has these instructions.
    #[cfg(target_arch = "aarch64")]
    fn is_there(self) -> bool {
        use std::arch::is_aarch64_feature_detected as has;
        match self {
            Level::Neon => has!("neon"),
            Level::NeonDot => has!("neon") && has!("dotprod"),
            level => level == Level::Portable,
        }
    }

    /// Whether the CPU has these instructions.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn is_there(self) -> bool {
        self == Level::Portable
    }
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
            // SAFETY: a level is chosen only when the CPU was found to have its features.
            #[cfg(target_arch = "x86_64")]
            level if level >= $crate::cpu::Level::Avx512 => unsafe { avx512($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::Level::Avx2 | $crate::cpu::Level::AvxVnni => unsafe { avx2($($arg),*) },
            // SAFETY: as above; NEON is part of the target.
            #[cfg(target_arch = "aarch64")]
            level if level >= $crate::cpu::Level::Neon => unsafe { $kernel::<$crate::cpu::lanes::Neon>($($arg),*) },
            // SAFETY: plain Rust needs no features.
            _ => unsafe { $kernel::<$crate::cpu::lanes::Plain>($($arg),*) },
        }
    }};
}

pub(super) use with_level;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_set_is_chosen_by_name_if_the_processor_has_it() {
        assert_eq!(choose(None), Ok(detected()));
        assert_eq!(choose(Some("")), Ok(detected()));
        for level in Level::ALL.iter().copied() {
            for name in [level.name().to_owned(), word(level.name()), level.name().to_uppercase()] {
                let chosen = choose(Some(&name));
                assert_eq!(chosen.is_ok(), level.is_there(), "{name}");
                assert!(chosen.is_err() || chosen == Ok(level), "{name}");
            }
        }
        let error = choose(Some("abacus")).unwrap_err().to_string();
        assert!(error.contains("abacus") && error.contains("portable"), "{error}");
    }
}
