//! The sampler: logits in, one token out.
//!
//! Each cut (top-k, top-p) and the draw itself ask the same question, "which candidate is it at which the
//! weights, added from the likeliest down, reach this much?", and [`reach`] answers it in linear time, without
//! sorting 256 000 candidates. Weights are integers, so their sums do not depend on the order of adding,
//! and the same logits and seed give the same token on every platform.

mod dry;
mod mirostat;

use std::collections::{HashMap, HashSet};

use gemma_kernels::math::exp;
use gemma_tokenizer::TokenId;

use crate::random::{Xoshiro256PlusPlus, fresh_seed};
use crate::rows::Row;
use crate::softmax::highest;
use crate::{Error, GenerateOptions};

pub use dry::Dry;
pub use mirostat::Mirostat;

/// The weight of the likeliest candidate. 256 000 of these add up to less than 2⁵⁸.
const ONE: f32 = (1_u64 << 40) as f32;

/// e⁻²⁸ is below 1/[`ONE`]: a logit this far (times the temperature) below the best has weight 0.
const REACH: f32 = 28.0;

/// A token that was sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub token: TokenId,
    /// Natural logarithm of the probability that the *model* gave it: from the logits as they came, before
    /// repetition penalty, temperature and cuts. So it does not depend on the options, and can be compared
    /// with [`score`](crate::score).
    pub logprob: f64,
}

/// Samples tokens from logits.
///
/// In this order, which is that of Hugging Face transformers:
///
/// 0. **Logit bias**, **presence** and **frequency penalty** (as in OpenAI's API, counting the answer's tokens only), and
///    the **mask** of a grammar, which excludes tokens.
/// 1. **Repetition penalty** p: the logit of each token [observed](Sampler::observe_prompt) or sampled before is
///    divided by p if positive and multiplied by p if not (Keskar et al., "CTRL", 2019, section 4.1). The [**DRY**](Dry)
///    penalty lowers the logits of tokens that would prolong a repeated passage.
/// 2. **Temperature** 0 ends here: the highest logit wins, of equals the lowest token number. Otherwise the
///    logits are divided by the temperature.
/// 3. **Top-k**: only the k highest remain; of equals the lower token number.
/// 4. **Top-p**: only the smallest number of likeliest tokens remains whose probabilities, among those that
///    top-k left, add up to p or more; at least one (Holtzman et al., "The Curious Case of Neural Text
///    Degeneration", 2020).
/// 5. **Min-p**: only tokens at least p times as likely as the likeliest remain (Nguyen et al., "Turning Up
///    the Heat", 2024).
///
///    [**Mirostat**](Mirostat), where it is on, takes the place of 3 to 5.
/// 6. **Draw** among the rest in proportion to their probabilities, with xoshiro256++.
///
/// A token 10¹² times less likely than the likeliest, after temperature, is never drawn.
///
/// After the first token nothing is allocated, but for what the penalties must remember.
#[derive(Clone, Debug)]
pub struct Sampler {
    temperature: f32,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    logit_bias: Vec<(TokenId, f32)>,
    dry: Option<Dry>,
    mirostat: Option<mirostat::Cut>,
    seed: u64,
    generator: Xoshiro256PlusPlus,
    /// Tokens that the repetition penalty applies to; empty when it is off.
    observed: HashSet<TokenId>,
    /// All tokens in their order, for the DRY penalty; empty when it is off.
    history: Vec<TokenId>,
    /// How often the answer has each token; empty when no penalty asks.
    counts: HashMap<TokenId, u32>,
    /// Logits after bias, penalties and mask; unused when all are off.
    penalised: Vec<f32>,
    candidates: Vec<Candidate>,
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// Smaller is likelier, of equals the lower token number. One number holds both, so that comparing is cheap.
    rank: u64,
    logit: f32,
    /// [`ONE`] times its probability relative to the likeliest; set once the candidates are chosen.
    weight: u64,
}

impl Candidate {
    fn new(token: TokenId, logit: f32) -> Self {
        // The bits of floats rise with the positive and fall with the negative; flipped like this they fall
        // throughout. Adding 0 makes -0 an ordinary 0.
        let bits = (logit + 0.0).to_bits();
        let falling = if bits >> 31 == 0 { !bits & 0x7fff_ffff } else { bits };
        Self { rank: u64::from(falling) << 32 | u64::from(token), logit, weight: 0 }
    }

