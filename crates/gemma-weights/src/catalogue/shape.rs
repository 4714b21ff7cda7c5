//! The numbers that make each released network, and what follows from them: parameters and memory.
//!
//! Sources: the `config.json` of each release and its technical report (Gemma, arXiv 2403.08295; Gemma 2,
//! arXiv 2408.00118; PaliGemma, arXiv 2407.07726; PaliGemma 2, arXiv 2412.03555; RecurrentGemma,
//! arXiv 2404.07839).

use crate::Precision;

/// Every vocabulary of the text models: 256 000 pieces.
const TEXT_VOCAB: usize = 256_000;

/// PaliGemma's: 256 000 + 1 024 `<loc>` + 128 `<seg>` + `<image>`, padded to a multiple of 64.
const IMAGE_TEXT_VOCAB: usize = 257_216;

/// Tokens that every checkpoint was trained to hold at once (`max_position_embeddings`).
const CONTEXT: usize = 8_192;

/// The numbers that make one network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Short name, as in `gemma bench --shape gemma-2b`: the hub id of the plain checkpoint without its organisation.
    pub name: &'static str,
    /// Rows of the embedding table, which is also the output head.
    pub vocab: usize,
    /// Numbers per token between layers (`hidden_size` in `config.json`).
    pub hidden_size: usize,
    /// Decoder layers (`num_hidden_layers`).
    pub layers: usize,
    /// Query heads per attention layer (`num_attention_heads`).
    pub heads: usize,
    /// Key and value heads per attention layer (`num_key_value_heads`).
    pub kv_heads: usize,
    /// Numbers per head (`head_dim`); `heads * head_dim` need not equal `hidden_size`.
    pub head_dim: usize,
    /// Numbers inside the MLP. For RecurrentGemma the hidden_size really used: its `config.json` says twice as much.
    pub intermediate_size: usize,
    /// What kind of decoder it is, with the numbers that only this kind has.
    pub decoder: Decoder,
    /// The image encoder in front of the decoder, if there is one.
    pub vision: Option<Vision>,
    /// Longest sequence the checkpoints were trained on, in tokens.
    pub context: usize,
    /// Added to the mean square in every RMS norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
}

/// The kinds of decoder, each with the numbers that only it has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decoder {
    /// Gemma 1, 1.1 and CodeGemma: two norms per layer, every layer sees everything before it.
    Gemma,
    /// Gemma 2: four norms per layer, every even layer (the first one included) sees a window, two soft caps.
    Gemma2 {
        /// Keys a windowed layer sees, the token itself included.
        sliding_window: usize,
        /// Attention scores are divided by the square root of this; not always the head size (27B: 144, heads of 128).
        query_pre_attn_scalar: f64,
        /// Attention scores become `cap * tanh(score / cap)`.
        attn_logit_softcapping: f64,
        /// Logits become `cap * tanh(logit / cap)`.
        final_logit_softcapping: f64,
    },
    /// Gemma 3: four norms per layer and two in its attention; every sixth layer sees everything before it, the others a
    /// window.
    Gemma3 {
        /// Keys a windowed layer sees, the token itself included.
        sliding_window: usize,
        /// Attention scores are divided by the square root of this; not always the head size (27B: 168, heads of 128).
        query_pre_attn_scalar: f64,
        /// Base of the rotary frequencies of windowed layers.
        rope_local_theta: f64,
        /// Positions are divided by this in full layers.
        rope_factor: f64,
        /// Whether tokens see those after them, too: EmbeddingGemma, which makes a vector of a text and no text.
        bidirectional: bool,
    },
    /// VaultGemma: two norms per layer, every layer sees everything before it, two soft caps.
    VaultGemma {
        /// Attention scores become `cap * tanh(score / cap)`.
        attn_logit_softcapping: f64,
        /// Logits become `cap * tanh(logit / cap)`.
        final_logit_softcapping: f64,
    },
    /// RecurrentGemma: two recurrent layers, then one with local attention, repeated and cut at `layers`.
    RecurrentGemma {
        /// Channels of the recurrence.
        lru_width: usize,
        /// Inputs the causal convolution before the recurrence looks at, the newest included.
        conv_width: usize,
        /// Keys an attention layer sees, the token itself included.
        attention_window: usize,
        /// Logits become `cap * tanh(logit / cap)`.
        logits_soft_cap: f64,
    },
}

