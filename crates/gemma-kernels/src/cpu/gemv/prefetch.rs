//! How the memory of a matrix is requested ahead of its use: how far, and into which cache. That is a property of the machine, found while
//! decoding.
//!
//! One Xeon wants 3 KiB, one Zen 7 KiB, and one the L2 cache, and none says so; the wrong one costs a fifth of the speed of decode, or half.
//! So the first products with large matrices try some in turn, and the one with the least time
//! per byte stays: the time that a quarter of its products beat, for the memory of a shared machine is faster for moments, and
//! products are interrupted in others. No product is computed twice for it, and no result depends on it.
//!
//! Each format, number of tokens and number of columns has trials of its own. A product with several tokens, of a short prompt, a draft
//! or a batch, may wait for arithmetic, and then its times say nothing about one that waits for memory. And the activations of long rows
//! fill the L1 cache, which has no room then for what is requested.

use crate::cpu::isa::{prefetch, prefetch_into_l2};
use crate::cpu::shape::Shape;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The environment variable that sets the distance, in bytes, and the cache for all products.
const ENVIRONMENT: &str = "GEMMA_PREFETCH_BYTES";
/// What is tried.
const CANDIDATES: [Prefetch; 8] = [
    into_l1(0),
    into_l1(1024),
    into_l1(3072),
    into_l1(4608),
    into_l1(7168),
    into_l1(10_240),
    into_l2(4096),
    into_l2(20_480),
];
/// Products per candidate that is not given up before; all of them are those of some four tokens of Gemma 2B.
const ROUNDS: usize = 16;
/// Products of a candidate before it may be given up: where it takes [`MUCH`] times as long as another.
const FEW_ROUNDS: usize = 4;
const MUCH: f64 = 1.15;
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
    /// Requests the cache lines of as many bytes that lie so far ahead of `from`.
    #[inline(always)]
    pub(in crate::cpu) fn request(self, from: *const u8, bytes: usize) {
        for line in (0..bytes).step_by(64) {
            self.request_line(from.wrapping_add(self.bytes + line));
        }
    }

    /// Requests the cache line at `line`, into the cache that this says.
    #[inline(always)]
    pub(in crate::cpu) fn request_line(self, line: *const u8) {
        if self.into_l2 { prefetch_into_l2(line) } else { prefetch(line) }
    }
}

/// What [`Prefetch`] the product that runs has, its bytes shifted by a bit for the cache. Two products at a time may have each other's: it is
/// a hint.
static CURRENT: AtomicUsize = AtomicUsize::new(DEFAULT.bytes << 1);

/// The times of products of one kind.
#[derive(Debug, Default)]
struct Trials {
    /// By candidate, what its products took for each byte, in picoseconds, in ascending order.
    took: [Vec<u64>; CANDIDATES.len()],
}

impl Trials {
    /// The time that a quarter of a candidate's products beat.
    fn quarter(&self, index: usize) -> u64 {
        let took = &self.took[index];
        took.get(took.len() / 4).copied().unwrap_or(u64::MAX)
    }

    /// The candidate with the least time.
    fn fastest(&self) -> usize {
        (0..CANDIDATES.len()).min_by_key(|index| self.quarter(*index)).expect("there are candidates")
    }

    /// The candidate that is to be tried next; `None` where the trials are over. Each round begins with the next candidate: the matrices
    /// of a layer follow each other as regularly as the candidates do, and each candidate is to meet all of them.
    fn to_try(&self) -> Option<usize> {
        let count = CANDIDATES.len();
        let least = self.quarter(self.fastest()) as f64;
        let is_kept = |index: usize| {
            let rounds = self.took[index].len();
            rounds < FEW_ROUNDS || rounds < ROUNDS && self.quarter(index) as f64 <= MUCH * least
        };
        let left = (0..count).filter(|index| is_kept(*index));
        left.min_by_key(|index| {
            let round = self.took[*index].len();
            (round, (index + count - round % count) % count)
        })
    }

    /// What the next product is to be computed with.
    fn next(&self) -> Prefetch {
        CANDIDATES[self.to_try().unwrap_or_else(|| self.fastest())]
    }

