//! The linear recurrence of gated recurrent layers, and its coefficients.

use crate::math::ARTANH;
use crate::traffic::{Way, note};
use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::activation::sigmoid;
use burn::tensor::{Tensor, TensorData};

// The attribute names every backend of the list, ndarray included, which Burn 0.22 deprecates and this workspace promises.
#[allow(deprecated, reason = "ndarray is one of the backends this workspace promises")]
mod extension {
    use super::*;

    /// What a backend must be able to do for recurrent layers. [`linear_recurrence`](super::linear_recurrence) is the
    /// way to call it.
    #[backend_extension(
        NdArray: cfg(feature = "ndarray"), Flex: cfg(feature = "flex"), Cube: cfg(feature = "wgpu"), Autodiff
    )]
    pub trait RecurrenceOps: Backend {
        /// `h[t] = a[t] h[t-1] + b[t]` within each segment, from its row of `initial`; `backwards`,
        /// `g[t] = a[t+1] g[t+1] + b[t]` from nothing. `bounds`: the first token of each segment, then the number of
        /// tokens.
        fn linear_recurrence(
            a: FloatTensor<Self>,
            b: FloatTensor<Self>,
            initial: FloatTensor<Self>,
            bounds: Vec<usize>,
            backwards: bool,
        ) -> FloatTensor<Self>;
    }

    /// What a backend does in one pass for [`gated_decay`](super::gated_decay).
    #[backend_extension(NdArray: cfg(feature = "ndarray"), Flex: cfg(feature = "flex"), Cube: cfg(feature = "wgpu"))]
    pub trait GateOps: Backend {
        /// Factors and addends of the recurrence.
        #[allow(clippy::too_many_arguments, reason = "two gates with a weight and a bias each")]
        fn gated_decay(
            x: FloatTensor<Self>,
            input_weight: FloatTensor<Self>,
            input_bias: FloatTensor<Self>,
            recurrent_weight: FloatTensor<Self>,
            recurrent_bias: FloatTensor<Self>,
            recurrent_param: FloatTensor<Self>,
            begins: Vec<bool>,
            blocks: usize,
        ) -> (FloatTensor<Self>, FloatTensor<Self>);
    }
}

pub use extension::{GateOps, RecurrenceOps};

/// The two gates of a recurrence: block-diagonal, channels mix within their block only.
#[derive(Clone, Debug)]
pub struct RecurrentGates {
    /// The input gate's weight, `[blocks, in, out]` in row-major order.
    pub input_weight: Tensor<1>,
    /// Its bias, `[channels]`.
    pub input_bias: Tensor<1>,
    /// The recurrent gate's weight, `[blocks, in, out]` in row-major order.
    pub recurrent_weight: Tensor<1>,
    /// Its bias, `[channels]`.
    pub recurrent_bias: Tensor<1>,
    /// Number of blocks.
    pub blocks: usize,
}

/// What a real-gated linear recurrence is made of, `[tokens, channels]` each (De et al. 2024, arXiv:2402.19427, eq. 1 to
/// 4): the factors `a = exp(-8 softplus(Λ) σ(W_r x + b_r))` and the addends `√(1 - a²) σ(W_i x + b_i) x`, with 1 in place of
/// the root for the tokens that begin a sequence.
///
/// `recurrent_param`, `[channels]`, is `Λ`. One pass; on autodiff devices this is
/// [`reference::gated_decay`](crate::reference::gated_decay).
///
/// # Panics
/// When the shapes do not match.
pub fn gated_decay(
    x: Tensor<2>,
    gates: RecurrentGates,
    recurrent_param: Tensor<1>,
    begins: &[bool],
) -> (Tensor<2>, Tensor<2>) {
    assert_eq!(x.dims(), [begins.len(), recurrent_param.dims()[0]], "a token for each beginning, a channel for each Λ");
    if x.is_autodiff() {
        return reference_gated_decay(x, gates, recurrent_param, begins);
    }
    let (a, b) = <Dispatch as GateOps>::gated_decay(
        x.into_dispatch(),
        gates.input_weight.into_dispatch(),
        gates.input_bias.into_dispatch(),
        gates.recurrent_weight.into_dispatch(),
        gates.recurrent_bias.into_dispatch(),
        recurrent_param.into_dispatch(),
        begins.to_vec(),
        gates.blocks,
    );
    (Tensor::from_dispatch(a), Tensor::from_dispatch(b))
}

