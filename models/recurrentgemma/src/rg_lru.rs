//! The real-gated linear recurrent unit.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use gemma_kernels::{RecurrentGates, gated_decay, linear_recurrence};
use gemma_nn::{Saver, Segment, Source};

/// The RG-LRU (De et al. 2024, arXiv:2402.19427, eq. 1 to 4), all in f32, `⊙` per channel:
///
/// ```text
/// r = σ(W_r x + b_r)                  recurrent gate, block-diagonal
/// i = σ(W_i x + b_i)                  input gate, block-diagonal
/// log a = -8 r softplus(Λ)
/// h[t] = a[t] ⊙ h[t-1] + √(1 - a[t]²) ⊙ (i[t] ⊙ x[t])
/// ```
///
/// At position 0, where there is no `h[t-1]`, the root is 1: the first input enters in full.
#[derive(Module, Debug)]
pub struct RgLru {
    /// `Λ`, `[channels]`.
    pub recurrent_param: Param<Tensor<1>>,
    /// The input gate.
    pub input_gate: Gate,
    /// The recurrent gate.
    pub recurrent_gate: Gate,
}

impl RgLru {
    /// The unit whose parameters begin with `{name}.`, its gates of `blocks` blocks.
    pub fn load(source: &mut dyn Source, name: &str, channels: usize, blocks: usize) -> Self {
        Self {
            recurrent_param: source.vector(&format!("{name}.recurrent_param"), channels),
            input_gate: Gate::load(source, &format!("{name}.input_gate"), channels, blocks),
            recurrent_gate: Gate::load(source, &format!("{name}.recurrent_gate"), channels, blocks),
        }
    }

    /// Hands the parameters to a saver, under the names they were loaded by.
    pub fn save(&self, saver: &mut dyn Saver, name: &str) {
        saver.vector(&format!("{name}.recurrent_param"), &self.recurrent_param);
        self.input_gate.save(saver, &format!("{name}.input_gate"));
        self.recurrent_gate.save(saver, &format!("{name}.recurrent_gate"));
    }

    /// `[tokens, channels]` to the same shape. `states` holds `h` of each segment's last token so far,
    /// `[1, channels]`, and takes up the new one; `None` stands for a sequence that begins.
    ///
    /// # Panics
    /// When segments, states and `x` do not match.
    pub fn forward(&self, x: Tensor<2>, segments: &[Segment], states: &mut [Option<Tensor<2>>]) -> Tensor<2> {
        let [_, channels] = x.dims();
        let device = x.device();
        assert_eq!(segments.len(), states.len(), "one state per segment");
        let begins: Vec<bool> = segments.iter().flat_map(Segment::positions).map(|position| position == 0).collect();
        let gates = RecurrentGates {
            input_weight: self.input_gate.weight.val(),
            input_bias: self.input_gate.bias.val(),
            recurrent_weight: self.recurrent_gate.weight.val(),
            recurrent_bias: self.recurrent_gate.bias.val(),
            blocks: self.input_gate.blocks,
        };
        let (a, b) = gated_decay(x, gates, self.recurrent_param.val(), &begins);
        let mut initial: Vec<Tensor<2>> = states
            .iter_mut()
            .map(|state| state.take().unwrap_or_else(|| Tensor::zeros([1, channels], &device)))
            .collect();
        let lens: Vec<usize> = segments.iter().map(|segment| segment.len).collect();
        // joining one copies it
        let initial = if initial.len() == 1 { initial.remove(0) } else { Tensor::cat(initial, 0) };
        let h = linear_recurrence(a, b, initial, &lens);
        let mut end = 0;
        for (len, state) in lens.iter().zip(states) {
            end += len;
            *state = Some(h.clone().slice([end - 1..end, 0..channels]));
        }
        h
    }
}

/// `W x + b` with a block-diagonal `W`: channels mix within their block only.
#[derive(Module, Debug)]
pub struct Gate {
    /// `[blocks, in, out]` in row-major order.
    pub weight: Param<Tensor<1>>,
    /// `[blocks, out]` in row-major order.
    pub bias: Param<Tensor<1>>,
    blocks: usize,
}

impl Gate {
    /// The gate whose parameters are called `{name}_weight` and `{name}_bias`.
    fn load(source: &mut dyn Source, name: &str, channels: usize, blocks: usize) -> Self {
        let size = channels / blocks;
        Self {
            weight: source.tensor(&format!("{name}_weight"), &[blocks, size, size]),
            bias: source.tensor(&format!("{name}_bias"), &[blocks, size]),
            blocks,
        }
    }

    fn save(&self, saver: &mut dyn Saver, name: &str) {
        let [channels] = self.bias.dims();
        let size = channels / self.blocks;
        saver.tensor(&format!("{name}_weight"), &[self.blocks, size, size], &self.weight);
        saver.tensor(&format!("{name}_bias"), &[self.blocks, size], &self.bias);
    }
}
