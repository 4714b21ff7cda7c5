//! How far ahead of its use the memory of a matrix is requested: a property of the machine, found while decoding.
//!
//! One Xeon wants 3 KiB, one Zen 7 KiB, and neither says so; the wrong one costs a fifth of the speed of decode. So the
//! first products with large matrices of a format try some distances in turn, and the one with the least time per byte
//! stays: the time that a quarter of its products beat, for the memory of a shared machine is faster for moments, and
//! products are interrupted in others. No product is computed twice for it, and no result depends on it.
//!
//! Each number of tokens has trials of its own. A product with several tokens, of a short prompt, a draft or a batch, may
//! wait for arithmetic, and then its times say nothing about one that waits for memory.

use crate::cpu::shape::Shape;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The environment variable that sets the distance, in bytes, for all formats.
const ENVIRONMENT: &str = "GEMMA_PREFETCH_BYTES";
/// The distances that are tried, in bytes.
const CANDIDATES: [usize; 6] = [1024, 2048, 3072, 4608, 7168, 10_240];
/// Products per candidate; all of them are those of four tokens of Gemma 2B in 4 bits.
const ROUNDS: usize = 36;
/// The products of a candidate that are faster than the one that counts.
const FASTER: usize = ROUNDS / 4;
/// Bytes of a matrix from which on it is read from memory and not from a cache.
const LARGE: usize = 4 << 20;
/// The longest distance that can be set: a large page.
const LONGEST: usize = 2 << 20;
/// Where nothing was tried.
const DEFAULT: usize = 3072;

/// The distance of the product that runs. Two products at a time may have each other's: it is a hint.
static CURRENT: AtomicUsize = AtomicUsize::new(DEFAULT);

/// What is known of products with one format and number of tokens.
#[derive(Debug, Default)]
struct Trials {
    /// Picoseconds per byte with each candidate, in ascending order.
    took: [Vec<u64>; CANDIDATES.len()],
    done: usize,
}

impl Trials {
    fn is_over(&self) -> bool {
        self.done >= ROUNDS * CANDIDATES.len()
    }

    /// The distance of the next product. Each round begins with the next candidate: the matrices of a layer follow each other
    /// as regularly as the candidates do, and each candidate is to meet all of them.
    fn distance(&self) -> usize {
        if !self.is_over() {
            return CANDIDATES[(self.done + self.done / CANDIDATES.len()) % CANDIDATES.len()];
        }
        let fastest = (0..CANDIDATES.len()).min_by_key(|index| self.took[*index].get(FASTER));
        fastest.map_or(DEFAULT, |index| CANDIDATES[index])
    }

