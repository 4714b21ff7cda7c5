//! Random numbers that depend only on a seed and on what they are for.

use gemma_nn::SplitMix64;

/// Random numbers for one purpose.
#[derive(Clone, Debug)]
pub(crate) struct Random(SplitMix64);

impl Random {
    /// The numbers for `purpose`.
    pub(crate) fn of(seed: u64, purpose: &str) -> Self {
        // FNV-1a, so that two purposes have nothing in common
        let hash = purpose
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let mut random = Self(SplitMix64::new(seed ^ hash));
        random.0.next_u64();
        random
    }

    /// A fraction in `[0, 1)`.
    pub(crate) fn unit(&mut self) -> f32 {
        (self.0.next_u64() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// An integer below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.0.next_u64()) * bound as u128) >> 64) as usize
    }
}

/// An order of `len` things: which one stands at each place (Fisher and Yates).
pub(crate) fn order(len: usize, random: &mut Random) -> Vec<u32> {
    let mut order: Vec<u32> = (0..len as u32).collect();
    for last in (1..len).rev() {
        order.swap(last, random.below(last + 1));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_holds_everything_once_and_follows_from_its_seed() {
        let shuffled = order(100, &mut Random::of(1, "x"));
        let mut sorted = shuffled.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_ne!(shuffled, sorted);
        assert_eq!(shuffled, order(100, &mut Random::of(1, "x")));
        assert_ne!(shuffled, order(100, &mut Random::of(2, "x")));
        assert_ne!(shuffled, order(100, &mut Random::of(1, "y")));
    }

    #[test]
    fn numbers_are_spread_over_their_range() {
        let mut random = Random::of(3, "");
        let mean = (0..10_000).map(|_| random.unit()).sum::<f32>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        assert!((0..1000).all(|_| random.below(7) < 7));
    }
}
