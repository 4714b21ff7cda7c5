//! SigLIP's image encoder: patches in, a feature per patch out.
//!
//! A vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) in the form of SigLIP (Zhai et al. 2023,
//! arXiv:2303.15343): no class token, no pooling head, a learned table of positions, every patch sees every patch. It
//! knows nothing of the text that comes after it and can be used alone.
//!
//! | word | meaning |
//! |---|---|
//! | `patches` | patches of one image, row by row |
//! | `rows` | patches of all images of a call, one image after the other |

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use gemma_kernels::{AttendParams, AttendSegment, Phase, Visibility, add_bias, attend, layer_norm};
use gemma_nn::{Projection, Rows, Saver, Source};

use crate::{Pixels, SiglipConfig};

/// `y = (x - mean(x)) / sqrt(var(x) + eps) · w + b` over the last axis (Ba et al. 2016, arXiv:1607.06450, eq. 4). All
/// in f32.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `w`, `[hidden_size]`.
    pub weight: Param<Tensor<1>>,
    /// `b`, `[hidden_size]`.
    pub bias: Param<Tensor<1>>,
    eps: f32,
}

impl LayerNorm {
    /// The norm whose parameters are called `{name}.weight` and `{name}.bias`.
    pub fn load(source: &mut dyn Source, name: &str, hidden_size: usize, eps: f32) -> Self {
        let weight = source.vector(&format!("{name}.weight"), hidden_size);
        Self { weight, bias: source.vector(&format!("{name}.bias"), hidden_size), eps }
    }

    /// Hands the parameters to a saver, under the names they were loaded by.
    pub fn save(&self, saver: &mut dyn Saver, name: &str) {
        saver.vector(&format!("{name}.weight"), &self.weight);
        saver.vector(&format!("{name}.bias"), &self.bias);
    }

    /// `[rows, hidden_size]` to the same shape.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        layer_norm(x, self.weight.val(), self.bias.val(), self.eps)
    }
}

/// Attention of every patch of an image over every patch of the same image.
#[derive(Module, Debug)]
struct SelfAttention {
    q_proj: Projection,
    k_proj: Projection,
    v_proj: Projection,
    out_proj: Projection,
    heads: usize,
}

impl SelfAttention {
    fn load(source: &mut dyn Source, name: &str, hidden_size: usize, heads: usize) -> Self {
        let mut project =
            |field: &str| Projection::load(source, &format!("{name}.{field}"), hidden_size, hidden_size, true);
        Self {
            q_proj: project("q_proj"),
            k_proj: project("k_proj"),
            v_proj: project("v_proj"),
            out_proj: project("out_proj"),
            heads,
        }
    }

    fn save(&self, saver: &mut dyn Saver, name: &str) {
        self.q_proj.save(saver, &format!("{name}.q_proj"));
        self.k_proj.save(saver, &format!("{name}.k_proj"));
        self.v_proj.save(saver, &format!("{name}.v_proj"));
        self.out_proj.save(saver, &format!("{name}.out_proj"));
    }

    /// `[rows, hidden_size]` to the same shape; an image has `patches` rows.
    fn forward(&self, x: Tensor<2>, patches: usize) -> Tensor<2> {
        let [rows, hidden_size] = x.dims();
        let head_dim = hidden_size / self.heads;
        let all = Projection::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], x, &Rows::of_one(rows));
        let [q, k, v] = all.map(|x| x.reshape([rows, self.heads, head_dim]));
        let params = AttendParams {
            visibility: Visibility::ALL,
            scale: (head_dim as f32).powf(-0.5),
            softcap: None,
            activations: self.q_proj.weight.attention_activations(),
        };
        // an image is a sequence
        let image = AttendSegment { start: 0, len: patches, blocks: &[], phase: Phase::Prefill, cache: None };
        let attended = attend(q, k, v, &vec![image; rows / patches], &params);
        self.out_proj.forward(attended.reshape([rows, hidden_size]))
    }
}

/// `fc2(gelu(fc1(x)))`, the tanh form of GELU.
#[derive(Module, Debug)]
struct Mlp {
    fc1: Projection,
    fc2: Projection,
}

