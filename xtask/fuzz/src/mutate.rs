//! Inputs from seeds: cut, repeated, spliced and overwritten, by a generator of random numbers that always gives the same.

use gemma_nn::SplitMix64;

/// Longest input, in bytes: what a fault may cost is measured against small inputs.
const LONGEST: usize = 1 << 20;

/// Random numbers for one input.
#[derive(Clone, Debug)]
pub struct Random(SplitMix64);

impl Random {
    /// A generator for one input of one target.
    pub fn new(seed: u64, target: &str, index: u64) -> Self {
        let name = target
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let mut random = Self(SplitMix64::new(seed ^ name ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        random.0.next_u64();
        random
    }

    /// A number below `bound`, 0 for a bound of 0.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.0.next_u64() % bound as u64) as usize }
    }
}

/// Numbers at which parsers err.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    7,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 40,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 7,
    u64::MAX,
];

/// Makes inputs of a target.
#[derive(Debug)]
pub struct Mutator<'t> {
    seeds: &'t [Vec<u8>],
    words: &'t [&'t str],
}

impl<'t> Mutator<'t> {
    /// From seeds, with words that mean something to the parser.
    pub fn new(seeds: &'t [Vec<u8>], words: &'t [&'t str]) -> Self {
        Self { seeds, words }
    }

    /// The input with this index; the first ones are the seeds themselves.
    pub fn input(&self, seed: u64, target: &str, index: u64) -> Vec<u8> {
        if let Some(plain) = usize::try_from(index).ok().and_then(|index| self.seeds.get(index)) {
            return plain.clone();
        }
        let mut random = Random::new(seed, target, index);
        let mut bytes = self.seeds[random.below(self.seeds.len())].clone();
        for _ in 0..=random.below(6) {
            self.change(&mut bytes, &mut random);
        }
        bytes.truncate(LONGEST);
        bytes
    }

    fn change(&self, bytes: &mut Vec<u8>, random: &mut Random) {
        let at = random.below(bytes.len() + 1);
        let range = |bytes: &Vec<u8>, random: &mut Random| {
            let length = match random.below(4) {
                0 => 1,
                1 => random.below(8),
                2 => random.below(64),
                _ => random.below(bytes.len() + 1),
            };
            at..(at + length).min(bytes.len())
        };
        match random.below(12) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            2 => {
                let range = range(bytes, random);
                bytes.drain(range);
            }
            3 => bytes.truncate(at),
            4 => {
                let word = self.words.get(random.below(self.words.len())).copied().unwrap_or("\0");
                bytes.splice(at..at, word.bytes());
            }
            // a word, a thousand times: chains and nests
            5 => {
                let word = self.words.get(random.below(self.words.len())).copied().unwrap_or("(");
                let times = [3, 40, 1000, 20_000][random.below(4)].min(LONGEST / word.len().max(1));
                bytes.splice(at..at, word.repeat(times).into_bytes());
            }
            6 => {
                let part = bytes[range(bytes, random)].to_vec();
                let times = [1, 2, 30, 2000][random.below(4)].min(LONGEST / part.len().max(1));
                bytes.splice(at..at, part.repeat(times));
            }
            7 => {
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)];
                for (byte, new) in bytes[at..].iter_mut().zip(&number[..width]) {
                    *byte = *new;
                }
            }
            8 => {
                let number = NUMBERS[random.below(NUMBERS.len())].to_string();
                let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                bytes.splice(at..at + digits, number.bytes());
            }
            9 => {
                let other = &self.seeds[random.below(self.seeds.len())];
                let from = random.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            10 => {
                let noise: Vec<u8> = (0..random.below(32)).map(|_| random.below(256) as u8).collect();
                bytes.splice(at..at, noise);
            }
            _ => {
                let range = range(bytes, random);
                let part = bytes[range.clone()].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, part);
            }
        }
        bytes.truncate(LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_numbers_give_the_same_input() {
        let seeds = [b"{\"a\": [1, 2]}".to_vec(), b"x".to_vec()];
        let mutator = Mutator::new(&seeds, &["{", "null"]);
        assert_eq!(mutator.input(1, "t", 0), seeds[0]);
        let inputs: Vec<Vec<u8>> = (2..200).map(|index| mutator.input(1, "t", index)).collect();
        let again: Vec<Vec<u8>> = (2..200).map(|index| mutator.input(1, "t", index)).collect();
        assert!(inputs == again);
        let distinct: std::collections::HashSet<&Vec<u8>> = inputs.iter().collect();
        assert!(distinct.len() > 100, "{}", distinct.len());
        assert!(inputs.iter().all(|input| input.len() <= LONGEST));
        assert!(mutator.input(2, "t", 50) != inputs[48] || mutator.input(2, "t", 51) != inputs[49]);
    }
}
