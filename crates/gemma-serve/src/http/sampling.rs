//! The fields that every protocol has for how to sample, and their limits.

use std::collections::BTreeMap;

use gemma_tokenizer::TokenId;
use serde::Deserialize;

use super::backend::{Backend, Sampling};
use super::error::Refusal;
use super::texts::Texts;

/// Most answers to one prompt.
const MOST_ANSWERS: usize = 128;
/// Most stop texts, and most bytes of one.
const MOST_STOPS: usize = 64;
const LONGEST_STOP: usize = 4096;
/// Most tokens with a bias.
const MOST_BIASES: usize = 4096;
/// Most alternatives beside each token.
pub(crate) const MOST_TOP_LOGPROBS: usize = 20;

/// Sampling as OpenAI's, vLLM's and llama.cpp's clients send it; fields of one protocol are harmless in another.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SamplingFields {
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<i64>,
    pub(crate) min_p: Option<f32>,
    #[serde(alias = "repeat_penalty")]
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) seed: Option<i64>,
    #[serde(alias = "random_seed")]
    pub(crate) random_seed: Option<i64>,
    pub(crate) ignore_eos: Option<bool>,
    pub(crate) n: Option<usize>,
    pub(crate) stop: Option<Texts>,
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
}

impl SamplingFields {
    /// The sampling of an answer of at most `max_tokens` tokens. Left out, OpenAI's defaults hold: temperature 1 and no
    /// other filter.
    pub(crate) fn sampling(&self, max_tokens: usize) -> Result<Sampling, Refusal> {
        let sampling = Sampling {
            max_tokens,
            temperature: self.temperature.unwrap_or(1.0),
            // 0 and below mean all tokens, as llama.cpp and vLLM have it
            top_k: self.top_k.and_then(|k| usize::try_from(k).ok()).filter(|k| *k > 0),
            top_p: self.top_p.filter(|p| *p < 1.0),
            min_p: self.min_p.filter(|p| *p != 0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            // -1 is llama.cpp's word for a fresh seed
            seed: self.seed.or(self.random_seed).filter(|seed| *seed != -1).map(|seed| seed as u64),
            ignore_eos: self.ignore_eos.unwrap_or(false),
        };
        let within = |name: &str, value: f32, low: f32, high: f32| {
            let inside = value >= low && value <= high;
            if inside { Ok(()) } else { Err(Refusal::field(name, format!("{value} is outside {low} to {high}"))) }
        };
        within("temperature", sampling.temperature, 0.0, 100.0)?;
        // top_p 0 is sent by clients that mean greedy
        within("top_p", self.top_p.unwrap_or(1.0), 0.0, 1.0)?;
        within("min_p", sampling.min_p.unwrap_or(0.0), 0.0, 1.0)?;
        within("repetition_penalty", sampling.repetition_penalty, 0.01, 100.0)?;
        within("presence_penalty", sampling.presence_penalty, -2.0, 2.0)?;
        within("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)?;
        let top_p = sampling.top_p.map(|top_p| top_p.max(f32::MIN_POSITIVE));
        Ok(Sampling { top_p, ..sampling })
    }

    /// How many answers are asked for.
    pub(crate) fn answers(&self) -> Result<usize, Refusal> {
        match self.n.unwrap_or(1) {
            n @ 1..=MOST_ANSWERS => Ok(n),
            n => Err(Refusal::field("n", format!("{n} is outside 1 to {MOST_ANSWERS}"))),
        }
    }

    /// The stop texts; empty ones are left out, as llama.cpp does.
    pub(crate) fn stops(&self) -> Result<Vec<String>, Refusal> {
        check_stops("stop", self.stop.as_ref().map(|texts| texts.0.as_slice()).unwrap_or_default())
    }

    /// The biases by token.
    pub(crate) fn biases(&self, backend: &dyn Backend) -> Result<Vec<(TokenId, f32)>, Refusal> {
        let Some(biases) = &self.logit_bias else { return Ok(Vec::new()) };
        if biases.len() > MOST_BIASES {
            return Err(Refusal::field(
                "logit_bias",
                format!("{} tokens; at most {MOST_BIASES} can have a bias", biases.len()),
            ));
        }
        let vocab = backend.card().vocab_size;
        let one = |(token, bias): (&String, &f32)| {
            let id = token.parse::<TokenId>().ok().filter(|id| (*id as usize) < vocab);
            let id = id.ok_or_else(|| {
                Refusal::field("logit_bias", format!("{token:?} is no token id; use a number below {vocab}"))
            })?;
            if !(-100.0..=100.0).contains(bias) {
                return Err(Refusal::field("logit_bias", format!("the bias {bias} of {token} is outside -100 to 100")));
            }
            // -100 and 100 mean never and always (OpenAI)
            let bias = if *bias <= -100.0 { f32::NEG_INFINITY } else { *bias };
            Ok((id, bias))
        };
        biases.iter().map(one).collect()
    }
}

/// Checks the number and the length of stop texts.
pub(crate) fn check_stops(field: &str, stops: &[String]) -> Result<Vec<String>, Refusal> {
    if stops.len() > MOST_STOPS {
        return Err(Refusal::field(field, format!("{} stop texts; at most {MOST_STOPS}", stops.len())));
    }
    if stops.iter().any(|stop| stop.len() > LONGEST_STOP) {
        return Err(Refusal::field(field, format!("a stop text is longer than {LONGEST_STOP} bytes")));
    }
    Ok(stops.iter().filter(|stop| !stop.is_empty()).cloned().collect())
}

/// Seed of answer `index` of a prompt: answers with one seed differ, and the first is that of the seed alone.
pub(crate) fn seed_of(seed: Option<u64>, index: usize) -> Option<u64> {
    seed.map(|seed| seed.wrapping_add(index as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> SamplingFields {
        serde_json::from_str(json).expect("sampling fields")
    }

    #[test]
    fn left_out_fields_have_openai_defaults() {
        let sampling = fields("{}").sampling(5).expect("defaults are valid");
        assert_eq!(sampling, Sampling { max_tokens: 5, ..Sampling::default() });
    }

    #[test]
    fn off_values_of_other_servers_are_understood() {
        let sampling =
            fields(r#"{"top_k":-1,"top_p":1.0,"min_p":0,"seed":-1,"repeat_penalty":1.1}"#).sampling(1).expect("valid");
        assert_eq!((sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed), (None, None, None, None));
        assert_eq!(sampling.repetition_penalty, 1.1);
        assert_eq!(fields(r#"{"top_p":0}"#).sampling(1).expect("greedy").top_p, Some(f32::MIN_POSITIVE));
    }

    #[test]
    fn values_outside_their_ranges_name_their_field() {
        for (json, name) in [
            (r#"{"temperature":-1}"#, "temperature"),
            (r#"{"top_p":1e-3,"min_p":2}"#, "min_p"),
            (r#"{"top_p":-0.5}"#, "top_p"),
            (r#"{"top_p":2}"#, "top_p"),
            (r#"{"presence_penalty":3}"#, "presence_penalty"),
            (r#"{"frequency_penalty":-3}"#, "frequency_penalty"),
            (r#"{"repetition_penalty":0}"#, "repetition_penalty"),
        ] {
            assert_eq!(fields(json).sampling(1).expect_err(json).param.as_deref(), Some(name));
        }
        assert_eq!(fields(r#"{"n":0}"#).answers().expect_err("none").param.as_deref(), Some("n"));
        let many = SamplingFields { stop: Some(Texts(vec!["x".into(); 65])), ..Default::default() };
        assert_eq!(many.stops().expect_err("65").param.as_deref(), Some("stop"));
    }
}
