//! The decoder in the parts that training takes one at a time.

use burn::tensor::Tensor;
use gemma_generate::CausalModel;
use gemma_model::{BlockStack, Blocks, Network};
use gemma_nn::{KvCache, Residual, Retention, RopeTable, Saver, Segment, Weight};
use gemma_tokenizer::TokenId;

use crate::Decoder;

impl BlockStack for Decoder {
    fn blocks(&self) -> usize {
        self.layers.len()
    }

    fn embed_inputs(&self, tokens: &[TokenId], images: &[Tensor<2>]) -> Tensor<2> {
        assert!(images.is_empty(), "this model reads text only");
        self.embed(tokens).embeddings
    }

    fn forward_block(&self, index: usize, x: Tensor<2>, segments: &[Segment]) -> Tensor<2> {
        let positions: Vec<usize> = segments.iter().flat_map(Segment::positions).collect();
        let rope = RopeTable::new(self.config.layers[index].rope, &positions, &x.device().without_autodiff());
        let mut caches: Vec<KvCache> = segments.iter().map(|_| KvCache::new(Retention::Nothing)).collect();
        let mut x = Residual::new(x);
        self.layers[index].forward(&mut x, &rope, segments, &mut caches.iter_mut().collect::<Vec<_>>());
        x.into_values()
    }

    fn forward_norm(&self, x: Tensor<2>) -> Tensor<2> {
        self.norm.forward(x)
    }

    fn save_parameters(&self, saver: &mut dyn Saver) {
        self.save(saver);
    }
}

impl Blocks for Decoder {
    fn head(&self) -> &Weight {
        self.lm_head.as_ref().map_or(&self.embed_tokens.weight, |head| &head.weight)
    }

    fn head_softcap(&self) -> Option<f32> {
        self.config.final_softcap
    }
}
