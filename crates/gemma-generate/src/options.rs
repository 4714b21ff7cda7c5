//! What a caller may ask of a generation, with the defaults stated once.

use gemma_tokenizer::TokenId;

use crate::{Dry, Error, Mirostat};

/// How to continue a prompt: how far, how freely, and when to stop.
///
/// The defaults are those of Google's own Gemma code (temperature 1, top-k 64, top-p 0.95). Options are
/// applied in the order documented at [`Sampler`](crate::Sampler).
///
/// ```
/// use gemma_generate::GenerateOptions;
///
/// let options = GenerateOptions { max_tokens: 64, seed: Some(7), ..GenerateOptions::default() };
/// assert!(options.check().is_ok());
/// assert!(GenerateOptions { top_p: Some(1.5), ..options }.check().is_err());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens to generate. Default 256; 0 generates nothing.
    pub max_tokens: usize,
    /// Divides the logits: below 1 the likely becomes likelier, above 1 all becomes more even. 0 always
    /// takes the likeliest token. Default 1.
    pub temperature: f32,
    /// Only the `k` likeliest tokens may be drawn. `None`: all. Default 64.
    pub top_k: Option<usize>,
    /// Only the smallest set of likeliest tokens whose probabilities add up to this may be drawn.
    /// `None`: all. Default 0.95.
    pub top_p: Option<f32>,
    /// Only tokens at least this fraction as likely as the likeliest may be drawn. `None`: all. Default `None`.
    pub min_p: Option<f32>,
    /// Above 1 makes tokens that the prompt or the answer already holds less likely. Default 1 (off):
    /// Gemma's answers get worse with it.
    pub repetition_penalty: f32,
    /// Subtracted from the logit of each token that the answer already has. Default 0 (off).
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for each time that the answer already has it. Default 0 (off).
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens; -100 practically excludes a token. Default none.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Lowers the logits of tokens that would prolong a repeated passage. Default `None`.
    pub dry: Option<Dry>,
    /// Keeps the surprise of the text near a target, in place of top-k, top-p and min-p. Default `None`.
    pub mirostat: Option<Mirostat>,
    /// The same seed gives the same text. `None` takes a fresh one. Default `None`.
    pub seed: Option<u64>,
    /// Texts that end the answer; the answer is cut before the first that is completed. Default none.
    pub stop: Vec<String>,
    /// Go on after the model's stop tokens, up to `max_tokens`. Default `false`.
    pub ignore_eos: bool,
    /// Most prompt tokens in one forward pass. Smaller needs less memory and reacts faster to
    /// cancelling, larger prefills faster. Default 512.
    pub prefill_chunk: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            temperature: 1.0,
            top_k: Some(64),
            top_p: Some(0.95),
            min_p: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            dry: None,
            mirostat: None,
            seed: None,
            stop: Vec::new(),
            ignore_eos: false,
            prefill_chunk: 512,
        }
    }
}

impl GenerateOptions {
    /// At most `max_tokens` tokens, always the likeliest: the same text each time.
    pub fn greedy(max_tokens: usize) -> Self {
        Self { max_tokens, temperature: 0.0, ..Self::default() }
    }

    /// Checks that each option lies in its range.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`] for the first that does not.
    pub fn check(&self) -> Result<(), Error> {
        // Written so that NaN, for which each comparison is false, falls outside every range.
        require(
            self.temperature >= 0.0 && self.temperature.is_finite(),
            "temperature",
            self.temperature,
            "a finite number from 0 up (0 always takes the likeliest token)",
        )?;
        if let Some(top_k) = self.top_k {
            require(top_k >= 1, "top_k", top_k, "an integer from 1 up, or none to allow every token")?;
        }
        if let Some(top_p) = self.top_p {
            require(
                top_p > 0.0 && top_p <= 1.0,
                "top_p",
                top_p,
                "a number above 0 and up to 1 (1 allows every token)",
            )?;
        }
        if let Some(min_p) = self.min_p {
            require((0.0..=1.0).contains(&min_p), "min_p", min_p, "a number from 0 to 1 (0 allows every token)")?;
        }
        require(
            self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
            "repetition_penalty",
            self.repetition_penalty,
            "a finite number above 0 (1 is off)",
        )?;
        for (option, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            require(value.is_finite(), option, value, "a finite number (0 is off)")?;
        }
        let biased = self.logit_bias.iter().find(|(_, bias)| !bias.is_finite());
        let bias = biased.map_or(0.0, |(_, bias)| *bias);
        require(bias.is_finite(), "logit_bias", bias, "finite numbers (-100 practically excludes a token)")?;
        if let Some(dry) = &self.dry {
            let (from_zero, from_one) = ("a finite number from 0 up (0 is off)", "a finite number from 1 up");
            require(dry.multiplier >= 0.0 && dry.multiplier.is_finite(), "dry.multiplier", dry.multiplier, from_zero)?;
            require(dry.base >= 1.0 && dry.base.is_finite(), "dry.base", dry.base, from_one)?;
            require(dry.allowed_length >= 1, "dry.allowed_length", dry.allowed_length, "an integer from 1 up")?;
        }
        if let Some(Mirostat { tau, eta }) = self.mirostat {
            for (option, value) in [("mirostat.tau", tau), ("mirostat.eta", eta)] {
                require(value > 0.0 && value.is_finite(), option, value, "a finite number above 0")?;
            }
        }
        require(
            self.stop.iter().all(|text| !text.is_empty()),
            "stop",
            "an empty text",
            "texts of at least one character",
        )?;
        require(self.prefill_chunk >= 1, "prefill_chunk", self.prefill_chunk, "an integer from 1 up")
    }
}

