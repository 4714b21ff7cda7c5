//! The one linear layer.

use crate::{LoraFactors, Rows, Saver, Source, Weight};
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use gemma_kernels::{FeedForward, PackedWeight, Phase, adapted_linear, add_bias, feed_forward, gelu_of_biased};

/// `y = x Wᵀ + b`, and for each adapter `s B (A x)` added to all rows, or to those of the requests that choose it.
#[derive(Module, Debug)]
pub struct Projection {
    /// The matrix, `[out, in]`.
    pub weight: Weight,
    /// The bias, `[out]`, where the layer has one.
    pub bias: Option<Param<Tensor<1>>>,
    /// The factors of the adapters that change the layer.
    pub lora: Vec<LoraFactors>,
}

impl Projection {
    /// The layer whose parameters are called `{name}.weight` and, with `bias`, `{name}.bias`.
    pub fn load(source: &mut dyn Source, name: &str, inputs: usize, outputs: usize, bias: bool) -> Self {
        Self {
            weight: source.matrix(&format!("{name}.weight"), outputs, inputs),
            bias: bias.then(|| source.vector(&format!("{name}.bias"), outputs)),
            lora: source.lora(name, inputs, outputs),
        }
    }

    /// Hands the parameters to a saver, under the names they were loaded by.
    pub fn save(&self, saver: &mut dyn Saver, name: &str) {
        saver.matrix(&format!("{name}.weight"), &self.weight);
        if let Some(bias) = &self.bias {
            saver.vector(&format!("{name}.bias"), bias);
        }
        self.lora.iter().for_each(|factors| saver.lora(name, factors));
    }

    /// `[tokens, in]` to `[tokens, out]`, where all tokens are one request's; see [`Phase::of_len`].
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let tokens = x.dims()[0];
        self.forward_in(x, &Rows::in_phase(tokens, Phase::of_len(tokens)))
    }

    /// The matrix, where it is frozen and no adapter changes its products.
    pub(crate) fn frozen(&self) -> Option<&PackedWeight> {
        match &self.weight {
            Weight::Packed(weight) if self.lora.is_empty() => Some(weight),
            _ => None,
        }
    }

    /// `y + b`, where there is a bias.
    pub(crate) fn with_bias(&self, y: Tensor<2>) -> Tensor<2> {
        match &self.bias {
            Some(bias) => add_bias(y, bias.val()),
            None => y,
        }
    }

    /// `last(gelu(y))` of [`forward`](Self::forward), in the tanh form of GELU.
    pub fn forward_gelu_into(&self, last: &Projection, x: Tensor<2>) -> Tensor<2> {
        match (self.frozen(), last.frozen()) {
            (Some(gate), Some(down)) if Phase::of_len(x.dims()[0]) == Phase::Prefill => {
                let gate_bias = self.bias.as_ref().map(Param::val);
                last.with_bias(feed_forward(x, FeedForward { gate, gate_bias, up: None, up_bias: None, down }))
            }
            _ => last.forward(self.forward_gelu(x)),
        }
    }

    /// `gelu(y)` of [`forward`](Self::forward), in the tanh form of GELU.
    fn forward_gelu(&self, x: Tensor<2>) -> Tensor<2> {
        let tokens = x.dims()[0];
        match &self.bias {
            Some(bias) if self.lora.is_empty() => {
                let rows = Rows::in_phase(tokens, Phase::of_len(tokens));
                gelu_of_biased(self.weight.forward_in(x, rows.phases()), bias.val())
            }
            _ => {
                let y = self.forward(x);
                let nothing = Tensor::zeros([y.dims()[1]], &y.device());
                gelu_of_biased(y, nothing)
            }
        }
    }

    /// `[tokens, in]` to `[tokens, out]` for the rows of any number of requests. The product with the matrix is one for all
    /// rows; the factors of an adapter that requests choose are computed for the rows of those that do.
    pub fn forward_in(&self, x: Tensor<2>, rows: &Rows) -> Tensor<2> {
        let groups = |factors: &LoraFactors| rows.adapted(factors.adapter());
        // a product of trainable factors may be added up in another order where it has more rows
        if let (Weight::Packed(weight), [factors]) = (&self.weight, &self.lora[..])
            && !weight.is_batch_invariant()
            && (x.is_autodiff() || rows.are_prompts())
            && let Some(strength) = rows.strength_of_all(&groups(factors))
            && let Some(low_rank) = factors.low_rank(strength)
        {
            return self.with_bias(adapted_linear(x, weight, low_rank));
        }
        let y = self.with_bias(self.weight.forward_in(x.clone(), rows.phases()));
        self.lora.iter().fold(y, |y, factors| factors.add_to(y, &x, &groups(factors)))
    }
}
