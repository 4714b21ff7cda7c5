//! A small deterministic random generator: the same seed gives the same corpus on every machine, for ever.
//!
//! The demo models are committed files that anybody must be able to make again, so their text may not depend
//! on a library that changes its stream from one version to the next. [`SplitMix64`] is good enough to pick words.

use gemma_nn::SplitMix64;

/// The numbers that a corpus is made of.
#[derive(Clone, Debug)]
pub struct Random(SplitMix64);

impl Random {
    /// A generator whose whole stream follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number in `0..limit`.
    ///
    /// The high half of a 64 by 64 bit product: its bias is below `limit / 2^64`.
    ///
    /// # Panics
    ///
    /// When `limit` is zero.
    pub fn below(&mut self, limit: usize) -> usize {
        assert!(limit > 0, "there is no number below zero");
        ((u128::from(self.bits()) * limit as u128) >> 64) as usize
    }

    /// A number in `low..=high`.
    ///
    /// # Panics
    ///
    /// When `low > high`.
    pub fn between(&mut self, low: u32, high: u32) -> u32 {
        assert!(low <= high, "an empty range has no numbers");
        low + self.below((high - low) as usize + 1) as u32
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`, all equally likely.
    ///
    /// # Panics
    ///
    /// When `choices` is empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_choice_comes_up_about_equally_often() {
        let mut random = Random::new(3);
        let mut seen = [0u32; 7];
        for _ in 0..7_000 {
            seen[random.below(7)] += 1;
        }
        assert!(seen.iter().all(|&n| (850..1150).contains(&n)), "{seen:?}");
    }

    #[test]
    fn ranges_include_both_ends() {
        let mut random = Random::new(5);
        let drawn: std::collections::BTreeSet<u32> = (0..200).map(|_| random.between(3, 6)).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [3, 4, 5, 6]);
    }
}