/// A SigLIP image encoder and the projector behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vision {
    /// Side of the square image, in pixels.
    pub image_size: usize,
    /// Side of one square patch, in pixels.
    pub patch: usize,
    /// Numbers per patch between layers.
    pub hidden_size: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Numbers inside the MLP.
    pub intermediate_size: usize,
}

impl Vision {
    /// Tokens that one image becomes.
    pub const fn tokens(&self) -> usize {
        let side = self.image_size / self.patch;
        side * side
    }
}

/// Gemma 2's decoder; only the scale of the queries differs between sizes.
const fn gemma2(query_pre_attn_scalar: f64) -> Decoder {
    Decoder::Gemma2 {
        sliding_window: 4_096,
        query_pre_attn_scalar,
        attn_logit_softcapping: 50.0,
        final_logit_softcapping: 30.0,
    }
}

/// Gemma 3's decoder.
const fn gemma3(sliding_window: usize, query_pre_attn_scalar: f64, rope_factor: f64) -> Decoder {
    Decoder::Gemma3 {
        sliding_window,
        query_pre_attn_scalar,
        rope_local_theta: 10_000.0,
        rope_factor,
        bidirectional: false,
    }
}

/// RecurrentGemma's decoder; both sizes keep the recurrence as wide as the model.
const fn griffin(lru_width: usize) -> Decoder {
    Decoder::RecurrentGemma { lru_width, conv_width: 4, attention_window: 2_048, logits_soft_cap: 30.0 }
}

const GEMMA_2B: Shape = Shape {
    name: "gemma-2b",
    vocab: TEXT_VOCAB,
    hidden_size: 2_048,
    layers: 18,
    heads: 8,
    kv_heads: 1,
    head_dim: 256,
    intermediate_size: 16_384,
    decoder: Decoder::Gemma,
    vision: None,
    context: CONTEXT,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
};

const GEMMA_7B: Shape = Shape {
    name: "gemma-7b",
    hidden_size: 3_072,
    layers: 28,
    heads: 16,
    kv_heads: 16,
    intermediate_size: 24_576,
    ..GEMMA_2B
};

const GEMMA_2_2B: Shape = Shape {
    name: "gemma-2-2b",
    hidden_size: 2_304,
    layers: 26,
    heads: 8,
    kv_heads: 4,
    intermediate_size: 9_216,
    decoder: gemma2(256.0),
    ..GEMMA_2B
};

const GEMMA_2_9B: Shape = Shape {
    name: "gemma-2-9b",
    hidden_size: 3_584,
    layers: 42,
    heads: 16,
    kv_heads: 8,
    intermediate_size: 14_336,
    ..GEMMA_2_2B
};

const GEMMA_2_27B: Shape = Shape {
    name: "gemma-2-27b",
    hidden_size: 4_608,
    layers: 46,
    heads: 32,
    kv_heads: 16,
    head_dim: 128,
    intermediate_size: 36_864,
    decoder: gemma2(144.0),
    ..GEMMA_2_2B
};

const GEMMA_3_270M: Shape = Shape {
    name: "gemma-3-270m",
    vocab: 262_144,
    hidden_size: 640,
    layers: 18,
    heads: 4,
    kv_heads: 1,
    head_dim: 256,
    intermediate_size: 2_048,
    decoder: gemma3(512, 256.0, 1.0),
    vision: None,
    context: 32_768,
    rms_norm_eps: 1e-6,
    rope_theta: 1_000_000.0,
};

const GEMMA_3_1B: Shape =
    Shape { name: "gemma-3-1b", hidden_size: 1_152, layers: 26, intermediate_size: 6_912, ..GEMMA_3_270M };

const GEMMA_3_4B: Shape = Shape {
    name: "gemma-3-4b",
    vocab: 262_208,
    hidden_size: 2_560,
    layers: 34,
    heads: 8,
    kv_heads: 4,
    intermediate_size: 10_240,
    decoder: gemma3(1_024, 256.0, 8.0),
    vision: Some(SIGLIP_896),
    context: 131_072,
    ..GEMMA_3_270M
};

