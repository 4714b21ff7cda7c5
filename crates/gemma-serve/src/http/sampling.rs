//! The fields that every protocol has for how to sample, and their limits.

use std::collections::BTreeMap;

use gemma_tokenizer::{EncodeOptions, TokenId};
use serde::Deserialize;

use super::backend::{Backend, Dry, Mirostat, Sampling};
use super::error::Refusal;
use super::object::Others;
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
    pub(crate) logit_bias: Option<Biases>,
    pub(crate) dry_multiplier: Option<f32>,
    pub(crate) dry_base: Option<f32>,
    pub(crate) dry_allowed_length: Option<i64>,
    pub(crate) dry_penalty_last_n: Option<i64>,
    pub(crate) dry_sequence_breakers: Option<Texts>,
    pub(crate) mirostat: Option<i64>,
    pub(crate) mirostat_tau: Option<f32>,
    pub(crate) mirostat_eta: Option<f32>,
    pub(crate) lora: Option<Vec<AdapterField>>,
}

/// `logit_bias`: OpenAI's object of token ids, or llama.cpp's list of pairs of a token id or a text and a bias.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected an object of token ids and numbers, or an array of pairs")]
pub(crate) enum Biases {
    ByToken(BTreeMap<String, Bias>),
    Pairs(Vec<(TokenOrText, Bias)>),
}

/// How much is added to a logit; `false` excludes the token.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Bias {
    Number(f32),
    Allowed(bool),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum TokenOrText {
    Token(TokenId),
    Text(String),
}

/// One of `lora`, as llama.cpp's clients send it: the number of an adapter, and how much of it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(expecting = "an object")]
pub(crate) struct AdapterField {
    id: usize,
    scale: f32,
    #[serde(flatten)]
    _others: Others,
}

