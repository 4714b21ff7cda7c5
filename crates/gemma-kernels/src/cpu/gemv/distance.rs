//! How far ahead of its use the memory of a matrix is requested, and into which cache: a property of the machine, found while decoding.
//!
//! One Xeon wants 3 KiB, one Zen 7 KiB, one none at all or the L2 cache for 16-bit weights, and none says so; the wrong one costs a fifth of
//! the speed of decode, or a third. So the first products with large matrices of a format try some in turn, and the one with the least time
//! per byte stays: the time that a quarter of its products beat, for the memory of a shared machine is faster for moments, and
//! products are interrupted in others. No product is computed twice for it, and no result depends on it.
//!
//! Each number of tokens has trials of its own. A product with several tokens, of a short prompt, a draft or a batch, may
//! wait for arithmetic, and then its times say nothing about one that waits for memory.

use crate::Format;
use crate::cpu::isa::{prefetch, prefetch_into_l2};
use crate::cpu::shape::Shape;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The environment variable that sets the distance, in bytes, for all formats.
const ENVIRONMENT: &str = "GEMMA_PREFETCH_BYTES";
/// What is tried with weights in blocks, whose products take some time for arithmetic.
const OF_BLOCKS: [Prefetch; 7] =
    [into_l1(0), into_l1(1024), into_l1(2048), into_l1(3072), into_l1(4608), into_l1(7168), into_l1(10_240)];
/// What is tried with weights of 16 bits, whose products take next to none, so that requests fill the L1 cache's queue.
const OF_HALVES: [Prefetch; 9] = [
    into_l1(0),
    into_l1(1024),
    into_l1(3072),
    into_l1(4608),
    into_l1(7168),
    into_l1(10_240),
    into_l2(1024),
    into_l2(4096),
    into_l2(10_240),
];
/// Products per candidate; all of them are those of some five tokens of Gemma 2B.
const ROUNDS: usize = 36;
/// The products of a candidate that are faster than the one that counts.
const FASTER: usize = ROUNDS / 4;
/// Bytes of a matrix from which on it is read from memory and not from a cache.
const LARGE: usize = 4 << 20;
/// The longest distance that can be set: a large page.
const LONGEST: usize = 2 << 20;
/// Where nothing was tried.
const DEFAULT: Prefetch = into_l1(3072);

/// How a kernel requests memory before it reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefetch {
    /// How far ahead, in bytes.
    pub bytes: usize,
    /// Whether into the L2 cache, where the CPU has an instruction for that; else into the L1 cache.
    pub into_l2: bool,
}

const fn into_l1(bytes: usize) -> Prefetch {
    Prefetch { bytes, into_l2: false }
}

const fn into_l2(bytes: usize) -> Prefetch {
    Prefetch { bytes, into_l2: true }
}

impl Prefetch {
    /// Requests the cache line so far ahead of `from`.
    #[inline(always)]
    pub(in crate::cpu) fn request(self, from: *const u8) {
        let line = from.wrapping_add(self.bytes);
        if self.into_l2 { prefetch_into_l2(line) } else { prefetch(line) }
    }
}

/// What [`Prefetch`] the product that runs has, its bytes shifted by a bit for the cache. Two products at a time may have each other's: it is
/// a hint.
static CURRENT: AtomicUsize = AtomicUsize::new(DEFAULT.bytes << 1);

/// What is known of products with one format and number of tokens.
#[derive(Debug)]
struct Trials {
    candidates: &'static [Prefetch],
    /// Picoseconds per byte with each candidate, in ascending order.
    took: Vec<Vec<u64>>,
    done: usize,
}

impl Trials {
    fn new(format: Format) -> Self {
        let candidates = match format {
            Format::Bf16 | Format::F16 => &OF_HALVES[..],
            _ => &OF_BLOCKS,
        };
        Self { candidates, took: vec![Vec::new(); candidates.len()], done: 0 }
    }

    fn is_over(&self) -> bool {
        self.done >= ROUNDS * self.candidates.len()
    }

    /// What the next product is to be computed with. Each round begins with the next candidate: the matrices of a layer follow each other
    /// as regularly as the candidates do, and each candidate is to meet all of them.
    fn next(&self) -> Prefetch {
        let count = self.candidates.len();
        if !self.is_over() {
            return self.candidates[(self.done + self.done / count) % count];
        }
        let fastest = (0..count).min_by_key(|index| self.took[*index].get(FASTER));
        fastest.map_or(DEFAULT, |index| self.candidates[index])
    }