    fn token(&self) -> TokenId {
        self.rank as TokenId
    }
}

impl Sampler {
    /// A sampler with the seed of `options`, or a fresh one.
    ///
    /// # Errors
    ///
    /// What [`GenerateOptions::check`] finds.
    pub fn new(options: &GenerateOptions) -> Result<Self, Error> {
        options.check()?;
        let seed = options.seed.unwrap_or_else(fresh_seed);
        Ok(Self {
            temperature: options.temperature,
            top_k: options.top_k,
            top_p: options.top_p,
            min_p: options.min_p,
            repetition_penalty: options.repetition_penalty,
            presence_penalty: options.presence_penalty,
            frequency_penalty: options.frequency_penalty,
            logit_bias: options.logit_bias.clone(),
            dry: options.dry.clone().filter(|dry| dry.multiplier != 0.0),
            mirostat: options.mirostat.map(mirostat::Cut::new),
            seed,
            generator: Xoshiro256PlusPlus::new(seed),
            observed: HashSet::new(),
            history: Vec::new(),
            counts: HashMap::new(),
            penalised: Vec::new(),
            candidates: Vec::new(),
        })
    }

    /// The seed in use: give it as [`GenerateOptions::seed`] to have the same text again.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Makes the repetition penalty and the DRY penalty count the tokens of a prompt.
    pub fn observe_prompt(&mut self, tokens: &[TokenId]) {
        if self.dry.is_some() {
            self.history.extend(tokens);
        }
        if self.repetition_penalty != 1.0 {
            self.observed.extend(tokens);
        }
    }

    /// Samples a token by its index in `logits` (`[vocab]`; -inf excludes a token) and observes it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFinite`] when a logit is NaN or +inf, [`Error::NoToken`] when there are none but -inf.
    pub fn sample(&mut self, logits: &[f32]) -> Result<SampledToken, Error> {
        self.sample_allowed(logits, None)
    }

    /// [`sample`](Self::sample), among the tokens that `allowed` (`[vocab]`) marks.
    ///
    /// # Errors
    ///
    /// As [`sample`](Self::sample), and [`Error::NothingAllowed`] when bias, penalties and mask exclude all tokens.
    pub fn sample_allowed(&mut self, logits: &[f32], allowed: Option<&[bool]>) -> Result<SampledToken, Error> {
        self.sample_row(Row::Whole(logits), allowed)
    }

    /// How many of the largest logits are all that [`sample_row`](Self::sample_row) reads without a mask; `None` where it reads
    /// the whole row.
    pub(crate) fn reads(&self) -> Option<usize> {
        let adjusts = self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || self.dry.is_some()
            || !self.logit_bias.is_empty();
        match self.temperature {
            _ if adjusts => None,
            0.0 => Some(1),
            _ => self.top_k.filter(|_| self.mirostat.is_none()),
        }
    }

    /// [`sample_allowed`](Self::sample_allowed); the largest of a row are enough where they are as many as are
    /// [read](Self::reads).
    ///
    /// # Errors
    ///
    /// As [`sample_allowed`](Self::sample_allowed).
    pub(crate) fn sample_row(&mut self, row: Row<'_>, allowed: Option<&[bool]>) -> Result<SampledToken, Error> {
        let normalizer = row.log_sum_exp()?;
        let adjusted = allowed.is_some()
            || self.repetition_penalty != 1.0
            || self.dry.is_some()
            || !self.logit_bias.is_empty()
            || !self.counts.is_empty();
        let token = match row {
            Row::Whole(logits) if adjusted => {
                let penalised = self.adjust(logits, allowed);
                let best = highest(&penalised);
                let possible = best > f32::NEG_INFINITY;
                let token = if possible { self.choose(numbered(&penalised), best) } else { 0 };
                self.penalised = penalised;
                if !possible {
                    return Err(Error::NothingAllowed);
                }
                token
            }
            Row::Whole(logits) => self.choose(numbered(logits), highest(logits)),
            Row::Largest(largest) => {
                assert!(!adjusted, "the largest logits are enough where none is changed");
                let candidates = largest.tokens.iter().copied().zip(largest.logits.iter().copied());
                self.choose(candidates, largest.logits[0])
            }
        };
        self.observe_prompt(&[token]);
        if self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 {
            *self.counts.entry(token).or_default() += 1;
        }
        Ok(SampledToken { token, logprob: f64::from(row.logit(token)) - normalizer })
    }

