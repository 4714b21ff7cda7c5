//! PaliGemma's decoder in the parts that training takes one at a time. The image encoder is not among them: it stays as it
//! is, and what it makes of an image is an input.

use burn::tensor::Tensor;
use gemma_model::Blocks;
use gemma_nn::{Segment, Weight};
use gemma_tokenizer::TokenId;

use crate::VisionLanguageModel;

impl Blocks for VisionLanguageModel {
    fn blocks(&self) -> usize {
        self.language_model().blocks()
    }

    fn embed_inputs(&self, tokens: &[TokenId], images: &[Tensor<2>]) -> Tensor<2> {
        self.embed_with(tokens, images).embeddings
    }

    fn forward_block(&self, index: usize, x: Tensor<2>, segments: &[Segment]) -> Tensor<2> {
        self.language_model().forward_block(index, x, segments)
    }

    fn forward_norm(&self, x: Tensor<2>) -> Tensor<2> {
        self.language_model().forward_norm(x)
    }

    fn head(&self) -> &Weight {
        self.language_model().head()
    }

    fn head_softcap(&self) -> Option<f32> {
        self.language_model().head_softcap()
    }
}