    fn is_over(&self) -> bool {
        self.to_try().is_none()
    }

    /// Takes what a product with `candidate` over `bytes` took.
    fn add(&mut self, candidate: Prefetch, bytes: usize, took: Duration) {
        if let Some(index) = CANDIDATES.iter().position(|other| *other == candidate) {
            let took = (1000 * took.as_nanos() / bytes.max(1) as u128) as u64;
            let place = self.took[index].partition_point(|other| *other < took);
            self.took[index].insert(place, took);
        }
    }
}

/// What is known of all products.
#[derive(Debug)]
struct Calibration {
    /// By format, whose name stands for it because `Format` has no order, number of tokens and number of columns.
    trials: BTreeMap<(&'static str, usize, usize), Trials>,
}

impl Calibration {
    /// The trials of products like this one.
    fn of(&mut self, shape: Shape) -> &mut Trials {
        self.trials.entry((shape.format.name(), shape.tokens, shape.cols)).or_default()
    }

    /// What a product has that is too small to be tried: that of larger ones with the most similar number of columns.
    fn near(&self, Shape { format, tokens, cols, .. }: Shape) -> Prefetch {
        let alike = self.trials.range((format.name(), tokens, 0)..=(format.name(), tokens, usize::MAX));
        let over = alike.filter(|(_, trials)| trials.is_over());
        let nearest = over.min_by_key(|((_, _, other), _)| other.abs_diff(cols));
        nearest.map_or(DEFAULT, |(_, trials)| trials.next())
    }

    /// What each format and number of columns has, which `fixed` sets, or else the trials that are over: those of the fewest tokens.
    fn chosen(&self, fixed: Option<Prefetch>) -> BTreeMap<(&'static str, usize), Prefetch> {
        let known = self.trials.iter().filter(|(_, trials)| trials.is_over() || fixed.is_some());
        // the last one of a format and number of columns stays
        let chosen =
            known.rev().map(|((format, _, cols), trials)| ((*format, *cols), fixed.unwrap_or_else(|| trials.next())));
        chosen.collect()
    }
}

static CALIBRATION: Mutex<Calibration> = Mutex::new(Calibration { trials: BTreeMap::new() });

/// `GEMMA_PREFETCH_BYTES` is no number of bytes, alone or with a cache.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{ENVIRONMENT}={0} is no number of bytes from 0 to {LONGEST}, such as 3072, or 4096:l2 for the L2 cache; leave it out to have the \
     distance measured"
)]
pub struct PrefetchError(String);

/// What `GEMMA_PREFETCH_BYTES` sets: a distance in bytes, such as `3072`, for the L1 cache, or with `:l2` behind it for the L2 cache;
/// `None` where both are to be found by trying.
///
/// # Errors
/// When it is no number of bytes, or more than a page of 2 MiB, or names another cache.
pub fn chosen_prefetch() -> Result<Option<Prefetch>, PrefetchError> {
    choose(std::env::var_os(ENVIRONMENT).map(|value| value.to_string_lossy().into_owned()).as_deref())
}

fn choose(value: Option<&str>) -> Result<Option<Prefetch>, PrefetchError> {
    let Some(value) = value.map(str::trim).filter(|value| !value.is_empty()) else { return Ok(None) };
    let (bytes, cache) = value.split_once(':').unwrap_or((value, "l1"));
    let cache: Option<fn(usize) -> Prefetch> = match cache {
        "l1" => Some(into_l1),
        "l2" => Some(into_l2),
        _ => None,
    };
    let bytes = bytes.parse().ok().filter(|bytes| *bytes <= LONGEST);
    cache.zip(bytes).map(|(into, bytes)| Some(into(bytes))).ok_or_else(|| PrefetchError(value.to_owned()))
}

/// What the environment says, and where that is an error nothing. Found out once.
fn fixed() -> Option<Prefetch> {
    static FIXED: OnceLock<Option<Prefetch>> = OnceLock::new();
    *FIXED.get_or_init(|| chosen_prefetch().ok().flatten())
}

/// How a kernel requests memory.
#[inline(always)]
pub(in crate::cpu) fn current() -> Prefetch {
    let current = CURRENT.load(Ordering::Relaxed);
    Prefetch { bytes: current >> 1, into_l2: current & 1 == 1 }
}

