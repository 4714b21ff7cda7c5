//! The one linear layer.

use crate::{LoraFactors, Rows, Saver, Source, Weight};
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use gemma_kernels::{
    FeedForward, LowRank, PackedLinear, PackedWeight, Phase, adapted_linear, add_bias, feed_forward, gelu_of_biased,
    packed_linear_in, packed_linears,
};

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
        let rows = Rows::of_one(x.dims()[0]);
        self.forward_in(x, &rows)
    }

    /// The matrix and the bias, where the matrix is frozen and no adapter changes its products.
    pub(crate) fn frozen(&self) -> Option<PackedLinear<'_>> {
        match &self.weight {
            Weight::Packed(weight) if self.lora.is_empty() => Some(self.linear(weight)),
            _ => None,
        }
    }

    /// The layer's matrix with its bias.
    fn linear<'a>(&self, weight: &'a PackedWeight) -> PackedLinear<'a> {
        PackedLinear { weight, bias: self.bias.as_ref().map(Param::val) }
    }

    /// `y + b`, where there is a bias.
    fn with_bias(&self, y: Tensor<2>) -> Tensor<2> {
        match &self.bias {
            Some(bias) => add_bias(y, bias.val()),
            None => y,
        }
    }

    /// `last(gelu(y))` of [`forward`](Self::forward), in the tanh form of GELU.
    pub fn forward_gelu_into(&self, last: &Projection, x: Tensor<2>) -> Tensor<2> {
        match (self.frozen(), last.frozen()) {
            (Some(gate), Some(down)) => {
                let phase = Phase::of_len(x.dims()[0]);
                feed_forward(x, FeedForward { gate, up: None, down }, phase)
            }
            _ => last.forward(self.forward_gelu(x)),
        }
    }

    /// `gelu(y)` of [`forward`](Self::forward), in the tanh form of GELU.
    fn forward_gelu(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.bias {
            Some(bias) if self.lora.is_empty() => gelu_of_biased(self.weight.forward(x), bias.val()),
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
        match self.adapted(&x, rows) {
            Some((weight, low_rank)) => self.with_bias(adapted_linear(x, weight, low_rank)),
            None => {
                let y = match &self.weight {
                    Weight::Packed(weight) => packed_linear_in(x.clone(), self.linear(weight), rows.phases()),
                    dense => self.with_bias(dense.forward_in(x.clone(), rows.phases())),
                };
                self.with_factors(y, &x, rows)
            }
        }
    }

    /// [`forward_in`](Self::forward_in) of up to three layers with the same inputs, whose products with the matrices are
    /// [one operation](packed_linears) where the matrices are frozen.
    pub fn forward_all<const N: usize>(layers: [&Self; N], x: Tensor<2>, rows: &Rows) -> [Tensor<2>; N] {
        let frozen = layers.map(|layer| match &layer.weight {
            Weight::Packed(weight) if layer.adapted(&x, rows).is_none() => Some(layer.linear(weight)),
            _ => None,
        });
        if frozen.iter().any(Option::is_none) {
            return layers.map(|layer| layer.forward_in(x.clone(), rows));
        }
        let linears = frozen.map(|linear| linear.expect("none is missing"));
        let mut products = packed_linears(x.clone(), linears, rows.phases()).into_iter().zip(layers);
        std::array::from_fn(|_| {
            let (y, layer) = products.next().expect("a product for each layer");
            layer.with_factors(y, &x, rows)
        })
    }

    /// The matrix and the factors, where an adapter is part of the product for all rows.
    fn adapted(&self, x: &Tensor<2>, rows: &Rows) -> Option<(&PackedWeight, LowRank)> {
        let (Weight::Packed(weight), [factors]) = (&self.weight, &self.lora[..]) else { return None };
        // a product of trainable factors may be added up in another order where it has more rows
        if weight.is_batch_invariant() || !(x.is_autodiff() || rows.phase() == Some(Phase::Prefill)) {
            return None;
        }
        let strength = rows.strength_of_all(&rows.adapted(factors.adapter()))?;
        Some((weight, factors.low_rank(strength)?))
    }

    /// `y` with what adapters add.
    fn with_factors(&self, y: Tensor<2>, x: &Tensor<2>, rows: &Rows) -> Tensor<2> {
        let added = |y, factors: &LoraFactors| factors.add_to(y, x, &rows.adapted(factors.adapter()));
        self.lora.iter().fold(y, added)
    }
}