/// `h[t] = a[t] ⊙ h[t-1] + b[t]`: what a gated linear recurrent layer computes from token to token (De et al. 2024,
/// arXiv:2402.19427, eq. 4), in f32, each channel on its own.
///
/// `a` and `b` are `[tokens, channels]`, cut into segments of `lens` tokens; segment `s` begins with row `s` of
/// `initial` `[segments, channels]`. The result is `h`, `[tokens, channels]`: the last row of a segment is the state
/// to continue with. Reading a sequence in pieces gives the same bits as reading it whole.
///
/// On an autodiff device it is differentiable with respect to `a`, `b` and `initial`; the gradient is one recurrence
/// in the other direction.
///
/// # Panics
/// When the shapes do not match, or a segment has no token.
pub fn linear_recurrence(a: Tensor<2>, b: Tensor<2>, initial: Tensor<2>, lens: &[usize]) -> Tensor<2> {
    let [tokens, channels] = a.dims();
    assert_eq!(b.dims(), [tokens, channels], "one addend per factor");
    assert_eq!(initial.dims(), [lens.len(), channels], "one initial state per segment");
    assert!(lens.iter().all(|len| *len > 0), "a segment has tokens");
    let mut bounds = vec![0];
    bounds.extend(lens.iter().scan(0, |end, len| {
        *end += len;
        Some(*end)
    }));
    assert_eq!(bounds[lens.len()], tokens, "the segments are all tokens");
    Tensor::from_dispatch(<Dispatch as RecurrenceOps>::linear_recurrence(
        a.into_dispatch(),
        b.into_dispatch(),
        initial.into_dispatch(),
        bounds,
        false,
    ))
}

/// The reference implementation of [`linear_recurrence`], a token at a time.
pub fn reference_linear_recurrence(a: Tensor<2>, b: Tensor<2>, initial: Tensor<2>, lens: &[usize]) -> Tensor<2> {
    let [tokens, channels] = a.dims();
    let row = |x: &Tensor<2>, index: usize| x.clone().slice([index..index + 1, 0..channels]);
    let mut rows = Vec::with_capacity(tokens);
    for (segment, len) in lens.iter().enumerate() {
        let mut state = row(&initial, segment);
        for token in rows.len()..rows.len() + len {
            state = row(&a, token) * state + row(&b, token);
            rows.push(state.clone());
        }
    }
    Tensor::cat(rows, 0)
}

/// How strongly the recurrent gate acts on the decay: the constant `c` of the paper.
pub(crate) const STRENGTH: f32 = 8.0;

/// The steepest slope that the root in [`reference_gated_decay`] passes on to its argument, as in the paper's code.
const STEEPEST: f32 = 1000.0;

/// The reference implementation of [`gated_decay`]. Near `a = 1` the difference `1 - a²` would cancel;
/// `tanh(-log a) · (1 + a²)` is the same and does not.
pub fn reference_gated_decay(
    x: Tensor<2>,
    gates: RecurrentGates,
    recurrent_param: Tensor<1>,
    begins: &[bool],
) -> (Tensor<2>, Tensor<2>) {
    let RecurrentGates { input_weight, input_bias, recurrent_weight, recurrent_bias, blocks } = gates;
    let gate = |weight, bias| sigmoid(block_product(x.clone(), weight, bias, blocks));
    let decay = reference_softplus(recurrent_param).mul_scalar(-STRENGTH);
    let log_a = gate(recurrent_weight, recurrent_bias) * decay.unsqueeze::<2>();
    let a = log_a.clone().exp();
    let rest = reference_tanh(log_a.neg()) * a.clone().square().add_scalar(1.0);
    let mut root = bounded_sqrt(rest);
    if begins.contains(&true) {
        let begins: Vec<f32> = begins.iter().map(|begins| f32::from(u8::from(*begins))).collect();
        let len = begins.len();
        note(Way::Up, 4 * len);
        let begins = Tensor::<2>::from_data(TensorData::new(begins, [len, 1]), &x.device());
        root = root * begins.clone().neg().add_scalar(1.0) + begins;
    }
    let input = gate(input_weight, input_bias) * x;
    (a, root * input)
}