const GEMMA_3_12B: Shape = Shape {
    name: "gemma-3-12b",
    hidden_size: 3_840,
    layers: 48,
    heads: 16,
    kv_heads: 8,
    intermediate_size: 15_360,
    ..GEMMA_3_4B
};

const GEMMA_3_27B: Shape = Shape {
    name: "gemma-3-27b",
    hidden_size: 5_376,
    layers: 62,
    heads: 32,
    kv_heads: 16,
    head_dim: 128,
    intermediate_size: 21_504,
    decoder: gemma3(1_024, 168.0, 8.0),
    ..GEMMA_3_4B
};

/// The text decoder of 27B alone, as MedGemma has it.
const GEMMA_3_27B_TEXT: Shape = Shape { name: "gemma-3-27b-text", vision: None, ..GEMMA_3_27B };

const EMBEDDINGGEMMA_300M: Shape = Shape {
    name: "embeddinggemma-300m",
    hidden_size: 768,
    layers: 24,
    heads: 3,
    intermediate_size: 1_152,
    decoder: Decoder::Gemma3 {
        sliding_window: 512,
        query_pre_attn_scalar: 256.0,
        rope_local_theta: 10_000.0,
        rope_factor: 1.0,
        bidirectional: true,
    },
    context: 2_048,
    ..GEMMA_3_270M
};

const VAULTGEMMA_1B: Shape = Shape {
    name: "vaultgemma-1b",
    hidden_size: 1_152,
    layers: 26,
    heads: 4,
    kv_heads: 4,
    intermediate_size: 6_912,
    decoder: Decoder::VaultGemma { attn_logit_softcapping: 50.0, final_logit_softcapping: 30.0 },
    context: 1_024,
    ..GEMMA_2B
};

/// SigLIP So400m/14 as Gemma 3 has it.
const SIGLIP_896: Vision =
    Vision { image_size: 896, patch: 14, hidden_size: 1_152, layers: 27, heads: 16, intermediate_size: 4_304 };

const RECURRENTGEMMA_2B: Shape = Shape {
    name: "recurrentgemma-2b",
    hidden_size: 2_560,
    layers: 26,
    heads: 10,
    kv_heads: 1,
    intermediate_size: 7_680,
    decoder: griffin(2_560),
    ..GEMMA_2B
};

const RECURRENTGEMMA_9B: Shape = Shape {
    name: "recurrentgemma-9b",
    hidden_size: 4_096,
    layers: 38,
    heads: 16,
    kv_heads: 1,
    intermediate_size: 12_288,
    decoder: griffin(4_096),
    ..GEMMA_2B
};

/// A decoder with SigLIP So400m/14 in front of it: the vocabulary grows, the rest of the decoder stays.
const fn with_images(name: &'static str, decoder: Shape, image_size: usize) -> Shape {
    let vision = Vision { image_size, patch: 14, hidden_size: 1_152, layers: 27, heads: 16, intermediate_size: 4_304 };
    Shape { name, vocab: IMAGE_TEXT_VOCAB, vision: Some(vision), ..decoder }
}

/// Every released shape, the text models first, each family from small to large.
pub const SHAPES: [Shape; 27] = [
    GEMMA_2B,
    GEMMA_7B,
    GEMMA_2_2B,
    GEMMA_2_9B,
    GEMMA_2_27B,
    GEMMA_3_270M,
    GEMMA_3_1B,
    GEMMA_3_4B,
    GEMMA_3_12B,
    GEMMA_3_27B,
    GEMMA_3_27B_TEXT,
    EMBEDDINGGEMMA_300M,
    VAULTGEMMA_1B,
    RECURRENTGEMMA_2B,
    RECURRENTGEMMA_9B,
    with_images("paligemma-3b-224", GEMMA_2B, 224),
    with_images("paligemma-3b-448", GEMMA_2B, 448),
    with_images("paligemma-3b-896", GEMMA_2B, 896),
    with_images("paligemma2-3b-224", GEMMA_2_2B, 224),
    with_images("paligemma2-3b-448", GEMMA_2_2B, 448),
    with_images("paligemma2-3b-896", GEMMA_2_2B, 896),
    with_images("paligemma2-10b-224", GEMMA_2_9B, 224),
    with_images("paligemma2-10b-448", GEMMA_2_9B, 448),
    with_images("paligemma2-10b-896", GEMMA_2_9B, 896),
    with_images("paligemma2-28b-224", GEMMA_2_27B, 224),
    with_images("paligemma2-28b-448", GEMMA_2_27B, 448),
    with_images("paligemma2-28b-896", GEMMA_2_27B, 896),
];

