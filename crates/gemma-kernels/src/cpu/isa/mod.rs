//! The instruction sets of the CPU: which there are, and vectors of f32 in each.
//!
//! - [`detect`]: which of them this CPU has, found out once;
//! - [`lanes`]: the vector that kernels are written over; `x86` and `neon` implement it;
//! - `amx`, `speed`: what must be asked or measured; [`prefetch`].

#[cfg(target_arch = "x86_64")]
mod amx;
mod detect;
mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod prefetch;
#[cfg(target_arch = "x86_64")]
mod speed;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use detect::{Isa, IsaError, chosen_isa, cpu_isa};
pub(in crate::cpu) use lanes::{Lanes, Plain};
#[cfg(target_arch = "aarch64")]
pub(in crate::cpu) use neon::{Neon, dot, dot_lane};
pub(in crate::cpu) use prefetch::{prefetch, prefetch_into_l2};
#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) use speed::pairs_are_faster;
#[cfg(target_arch = "x86_64")]
pub(in crate::cpu) use x86::{Avx2, Avx512, Pairs};

/// Runs a kernel that is generic over [`Lanes`](crate::cpu::isa::Lanes) with the instructions of an instruction set.
///
/// The kernel is an `#[inline(always)]` function; this expands to one copy of it per isa, each inside a function
/// that has the instruction set's target features, so that the vector operations become single instructions.
macro_rules! with_isa {
    ($isa:expr, $kernel:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
        fn avx512($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the function has the target features that these lanes need.
            unsafe { $kernel::<$crate::cpu::isa::Avx512>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the function has the target features that these lanes need.
            unsafe { $kernel::<$crate::cpu::isa::Avx2>($($arg),*) }
        }
        match $isa {
            // SAFETY: an instruction set is chosen only when the CPU was found to have its features.
            #[cfg(target_arch = "x86_64")]
            isa if isa >= $crate::cpu::Isa::Avx512 => unsafe { avx512($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            $crate::cpu::Isa::Avx2 | $crate::cpu::Isa::AvxVnni => unsafe { avx2($($arg),*) },
            // SAFETY: as above; NEON is part of the target.
            #[cfg(target_arch = "aarch64")]
            isa if isa >= $crate::cpu::Isa::Neon => unsafe { $kernel::<$crate::cpu::isa::Neon>($($arg),*) },
            // SAFETY: plain Rust needs no features.
            _ => unsafe { $kernel::<$crate::cpu::isa::Plain>($($arg),*) },
        }
    }};
}

pub(in crate::cpu) use with_isa;
