//! Which instructions this CPU has: found out at run time, once.

use std::fmt::{self, Display, Formatter};
use std::sync::OnceLock;

/// The environment variable that names the best instruction set to use, of those that the CPU has:
/// `GEMMA_INSTRUCTIONS=avx2`.
const ENVIRONMENT: &str = "GEMMA_INSTRUCTIONS";

/// The instruction sets that the CPU kernels are compiled for. A CPU that has one has all before it that its
/// architecture knows, but for [`AvxVnni`](Isa::AvxVnni).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
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

impl Isa {
    #[cfg(target_arch = "x86_64")]
    const ALL: &[Isa] =
        &[Isa::Portable, Isa::Avx2, Isa::AvxVnni, Isa::Avx512, Isa::Avx512Vnni, Isa::Avx512Bf16, Isa::Amx];
    #[cfg(target_arch = "aarch64")]
    const ALL: &[Isa] = &[Isa::Portable, Isa::Neon, Isa::NeonDot];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    const ALL: &[Isa] = &[Isa::Portable];

    /// The instruction sets that this CPU can run, slowest first.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.iter().copied().filter(|isa| *isa <= cpu_isa() && isa.is_there()).collect()
    }

    /// What these instruction sets are called.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Neon => "NEON",
            Isa::NeonDot => "NEON with dot products",
            Isa::Avx2 => "AVX2",
            Isa::AvxVnni => "AVX VNNI",
            Isa::Avx512 => "AVX-512",
            Isa::Avx512Vnni => "AVX-512 VNNI",
            Isa::Avx512Bf16 => "AVX-512 BF16",
            Isa::Amx => "AMX",
        }
    }

    /// Whether bytes are multiplied, so that activations of 8 bits are faster than those of 16.
    #[cfg(test)]
    pub(in crate::cpu) fn multiplies_bytes(self) -> bool {
        self == Isa::NeonDot || self >= Isa::Avx2
    }
}

impl Display for Isa {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `GEMMA_INSTRUCTIONS` names no instruction set that this CPU has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{ENVIRONMENT}={0} is no instruction set of this CPU; use one of {known}, or leave it out", known = known())]
pub struct IsaError(String);

/// The words for the instruction sets of this CPU.
fn known() -> String {
    let isas = Isa::ALL.iter().filter(|isa| isa.is_there());
    isas.map(|isa| word(isa.name())).collect::<Vec<_>>().join(", ")
}

/// Letters and digits, in small letters: the name as somebody would type it.
fn word(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// The instruction set that is computed with: the best of this CPU, or the one that `GEMMA_INSTRUCTIONS` names, for
/// comparing with another CPU.
///
/// # Errors
/// When it names none that this CPU has.
pub fn chosen_isa() -> Result<Isa, IsaError> {
    choose(std::env::var(ENVIRONMENT).ok().as_deref())
}

fn choose(name: Option<&str>) -> Result<Isa, IsaError> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(detected()) };
    let named = Isa::ALL.iter().copied().find(|isa| word(isa.name()) == word(name));
    named.filter(|isa| isa.is_there()).ok_or_else(|| IsaError(name.to_owned()))
}

/// The instruction set that is computed with: [`chosen_isa`], or where that is an error the best of this CPU. Found out once.
pub fn cpu_isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| chosen_isa().unwrap_or_else(|_| detected()))
}

fn detected() -> Isa {
    Isa::ALL.iter().copied().rev().find(|isa| isa.is_there()).unwrap_or(Isa::Portable)
}

impl Isa {
    /// Whether the CPU has these instructions.
    #[cfg(target_arch = "x86_64")]
    fn is_there(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        match self {
            Isa::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
            Isa::AvxVnni => Isa::Avx2.is_there() && has!("avxvnni"),
            Isa::Avx512 => {
                let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq");
                Isa::Avx2.is_there() && avx512
            }
            Isa::Avx512Vnni => Isa::Avx512.is_there() && has!("avx512vnni"),
            Isa::Avx512Bf16 => Isa::Avx512Vnni.is_there() && has!("avx512bf16"),
            Isa::Amx => Isa::Avx512Bf16.is_there() && super::amx::is_available(),
            isa => isa == Isa::Portable,
        }
    }

    /// Whether the CPU has these instructions.
    #[cfg(target_arch = "aarch64")]
    fn is_there(self) -> bool {
        use std::arch::is_aarch64_feature_detected as has;
        match self {
            Isa::Neon => has!("neon"),
            Isa::NeonDot => has!("neon") && has!("dotprod"),
            isa => isa == Isa::Portable,
        }
    }

    /// Whether the CPU has these instructions.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn is_there(self) -> bool {
        self == Isa::Portable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_set_is_chosen_by_name_if_the_processor_has_it() {
        assert_eq!(choose(None), Ok(detected()));
        assert_eq!(choose(Some("")), Ok(detected()));
        for isa in Isa::ALL.iter().copied() {
            for name in [isa.name().to_owned(), word(isa.name()), isa.name().to_uppercase()] {
                let chosen = choose(Some(&name));
                assert_eq!(chosen.is_ok(), isa.is_there(), "{name}");
                assert!(chosen.is_err() || chosen == Ok(isa), "{name}");
            }
        }
        let error = choose(Some("abacus")).unwrap_err().to_string();
        assert!(error.contains("abacus") && error.contains("portable"), "{error}");
    }
}