/// The shape of this name, as in [`Shape::name`].
///
/// ```
/// let shape = gemma_weights::catalogue::shape("gemma-2b").expect("the 2B shape is in the table");
/// assert_eq!(shape.parameters(), 2_506_172_416);
/// ```
pub fn shape(name: &str) -> Option<&'static Shape> {
    SHAPES.iter().find(|shape| shape.name == name)
}

impl Shape {
    /// Numbers in a checkpoint of this shape; the output head is the embedding table and counts once.
    pub fn parameters(&self) -> u64 {
        let parts = self.parts();
        let matrices: usize = parts.matrices.iter().map(Matrices::values).sum();
        (matrices + parts.others) as u64
    }

    /// Bytes the weights take in memory at this precision.
    ///
    /// Matrices are stored in `precision`, everything else (norms, biases, tables that are not multiplied) in f32.
    /// A matrix whose rows are not whole blocks of 32 values cannot be quantized and counts as bf16.
    pub fn bytes(&self, precision: Precision) -> u64 {
        let parts = self.parts();
        let matrices: usize = parts.matrices.iter().map(|matrices| matrices.bytes(precision)).sum();
        (matrices + 4 * parts.others) as u64
    }

    /// Bytes of keys, values and recurrent state (f32) that one sequence of `tokens` tokens needs.
    pub fn memory_bytes(&self, tokens: usize) -> u64 {
        let key_and_value = 2 * self.kv_heads * self.head_dim;
        let values = match self.decoder {
            Decoder::Gemma3 { bidirectional: true, .. } => 0,
            Decoder::Gemma | Decoder::VaultGemma { .. } => self.layers * tokens * key_and_value,
            Decoder::Gemma2 { sliding_window, .. } => {
                let windowed = self.layers.div_ceil(2);
                let seen = windowed * tokens.min(sliding_window) + (self.layers - windowed) * tokens;
                seen * key_and_value
            }
            Decoder::Gemma3 { sliding_window, .. } => {
                let full = self.layers / 6;
                ((self.layers - full) * tokens.min(sliding_window) + full * tokens) * key_and_value
            }
            Decoder::RecurrentGemma { lru_width, conv_width, attention_window, .. } => {
                let attention = self.attention_layers();
                attention * tokens.min(attention_window) * key_and_value
                    + (self.layers - attention) * lru_width * conv_width // the state, and conv_width - 1 inputs
            }
        };
        4 * values as u64
    }

    /// Whether it makes vectors of texts, and no text.
    pub const fn is_bidirectional(&self) -> bool {
        matches!(self.decoder, Decoder::Gemma3 { bidirectional: true, .. })
    }

    /// Layers with attention: all of them, or for RecurrentGemma every third.
    fn attention_layers(&self) -> usize {
        match self.decoder {
            Decoder::RecurrentGemma { .. } => self.layers / 3,
            _ => self.layers,
        }
    }