    /// Takes what a product with `candidate` over `bytes` took.
    fn add(&mut self, candidate: Prefetch, bytes: usize, took: Duration) {
        if let Some(index) = self.candidates.iter().position(|other| *other == candidate) {
            let took = (1000 * took.as_nanos() / bytes.max(1) as u128) as u64;
            let place = self.took[index].partition_point(|other| *other < took);
            self.took[index].insert(place, took);
            self.done += 1;
        }
    }
}

/// What is known of all products.
#[derive(Debug)]
struct Calibration {
    /// By format, whose name stands for it because [`Format`] has no order, and by number of tokens.
    trials: BTreeMap<(&'static str, usize), Trials>,
}

impl Calibration {
    /// The trials of products of a shape's format and number of tokens.
    fn of(&mut self, shape: Shape) -> &mut Trials {
        self.trials.entry((shape.format.name(), shape.tokens)).or_insert_with(|| Trials::new(shape.format))
    }

    /// What each format has, which `fixed` sets, or else the trials that are over: those of the fewest tokens.
    fn chosen(&self, fixed: Option<Prefetch>) -> BTreeMap<&'static str, Prefetch> {
        let known = self.trials.iter().filter(|(_, trials)| trials.is_over() || fixed.is_some());
        // the last one of a format stays
        known.rev().map(|((format, _), trials)| (*format, fixed.unwrap_or_else(|| trials.next()))).collect()
    }
}

static CALIBRATION: Mutex<Calibration> = Mutex::new(Calibration { trials: BTreeMap::new() });

/// `GEMMA_PREFETCH_BYTES` is no number of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{ENVIRONMENT}={0} is no number of bytes from 0 to {LONGEST}, such as 3072; leave it out to have the distance measured"
)]
pub struct PrefetchError(String);

/// The prefetch distance that `GEMMA_PREFETCH_BYTES` sets, in bytes; `None` where it is to be found by trying.
///
/// # Errors
/// When it is no number of bytes, or more than a page of 2 MiB.
pub fn chosen_prefetch() -> Result<Option<usize>, PrefetchError> {
    choose(std::env::var_os(ENVIRONMENT).map(|value| value.to_string_lossy().into_owned()).as_deref())
}

fn choose(value: Option<&str>) -> Result<Option<usize>, PrefetchError> {
    let Some(value) = value.map(str::trim).filter(|value| !value.is_empty()) else { return Ok(None) };
    let bytes = value.parse().ok().filter(|bytes| *bytes <= LONGEST);
    bytes.map(Some).ok_or_else(|| PrefetchError(value.to_owned()))
}

/// What the environment says, and where that is an error nothing. Found out once.
fn fixed() -> Option<Prefetch> {
    static FIXED: OnceLock<Option<Prefetch>> = OnceLock::new();
    *FIXED.get_or_init(|| chosen_prefetch().ok().flatten().map(into_l1))
}

/// How many bytes ahead a kernel requests memory.
#[inline(always)]
pub(in crate::cpu) fn distance() -> usize {
    CURRENT.load(Ordering::Relaxed) >> 1
}

/// How a kernel for weights of 16 bits requests memory.
#[inline(always)]
pub(in crate::cpu) fn current() -> Prefetch {
    let current = CURRENT.load(Ordering::Relaxed);
    Prefetch { bytes: current >> 1, into_l2: current & 1 == 1 }
}

fn set(Prefetch { bytes, into_l2 }: Prefetch) {
    CURRENT.store(bytes << 1 | usize::from(into_l2), Ordering::Relaxed);
}

/// Runs a product of `shape`, with what such products have or what is to be tried next.
pub(in crate::cpu) fn with_distance(shape: Shape, product: impl FnOnce()) {
    if let Some(fixed) = fixed() {
        set(fixed);
        return product();
    }
    let calibration = || CALIBRATION.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes = shape.rows * shape.row_bytes;
    let (candidate, over) = {
        let mut calibration = calibration();
        let trials = calibration.of(shape);
        (trials.next(), trials.is_over())
    };
    if over || bytes < LARGE {
        set(if over { candidate } else { DEFAULT });
        return product();
    }
    set(candidate);
    let start = Instant::now();
    product();
    let took = start.elapsed();
    calibration().of(shape).add(candidate, bytes, took);
}

