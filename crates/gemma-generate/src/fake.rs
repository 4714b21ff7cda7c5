//! A model without weights: the loop is tested with it.
//!
//! What it says next is a function of every token its cache holds, in order, so that a token lost, doubled or given to
//! the wrong sequence changes all that follows.

use std::sync::Mutex;

use burn::tensor::{Device, Tensor, TensorData};
use gemma_nn::{PageId, Segment, total_tokens};
use gemma_tokenizer::{Family, TokenId, Tokenizer};

use crate::{Cache, CacheTensors, CausalModel, Inputs};

/// The pieces of [`tokenizer`] after its control tokens; the last six are the bytes of "é" and of "🦀".
const PIECES: [&str; 18] = [
    "a", "b", "c", "d", "ab", "aab", "bc", "abcd", "▁", "▁END", "EN", "D", "<0xC3>", "<0xA9>", "<0xF0>", "<0x9F>",
    "<0xA6>", "<0x80>",
];

/// The end of a text, in [`tokenizer`].
pub(crate) const EOS: TokenId = 1;

/// A vocabulary of [`VOCAB`] pieces, and the other bytes.
pub(crate) fn tokenizer() -> Tokenizer {
    let names = ["<pad>", "<eos>", "<bos>", "<unk>"].iter().chain(&PIECES).map(|piece| (*piece).to_owned());
    // a tokenizer has a piece for every byte; the model says none of those behind its own
    let bytes = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")).filter(|piece| !PIECES.contains(&piece.as_str()));
    let vocab: Vec<String> = names.chain(bytes).enumerate().map(|(id, piece)| format!("{piece:?}:{id}")).collect();
    let json = format!(
        r#"{{"model":{{"type":"BPE","byte_fallback":true,"vocab":{{{}}},"merges":[]}},
            "normalizer":{{"type":"Replace","pattern":{{"String":" "}},"content":"▁"}}}}"#,
        vocab.join(",")
    );
    Tokenizer::from_json(json.as_bytes(), Family::Gemma).unwrap()
}

/// The pieces of [`tokenizer`] that the model says.
pub(crate) const VOCAB: usize = 4 + PIECES.len();

/// The numbers of pieces in [`tokenizer`].
pub(crate) fn ids(pieces: &[&str]) -> Vec<TokenId> {
    let tokenizer = tokenizer();
    pieces.iter().map(|piece| tokenizer.token(piece).unwrap()).collect()
}

/// See the module.
pub(crate) struct Fake {
    device: Device,
    vocab: usize,
    context: Option<usize>,
    /// Says these one after the other, by position, instead of what it makes up.
    script: Vec<TokenId>,
    /// How many tokens a cache may hold that is still to be truncated.
    truncatable: usize,
    /// Gives NaN once a sequence has this many tokens.
    breaks_at: usize,
    /// The lengths of the segments of each call so far.
    calls: Mutex<Vec<Vec<usize>>>,
}

/// Every token so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct History {
    pub(crate) tokens: Vec<TokenId>,
    /// A history that is longer cannot be truncated: a window of so many tokens has moved on.
    truncatable: usize,
    /// How many tokens at the beginning the window has given back.
    given_back: usize,
}

impl Fake {
    /// Knows `vocab` tokens, and no limit.
    pub(crate) fn new(vocab: usize) -> Self {
        let device = gemma_backend::default_device().unwrap();
        Self {
            device,
            vocab,
            context: None,
            script: Vec::new(),
            truncatable: usize::MAX,
            breaks_at: usize::MAX,
            calls: Mutex::new(Vec::new()),
        }
    }

    /// After a prompt of `prompt_len` tokens, finds the tokens of `script` the likeliest, one after the other.
    pub(crate) fn saying(vocab: usize, prompt_len: usize, script: &[TokenId]) -> Self {
        let script = [&vec![0; prompt_len], script].concat();
        Self { script, ..Self::new(vocab) }
    }

    pub(crate) fn on(self, device: Device) -> Self {
        Self { device, ..self }
    }

    pub(crate) fn with_context(self, context: usize) -> Self {
        Self { context: Some(context), ..self }
    }

    pub(crate) fn truncatable_to(self, truncatable: usize) -> Self {
        Self { truncatable, ..self }
    }

    pub(crate) fn breaking_at(self, breaks_at: usize) -> Self {
        Self { breaks_at, ..self }
    }

