//! Flags of the sampler: temperature, cuts, penalties, biases, Mirostat.
//!
//! Hidden aliases are what llama.cpp and transformers call the same. Defaults are the library's own (`GenerateOptions::default()`, `Dry::default()`, `Mirostat::default()`).

use clap::Args;
use gemma_generate::{Dry, GenerateOptions, Mirostat};
use gemma_tokenizer::{TokenId, Tokenizer};

/// How the next token is chosen, and when to stop.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct Sampling {
    /// Stop after this many new tokens; -1 goes on until the text ends or the context is full.
    #[arg(short = 'n', long, aliases = ["n-predict", "max-new-tokens"], value_name = "N", default_value_t = GenerateOptions::default().max_tokens, value_parser = super::new_tokens, allow_negative_numbers = true)]
    pub(crate) max_tokens: usize,

    /// Sampling temperature: 0 is greedy, 1 samples the model's distribution, above 1 flattens it.
    #[arg(long, alias = "temp", value_name = "T", default_value_t = GenerateOptions::default().temperature, allow_negative_numbers = true)]
    pub(crate) temperature: f32,

    /// Sample from the K most probable tokens only; 0 switches this off.
    #[arg(long, value_name = "K", default_value_t = GenerateOptions::default().top_k.unwrap_or(0), allow_negative_numbers = true)]
    pub(crate) top_k: usize,

    /// Nucleus sampling: sample from the smallest set of tokens whose probabilities add up to P; 1 switches this off.
    #[arg(long, value_name = "P", default_value_t = GenerateOptions::default().top_p.unwrap_or(1.0), allow_negative_numbers = true)]
    pub(crate) top_p: f32,

    /// Leave out tokens with less than P times the highest probability; off without it.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) min_p: Option<f32>,

    /// Lower the logits of tokens that occurred already; 1 is off, which suits Gemma best.
    #[arg(long, alias = "repeat-penalty", value_name = "R", default_value_t = GenerateOptions::default().repetition_penalty, allow_negative_numbers = true)]
    pub(crate) repetition_penalty: f32,

    /// The same seed and the same prompt give the same text; without it every run differs.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// Stop sequence: end before this text; may be given several times.
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,

    /// Continue past the end-of-sequence and end-of-turn tokens.
    #[arg(long)]
    pub(crate) ignore_eos: bool,

    #[command(flatten)]
    pub(crate) penalties: Penalties,
}

impl Sampling {
    /// The library's options for these flags.
    pub(crate) fn options(&self) -> GenerateOptions {
        let mut options = GenerateOptions {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_k: (self.top_k > 0).then_some(self.top_k),
            top_p: (self.top_p != 1.0).then_some(self.top_p),
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            ..GenerateOptions::default()
        };
        self.penalties.apply(&mut options);
        options
    }
}

/// Penalties and biases on logits, and Mirostat.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct Penalties {
    /// Subtract P from the logit of each token that the answer already has; 0 is off.
    #[arg(long, value_name = "P", default_value_t = GenerateOptions::default().presence_penalty, allow_negative_numbers = true)]
    pub(crate) presence_penalty: f32,

    /// Subtract P from the logit of a token for each time that the answer already has it; 0 is off.
    #[arg(long, value_name = "P", default_value_t = GenerateOptions::default().frequency_penalty, allow_negative_numbers = true)]
    pub(crate) frequency_penalty: f32,

    /// DRY penalty: lower the logit of a token that would prolong a repeated passage of n tokens by M * B^(n - L); 0 is
    /// off, 0.8 is usual.
    ///
    /// No passage reaches over a line break, a colon, a quotation mark or an asterisk.
    #[arg(long, value_name = "M", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) dry_multiplier: f32,

    /// B of the DRY penalty: how fast it grows with the passage.
    #[arg(long, value_name = "B", default_value_t = Dry::default().base, allow_negative_numbers = true)]
    pub(crate) dry_base: f32,

    /// L of the DRY penalty: passages of fewer tokens may be prolonged.
    #[arg(long, value_name = "L", default_value_t = Dry::default().allowed_length, allow_negative_numbers = true)]
    pub(crate) dry_allowed_length: usize,

    /// 2 samples with Mirostat 2.0 in place of --top-k, --top-p and --min-p; 0 is off.
    #[arg(long, value_name = "VERSION", default_value_t = 0, value_parser = mirostat)]
    pub(crate) mirostat: u8,

    /// The surprise that Mirostat aims at, in bits per token; lower is more predictable text.
    #[arg(long, alias = "mirostat-ent", value_name = "BITS", default_value_t = Mirostat::default().tau, allow_negative_numbers = true)]
    pub(crate) mirostat_tau: f32,

    /// How fast Mirostat follows its aim.
    #[arg(long, alias = "mirostat-lr", value_name = "RATE", default_value_t = Mirostat::default().eta, allow_negative_numbers = true)]
    pub(crate) mirostat_eta: f32,

    /// Add X to the logit of a token, by its id (`gemma tokenize` shows ids); -inf excludes it. May be given several times.
    #[arg(long, value_name = "TOKEN=X", value_parser = logit_bias)]
    pub(crate) logit_bias: Vec<(TokenId, f32)>,
}

impl Penalties {
    /// Puts these flags into the library's options.
    pub(crate) fn apply(&self, options: &mut GenerateOptions) {
        options.presence_penalty = self.presence_penalty;
        options.frequency_penalty = self.frequency_penalty;
        options.logit_bias = self.logit_bias.clone();
        // also where a value is out of range, so that it is refused
        options.dry = (self.dry_multiplier != 0.0).then(|| Dry {
            multiplier: self.dry_multiplier,
            base: self.dry_base,
            allowed_length: self.dry_allowed_length,
            ..Dry::default()
        });
        options.mirostat = (self.mirostat == 2).then_some(Mirostat { tau: self.mirostat_tau, eta: self.mirostat_eta });
    }
}

/// Adds what only a tokenizer knows: the tokens at which a passage ends for the DRY penalty.
pub(crate) fn with_breakers(options: GenerateOptions, tokenizer: Option<&Tokenizer>) -> GenerateOptions {
    let (Some(dry), Some(tokenizer)) = (&options.dry, tokenizer) else { return options };
    GenerateOptions { dry: Some(dry.clone().with_breakers(tokenizer, &Dry::BREAKERS)), ..options }
}

/// `0` or `2`.
fn mirostat(text: &str) -> Result<u8, String> {
    match text {
        "0" => Ok(0),
        "2" => Ok(2),
        _ => Err("must be 2 (Mirostat 2.0) or 0 (off)".to_owned()),
    }
}

/// The bias that stands for "never": the library's biases are finite.
const NEVER: f32 = -1e9;

/// `TOKEN=X`, where X may be `-inf`.
fn logit_bias(text: &str) -> Result<(TokenId, f32), String> {
    let parts = text.split_once('=').and_then(|(token, bias)| Some((token.parse().ok()?, bias.parse::<f32>().ok()?)));
    parts
        .map(|(token, bias)| (token, bias.max(NEVER)))
        .filter(|(_, bias)| bias.is_finite())
        .ok_or_else(|| "must be a token id and a number, such as 108=-2.5 or 108=-inf".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_is_an_id_and_a_number() {
        assert_eq!(logit_bias("7=-2.5"), Ok((7, -2.5)));
        assert_eq!(logit_bias("7=-inf"), Ok((7, NEVER)));
        for wrong in ["", "7", "=1", "a=1", "-1=1", "7=x", "7=inf", "4294967296=1"] {
            assert!(logit_bias(wrong).is_err(), "{wrong}");
        }
    }
}
