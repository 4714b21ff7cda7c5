//! Layers that every Gemma family is built from.
//!
//! The crate knows no files, no text and no model names. A layer is built from a [`Source`] of parameters (a
//! checkpoint, random numbers) and computes on one flat axis of tokens, `[tokens, hidden_size]`, cut into [`Segment`]s:
//! everything row-wise (norms, projections, MLP, rotary embedding, head) sees only rows; attention also looks at the
//! segments and at the caches that the caller lends.
//!
//! # Axis names
//!
//! | word | meaning |
//! |---|---|
//! | `tokens` | all tokens of a call, of all sequences, one after the other |
//! | `keys` | positions that attention looks at |
//! | `heads`, `kv_heads` | query heads; key and value heads (query head `n` reads key head `n / (heads / kv_heads)`) |
//! | `head_dim` | size of one head |
//! | `hidden_size` | model dimension, the residual stream |
//! | `intermediate_size` | inner dimension of the MLP |
//! | `window` | how many keys a query sees, itself included |
//! | `vocab` | number of token ids |
//!
//! All activations are f32, whatever the weights are stored in: Gemma 2's residual stream overflows f16, and norms,
//! softmax and rotary angles need the precision.

mod adapt;
mod adapter_choice;
mod attention;
mod cache;
mod embedder;
mod lora;
mod mlp;
mod norm;
mod projection;
mod random;
mod residual;
mod rope;
mod rows;
mod segment;
mod softcap;
mod source;
mod weight;

pub use adapt::{Adapt, Adapted, FindFactors, Trainable, Unpack, WithLora, WithPrecision};
pub use adapter_choice::AdapterChoice;
pub use attention::{Attention, AttentionSpec};
pub use cache::{KvCache, Retention};
pub use embedder::Embedder;
pub use gemma_kernels::{ActivationPrecision, CachePrecision, PAGE_LEN, PageId, Phase, Visibility};
pub use lora::LoraFactors;
pub use mlp::GeGlu;
pub use norm::RmsNorm;
pub use projection::Projection;
pub use random::SplitMix64;
pub use residual::Residual;
pub use rope::{RopeSpec, RopeTable, RopeTables};
pub use rows::Rows;
pub use segment::{Segment, last_rows, total_tokens};
pub use softcap::softcap;
pub use source::{ComputePrecision, ParameterList, RandomSource, RandomWeights, Saver, Source};
pub use weight::Weight;

#[cfg(test)]
mod test_device {
    //! Every backend that is compiled in, for the unit tests.

    use gemma_backend::{Backend, Device};

    pub(crate) fn all() -> Vec<Device> {
        Backend::compiled().into_iter().map(|backend| backend.device().expect("a compiled backend opens")).collect()
    }
}