    /// The lengths of the segments of each call since this was asked last.
    pub(crate) fn calls(&self) -> Vec<Vec<usize>> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    /// Logits `[vocab]` after a history.
    pub(crate) fn after(&self, history: &[TokenId]) -> Vec<f32> {
        if history.len() >= self.breaks_at {
            return vec![f32::NAN; self.vocab];
        }
        // FNV-1a over the tokens, then a scramble per column: different for each history, from -4 to 4.
        let seed = history.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &token| {
            (hash ^ u64::from(token) ^ 0x100).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let column = |column: usize| {
            let mixed = (seed ^ column as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed >> 40) as f32 / (1_u64 << 21) as f32 - 4.0
        };
        let mut logits: Vec<f32> = (0..self.vocab).map(column).collect();
        if let Some(&said) = self.script.get(history.len()) {
            logits[said as usize] = 9.0;
        }
        logits
    }

    /// The greedy continuation of a prompt, by the definition.
    pub(crate) fn greedy(&self, prompt: &[TokenId], count: usize) -> Vec<TokenId> {
        let mut history = prompt.to_vec();
        for _ in 0..count {
            let logits = self.after(&history);
            let best = (0..self.vocab).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            history.push(best as TokenId);
        }
        history.split_off(prompt.len())
    }

    pub(crate) fn tensor(&self, rows: Vec<Vec<f32>>) -> Tensor<2> {
        let shape = [rows.len(), self.vocab];
        Tensor::from_data(TensorData::new(rows.concat(), shape), &self.device)
    }
}

impl CausalModel for Fake {
    type Cache = History;

    fn embed(&self, tokens: &[TokenId]) -> Inputs {
        let embeddings = Tensor::zeros([tokens.len(), 1], &self.device);
        Inputs { token_ids: tokens.to_vec(), embeddings }
    }

    fn forward(&self, inputs: Inputs, segments: &[Segment], caches: &mut [&mut History]) -> Tensor<2> {
        self.calls.lock().unwrap().push(segments.iter().map(|segment| segment.len).collect());
        assert_eq!(inputs.len(), total_tokens(segments));
        assert_eq!(segments.len(), caches.len());
        let mut rest = inputs.token_ids.as_slice();
        let mut rows = Vec::new();
        for (segment, cache) in segments.iter().zip(caches) {
            assert!(segment.len > 0, "an empty segment has no last token");
            assert_eq!(segment.start, cache.tokens.len(), "a segment continues its cache");
            let (own, others) = rest.split_at(segment.len);
            for &token in own {
                cache.tokens.push(token);
                rows.push(self.after(&cache.tokens));
            }
            assert!(self.context.is_none_or(|limit| cache.tokens.len() <= limit), "more tokens than fit");
            cache.given_back = cache.given_back.max(cache.tokens.len().saturating_sub(cache.truncatable));
            rest = others;
        }
        self.tensor(rows)
    }

    /// The hidden states are the logits.
    fn logits(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        hidden_states
    }

    fn new_cache(&self) -> History {
        History { truncatable: self.truncatable, ..History::default() }
    }

    fn no_cache(&self) -> History {
        self.new_cache()
    }

    fn restore_cache(&self, len: usize, tensors: &CacheTensors) -> Option<History> {
        let (_, _, values) = tensors.iter().next()?;
        let tokens = values.iter().map(|value| *value as TokenId).collect();
        (values.len() == len).then_some(History { tokens, ..self.new_cache() })
    }

    fn cache_bytes(&self, tokens: usize) -> usize {
        tokens.saturating_mul(4)
    }

    fn context_length(&self) -> Option<usize> {
        self.context
    }

    fn vocab(&self) -> usize {
        self.vocab
    }
}

impl Cache for History {
    fn len(&self) -> usize {
        self.tokens.len()
    }

    fn bytes_len(&self) -> usize {
        4 * self.tokens.len()
    }

    fn pages(&self) -> Vec<(PageId, usize)> {
        Vec::new()
    }

    fn truncate(&mut self, len: usize) -> bool {
        let possible = self.tokens.len() <= self.truncatable || len >= self.tokens.len() || self.is_whole();
        if possible {
            self.tokens.truncate(len);
        }
        possible
    }

    fn truncatable(&self) -> usize {
        self.truncatable
    }

    fn is_whole(&self) -> bool {
        self.truncatable > 0 && self.given_back == 0
    }

    fn complete_with(&mut self, earlier: &Self, agreed: usize) {
        assert_eq!(self.tokens[..agreed], earlier.tokens[..agreed], "what is said to agree does");
        if earlier.is_whole() && self.given_back <= agreed {
            self.given_back = 0;
        }
    }

    fn retractable(&self) -> usize {
        if self.truncatable == usize::MAX { usize::MAX } else { 0 }
    }

    fn tensors(&self) -> CacheTensors {
        let mut tensors = CacheTensors::new();
        let values = self.tokens.iter().map(|token| *token as f32).collect();
        tensors.insert_values("tokens", vec![self.tokens.len()], values);
        tensors
    }
}
