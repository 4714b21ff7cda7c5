//! What a sampler and a score need of a softmax on the host: the highest logit, and the log of a sum of exps.
//!
//! Both run over 256 000 logits for each token, so they are written for the compiler to vectorize.

use crate::Error;
use gemma_kernels::math::exp;

/// Independent running values per loop turn; two AVX registers of f32, and enough to hide the latency of an add.
const LANES: usize = 16;

/// The largest value that is a number; -inf for none.
pub(crate) fn highest(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut best = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (best, &value) in best.iter_mut().zip(chunk) {
            *best = larger(*best, value);
        }
    }
    best.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, larger)
}

/// log Σ exp(logit): what to subtract from a logit to have its log-probability.
///
/// max + log Σ exp(logit − max), so that nothing overflows; summed in f64.
///
/// # Errors
///
/// [`Error::NotFinite`] when a logit is NaN or +inf, [`Error::NoToken`] when all are -inf.
pub(crate) fn log_sum_exp(logits: &[f32]) -> Result<f64, Error> {
    let best = highest(logits);
    if best.is_infinite() {
        return Err(fault(logits));
    }
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut sums = [0.0_f64; LANES];
    for chunk in chunks {
        let powers = chunk.map(|logit| exp(logit - best));
        for (sum, power) in sums.iter_mut().zip(powers) {
            *sum += f64::from(power);
        }
    }
    let rest: f64 = rest.iter().map(|&logit| f64::from(exp(logit - best))).sum();
    let sum = sums.iter().sum::<f64>() + rest;
    // NaN in any logit is NaN in the sum, so no pass of its own has to look for it.
    if sum.is_nan() { Err(fault(logits)) } else { Ok(f64::from(best) + sum.ln()) }
}

/// Looks whether probabilities follow from the logits after a token.
///
/// # Errors
///
/// [`Error::NotFinite`] when a logit is NaN or +inf.
pub fn check_logits(logits: &[f32]) -> Result<(), Error> {
    if logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) { Err(fault(logits)) } else { Ok(()) }
}

/// Names the first logit that no probability follows from.
#[cold]
fn fault(logits: &[f32]) -> Error {
    let bad = |&logit: &f32| logit.is_nan() || logit == f32::INFINITY;
    match logits.iter().position(bad) {
        Some(token) => Error::NotFinite { token, logit: logits[token] },
        None => Error::NoToken { vocab: logits.len() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Xoshiro256PlusPlus;

    #[test]
    fn log_sum_exp_agrees_with_f64() {
        let mut generator = Xoshiro256PlusPlus::new(3);
        // Lengths around the lanes, so that the rest of the loop is tested too.
        for len in [1, 2, 15, 16, 17, 31, 32, 33, 1000, 100_003] {
            let logits: Vec<f32> = (0..len).map(|_| generator.below(60_000) as f32 / 1000.0 - 30.0).collect();
            let exact = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            let found = log_sum_exp(&logits).unwrap();
            assert!((found - exact).abs() < 1e-7, "{len}: {found} {exact}");
        }
    }

    #[test]
    fn log_sum_exp_does_not_overflow() {
        assert_eq!(log_sum_exp(&[3e38, f32::NEG_INFINITY]).unwrap(), f64::from(3e38_f32));
        let both = log_sum_exp(&[-3e38, -3e38]).unwrap();
        assert!((both - f64::from(-3e38_f32)).abs() < 1.0);
    }

    #[test]
    fn logits_without_a_probability_are_named() {
        for place in [0, 5, 16, 40] {
            let mut logits = vec![0.0; 41];
            logits[place] = f32::NAN;
            let error = log_sum_exp(&logits).unwrap_err();
            assert!(matches!(error, Error::NotFinite { token, .. } if token == place), "{error}");
            assert!(matches!(check_logits(&logits), Err(Error::NotFinite { token, .. }) if token == place));
            logits[place] = f32::INFINITY;
            assert_eq!(log_sum_exp(&logits), Err(Error::NotFinite { token: place, logit: f32::INFINITY }));
        }
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 3]), Err(Error::NoToken { vocab: 3 }));
        assert_eq!(log_sum_exp(&[]), Err(Error::NoToken { vocab: 0 }));
        let mixed = log_sum_exp(&[f32::NEG_INFINITY, f32::NAN]).unwrap_err();
        assert!(matches!(mixed, Error::NotFinite { token: 1, .. }));
    }
}