    fn parts(&self) -> Parts {
        let attention = self.attention_layers();
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut parts = Parts { matrices: Vec::new(), others: self.hidden_size };
        parts.add(1, self.vocab, self.hidden_size);
        parts.add(attention, queries, self.hidden_size);
        parts.add(2 * attention, keys, self.hidden_size);
        parts.add(attention, self.hidden_size, queries);
        parts.add(2 * self.layers, self.intermediate_size, self.hidden_size);
        parts.add(self.layers, self.hidden_size, self.intermediate_size);
        match self.decoder {
            Decoder::Gemma | Decoder::VaultGemma { .. } => parts.others += self.layers * 2 * self.hidden_size,
            Decoder::Gemma2 { .. } => parts.others += self.layers * 4 * self.hidden_size,
            Decoder::Gemma3 { .. } => parts.others += self.layers * (4 * self.hidden_size + 2 * self.head_dim),
            Decoder::RecurrentGemma { lru_width, conv_width, .. } => {
                let recurrent = self.layers - attention;
                parts.add(2 * recurrent, lru_width, self.hidden_size);
                parts.add(recurrent, self.hidden_size, lru_width);
                let gates = 2 * (lru_width * lru_width / self.heads + lru_width);
                let convolution = lru_width * (conv_width + 1);
                let biases = 2 * lru_width + self.hidden_size;
                parts.others += recurrent * (gates + lru_width + convolution + biases)
                    + attention * self.hidden_size // the bias of o_proj
                    + self.layers * (2 * self.hidden_size + 2 * self.intermediate_size + self.hidden_size); // two norms, the MLP's biases
            }
        }
        if self.is_bidirectional() {
            // the two dense layers behind it
            parts.add(1, 4 * self.hidden_size, self.hidden_size);
            parts.add(1, self.hidden_size, 4 * self.hidden_size);
        }
        if let Some(vision) = self.vision {
            parts.add_vision(&vision, self.hidden_size);
            parts.others += match self.decoder {
                Decoder::Gemma3 { .. } => vision.hidden_size, // a norm before the projection
                _ => self.hidden_size,                        // the bias of the projection
            };
        }
        parts
    }
}

/// What a shape consists of: matrices that are multiplied, and everything else.
struct Parts {
    matrices: Vec<Matrices>,
    others: usize,
}

/// `count` matrices of the same `[rows, columns]`.
struct Matrices {
    count: usize,
    rows: usize,
    columns: usize,
}

impl Matrices {
    fn values(&self) -> usize {
        self.count * self.rows * self.columns
    }

    fn bytes(&self, precision: Precision) -> usize {
        let values = self.values();
        let blocks = self.columns.is_multiple_of(32).then_some(values / 32);
        match (precision, blocks) {
            (Precision::F32, _) => 4 * values,
            (Precision::Q8_0, Some(blocks)) => 34 * blocks,
            (Precision::Q4_0, Some(blocks)) => 18 * blocks,
            _ => 2 * values,
        }
    }
}

impl Parts {
    fn add(&mut self, count: usize, rows: usize, columns: usize) {
        self.matrices.push(Matrices { count, rows, columns });
    }