/// The adapters that a list called `name` chooses among `known` ones, and how much of each.
pub(crate) fn adapter_choices(name: &str, fields: &[AdapterField], known: usize) -> Result<Vec<(usize, f32)>, Refusal> {
    for (place, AdapterField { id, scale, .. }) in fields.iter().enumerate() {
        let wrong = |message: String| Refusal::field(format!("{name}[{place}].id"), message);
        if *id >= known {
            return Err(wrong(format!("{id} is no adapter; the model has {known}, numbered from 0 on")));
        }
        if fields[..place].iter().any(|other| other.id == *id) {
            return Err(wrong(format!("the adapter {id} stands there twice")));
        }
        within(&format!("{name}[{place}].scale"), *scale, -100.0, 100.0)?;
    }
    Ok(fields.iter().map(|field| (field.id, field.scale)).collect())
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
            dry: self.dry()?,
            mirostat: self.mirostat()?,
            // -1 is llama.cpp's word for a fresh seed
            seed: self.seed.or(self.random_seed).filter(|seed| *seed != -1).map(|seed| seed as u64),
            ignore_eos: self.ignore_eos.unwrap_or(false),
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

    /// The DRY penalty; none with the multiplier 0, or over no tokens.
    fn dry(&self) -> Result<Option<Dry>, Refusal> {
        let count = |name: &str, asked: Option<i64>, low: i64, default: usize| match asked {
            None => Ok(default),
            Some(n) if n < low => Err(Refusal::field(name, format!("{n} is less than {low}"))),
            // -1 is llama.cpp's word for all
            Some(n) => Ok(usize::try_from(n).unwrap_or(usize::MAX)),
        };
        let dry = Dry {
            multiplier: self.dry_multiplier.unwrap_or(0.0),
            base: self.dry_base.unwrap_or(1.75),
            allowed_length: count("dry_allowed_length", self.dry_allowed_length, 1, 2)?,
            last_tokens: Some(count("dry_penalty_last_n", self.dry_penalty_last_n, -1, usize::MAX)?),
            breakers: match &self.dry_sequence_breakers {
                Some(texts) => Some(check_stops("dry_sequence_breakers", &texts.0)?),
                None => None,
            },
        };
        within("dry_multiplier", dry.multiplier, 0.0, 100.0)?;
        within("dry_base", dry.base, 1.0, 100.0)?;
        let last_tokens = dry.last_tokens.filter(|count| *count != usize::MAX);
        Ok((dry.multiplier != 0.0 && dry.last_tokens != Some(0)).then_some(Dry { last_tokens, ..dry }))
    }

    /// Mirostat 2.0, if it is asked for.
    fn mirostat(&self) -> Result<Option<Mirostat>, Refusal> {
        let mirostat = Mirostat { tau: self.mirostat_tau.unwrap_or(5.0), eta: self.mirostat_eta.unwrap_or(0.1) };
        within("mirostat_tau", mirostat.tau, 0.001, 100.0)?;
        within("mirostat_eta", mirostat.eta, 0.0001, 100.0)?;
        match self.mirostat.unwrap_or(0) {
            0 => Ok(None),
            2 => Ok(Some(mirostat)),
            n => Err(Refusal::field("mirostat", format!("{n} is unknown; use 2 (Mirostat 2.0) or 0 (off)"))),
        }
    }

    /// The adapters that the request chooses by number; `None` without the field.
    pub(crate) fn adapters(&self, backend: &dyn Backend) -> Result<Option<Vec<(usize, f32)>>, Refusal> {
        let Some(fields) = &self.lora else { return Ok(None) };
        adapter_choices("lora", fields, backend.adapters().len()).map(Some)
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

    /// The biases by token. A text stands for each of its tokens.
    pub(crate) fn biases(&self, backend: &dyn Backend) -> Result<Vec<(TokenId, f32)>, Refusal> {
        let wrong = |message: String| Refusal::field("logit_bias", message);
        let pairs: Vec<(TokenOrText, Bias)> = match &self.logit_bias {
            None => return Ok(Vec::new()),
            Some(Biases::Pairs(pairs)) => pairs.clone(),
            Some(Biases::ByToken(biases)) => {
                let id = |token: &String| token.parse().map_err(|_| wrong(format!("{token:?} is no token id")));
                let one = |(token, bias): (&String, &Bias)| Ok((TokenOrText::Token(id(token)?), *bias));
                biases.iter().map(one).collect::<Result<_, Refusal>>()?
            }
        };
        if pairs.len() > MOST_BIASES {
            return Err(wrong(format!("{} tokens; at most {MOST_BIASES} can have a bias", pairs.len())));
        }
        let vocab = backend.card().vocab_size;
        let mut biases = Vec::new();
        for (token, bias) in pairs {
            let bias = match bias {
                // -100 and 100 mean never and always (OpenAI)
                Bias::Number(bias) if !(-100.0..=100.0).contains(&bias) => {
                    return Err(wrong(format!("the bias {bias} is outside -100 to 100")));
                }
                Bias::Allowed(false) | Bias::Number(..=-100.0) => f32::NEG_INFINITY,
                Bias::Allowed(true) => return Err(wrong("true is no bias; send a number, or false for never".into())),
                Bias::Number(bias) => bias,
            };
            let tokens = match token {
                TokenOrText::Token(token) if (token as usize) < vocab => vec![token],
                TokenOrText::Token(token) => {
                    return Err(wrong(format!("{token} is no token id; use a number below {vocab}")));
                }
                TokenOrText::Text(text) if text.len() > LONGEST_STOP => {
                    return Err(wrong(format!("a text is longer than {LONGEST_STOP} bytes")));
                }
                TokenOrText::Text(text) => {
                    backend.tokenizer().encode_with(&text, EncodeOptions { bos: false, specials: true })
                }
            };
            biases.extend(tokens.into_iter().map(|token| (token, bias)));
            if biases.len() > MOST_BIASES {
                return Err(wrong(format!("more than {MOST_BIASES} tokens have a bias")));
            }
        }
        Ok(biases)
    }
}

/// Refuses a value outside its range, and NaN.
fn within(name: &str, value: f32, low: f32, high: f32) -> Result<(), Refusal> {
    let inside = value >= low && value <= high;
    if inside { Ok(()) } else { Err(Refusal::field(name, format!("{value} is outside {low} to {high}"))) }
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
    fn dry_and_mirostat_are_read_as_llama_cpp_names_them() {
        let of = |json: &str| fields(json).sampling(1).expect(json);
        assert_eq!((of("{}").dry, of("{}").mirostat), (None, None));
        assert_eq!((of(r#"{"dry_multiplier":0,"dry_base":2,"mirostat":0,"mirostat_tau":3}"#).dry), None);
        assert_eq!(of(r#"{"dry_multiplier":0.8,"dry_penalty_last_n":0}"#).dry, None);
        let dry = Dry { multiplier: 0.8, base: 1.75, allowed_length: 2, last_tokens: None, breakers: None };
        assert_eq!(of(r#"{"dry_multiplier":0.8,"dry_penalty_last_n":-1}"#).dry, Some(dry.clone()));
        let json = r#"{"dry_multiplier":1,"dry_base":2,"dry_allowed_length":3,"dry_penalty_last_n":64,"dry_sequence_breakers":["\n",""]}"#;
        let breakers = Some(vec!["\n".to_owned()]);
        let last_tokens = Some(64);
        assert_eq!(of(json).dry, Some(Dry { multiplier: 1.0, base: 2.0, allowed_length: 3, last_tokens, breakers }));
        assert_eq!(of(r#"{"mirostat":2,"mirostat_tau":3}"#).mirostat, Some(Mirostat { tau: 3.0, eta: 0.1 }));
    }

    #[cfg(feature = "engine")]
    #[test]
    fn the_defaults_of_dry_and_mirostat_are_the_library_s() {
        let sampling = fields(r#"{"dry_multiplier":1,"mirostat":2}"#).sampling(1).expect("valid");
        let (dry, library) = (sampling.dry.expect("asked for"), gemma_generate::Dry::default());
        assert_eq!((dry.base, dry.allowed_length), (library.base, library.allowed_length));
        assert_eq!(dry.last_tokens, library.last_tokens);
        let (mirostat, library) = (sampling.mirostat.expect("asked for"), gemma_generate::Mirostat::default());
        assert_eq!((mirostat.tau, mirostat.eta), (library.tau, library.eta));
    }

    #[test]
    fn values_outside_their_ranges_name_their_field() {
        for (json, name) in [
            (r#"{"dry_multiplier":-1}"#, "dry_multiplier"),
            (r#"{"dry_multiplier":1,"dry_base":0.5}"#, "dry_base"),
            (r#"{"dry_allowed_length":0}"#, "dry_allowed_length"),
            (r#"{"dry_penalty_last_n":-2}"#, "dry_penalty_last_n"),
            (r#"{"mirostat":1}"#, "mirostat"),
            (r#"{"mirostat":2,"mirostat_tau":0}"#, "mirostat_tau"),
            (r#"{"mirostat_eta":-1}"#, "mirostat_eta"),
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