/// [`softplus`](crate::math::softplus), by the same series: Burn's `log_sigmoid` adds 1 before it takes the logarithm, and loses the
/// digits of a slow decay, as the `log1p` of some drivers does.
fn reference_softplus(x: Tensor<1>) -> Tensor<1> {
    let t = x.clone().abs().neg().exp();
    let z = t.clone() / t.add_scalar(2.0);
    let square = z.clone().square();
    let mut series = z.zeros_like();
    for coefficient in ARTANH {
        series = (series * square.clone()).add_scalar(coefficient);
    }
    x.clamp_min(0.0) + z.mul_scalar(2.0) * series
}

/// `tanh x`, by its series near zero, where that of some drivers has no relative accuracy.
fn reference_tanh(x: Tensor<2>) -> Tensor<2> {
    let square = x.clone().square();
    // 1/3, 2/15, 17/315
    let series = square.clone().mul_scalar(-17.0 / 315.0).add_scalar(2.0 / 15.0) * square.clone();
    let near = x.clone() - x.clone() * square.clone() * series.neg().add_scalar(1.0 / 3.0);
    x.tanh().mask_where(square.lower_elem(0.01), near)
}

/// `x W + b` with a block-diagonal `W`, `[blocks, in, out]`.
fn block_product(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, blocks: usize) -> Tensor<2> {
    let [tokens, channels] = x.dims();
    let size = channels / blocks;
    let parts = x.reshape([tokens, blocks, size]).swap_dims(0, 1); // [blocks, tokens, in]
    let mixed = parts.matmul(weight.reshape([blocks, size, size]));
    mixed.swap_dims(0, 1).reshape([tokens, channels]) + bias.unsqueeze::<2>()
}

