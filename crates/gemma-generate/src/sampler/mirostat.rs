//! Mirostat 2.0: sampling that keeps the surprise of the text near a target.

/// Mirostat 2.0 (Basu et al., "Mirostat: A Neural Text Decoding Algorithm that Directly Controls Perplexity", 2021,
/// arXiv:2007.14966, with the simpler cut of its authors' code; llama.cpp's `--mirostat 2`).
///
/// The surprise of a token of probability p is -log2 p. Only tokens with a surprise of at most mu may be drawn, at least
/// the likeliest; after each draw mu moves so that the surprises come to tau in the mean:
///
/// ```text
/// mu = 2 tau at first;   mu <- mu - eta * (surprise of the token drawn - tau)
/// ```
///
/// It takes the place of top-k, top-p and min-p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mirostat {
    /// The surprise to aim at, in bits per token: 5 is usual, lower is more predictable text.
    pub tau: f32,
    /// How fast the cut follows: 0.1 is usual.
    pub eta: f32,
}

impl Default for Mirostat {
    fn default() -> Self {
        Self { tau: 5.0, eta: 0.1 }
    }
}

/// Mirostat at work in one answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    options: Mirostat,
    /// The largest surprise that may be drawn, in bits.
    mu: f64,
}

impl Cut {
    pub(super) fn new(options: Mirostat) -> Self {
        Self { options, mu: 2.0 * f64::from(options.tau) }
    }

    /// The smallest weight that may be drawn where all weights add up to `total`: that with a surprise of mu.
    pub(super) fn smallest(&self, total: u64) -> u64 {
        (total as f64 * (-self.mu).exp2()).ceil() as u64
    }

    /// Moves mu after a token of this weight was drawn from tokens whose weights add up to `total`.
    pub(super) fn drew(&mut self, weight: u64, total: u64) {
        let surprise = (total as f64 / weight as f64).log2();
        self.mu -= f64::from(self.options.eta) * (surprise - f64::from(self.options.tau));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirostat_cuts_at_mu_bits_and_moves_mu_by_eta_times_the_error() {
        let mut cut = Cut::new(Mirostat { tau: 1.5, eta: 0.5 });
        assert_eq!((cut.mu, cut.smallest(800)), (3.0, 100));
        // 2 bits, half a bit more than wanted
        cut.drew(200, 800);
        assert_eq!(cut.mu, 2.75);
        // 0 bits
        cut.drew(800, 800);
        assert_eq!(cut.mu, 3.5);
        // a cut above 0 bits leaves the likeliest, which the sampler keeps
        cut.mu = -1.0;
        assert_eq!(cut.smallest(100), 200);
    }
}