    /// Steps 0 and 1. Takes the buffer out of `self`, so that the next steps can borrow both.
    fn adjust(&mut self, logits: &[f32], allowed: Option<&[bool]>) -> Vec<f32> {
        let mut penalised = std::mem::take(&mut self.penalised);
        penalised.clear();
        penalised.extend_from_slice(logits);
        for &(token, bias) in &self.logit_bias {
            if let Some(logit) = penalised.get_mut(token as usize) {
                *logit = (*logit + bias).min(f32::MAX);
            }
        }
        for (&token, &count) in &self.counts {
            if let Some(logit) = penalised.get_mut(token as usize) {
                *logit = (*logit - self.presence_penalty - self.frequency_penalty * count as f32).min(f32::MAX);
            }
        }
        for &token in &self.observed {
            if let Some(logit) = penalised.get_mut(token as usize) {
                let penalty = self.repetition_penalty;
                let changed = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                // A penalty near 0 turns a large logit into infinity, from which no probability follows.
                *logit = changed.min(f32::MAX);
            }
        }
        for (token, penalty) in self.dry.iter().flat_map(|dry| dry.penalties(&self.history)) {
            if let Some(logit) = penalised.get_mut(token as usize).filter(|logit| logit.is_finite()) {
                *logit = (*logit - penalty).clamp(f32::MIN, f32::MAX);
            }
        }
        for (logit, &allowed) in penalised.iter_mut().zip(allowed.unwrap_or_default()) {
            if !allowed {
                *logit = f32::NEG_INFINITY;
            }
        }
        penalised
    }

    /// Steps 2 to 6. At least one logit is finite and none is NaN or +inf; `best` is the highest, and of equals the lower token
    /// comes first.
    fn choose(&mut self, mut logits: impl Iterator<Item = (TokenId, f32)>, best: f32) -> TokenId {
        if self.temperature == 0.0 {
            let first = logits.find(|(_, logit)| *logit == best);
            return first.expect("the highest logit is one of them").0;
        }
        self.gather(logits, best);
        for candidate in &mut self.candidates {
            let power = exp((candidate.logit - best) / self.temperature);
            candidate.weight = (power * ONE) as u64;
        }
        if let Some(cut) = &self.mirostat {
            let smallest = cut.smallest(total(&self.candidates)).min(ONE as u64);
            self.candidates.retain(|candidate| candidate.weight >= smallest);
        } else {
            self.cut();
        }
        let total = total(&self.candidates);
        let drawn = 1 + self.generator.below(total);
        let place = reach(&mut self.candidates, drawn) - 1;
        if let Some(cut) = &mut self.mirostat {
            cut.drew(self.candidates[place].weight, total);
        }
        self.candidates[place].token()
    }

    /// Steps 4 and 5.
    fn cut(&mut self) {
        if let Some(top_p) = self.top_p.filter(|&top_p| top_p < 1.0) {
            let wanted = (f64::from(top_p) * total(&self.candidates) as f64).ceil() as u64;
            let kept = reach(&mut self.candidates, wanted);
            self.candidates.truncate(kept);
        }
        if let Some(min_p) = self.min_p {
            self.candidates.retain(|candidate| candidate.weight as f32 >= min_p * ONE);
        }
    }

    /// Step 3: fills `candidates` with the `top_k` likeliest of those that have a weight at all, in any order.
    ///
    /// One pass: whenever twice as many as needed have come together, only the better half stays, and from
    /// then on a logit has to be above the worst of that half. Equal logits come in the order of their tokens, so one that
    /// equals the worst would rank below it.
    fn gather(&mut self, logits: impl Iterator<Item = (TokenId, f32)>, best: f32) {
        let top_k = self.top_k.filter(|_| self.mirostat.is_none()).unwrap_or(usize::MAX);
        let full = top_k.saturating_mul(2).max(256);
        // With a tiny temperature the subtraction changes nothing, and the best itself must still pass.
        let mut bar = (best - REACH * self.temperature).min(best.next_down());
        self.candidates.clear();
        for (token, logit) in logits {
            if logit > bar {
                self.candidates.push(Candidate::new(token, logit));
                if self.candidates.len() == full {
                    bar = keep_best(&mut self.candidates, top_k);
                }
            }
        }
        if self.candidates.len() > top_k {
            keep_best(&mut self.candidates, top_k);
        }
    }
}