/// The square root; its slope, which is without bound near zero, passed on as `1 / max(2 √x, 1/1000)`.
fn bounded_sqrt(x: Tensor<2>) -> Tensor<2> {
    if !x.is_autodiff() {
        return x.sqrt();
    }
    let constant = x.clone().detach();
    let root = constant.clone().sqrt();
    let slope = root.clone().mul_scalar(2.0).clamp_min(1.0 / STEEPEST).recip();
    // the second term is zero, and its derivative the slope
    root + slope * (x - constant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, devices, tensor, values};
    use burn::tensor::Device;

    /// Factors in (0, 1), as a decaying state has them.
    fn factors(shape: [usize; 2], seed: u64, device: &Device) -> Tensor<2> {
        tensor(shape, seed, device).mul_scalar(0.49).add_scalar(0.5)
    }

    #[test]
    fn a_recurrence_equals_its_reference_in_every_segment() {
        for (backend, device) in devices() {
            for channels in [1, 5, 64, 300, 1030] {
                for lens in [&[1][..], &[7], &[3, 1, 9], &[1, 1, 1, 1], &[200, 2]] {
                    let tokens = lens.iter().sum();
                    let a = factors([tokens, channels], 1, &device);
                    let b = tensor([tokens, channels], 2, &device);
                    let initial = tensor([lens.len(), channels], 3, &device);
                    let found = linear_recurrence(a.clone(), b.clone(), initial.clone(), lens);
                    let expected = reference_linear_recurrence(a, b, initial, lens);
                    let context = format!("{backend}, {channels} channels, segments of {lens:?}");
                    assert_close(&values(found), &values(expected), 1e-5, &context);
                }
            }
        }
    }

    #[test]
    fn reading_in_pieces_changes_no_bit() {
        for (backend, device) in devices() {
            let (tokens, channels) = (100, 70);
            let a = factors([tokens, channels], 4, &device);
            let b = tensor([tokens, channels], 5, &device);
            let whole =
                values(linear_recurrence(a.clone(), b.clone(), Tensor::zeros([1, channels], &device), &[tokens]));
            for chunk in [1, 3, 7, 40] {
                let mut state = Tensor::zeros([1, channels], &device);
                let mut pieces = Vec::new();
                for first in (0..tokens).step_by(chunk) {
                    let len = chunk.min(tokens - first);
                    let part = |x: &Tensor<2>| x.clone().slice([first..first + len, 0..channels]);
                    let h = linear_recurrence(part(&a), part(&b), state, &[len]);
                    state = h.clone().slice([len - 1..len, 0..channels]);
                    pieces.extend(values(h));
                }
                assert_eq!(pieces, whole, "{backend}, pieces of {chunk}");
            }
        }
    }

    /// Factors and addends in f64.
    fn by_definition(
        x: &Tensor<2>,
        gates: &RecurrentGates,
        recurrent_param: &Tensor<1>,
        begins: &[bool],
    ) -> (Vec<f32>, Vec<f32>) {
        let [_, channels] = x.dims();
        let size = channels / gates.blocks;
        let x = values(x.clone());
        let [input_weight, input_bias, recurrent_weight, recurrent_bias, recurrent_param] =
            [&gates.input_weight, &gates.input_bias, &gates.recurrent_weight, &gates.recurrent_bias, recurrent_param]
                .map(|tensor| values(tensor.clone()));
        let gate = |at: usize, weight: &[f32], bias: &[f32]| {
            let (channel, block) = (at % channels, at % channels / size * size);
            let term = |i: usize| {
                f64::from(x[at - channel + block + i]) * f64::from(weight[(block + i) * size + channel % size])
            };
            let sum = f64::from(bias[channel]) + (0..size).map(term).sum::<f64>();
            1.0 / (1.0 + (-sum).exp())
        };
        let one = |at: usize| {
            let softplus = f64::from(recurrent_param[at % channels]).exp().ln_1p();
            let log_a = -8.0 * softplus * gate(at, &recurrent_weight, &recurrent_bias);
            let root = if begins[at / channels] { 1.0 } else { (-(2.0 * log_a).exp_m1()).sqrt() };
            let addend = root * gate(at, &input_weight, &input_bias) * f64::from(x[at]);
            (log_a.exp() as f32, addend as f32)
        };
        (0..x.len()).map(one).unzip()
    }

    #[test]
    fn coefficients_equal_their_reference() {
        for (backend, device) in devices() {
            for (blocks, size) in [(1, 1), (2, 28), (4, 32), (3, 70), (2, 128)] {
                for tokens in [1, 3, 4, 9, 70] {
                    let channels = blocks * size;
                    let line = |len: usize, seed| tensor::<1>([len], seed, &device);
                    let gates = RecurrentGates {
                        input_weight: line(channels * size, 1),
                        input_bias: line(channels, 2),
                        recurrent_weight: line(channels * size, 3),
                        recurrent_bias: line(channels, 4),
                        blocks,
                    };
                    // in trained models Λ is -9 to -4: decays of 0.999 to 0.9
                    let recurrent_param = line(channels, 5).mul_scalar(6.0).sub_scalar(6.0);
                    let x = tensor([tokens, channels], 6, &device);
                    let begins: Vec<bool> = (0..tokens).map(|token| token % 4 == 2).collect();
                    let context = format!("{backend}, {blocks} blocks of {size}, {tokens} tokens");
                    let expected = by_definition(&x, &gates, &recurrent_param, &begins);
                    let found = gated_decay(x.clone(), gates.clone(), recurrent_param.clone(), &begins);
                    assert_close(&values(found.0), &expected.0, 1e-5, &context);
                    assert_close(&values(found.1), &expected.1, 1e-5, &context);
                    let reference = reference_gated_decay(x, gates, recurrent_param, &begins);
                    assert_close(&values(reference.0), &expected.0, 1e-5, &context);
                    assert_close(&values(reference.1), &expected.1, 1e-5, &context);
                }
            }
        }
    }

    /// The addends of slow decays, where the root is small, are right in every digit that f32 has.
    #[test]
    fn slow_decays_keep_their_digits() {
        for (backend, device) in devices() {
            let channels = 70;
            let zeros = |len| Tensor::<1>::zeros([len], &device);
            let gates = RecurrentGates {
                input_weight: zeros(channels),
                input_bias: zeros(channels),
                recurrent_weight: zeros(channels),
                recurrent_bias: zeros(channels),
                blocks: channels,
            };
            let params: Vec<f32> = (0..channels).map(|channel| -16.0 + 0.2 * channel as f32).collect();
            let recurrent_param = Tensor::from_data(TensorData::new(params, [channels]), &device);
            let x = Tensor::ones([1, channels], &device);
            let expected = by_definition(&x, &gates, &recurrent_param, &[false]).1;
            let found = values(gated_decay(x, gates, recurrent_param, &[false]).1);
            for (channel, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let error = (found - expected).abs() / expected;
                assert!(error < 2e-6, "{backend}, channel {channel}: {found} and {expected}");
            }
        }
    }

    #[test]
    fn its_gradient_equals_that_of_its_reference() {
        for (backend, device) in devices() {
            let device = device.autodiff();
            for lens in [&[3, 1, 9][..], &[2, 1, 4], &[70, 3]] {
                let (tokens, channels) = (lens.iter().sum(), 6);
                let operands = || {
                    let a = factors([tokens, channels], 6, &device).require_grad();
                    let b = tensor([tokens, channels], 7, &device).require_grad();
                    let initial = tensor([lens.len(), channels], 8, &device).require_grad();
                    (a, b, initial)
                };
                let weight = tensor([tokens, channels], 9, &device);
                let gradients = |recurrence: fn(Tensor<2>, Tensor<2>, Tensor<2>, &[usize]) -> Tensor<2>| {
                    let (a, b, initial) = operands();
                    let h = recurrence(a.clone(), b.clone(), initial.clone(), lens);
                    let gradients = (h * weight.clone()).sum().backward();
                    [a, b, initial].map(|x| values(x.grad(&gradients).expect("a gradient")))
                };
                let (found, expected) = (gradients(linear_recurrence), gradients(reference_linear_recurrence));
                for (name, (found, expected)) in ["a", "b", "initial"].iter().zip(found.iter().zip(&expected)) {
                    assert_close(found, expected, 1e-5, &format!("{backend}, {lens:?}, gradient of {name}"));
                }
            }
        }
    }

    #[test]
    fn the_root_hands_on_a_bounded_slope() {
        for (backend, device) in devices() {
            let x = Tensor::<2>::from_data([[0.25, 1e-8, 0.0]], &device.autodiff()).require_grad();
            let root = bounded_sqrt(x.clone());
            let found: Vec<f32> = root.clone().into_data().try_into_vec().expect("f32");
            assert!((found[0] - 0.5).abs() < 1e-6 && found[2] == 0.0, "{backend}: {found:?}");
            let slopes: Vec<f32> =
                x.grad(&root.sum().backward()).expect("a gradient").into_data().try_into_vec().expect("f32");
            for (slope, expected) in slopes.iter().zip([1.0, 1000.0, 1000.0]) {
                assert!((slope - expected).abs() < 1e-3 * expected, "{backend}: {slopes:?}");
            }
        }
    }
}