/// `x += attn(norm1(x)); x += mlp(norm2(x))`.
#[derive(Module, Debug)]
struct EncoderLayer {
    layer_norm1: LayerNorm,
    self_attn: SelfAttention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl EncoderLayer {
    fn load(source: &mut dyn Source, name: &str, config: &SiglipConfig) -> Self {
        let SiglipConfig { hidden_size, heads, intermediate_size, norm_eps, .. } = *config;
        Self {
            layer_norm1: LayerNorm::load(source, &format!("{name}.layer_norm1"), hidden_size, norm_eps),
            self_attn: SelfAttention::load(source, &format!("{name}.self_attn"), hidden_size, heads),
            layer_norm2: LayerNorm::load(source, &format!("{name}.layer_norm2"), hidden_size, norm_eps),
            mlp: Mlp {
                fc1: Projection::load(source, &format!("{name}.mlp.fc1"), hidden_size, intermediate_size, true),
                fc2: Projection::load(source, &format!("{name}.mlp.fc2"), intermediate_size, hidden_size, true),
            },
        }
    }

    fn save(&self, saver: &mut dyn Saver, name: &str) {
        self.layer_norm1.save(saver, &format!("{name}.layer_norm1"));
        self.self_attn.save(saver, &format!("{name}.self_attn"));
        self.layer_norm2.save(saver, &format!("{name}.layer_norm2"));
        self.mlp.fc1.save(saver, &format!("{name}.mlp.fc1"));
        self.mlp.fc2.save(saver, &format!("{name}.mlp.fc2"));
    }

    fn forward(&self, x: Tensor<2>, patches: usize) -> Tensor<2> {
        let x = x.clone() + self.self_attn.forward(self.layer_norm1.forward(x), patches);
        let normed = self.layer_norm2.forward(x.clone());
        x + self.mlp.fc1.forward_gelu_into(&self.mlp.fc2, normed)
    }
}

/// The encoder.
#[derive(Module, Debug)]
pub struct Siglip {
    /// The convolution whose stride is its kernel, `[hidden_size, 3, patch, patch]` as one line.
    patch_embedding: Param<Tensor<1>>,
    /// Its bias, `[hidden_size]`.
    patch_bias: Param<Tensor<1>>,
    /// One row per patch, `[patches, hidden_size]` as one line.
    position_embedding: Param<Tensor<1>>,
    layers: Vec<EncoderLayer>,
    post_layernorm: LayerNorm,
    #[module(skip)]
    config: SiglipConfig,
}

impl Siglip {
    /// The encoder whose parameters begin with `{name}.`.
    pub fn load(source: &mut dyn Source, name: &str, config: &SiglipConfig) -> Self {
        let SiglipConfig { hidden_size, patch, norm_eps, .. } = *config;
        let [patches, bias, positions] = embeddings(name);
        Self {
            patch_embedding: source.tensor(&patches, &[hidden_size, 3, patch, patch]),
            patch_bias: source.vector(&bias, hidden_size),
            position_embedding: source.tensor(&positions, &[config.patches(), hidden_size]),
            layers: (0..config.layers)
                .map(|index| EncoderLayer::load(source, &format!("{name}.encoder.layers.{index}"), config))
                .collect(),
            post_layernorm: LayerNorm::load(source, &format!("{name}.post_layernorm"), hidden_size, norm_eps),
            config: *config,
        }
    }

    /// Hands the parameters to a saver, under the names they were loaded by.
    pub fn save(&self, saver: &mut dyn Saver, name: &str) {
        let SiglipConfig { hidden_size, patch, .. } = self.config;
        let [patches, bias, positions] = embeddings(name);
        saver.tensor(&patches, &[hidden_size, 3, patch, patch], &self.patch_embedding);
        saver.vector(&bias, &self.patch_bias);
        saver.tensor(&positions, &[self.config.patches(), hidden_size], &self.position_embedding);
        for (index, layer) in self.layers.iter().enumerate() {
            layer.save(saver, &format!("{name}.encoder.layers.{index}"));
        }
        self.post_layernorm.save(saver, &format!("{name}.post_layernorm"));
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &SiglipConfig {
        &self.config
    }

    /// The features of images: `[images · patches, hidden_size]`, one image after the other.
    ///
    /// # Panics
    /// When there is no image, or one does not have the encoder's size.
    pub fn forward(&self, images: &[&Pixels]) -> Tensor<2> {
        let x = self.layers.iter().fold(self.embed(images), |x, layer| layer.forward(x, self.config.patches()));
        self.post_layernorm.forward(x)
    }

    /// What enters the first layer: patches and positions, `[images · patches, hidden_size]`.
    fn embed(&self, images: &[&Pixels]) -> Tensor<2> {
        let SiglipConfig { image_size, patch, hidden_size, .. } = self.config;
        let patches = self.config.patches();
        let mut values = Vec::with_capacity(images.len() * patches * 3 * patch * patch);
        for pixels in images {
            assert_eq!(pixels.side(), image_size, "an image of the encoder's size");
            values.extend(pixels.patches(patch));
        }
        let device = self.post_layernorm.weight.val().device();
        let rows = images.len() * patches;
        let x = Tensor::<2>::from_data(TensorData::new(values, [rows, 3 * patch * patch]), &device);
        let kernel = self.patch_embedding.val().reshape([hidden_size, 3 * patch * patch]);
        let x = add_bias(x.matmul(kernel.transpose()), self.patch_bias.val());
        let positions = self.position_embedding.val().reshape([1, patches, hidden_size]);
        (x.reshape([images.len(), patches, hidden_size]) + positions).reshape([rows, hidden_size])
    }
}

/// What the parameters before the first layer are called: patches, their bias, positions.
fn embeddings(name: &str) -> [String; 3] {
    ["patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight"]
        .map(|tail| format!("{name}.embeddings.{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gemma_backend::Backend;

    #[test]
    fn a_layer_norm_takes_the_mean_away_and_adds_its_bias() {
        for backend in Backend::compiled() {
            let device = backend.device().unwrap();
            let param = |values: [f32; 4]| Param::from_tensor(Tensor::<1>::from_data(values, &device));
            let norm = LayerNorm { weight: param([1.0, 2.0, 1.0, 1.0]), bias: param([0.0, 0.5, 0.0, -1.0]), eps: 1e-6 };
            let x = Tensor::<2>::from_data([[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]], &device);
            let y: Vec<f32> = norm.forward(x).into_data().try_into_vec().unwrap();
            let deviation = 3.5f32.sqrt(); // of 1, 2, 3, 6 around 3
            let expected = [-2.0 / deviation, -2.0 / deviation + 0.5, 0.0, 3.0 / deviation - 1.0, 0.0, 0.5, 0.0, -1.0];
            for (a, b) in y.iter().zip(expected) {
                assert!((a - b).abs() < 1e-5, "{backend}: {y:?}");
            }
        }
    }
}