fn set(Prefetch { bytes, into_l2 }: Prefetch) {
    CURRENT.store(bytes << 1 | usize::from(into_l2), Ordering::Relaxed);
}

/// Runs a product of `shape`, with what such products have or what is to be tried next.
pub(in crate::cpu) fn with_prefetch(shape: Shape, product: impl FnOnce()) {
    let calibration = || CALIBRATION.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes = shape.rows * shape.row_bytes;
    if let Some(fixed) = fixed() {
        if bytes >= LARGE {
            // what it is set for is reported
            calibration().of(shape);
        }
        set(fixed);
        return product();
    }
    if bytes < LARGE {
        set(calibration().near(shape));
        return product();
    }
    let (candidate, over) = {
        let mut calibration = calibration();
        let trials = calibration.of(shape);
        (trials.next(), trials.is_over())
    };
    set(candidate);
    if over {
        return product();
    }
    let start = Instant::now();
    product();
    let took = start.elapsed();
    calibration().of(shape).add(candidate, bytes, took);
}

/// How decode's products request memory, by format and number of columns: what the environment variable `GEMMA_PREFETCH_BYTES`
/// says, or what the first products found to be the fastest on this machine. It is that of the fewest tokens at once that
/// were multiplied often enough: of one, unless all were in batches. Products that are still being tried are left out, and those with
/// matrices that a cache holds.
pub fn prefetches() -> BTreeMap<(&'static str, usize), Prefetch> {
    CALIBRATION.lock().unwrap_or_else(PoisonError::into_inner).chosen(fixed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;

    fn shape(format: Format, tokens: usize, cols: usize) -> Shape {
        Shape { format, tokens, rows: 1, cols, row_bytes: 1000 }
    }

    /// Tries products until their trials are over; `fastest` takes `nanoseconds`, the others more.
    fn multiply(calibration: &mut Calibration, shape: Shape, fastest: Prefetch, nanoseconds: u64) {
        while !calibration.of(shape).is_over() {
            let candidate = calibration.of(shape).next();
            let took = nanoseconds + if candidate == fastest { 0 } else { 300 };
            calibration.of(shape).add(candidate, 1000, Duration::from_nanos(took));
        }
    }

    /// Neither interruptions nor a moment of fast memory change what is chosen, and what is much slower is soon given up.
    #[test]
    fn the_fastest_candidate_stays() {
        for (fastest, others) in
            [into_l1(4608), into_l1(0), into_l2(4096)].into_iter().flat_map(|f| [(f, 900), (f, 1000)])
        {
            let mut trials = Trials::default();
            let mut count = 0;
            while !trials.is_over() {
                let candidate = trials.next();
                let round = count / CANDIDATES.len();
                let at_rest = if candidate == fastest { 800 } else { others };
                let nanoseconds = match round % 3 {
                    0 => at_rest + 5000,
                    1 if round < 3 && candidate == into_l1(1024) => 300,
                    _ => at_rest,
                };
                trials.add(candidate, 1000, Duration::from_nanos(nanoseconds));
                count += 1;
            }
            assert_eq!(trials.next(), fastest);
            let given_up = others as f64 > MUCH * 800.0;
            let rounds = if given_up { FEW_ROUNDS } else { ROUNDS };
            assert!(count <= ROUNDS + (rounds + 4) * (CANDIDATES.len() - 1), "{count} products");
            assert!(given_up || count == ROUNDS * CANDIDATES.len(), "{count} products");
        }
    }

    #[test]
    fn a_distance_is_a_number_of_bytes() {
        assert_eq!(choose(None), Ok(None));
        assert_eq!(choose(Some(" ")), Ok(None));
        assert_eq!(choose(Some("0")), Ok(Some(into_l1(0))));
        assert_eq!(choose(Some(" 4608 ")), Ok(Some(into_l1(4608))));
        assert_eq!(choose(Some("4608:l1")), Ok(Some(into_l1(4608))));
        assert_eq!(choose(Some("20480:l2")), Ok(Some(into_l2(20_480))));
        for wrong in ["3k", "-1", "7e3", "2097153", "99999999999999999999", "3072:l3", "3072:", ":l2", "l2"] {
            let error = choose(Some(wrong)).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("3072") && error.contains("4096:l2"), "{error}");
        }
    }

    /// One to four large matrices in each layer, in turn: each candidate is tried with each, also where half of them are given up.
    #[test]
    fn each_candidate_meets_every_matrix_of_a_layer() {
        for (matrices, slow) in (1..=4).flat_map(|count| [(count, 1000), (count, 2000)]) {
            let mut met = BTreeMap::<(usize, bool), std::collections::BTreeSet<usize>>::new();
            let mut trials = Trials::default();
            let mut product = 0;
            while !trials.is_over() {
                let candidate = trials.next();
                met.entry((candidate.bytes, candidate.into_l2)).or_default().insert(product % matrices);
                let took = if candidate.bytes % 2048 == 0 { 1000 } else { slow };
                trials.add(candidate, 1000, Duration::from_nanos(took));
                product += 1;
            }
            assert!(met.len() == CANDIDATES.len() && met.values().all(|with| with.len() == matrices), "{met:?}");
        }
    }

    /// Products with eight tokens, which take their time for arithmetic whatever the distance, decide nothing for one token, and short
    /// rows nothing for long ones.
    #[test]
    fn each_kind_of_product_has_trials_of_its_own() {
        let mut calibration = Calibration { trials: BTreeMap::new() };
        assert_eq!(calibration.chosen(None), BTreeMap::new());
        multiply(&mut calibration, shape(Format::Q4_0, 8, 2048), into_l1(1024), 100);
        assert_eq!(calibration.chosen(None), BTreeMap::from([(("q4_0", 2048), into_l1(1024))]), "batches only");
        assert!(!calibration.of(shape(Format::Q4_0, 1, 2048)).is_over());
        multiply(&mut calibration, shape(Format::Q4_0, 1, 2048), into_l1(7168), 1000);
        multiply(&mut calibration, shape(Format::Q4_0, 1, 16_384), into_l2(20_480), 1000);
        let chosen = [(("q4_0", 2048), into_l1(7168)), (("q4_0", 16_384), into_l2(20_480))];
        assert_eq!(calibration.chosen(None), BTreeMap::from(chosen), "one token");
        let mut next = |tokens, cols| calibration.of(shape(Format::Q4_0, tokens, cols)).next().bytes;
        assert_eq!([(1, 2048), (8, 2048), (1, 16_384)].map(|(tokens, cols)| next(tokens, cols)), [7168, 1024, 20_480]);
        let fixed = chosen.map(|(of, _)| (of, into_l1(64)));
        assert_eq!(calibration.chosen(Some(into_l1(64))), BTreeMap::from(fixed), "set by the user");
    }

    /// Small matrices have what large ones of the same format with about as long rows have.
    #[test]
    fn what_is_too_small_to_be_tried_has_what_is_like_it() {
        let mut calibration = Calibration { trials: BTreeMap::new() };
        let near = |calibration: &Calibration, format, tokens, cols| calibration.near(shape(format, tokens, cols));
        assert_eq!(near(&calibration, Format::Q4_0, 1, 2304), DEFAULT);
        multiply(&mut calibration, shape(Format::Q4_0, 1, 2048), into_l1(7168), 1000);
        multiply(&mut calibration, shape(Format::Q4_0, 1, 16_384), into_l2(20_480), 1000);
        calibration.of(shape(Format::Q4_0, 1, 2304)).add(into_l1(0), 1000, Duration::from_nanos(1));
        assert_eq!(near(&calibration, Format::Q4_0, 1, 2304), into_l1(7168), "not one that is being tried");
        assert_eq!(near(&calibration, Format::Q4_0, 1, 9216), into_l1(7168));
        assert_eq!(near(&calibration, Format::Q4_0, 1, 12_288), into_l2(20_480));
        assert_eq!(near(&calibration, Format::Q4_0, 2, 2048), DEFAULT, "other tokens");
        assert_eq!(near(&calibration, Format::Q8_0, 1, 2048), DEFAULT, "another format");
    }
}
