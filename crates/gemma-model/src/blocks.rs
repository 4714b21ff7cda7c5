//! A network in the parts that training takes one at a time.

use burn::tensor::Tensor;
use gemma_generate::TokenId;
use gemma_nn::{Saver, Segment, Weight};

use crate::Network;

/// A transformer cut at its residual stream: embeddings, a chain of blocks, the last norm. Sequences begin here and are
/// forgotten at once, so no call takes a cache.
///
/// Training keeps the input of each block and computes the blocks again, one at a time, where it differentiates them.
pub trait BlockStack {
    /// Number of blocks.
    fn blocks(&self) -> usize;

    /// Scaled embeddings of `tokens`, `[tokens, hidden_size]`, with the rows of `images` in the places of image tokens.
    ///
    /// # Panics
    /// When a token is not below the vocabulary size, or there is not one row for each image token.
    fn embed_inputs(&self, tokens: &[TokenId], images: &[Tensor<2>]) -> Tensor<2>;

    /// Block `index` on the residual stream of whole sequences, `[tokens, hidden_size]` to the same shape.
    ///
    /// # Panics
    /// When there is no such block, or the segments do not cover `x`.
    fn forward_block(&self, index: usize, x: Tensor<2>, segments: &[Segment]) -> Tensor<2>;

    /// The norm after the last block.
    fn forward_norm(&self, x: Tensor<2>) -> Tensor<2>;

    /// Hands every parameter to a saver, under the names of the checkpoint.
    fn save_parameters(&self, saver: &mut dyn Saver);
}

/// A model of text in blocks: what follows the last norm is a head over the vocabulary.
pub trait Blocks: Network + BlockStack {
    /// The head's matrix, `[vocab, hidden_size]`: the embedding table, where the two are tied.
    fn head(&self) -> &Weight;

    /// The soft cap of the logits.
    fn head_softcap(&self) -> Option<f32>;
}

/// A text encoder in blocks: what follows the last norm makes one vector of each text.
pub trait Encoder: BlockStack {
    /// One vector for each segment, `[segments, dimensions]`, not normalised, of the rows after the last norm,
    /// `[tokens, hidden_size]`.
    ///
    /// # Panics
    /// When a segment is empty, or the segments do not cover the rows.
    fn vectors(&self, hidden_states: Tensor<2>, segments: &[Segment]) -> Tensor<2>;
}

/// Implements [`BlockStack`] and [`Blocks`] for a network with images by its decoder, which `language_model` gives;
/// `embed_with` puts the images among the tokens. The image encoder is not among the blocks: training leaves it as it is. The crate needs `burn`.
#[macro_export]
macro_rules! blocks_of_decoder {
    ($network:ty) => {
        impl $crate::BlockStack for $network {
            fn blocks(&self) -> usize {
                $crate::BlockStack::blocks(self.language_model())
            }

            fn embed_inputs(
                &self,
                tokens: &[$crate::TokenId],
                images: &[::burn::tensor::Tensor<2>],
            ) -> ::burn::tensor::Tensor<2> {
                self.embed_with(tokens, images).embeddings
            }

            fn forward_block(
                &self,
                index: usize,
                x: ::burn::tensor::Tensor<2>,
                segments: &[$crate::Segment],
            ) -> ::burn::tensor::Tensor<2> {
                $crate::BlockStack::forward_block(self.language_model(), index, x, segments)
            }

            fn forward_norm(&self, x: ::burn::tensor::Tensor<2>) -> ::burn::tensor::Tensor<2> {
                $crate::BlockStack::forward_norm(self.language_model(), x)
            }

            fn save_parameters(&self, saver: &mut dyn $crate::Saver) {
                $crate::Network::save(self, saver);
            }
        }

        impl $crate::Blocks for $network {
            fn head(&self) -> &$crate::Weight {
                $crate::Blocks::head(self.language_model())
            }

            fn head_softcap(&self) -> Option<f32> {
                $crate::Blocks::head_softcap(self.language_model())
            }
        }
    };
}