    /// Takes what a product with `distance` over `bytes` took.
    fn add(&mut self, distance: usize, bytes: usize, took: Duration) {
        if let Some(index) = CANDIDATES.iter().position(|candidate| *candidate == distance) {
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
        self.trials.entry((shape.format.name(), shape.tokens)).or_default()
    }

    /// The distance of each format, which `fixed` sets, or else the trials that are over: those of the fewest tokens.
    fn chosen(&self, fixed: Option<usize>) -> BTreeMap<&'static str, usize> {
        let known = self.trials.iter().filter(|(_, trials)| trials.is_over() || fixed.is_some());
        // the last one of a format stays
        known.rev().map(|((format, _), trials)| (*format, fixed.unwrap_or_else(|| trials.distance()))).collect()
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
fn fixed() -> Option<usize> {
    static FIXED: OnceLock<Option<usize>> = OnceLock::new();
    *FIXED.get_or_init(|| chosen_prefetch().ok().flatten())
}

/// How many bytes ahead a kernel requests memory.
#[inline(always)]
pub(in crate::cpu) fn distance() -> usize {
    CURRENT.load(Ordering::Relaxed)
}

/// Runs a product of `shape`, with the distance of such products or the next one to be tried.
pub(in crate::cpu) fn with_distance(shape: Shape, product: impl FnOnce()) {
    if let Some(bytes) = fixed() {
        CURRENT.store(bytes, Ordering::Relaxed);
        return product();
    }
    let calibration = || CALIBRATION.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes = shape.rows * shape.row_bytes;
    let (distance, over) = {
        let mut calibration = calibration();
        let trials = calibration.of(shape);
        (trials.distance(), trials.is_over())
    };
    if over || bytes < LARGE {
        CURRENT.store(if over { distance } else { DEFAULT }, Ordering::Relaxed);
        return product();
    }
    CURRENT.store(distance, Ordering::Relaxed);
    let start = Instant::now();
    product();
    let took = start.elapsed();
    calibration().of(shape).add(distance, bytes, took);
}

/// The prefetch distance of decode's products, in bytes, by format: what the environment variable `GEMMA_PREFETCH_BYTES`
/// says, or what the first products found to be the fastest on this machine. It is that of the fewest tokens at once that
/// were multiplied often enough: of one, unless all were in batches. Formats that are still being tried are left out.
pub fn prefetch_distances() -> BTreeMap<&'static str, usize> {
    CALIBRATION.lock().unwrap_or_else(PoisonError::into_inner).chosen(fixed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;

    /// Neither interruptions nor a moment of fast memory change what is chosen.
    #[test]
    fn the_fastest_candidate_stays() {
        let mut trials = Trials::default();
        let mut count = 0;
        while !trials.is_over() {
            let distance = trials.distance();
            let round = count / CANDIDATES.len();
            let at_rest = if distance == 4608 { 800 } else { 1000 };
            let nanoseconds = match round % 3 {
                0 => at_rest + 5000,
                1 if round < 6 && distance == 1024 => 300,
                _ => at_rest,
            };
            trials.add(distance, 1000, Duration::from_nanos(nanoseconds));
            count += 1;
        }
        assert_eq!((trials.distance(), count), (4608, ROUNDS * CANDIDATES.len()));
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
        for matrices in [2, 3] {
            let mut met = BTreeMap::<usize, std::collections::BTreeSet<usize>>::new();
            let mut trials = Trials::default();
            for product in 0..ROUNDS * CANDIDATES.len() {
                let distance = trials.distance();
                met.entry(distance).or_default().insert(product % matrices);
                trials.add(distance, 1000, Duration::from_nanos(1000));
            }
            assert!(met.len() == CANDIDATES.len() && met.values().all(|with| with.len() == matrices), "{met:?}");
        }
    }

    /// Products with eight tokens, which take their time for arithmetic whatever the distance, decide nothing for one token.
    #[test]
    fn each_number_of_tokens_has_trials_of_its_own() {
        let mut calibration = Calibration { trials: BTreeMap::new() };
        let shape = |tokens| Shape { format: Format::Q4_0, tokens, rows: 1, cols: 32, row_bytes: 1000 };
        let multiply = |calibration: &mut Calibration, tokens, fastest, nanoseconds: u64| {
            for _ in 0..ROUNDS * CANDIDATES.len() {
                let distance = calibration.of(shape(tokens)).distance();
                let took = nanoseconds + if distance == fastest { 0 } else { 300 };
                calibration.of(shape(tokens)).add(distance, 1000, Duration::from_nanos(took));
            }
        };
        assert_eq!(calibration.chosen(None), BTreeMap::new());
        multiply(&mut calibration, 8, 1024, 100);
        assert_eq!(calibration.chosen(None), BTreeMap::from([("q4_0", 1024)]), "batches only");
        assert!(!calibration.of(shape(1)).is_over());
        multiply(&mut calibration, 1, 7168, 1000);
        assert_eq!(calibration.chosen(None), BTreeMap::from([("q4_0", 7168)]), "one token");
        assert_eq!((calibration.of(shape(1)).distance(), calibration.of(shape(8)).distance()), (7168, 1024));
        assert_eq!(calibration.chosen(Some(64)), BTreeMap::from([("q4_0", 64)]), "set by the user");
    }
}
