//! What CPUs do not say about themselves: which of two instructions is the faster one.

use super::detect::{Isa, cpu_isa};
use super::lanes::Lanes;
use super::x86::{Avx512, Pairs};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Whether this CPU multiplies [`Pairs`], and faster than single values: measured once, in some microseconds, since
/// CPUs differ by a factor of four here and do not say so.
pub(in crate::cpu) fn pairs_are_faster() -> bool {
    /// Eight chains of multiplications and additions.
    #[inline(always)]
    unsafe fn chains<L: Lanes>() -> f32 {
        // SAFETY: as required of the caller: the instruction set is there.
        unsafe {
            let mut sums = [L::splat(0.0); 8];
            let factor = L::splat(std::hint::black_box(0.5));
            for _ in 0..500 {
                sums = sums.map(|sum| factor.mul_add(factor, sum));
            }
            let [first, rest @ ..] = sums;
            rest.into_iter().fold(first, |sum, other| sum.add(other)).sum()
        }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    fn single() -> f32 {
        // SAFETY: the function has the features of these lanes.
        unsafe { chains::<Avx512>() }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    fn pairs() -> f32 {
        // SAFETY: the function has the features of these lanes.
        unsafe { chains::<Pairs>() }
    }
    /// The shortest of some runs: what interrupts one does not count.
    fn shortest(run: impl Fn() -> f32) -> Duration {
        let once = || {
            let start = Instant::now();
            std::hint::black_box(run());
            start.elapsed()
        };
        (0..7).map(|_| once()).min().unwrap_or_default()
    }
    static FASTER: OnceLock<bool> = OnceLock::new();
    *FASTER.get_or_init(|| {
        // SAFETY: the ISA says that the CPU has both.
        cpu_isa() >= Isa::Avx512Bf16 && unsafe { shortest(|| pairs()) < shortest(|| single()).mul_f32(1.5) }
    })
}