    fn add_vision(&mut self, vision: &Vision, text_width: usize) {
        let Vision { hidden_size, intermediate_size, layers, patch, .. } = *vision;
        self.add(1, hidden_size, 3 * patch * patch);
        self.add(4 * layers, hidden_size, hidden_size);
        self.add(layers, intermediate_size, hidden_size);
        self.add(layers, hidden_size, intermediate_size);
        self.add(1, text_width, hidden_size);
        let layer = 4 * hidden_size + 4 * hidden_size + intermediate_size + hidden_size; // two layer norms, four biases, fc1, fc2
        self.others += hidden_size + vision.tokens() * hidden_size + layers * layer + 2 * hidden_size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(name: &str) -> u64 {
        shape(name).expect(name).parameters()
    }

    /// Counts read off the tensors of models built from each release's `config.json`.
    #[test]
    fn parameters_are_those_of_the_released_files() {
        assert_eq!(parameters("gemma-2b"), 2_506_172_416);
        assert_eq!(parameters("gemma-7b"), 8_537_680_896);
        assert_eq!(parameters("gemma-2-2b"), 2_614_341_888);
        assert_eq!(parameters("gemma-2-9b"), 9_241_705_984);
        assert_eq!(parameters("gemma-2-27b"), 27_227_128_320);
        assert_eq!(parameters("gemma-3-270m"), 268_098_176);
        assert_eq!(parameters("gemma-3-1b"), 999_885_952);
        assert_eq!(parameters("gemma-3-4b"), 4_300_079_472);
        assert_eq!(parameters("gemma-3-12b"), 12_187_325_040);
        assert_eq!(parameters("gemma-3-27b"), 27_432_406_640);
        assert_eq!(parameters("vaultgemma-1b"), 1_038_741_120);
        // 308 million, as its card says
        assert_eq!(parameters("embeddinggemma-300m") / 100_000, 3_075);
        assert_eq!(parameters("recurrentgemma-2b"), 2_682_862_080);
        assert_eq!(parameters("recurrentgemma-9b"), 8_579_977_216);
        assert_eq!(parameters("paligemma-3b-224"), 2_923_466_480);
        assert_eq!(parameters("paligemma-3b-448"), 2_924_351_216);
        assert_eq!(parameters("paligemma-3b-896"), 2_927_890_160);
    }

    #[test]
    fn names_are_unique_and_found() {
        for (index, entry) in SHAPES.iter().enumerate() {
            let first = SHAPES.iter().position(|other| other.name == entry.name);
            assert_eq!(first, Some(index), "{} stands twice", entry.name);
            assert_eq!(shape(entry.name), Some(entry));
        }
        assert_eq!(shape("gemma-3b"), None);
    }

    #[test]
    fn heads_share_keys_evenly() {
        for shape in &SHAPES {
            assert_eq!(shape.heads % shape.kv_heads, 0, "{}", shape.name);
        }
    }

    #[test]
    fn only_27b_scales_its_queries_by_width_per_head() {
        for shape in &SHAPES {
            if let Decoder::Gemma2 { query_pre_attn_scalar, .. } = shape.decoder {
                let expected = if shape.head_dim == 128 { shape.hidden_size / shape.heads } else { shape.head_dim };
                assert_eq!(query_pre_attn_scalar, expected as f64, "{}", shape.name);
            }
        }
    }

    /// Without biases, every parameter but the norms is in a matrix: 2 and 4 bytes each, or blocks of 32.
    #[test]
    fn bytes_follow_the_precision() {
        let shape = shape("gemma-2b").expect("in the table");
        let norms = (2 * 18 + 1) * 2_048;
        let matrices = shape.parameters() - norms;
        assert_eq!(shape.bytes(Precision::F32), 4 * shape.parameters());
        assert_eq!(shape.bytes(Precision::Bf16), 2 * matrices + 4 * norms);
        assert_eq!(shape.bytes(Precision::F16), shape.bytes(Precision::Bf16));
        assert_eq!(shape.bytes(Precision::Q8_0), matrices / 32 * 34 + 4 * norms);
        assert_eq!(shape.bytes(Precision::Q4_0), matrices / 32 * 18 + 4 * norms);
    }

    /// SigLIP's rows of 4 304 and 588 values are not whole blocks of 32.
    #[test]
    fn rows_that_are_not_whole_blocks_stay_bf16() {
        let odd = Matrices { count: 2, rows: 3, columns: 4_304 };
        assert_eq!(odd.bytes(Precision::Q4_0), 2 * odd.values());
        assert_eq!(odd.bytes(Precision::F32), 4 * odd.values());
    }

    #[test]
    fn memory_grows_with_the_context_until_the_window_is_full() {
        let bytes = |name, tokens| shape(name).expect("in the table").memory_bytes(tokens);
        assert_eq!(bytes("gemma-2b", 10), 4 * 18 * 10 * 2 * 256);
        let one_key = 4 * 2 * 4 * 256; // bytes of one key and value of Gemma 2 2B
        assert_eq!(bytes("gemma-2-2b", 4_096), 26 * 4_096 * one_key);
        assert_eq!(bytes("gemma-2-2b", 8_192), 13 * (4_096 + 8_192) * one_key);
        assert_eq!(bytes("gemma-3-270m", 1_000), 4 * (15 * 512 + 3 * 1_000) * 2 * 256);
        assert_eq!(bytes("recurrentgemma-2b", 2_048), bytes("recurrentgemma-2b", 100_000));
        assert!(bytes("recurrentgemma-2b", 0) > 0);
    }

    #[test]
    fn a_image_becomes_its_patches() {
        let tokens = |name| shape(name).and_then(|shape| shape.vision).map(|vision| vision.tokens());
        assert_eq!(tokens("paligemma-3b-224"), Some(256));
        assert_eq!(tokens("paligemma2-10b-448"), Some(1_024));
        assert_eq!(tokens("paligemma2-28b-896"), Some(4_096));
        assert_eq!(tokens("gemma-2b"), None);
    }
}