/// Logits with their tokens.
fn numbered(logits: &[f32]) -> impl Iterator<Item = (TokenId, f32)> {
    logits.iter().enumerate().map(|(token, &logit)| (token as TokenId, logit))
}

/// Keeps the `count` best-ranked of more candidates and returns the logit of the worst of these.
fn keep_best(candidates: &mut Vec<Candidate>, count: usize) -> f32 {
    let (_, worst, _) = candidates.select_nth_unstable_by_key(count - 1, |candidate| candidate.rank);
    let bar = worst.logit;
    candidates.truncate(count);
    bar
}

/// The sum of the candidates' weights.
fn total(candidates: &[Candidate]) -> u64 {
    candidates.iter().map(|candidate| candidate.weight).sum()
}

/// How many of the best-ranked candidates it takes for their weights to reach `mass`; at least one.
///
/// Reorders the candidates so that these come first and the last of them is the one that reached it. The
/// answer is searched for between bounds; each look costs as much as the stretch between them is long. The
/// first looks are near the front, where the mass of a language model's distribution is, the others halve.
fn reach(candidates: &mut [Candidate], mass: u64) -> usize {
    let (mut low, mut high) = (0, candidates.len());
    let mut below_low = 0;
    let mut stride = 64;
    // Always: low candidates weigh too little, high of them weigh enough (or are all there are).
    while high - low > 1 {
        let middle = low + stride.min((high - low) / 2);
        candidates[low..high].select_nth_unstable_by_key(middle - low, |candidate| candidate.rank);
        let below_middle = below_low + total(&candidates[low..middle]);
        if below_middle >= mass {
            high = middle;
        } else {
            (low, below_low) = (middle, below_middle);
            stride = stride.saturating_mul(16);
        }
    }
    high
}

/// The `count` likeliest tokens and their logprobs, best first; of equals the lower token number.
///
/// ```
/// let top = gemma_generate::top_logprobs(&[0.0, 2.0, 1.0], 2)?;
/// assert_eq!((top[0].0, top[1].0), (1, 2));
/// # Ok::<(), gemma_generate::Error>(())
/// ```
///
/// # Errors
///
/// As [`Sampler::sample`].
pub fn top_logprobs(logits: &[f32], count: usize) -> Result<Vec<(TokenId, f64)>, Error> {
    top_of_row(Row::Whole(logits), count)
}

/// [`top_logprobs`] of a row, of which at least so many are there.
///
/// # Errors
///
/// As [`Sampler::sample`].
pub(crate) fn top_of_row(row: Row<'_>, count: usize) -> Result<Vec<(TokenId, f64)>, Error> {
    let normalizer = row.log_sum_exp()?;
    let logits = match row {
        Row::Whole(logits) => logits,
        Row::Largest(largest) => {
            let best = largest.tokens.iter().zip(&largest.logits).take(count);
            return Ok(best.map(|(token, logit)| (*token, f64::from(*logit) - normalizer)).collect());
        }
    };
    let count = count.min(logits.len());
    let mut best: Vec<Candidate> = Vec::with_capacity(count + 1);
    for (token, &logit) in logits.iter().enumerate() {
        // tokens come in rising order, so one that equals the worst ranks below it
        if best.len() < count || best.last().is_some_and(|worst| logit > worst.logit) {
            let candidate = Candidate::new(token as TokenId, logit);
            let place = best.partition_point(|other| other.rank < candidate.rank);
            best.insert(place, candidate);
            best.truncate(count);
        }
    }
    Ok(best.iter().map(|candidate| (candidate.token(), f64::from(candidate.logit) - normalizer)).collect())
}

#[cfg(test)]
mod tests;
