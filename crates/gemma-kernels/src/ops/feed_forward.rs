//! The feed-forward layer in one operation: in which the activations between a prompt's products are not written in f32 on a CPU, and with
//! few launches for a few tokens on a GPU.

use crate::ops::linear::{LayerShape, PackedLinear, arithmetic_of_all, operand};
use crate::packed::stores_words;
use crate::{LinearOps, PackedWeight, Phase, geglu, gelu_of_biased, packed_linear_in};
use burn::backend::Dispatch;
use burn::tensor::Tensor;

/// The matrices and biases of a feed-forward layer whose activation is GELU in its tanh form.
#[derive(Clone, Debug)]
pub struct FeedForward<'a> {
    /// Before GELU, `[intermediate_size, hidden_size]`.
    pub gate: PackedLinear<'a>,
    /// In a gated layer, that whose results GELU's are multiplied by, of the same shape.
    pub up: Option<PackedLinear<'a>>,
    /// The last, `[hidden_size, intermediate_size]`.
    pub down: PackedLinear<'a>,
}

/// `down(gelu(gate(x)) · up(x))` (GeGLU, Shazeer 2020, arXiv:2002.05202, eq. 6), or `down(gelu(gate(x)))` without a partner, for
/// tokens in one phase: `x` `[tokens, hidden_size]` to the same shape.
///
/// On a CPU it is one operation, with the bits of [`packed_linear_in`] and [`geglu`] one by one. On a GPU all but the last product is one
/// launch, for up to four tokens and matrices of one format that are in one piece. Else, and on autodiff devices, it is the operations one
/// by one.
///
/// # Panics
/// When the shapes do not match.
pub fn feed_forward(x: Tensor<2>, layer: FeedForward<'_>, phase: Phase) -> Tensor<2> {
    let linears = [Some(&layer.gate), layer.up.as_ref(), Some(&layer.down)];
    let (gate, down) = (layer.gate.weight, layer.down.weight);
    let up = layer.up.as_ref().map(|up| up.weight);
    assert_eq!(x.dims()[1], gate.cols(), "as many inputs as columns");
    assert_eq!(down.cols(), gate.rows(), "a column for each activation");
    assert!(up.is_none_or(|up| [up.rows(), up.cols()] == [gate.rows(), gate.cols()]), "a partner of the same shape");
    linears.into_iter().flatten().for_each(PackedLinear::assert_bias);
    let is_recorded = linears.into_iter().flatten().any(PackedLinear::is_recorded);
    let first = [gate, up.unwrap_or(gate)];
    let all = [first[0], first[1], down];
    let is_one = !is_recorded && (up.is_some() || !stores_words(&gate.device()));
    let Some(arithmetic) = is_one.then(|| arithmetic_of_all(&x, &all, &first, phase)).flatten() else {
        return reference_feed_forward(x, layer, phase);
    };
    let bytes = |weight: &PackedWeight| weight.shards()[0].clone().into_dispatch();
    let biases = linears.map(|linear| linear.and_then(|linear| linear.bias.clone()));
    let formats = (gate.format(), up.map(PackedWeight::format), down.format());
    let has_biases = biases.each_ref().map(Option::is_some);
    let shape = LayerShape { formats, biases: has_biases, cols: gate.cols(), arithmetic };
    let [gate_bias, up_bias, down_bias] = biases.map(|bias| operand(bias, &x));
    let x = x.into_dispatch();
    let [up, gate, down] = [up.unwrap_or(gate), gate, down].map(bytes);
    Tensor::from_dispatch(<Dispatch as LinearOps>::feed_forward(
        x, gate, up, down, gate_bias, up_bias, down_bias, shape,
    ))
}

/// The reference implementation of [`feed_forward`]: its operations one by one.
pub fn reference_feed_forward(x: Tensor<2>, layer: FeedForward<'_>, phase: Phase) -> Tensor<2> {
    let FeedForward { gate, up, down } = layer;
    let phases = [(x.dims()[0], phase)];
    let hidden = match up {
        Some(up) => geglu(packed_linear_in(x.clone(), gate, &phases), packed_linear_in(x, up, &phases)),
        None => {
            let first = packed_linear_in(x, gate.weight, &phases);
            let bias = gate.bias.unwrap_or_else(|| Tensor::zeros([first.dims()[1]], &first.device()));
            gelu_of_biased(first, bias)
        }
    };
    packed_linear_in(hidden, down, &phases)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;
    use crate::cpu::noise;
    use crate::ops::tests::{assert_close, devices, tensor, values};

    #[test]
    fn a_layer_is_its_operations_one_by_one() {
        for (backend, device) in devices() {
            for (tokens, cols, size, rows) in [(1, 32, 64, 32), (17, 64, 96, 40), (3, 256, 512, 37), (70, 256, 512, 64)]
            {
                for format in [Format::F32, Format::Bf16, Format::Q8_0, Format::Q4_0, Format::Q4K] {
                    if [cols, size].iter().any(|cols| format.row_bytes(*cols).is_none()) {
                        continue;
                    }
                    let matrix = |rows, cols, seed| {
                        PackedWeight::encode(&noise(rows * cols, seed), format, rows, cols, &device).expect("sound")
                    };
                    let (gate, up, down) = (matrix(size, cols, 1), matrix(size, cols, 2), matrix(rows, size, 3));
                    for (is_gated, is_biased) in [(true, false), (true, true), (false, true), (false, false)] {
                        let bias = |rows, seed| is_biased.then(|| tensor([rows], seed, &device));
                        let layer = || FeedForward {
                            gate: PackedLinear { weight: &gate, bias: bias(size, 4) },
                            up: is_gated.then(|| PackedLinear { weight: &up, bias: bias(size, 5) }),
                            down: PackedLinear { weight: &down, bias: bias(rows, 7) },
                        };
                        let x = || tensor([tokens, cols], 6, &device);
                        for phase in [Phase::Prefill, Phase::Decode] {
                            let found = values(feed_forward(x(), layer(), phase));
                            let expected = values(reference_feed_forward(x(), layer(), phase));
                            let context = format!("{backend} {format} {tokens} {is_gated} {is_biased} {phase:?}");
                            // a shader's compiler may join a multiplication and an addition
                            let tolerance = if stores_words(&device) { 2e-6 * size as f32 } else { 0.0 };
                            assert_close(&found, &expected, tolerance, &context);
                        }
                    }
                }
            }
        }
    }
}
