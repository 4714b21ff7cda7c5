//! The model boundary: one forward pass in three steps, and the operations that every model gets from them.

use burn::tensor::Tensor;
use gemma_nn::{Segment, last_rows};
use gemma_tokenizer::TokenId;

use crate::{Cache, CacheTensors};

/// A causal language model: embed, forward, logits, and a cache that belongs to the caller.
///
/// Tokens of several sequences lie on one flat axis, one [`Segment`] per sequence; segment `i` continues what
/// `caches[i]` holds, so its `start` is the number of tokens in that cache. The vocabulary is that of the model's
/// tokenizer. Logits are final (after all softcaps), of any float dtype, and on any device.
///
/// The decoding loop checks what a user can get wrong (token ids, lengths) before it calls; a model may panic on
/// inputs, segments and caches that do not match.
pub trait CausalModel {
    /// What the model keeps of one sequence between two calls: a KV cache, recurrent states, or both.
    type Cache: Cache;

    /// Embeds tokens: the inputs of [`forward`](Self::forward), scaled as the checkpoint wants it.
    ///
    /// # Panics
    /// When a token is not below the vocabulary size.
    fn embed(&self, tokens: &[TokenId]) -> Inputs;

    /// Runs the layers over the inputs, after what the caches hold, and appends to the caches.
    ///
    /// # Shapes
    /// Inputs and result are `[tokens, hidden_size]`, the segments one after the other. The result has gone through
    /// the last norm.
    fn forward(&self, inputs: Inputs, segments: &[Segment], caches: &mut [&mut Self::Cache]) -> Tensor<2>;

    /// The output head: logits `[rows, vocab]` of hidden states `[rows, hidden_size]`.
    fn logits(&self, hidden_states: Tensor<2>) -> Tensor<2>;

    /// The largest value that the soft cap of the logits gives; `None` for a model that caps none.
    fn final_softcap(&self) -> Option<f32> {
        None
    }

    /// The logits before the soft cap, for a model that has one; of any other model the [`logits`](Self::logits).
    fn uncapped_logits(&self, hidden_states: Tensor<2>) -> Tensor<2> {
        self.logits(hidden_states)
    }

    /// The cache of an empty sequence. It grows as needed.
    fn new_cache(&self) -> Self::Cache;

    /// A cache that keeps nothing, for a sequence that is run once and in one piece: training and scoring.
    fn no_cache(&self) -> Self::Cache;

    /// The cache of `len` tokens from its [tensors](Cache::tensors), on the device of the model; `None` when they cannot
    /// have come from such a cache of this model.
    fn restore_cache(&self, len: usize, tensors: &CacheTensors) -> Option<Self::Cache>;

    /// Bytes of the cache of a sequence of `tokens` tokens.
    fn cache_bytes(&self, tokens: usize) -> usize;

    /// Most tokens that a sequence may have; `None`: there is no limit.
    fn context_length(&self) -> Option<usize>;

    /// Number of tokens in the vocabulary: the columns of the logits.
    fn vocab(&self) -> usize;

    /// Embeds and runs tokens: hidden states `[tokens, hidden_size]`.
    fn hidden_states(&self, tokens: &[TokenId], segments: &[Segment], caches: &mut [&mut Self::Cache]) -> Tensor<2> {
        self.forward(self.embed(tokens), segments, caches)
    }

    /// The logits after the last token of each segment: `[segments, vocab]`.
    fn last_logits(&self, tokens: &[TokenId], segments: &[Segment], caches: &mut [&mut Self::Cache]) -> Tensor<2> {
        self.logits(last_rows(self.hidden_states(tokens, segments, caches), segments))
    }

    /// The logits after every token: `[tokens, vocab]`.
    fn all_logits(&self, tokens: &[TokenId], segments: &[Segment], caches: &mut [&mut Self::Cache]) -> Tensor<2> {
        self.logits(self.hidden_states(tokens, segments, caches))
    }

    /// Hidden states `[tokens, hidden_size]` of whole sequences, of which nothing is kept; for training and scoring.
    fn uncached_hidden_states(&self, inputs: Inputs, segments: &[Segment]) -> Tensor<2> {
        let mut caches: Vec<Self::Cache> = segments.iter().map(|_| self.no_cache()).collect();
        self.forward(inputs, segments, &mut caches.iter_mut().collect::<Vec<_>>())
    }