/// How decode's products request memory, by format: the distance that the environment variable `GEMMA_PREFETCH_BYTES`
/// says, into the L1 cache, or what the first products found to be the fastest on this machine. It is that of the fewest tokens at once that
/// were multiplied often enough: of one, unless all were in batches. Formats that are still being tried are left out.
pub fn prefetches() -> BTreeMap<&'static str, Prefetch> {
    CALIBRATION.lock().unwrap_or_else(PoisonError::into_inner).chosen(fixed())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Neither interruptions nor a moment of fast memory change what is chosen.
    #[test]
    fn the_fastest_candidate_stays() {
        for (format, fastest) in
            [(Format::Q4_0, into_l1(4608)), (Format::Q4K, into_l1(0)), (Format::Bf16, into_l2(4096))]
        {
            let mut trials = Trials::new(format);
            let (mut count, candidates) = (0, trials.candidates.len());
            while !trials.is_over() {
                let candidate = trials.next();
                let round = count / candidates;
                let at_rest = if candidate == fastest { 800 } else { 1000 };
                let nanoseconds = match round % 3 {
                    0 => at_rest + 5000,
                    1 if round < 6 && candidate == into_l1(1024) => 300,
                    _ => at_rest,
                };
                trials.add(candidate, 1000, Duration::from_nanos(nanoseconds));
                count += 1;
            }
            assert_eq!((trials.next(), count), (fastest, ROUNDS * candidates), "{format}");
        }
    }

    #[test]
    fn a_distance_is_a_number_of_bytes() {
        assert_eq!(choose(None), Ok(None));
        assert_eq!(choose(Some(" ")), Ok(None));
        assert_eq!(choose(Some("0")), Ok(Some(0)));
        assert_eq!(choose(Some(" 4608 ")), Ok(Some(4608)));
        for wrong in ["3k", "-1", "7e3", "2097153", "99999999999999999999"] {
            let error = choose(Some(wrong)).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("3072"), "{error}");
        }
    }

    /// Two or three large matrices in each layer, in turn: each candidate is tried with each.
    #[test]
    fn each_candidate_meets_every_matrix_of_a_layer() {
        for (matrices, format) in
            [2, 3, 4].into_iter().flat_map(|count| [Format::Bf16, Format::Q8_0].map(|f| (count, f)))
        {
            let mut met = BTreeMap::<(usize, bool), std::collections::BTreeSet<usize>>::new();
            let mut trials = Trials::new(format);
            let candidates = trials.candidates.len();
            for product in 0..ROUNDS * candidates {
                let candidate = trials.next();
                met.entry((candidate.bytes, candidate.into_l2)).or_default().insert(product % matrices);
                trials.add(candidate, 1000, Duration::from_nanos(1000));
            }
            assert!(met.len() == candidates && met.values().all(|with| with.len() == matrices), "{format} {met:?}");
        }
    }

    /// Products with eight tokens, which take their time for arithmetic whatever the distance, decide nothing for one token.
    #[test]
    fn each_number_of_tokens_has_trials_of_its_own() {
        let mut calibration = Calibration { trials: BTreeMap::new() };
        let shape = |tokens| Shape { format: Format::Q4_0, tokens, rows: 1, cols: 32, row_bytes: 1000 };
        let multiply = |calibration: &mut Calibration, tokens, fastest, nanoseconds: u64| {
            for _ in 0..ROUNDS * OF_BLOCKS.len() {
                let candidate = calibration.of(shape(tokens)).next();
                let took = nanoseconds + if candidate == into_l1(fastest) { 0 } else { 300 };
                calibration.of(shape(tokens)).add(candidate, 1000, Duration::from_nanos(took));
            }
        };
        assert_eq!(calibration.chosen(None), BTreeMap::new());
        multiply(&mut calibration, 8, 1024, 100);
        assert_eq!(calibration.chosen(None), BTreeMap::from([("q4_0", into_l1(1024))]), "batches only");
        assert!(!calibration.of(shape(1)).is_over());
        multiply(&mut calibration, 1, 7168, 1000);
        assert_eq!(calibration.chosen(None), BTreeMap::from([("q4_0", into_l1(7168))]), "one token");
        assert_eq!([1, 8].map(|tokens| calibration.of(shape(tokens)).next().bytes), [7168, 1024]);
        assert_eq!(calibration.chosen(Some(into_l1(64))), BTreeMap::from([("q4_0", into_l1(64))]), "set by the user");
    }
}
