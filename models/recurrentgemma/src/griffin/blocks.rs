//! Griffin in the parts that training takes one at a time.

use burn::tensor::Tensor;
use gemma_model::{BlockStack, Blocks, Network};
use gemma_nn::{Residual, Retention, RopeTable, Saver, Segment, Weight};
use gemma_tokenizer::TokenId;

use crate::Griffin;
use crate::cache::{LayerCache, RecurrentState};

impl BlockStack for Griffin {
    fn blocks(&self) -> usize {
        self.layers.len()
    }

    fn embed_inputs(&self, tokens: &[TokenId], images: &[Tensor<2>]) -> Tensor<2> {
        assert!(images.is_empty(), "this model reads text only");
        self.embed_tokens.embed(tokens)
    }

    fn forward_block(&self, index: usize, x: Tensor<2>, segments: &[Segment]) -> Tensor<2> {
        let positions: Vec<usize> = segments.iter().flat_map(Segment::positions).collect();
        let rope = RopeTable::new(self.config.rope, &positions, &x.device().without_autodiff());
        let block = &self.layers[index];
        let cache = || match block.attention() {
            None => LayerCache::Recurrent(RecurrentState::default()),
            Some(attention) => LayerCache::Attention(attention.new_cache(|_| Retention::Nothing)),
        };
        let mut caches: Vec<LayerCache> = segments.iter().map(|_| cache()).collect();
        let mut x = Residual::new(x);
        block.forward(&mut x, &rope, segments, caches.iter_mut().collect());
        x.into_values()
    }

    fn forward_norm(&self, x: Tensor<2>) -> Tensor<2> {
        self.final_norm.forward(x)
    }

    fn save_parameters(&self, saver: &mut dyn Saver) {
        self.save(saver);
    }
}

impl Blocks for Griffin {
    fn head(&self) -> &Weight {
        self.lm_head.as_ref().map_or(&self.embed_tokens.weight, |head| &head.weight)
    }

    fn head_softcap(&self) -> Option<f32> {
        self.config.final_softcap
    }
}