    /// The logits `[tokens, vocab]` after every token of whole sequences, of which nothing is kept.
    fn uncached_logits(&self, tokens: &[TokenId], segments: &[Segment]) -> Tensor<2> {
        self.logits(self.uncached_hidden_states(self.embed(tokens), segments))
    }
}

/// What a forward pass takes up: a row of embeddings per token, and the token ids.
///
/// The rows are usually [`CausalModel::embed`]'s. Rows of an image take the place of the rows of its placeholder tokens.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The token id of each row.
    pub token_ids: Vec<TokenId>,
    /// `[tokens, hidden_size]`, f32.
    pub embeddings: Tensor<2>,
}

impl Inputs {
    /// Joins inputs along the token axis.
    ///
    /// # Panics
    /// When there are none.
    pub fn cat(mut parts: Vec<Self>) -> Self {
        if parts.len() == 1 {
            return parts.remove(0);
        }
        let token_ids = parts.iter().flat_map(|part| part.token_ids.iter().copied()).collect();
        let embeddings = Tensor::cat(parts.into_iter().map(|part| part.embeddings).collect(), 0);
        Self { token_ids, embeddings }
    }

    /// `len` rows from row `start` on.
    pub fn narrow(&self, start: usize, len: usize) -> Self {
        Self {
            token_ids: self.token_ids[start..start + len].to_vec(),
            embeddings: self.embeddings.clone().narrow(0, start, len),
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.token_ids.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.token_ids.is_empty()
    }
}

/// Evaluates the output head for `rows` hidden states at a time, so that no more than `rows` × vocabulary logits exist at
/// once; `each` gets the index of the first row and the logits `[rows, vocab]`, until it fails.
///
/// Scoring, printing logits and a training loss over a large vocabulary go through here.
///
/// # Errors
/// What `each` returns.
pub fn logits_in_chunks<M: CausalModel, E>(
    model: &M,
    hidden_states: &Tensor<2>,
    rows: usize,
    mut each: impl FnMut(usize, Tensor<2>) -> Result<(), E>,
) -> Result<(), E> {
    let total = hidden_states.dims()[0];
    for start in (0..total).step_by(rows.max(1)) {
        let count = rows.max(1).min(total - start);
        let part = if count == total { hidden_states.clone() } else { hidden_states.clone().narrow(0, start, count) };
        each(start, model.logits(part))?;
    }
    Ok(())
}

/// Implements [`CausalModel`] for a struct around a model: every method is that of the field. The crate needs `burn`.
#[macro_export]
macro_rules! causal_model_of {
    ($outer:ty, $field:ident: $inner:ty) => {
        impl $crate::CausalModel for $outer {
            type Cache = <$inner as $crate::CausalModel>::Cache;

            fn embed(&self, tokens: &[$crate::TokenId]) -> $crate::Inputs {
                $crate::CausalModel::embed(&self.$field, tokens)
            }

            fn forward(
                &self,
                inputs: $crate::Inputs,
                segments: &[$crate::Segment],
                caches: &mut [&mut Self::Cache],
            ) -> ::burn::tensor::Tensor<2> {
                $crate::CausalModel::forward(&self.$field, inputs, segments, caches)
            }

            fn logits(&self, hidden_states: ::burn::tensor::Tensor<2>) -> ::burn::tensor::Tensor<2> {
                $crate::CausalModel::logits(&self.$field, hidden_states)
            }

            fn final_softcap(&self) -> Option<f32> {
                $crate::CausalModel::final_softcap(&self.$field)
            }

            fn uncapped_logits(&self, hidden_states: ::burn::tensor::Tensor<2>) -> ::burn::tensor::Tensor<2> {
                $crate::CausalModel::uncapped_logits(&self.$field, hidden_states)
            }

            fn new_cache(&self) -> Self::Cache {
                $crate::CausalModel::new_cache(&self.$field)
            }

            fn no_cache(&self) -> Self::Cache {
                $crate::CausalModel::no_cache(&self.$field)
            }

            fn restore_cache(&self, len: usize, tensors: &$crate::CacheTensors) -> Option<Self::Cache> {
                $crate::CausalModel::restore_cache(&self.$field, len, tensors)
            }

            fn cache_bytes(&self, tokens: usize) -> usize {
                $crate::CausalModel::cache_bytes(&self.$field, tokens)
            }

            fn context_length(&self) -> Option<usize> {
                $crate::CausalModel::context_length(&self.$field)
            }

            fn vocab(&self) -> usize {
                $crate::CausalModel::vocab(&self.$field)
            }
        }
    };
}