/// One line per rule above: the rule, and what to say when it does not hold.
pub(crate) fn require(
    holds: bool,
    option: &'static str,
    value: impl ToString,
    permitted: &'static str,
) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::InvalidOption { option, value: value.to_string(), permitted }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_and_greedy_are_valid() {
        assert_eq!(GenerateOptions::default().check(), Ok(()));
        let greedy = GenerateOptions::greedy(9);
        assert_eq!(greedy.check(), Ok(()));
        assert_eq!((greedy.max_tokens, greedy.temperature), (9, 0.0));
    }

    #[test]
    fn the_ends_of_each_range_are_permitted() {
        let options = GenerateOptions {
            max_tokens: 0,
            temperature: f32::MAX,
            top_k: Some(1),
            top_p: Some(1.0),
            min_p: Some(0.0),
            repetition_penalty: f32::MIN_POSITIVE,
            prefill_chunk: 1,
            ..GenerateOptions::default()
        };
        assert_eq!(options.check(), Ok(()));
        assert_eq!(GenerateOptions { min_p: Some(1.0), ..options }.check(), Ok(()));
    }

    #[test]
    fn each_option_outside_its_range_is_named_with_value_and_range() {
        let base = GenerateOptions::default;
        let wrong: Vec<(&str, &str, GenerateOptions)> = vec![
            ("temperature", "NaN", GenerateOptions { temperature: f32::NAN, ..base() }),
            ("temperature", "-0.5", GenerateOptions { temperature: -0.5, ..base() }),
            ("temperature", "inf", GenerateOptions { temperature: f32::INFINITY, ..base() }),
            ("top_k", "0", GenerateOptions { top_k: Some(0), ..base() }),
            ("top_p", "0", GenerateOptions { top_p: Some(0.0), ..base() }),
            ("top_p", "1.01", GenerateOptions { top_p: Some(1.01), ..base() }),
            ("top_p", "NaN", GenerateOptions { top_p: Some(f32::NAN), ..base() }),
            ("min_p", "-0.1", GenerateOptions { min_p: Some(-0.1), ..base() }),
            ("min_p", "2", GenerateOptions { min_p: Some(2.0), ..base() }),
            ("min_p", "NaN", GenerateOptions { min_p: Some(f32::NAN), ..base() }),
            ("repetition_penalty", "0", GenerateOptions { repetition_penalty: 0.0, ..base() }),
            ("repetition_penalty", "-1", GenerateOptions { repetition_penalty: -1.0, ..base() }),
            ("repetition_penalty", "NaN", GenerateOptions { repetition_penalty: f32::NAN, ..base() }),
            ("repetition_penalty", "inf", GenerateOptions { repetition_penalty: f32::INFINITY, ..base() }),
            ("presence_penalty", "NaN", GenerateOptions { presence_penalty: f32::NAN, ..base() }),
            ("frequency_penalty", "inf", GenerateOptions { frequency_penalty: f32::INFINITY, ..base() }),
            ("logit_bias", "NaN", GenerateOptions { logit_bias: vec![(1, 2.0), (3, f32::NAN)], ..base() }),
            (
                "dry.multiplier",
                "-1",
                GenerateOptions { dry: Some(Dry { multiplier: -1.0, ..Dry::default() }), ..base() },
            ),
            ("dry.base", "0.5", GenerateOptions { dry: Some(Dry { base: 0.5, ..Dry::default() }), ..base() }),
            (
                "dry.allowed_length",
                "0",
                GenerateOptions { dry: Some(Dry { allowed_length: 0, ..Dry::default() }), ..base() },
            ),
            ("mirostat.tau", "NaN", GenerateOptions { mirostat: Some(Mirostat { tau: f32::NAN, eta: 0.1 }), ..base() }),
            ("mirostat.eta", "0", GenerateOptions { mirostat: Some(Mirostat { tau: 5.0, eta: 0.0 }), ..base() }),
            ("stop", "an empty text", GenerateOptions { stop: vec!["a".into(), "".into()], ..base() }),
            ("prefill_chunk", "0", GenerateOptions { prefill_chunk: 0, ..base() }),
        ];
        for (name, value, options) in wrong {
            let Err(error @ Error::InvalidOption { option, .. }) = options.check() else {
                panic!("{name} = {value} was accepted");
            };
            assert_eq!(option, name);
            let message = error.to_string();
            assert!(message.starts_with(&format!("{name} is {value}; choose ")), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }
}
