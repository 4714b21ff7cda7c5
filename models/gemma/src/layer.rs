//! One decoder layer: two residual branches.

use crate::config::{LayerSpec, Norms};
use burn::module::Module;
use gemma_nn::{Attention, GeGlu, KvCache, Residual, RmsNorm, RopeTable, Rows, Saver, Segment, Source};

/// A pre-norm transformer layer, with the second pair of norms of Gemma 2 and 3 where the configuration has it.
///
/// Fields carry the checkpoint's names. `post_attention_layernorm` changes its place between the generations: in
/// Gemma 1 it stands before the MLP, in Gemma 2 and 3 after the attention; VaultGemma has none.
#[derive(Module, Debug)]
pub struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: Option<RmsNorm>,
    pre_feedforward_layernorm: Option<RmsNorm>,
    mlp: GeGlu,
    post_feedforward_layernorm: Option<RmsNorm>,
}

impl DecoderLayer {
    /// The attention inside.
    pub(crate) fn attention(&self) -> &Attention {
        &self.self_attn
    }

    /// The layer whose parameters begin with `{name}.`.
    pub fn load(source: &mut dyn Source, name: &str, hidden_size: usize, eps: f32, spec: &LayerSpec) -> Self {
        let norm =
            |source: &mut dyn Source, field: &str| RmsNorm::load(source, &format!("{name}.{field}"), hidden_size, eps);
        let (gemma1, vault) = (spec.norms == Norms::Before, spec.norms == Norms::BeforeVault);
        Self {
            input_layernorm: norm(source, "input_layernorm"),
            self_attn: Attention::load(source, &format!("{name}.self_attn"), hidden_size, spec.attention),
            post_attention_layernorm: (!vault).then(|| norm(source, "post_attention_layernorm")),
            pre_feedforward_layernorm: (!gemma1).then(|| norm(source, "pre_feedforward_layernorm")),
            mlp: GeGlu::load(source, &format!("{name}.mlp"), hidden_size, spec.intermediate_size, false),
            post_feedforward_layernorm: (!gemma1 && !vault).then(|| norm(source, "post_feedforward_layernorm")),
        }
    }

    /// Hands the parameters to a saver, under the names they were loaded by.
    pub fn save(&self, saver: &mut dyn Saver, name: &str) {
        self.input_layernorm.save(saver, &format!("{name}.input_layernorm"));
        self.self_attn.save(saver, &format!("{name}.self_attn"));
        if let Some(norm) = &self.post_attention_layernorm {
            norm.save(saver, &format!("{name}.post_attention_layernorm"));
        }
        if let Some(norm) = &self.pre_feedforward_layernorm {
            norm.save(saver, &format!("{name}.pre_feedforward_layernorm"));
        }
        self.mlp.save(saver, &format!("{name}.mlp"));
        if let Some(norm) = &self.post_feedforward_layernorm {
            norm.save(saver, &format!("{name}.post_feedforward_layernorm"));
        }
    }

    /// Adds to the residual stream what attention and MLP compute; the caches take up the segments' keys and values.
    pub fn forward<'a>(
        &'a self,
        x: &mut Residual<'a>,
        rope: &RopeTable,
        segments: &[Segment],
        caches: &mut [&mut KvCache],
    ) {
        let attended = self.self_attn.forward(x.normed(&self.input_layernorm), rope, segments, caches);
        let (after_attention, before_mlp) = match (&self.post_attention_layernorm, &self.pre_feedforward_layernorm) {
            (after_attention, Some(before_mlp)) => (after_attention.as_ref(), before_mlp),
            (Some(before_mlp), None) => (None, before_mlp),
            (None, None) => unreachable!("a layer has a norm before its MLP"),
        };
        x.add(attended, after_attention);
        let y = self.mlp.forward(x.normed(before_mlp), &Rows::of(segments));
        x.add(y, self.post_feedforward_layernorm.as_ref());
    }
}
