//! The generator behind the dice: xoshiro256++, so that a seed means the same on each platform, for good.
//!
//! A generator of our own rather than a crate's default one, because those may change with a version and the
//! same seed would then tell another story. Source: D. Blackman and S. Vigna, "Scrambled Linear Pseudorandom
//! Number Generators", ACM Transactions on Mathematical Software 47 (2021), <https://prng.di.unimi.it/>.

use std::hash::{BuildHasher, RandomState};

use gemma_nn::SplitMix64;

/// xoshiro256++: 256 bits of state, period 2²⁵⁶ − 1. Not for secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Xoshiro256PlusPlus {
    state: [u64; 4],
}

impl Xoshiro256PlusPlus {
    /// The generator that `seed` stands for; SplitMix64 spreads the seed over the state, as the authors advise.
    pub(crate) fn new(seed: u64) -> Self {
        let mut spread = SplitMix64::new(seed);
        Self { state: std::array::from_fn(|_| spread.next_u64()) }
    }

    /// The next 64 random bits.
    pub(crate) fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let output = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c, d) = (c ^ a, d ^ b);
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        output
    }

    /// An integer in `0..bound`, each value equally likely but for at most one part in 2⁶⁴.
    ///
    /// The high half of a 128-bit product (D. Lemire, "Fast Random Integer Generation in an Interval", 2019),
    /// without the rejection that would remove the last 2⁻⁶⁴ of bias.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.next_u64()) * u128::from(bound);
        (product >> 64) as u64
    }
}

/// A seed that nobody chose. The standard library keys each `RandomState` differently, from the system's
/// entropy, so hashing nothing with one gives such a number without a dependency.
pub(crate) fn fresh_seed() -> u64 {
    // below 2⁵³: a number that every reader of JSON keeps exactly
    RandomState::new().hash_one(()) >> 11
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xoshiro256_plus_plus_gives_the_sequence_of_the_authors_c_code() {
        let mut generator = Xoshiro256PlusPlus { state: [1, 2, 3, 4] };
        let outputs: [u64; 10] = std::array::from_fn(|_| generator.next_u64());
        let reference = [
            41_943_041,
            58_720_359,
            3_588_806_011_781_223,
            3_591_011_842_654_386,
            9_228_616_714_210_784_205,
            9_973_669_472_204_895_162,
            14_011_001_112_246_962_877,
            12_406_186_145_184_390_807,
            15_849_039_046_786_891_736,
            10_450_023_813_501_588_000,
        ];
        assert_eq!(outputs, reference);
    }

    #[test]
    fn numbers_below_a_bound_are_even() {
        let mut generator = Xoshiro256PlusPlus::new(1);
        let mut counts = [0_u32; 6];
        for _ in 0..60_000 {
            counts[generator.below(6) as usize] += 1;
        }
        // Six standard deviations of a binomial(60000, 1/6) are 548.
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 548), "{counts:?}");
        assert_eq!(generator.below(1), 0);
    }

    #[test]
    fn fresh_seeds_differ() {
        assert_ne!(fresh_seed(), fresh_seed());
    }
}
