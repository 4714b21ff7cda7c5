//! The linear recurrence at the level of tensors, and what it is made of: the backend extensions, and the gradient.

use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{
    Autodiff, Backend, Dispatch, DispatchDevice, TensorMetadata, backend_extension, tensor::FloatTensor,
};
use burn::tensor::{Device, Tensor, TensorData};

#[cfg(any(feature = "ndarray", feature = "flex"))]
use crate::cpu::{self, Gates, Recurrence, cpu_level};
use crate::plain;

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

    /// What a CPU backend does in one pass for [`gated_decay`](super::gated_decay).
    #[backend_extension(NdArray: cfg(feature = "ndarray"), Flex: cfg(feature = "flex"))]
    pub trait GateOps: Backend {
        /// Factors and addends of the recurrence.
        #[allow(clippy::too_many_arguments, reason = "two gates with a weight and a bias each")]
        fn gated_decay(
            x: FloatTensor<Self>,
            input_weight: FloatTensor<Self>,
            input_bias: FloatTensor<Self>,
            recurrent_weight: FloatTensor<Self>,
            recurrent_bias: FloatTensor<Self>,
            decay: FloatTensor<Self>,
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
/// 4): the factors `a = exp(decay σ(W_r x + b_r))` and the addends `√(1 - a²) σ(W_i x + b_i) x`, with 1 in place of the
/// root for the tokens that begin a sequence.
///
/// `decay`, `[channels]`, is the logarithm of the strongest decay, at most 0. One pass on the CPU; on other and
/// on autodiff devices this is [`plain::gated_decay`].
///
/// # Panics
/// When the shapes do not match.
pub fn gated_decay(x: Tensor<2>, gates: RecurrentGates, decay: Tensor<1>, begins: &[bool]) -> (Tensor<2>, Tensor<2>) {
    assert_eq!(x.dims(), [begins.len(), decay.dims()[0]], "a token for each beginning, a channel for each decay");
    if x.is_autodiff() || !on_processor(&x.device()) {
        return plain::gated_decay(x, gates, decay, begins);
    }
    let (a, b) = <Dispatch as GateOps>::gated_decay(
        x.into_dispatch(),
        gates.input_weight.into_dispatch(),
        gates.input_bias.into_dispatch(),
        gates.recurrent_weight.into_dispatch(),
        gates.recurrent_bias.into_dispatch(),
        decay.into_dispatch(),
        begins.to_vec(),
        gates.blocks,
    );
    (Tensor::from_dispatch(a), Tensor::from_dispatch(b))
}

/// Whether tensors of this device are slices in memory.
#[allow(deprecated, unreachable_patterns, reason = "ndarray is promised; other backends may not be compiled in")]
fn on_processor(device: &Device) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "ndarray")]
        DispatchDevice::NdArray(_) => true,
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        _ => false,
    }
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

/// With `g[t] = ∂L/∂h[t]`, all later tokens included: `∂L/∂b[t] = g[t]`, `∂L/∂a[t] = g[t] h[t-1]`, and the initial
/// state gets what its first token hands on, `a g`.
#[derive(Debug)]
struct RecurrenceGradient;

/// What the gradient needs: factors, results, initial states, bounds.
type Kept<B> = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, Vec<usize>);

impl<B: RecurrenceOps> Backward<B, 3> for RecurrenceGradient {
    type State = Kept<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let (a, h, initial, bounds) = ops.state;
        let [of_a, of_b, of_initial] = ops.parents;
        let from_above = grads.consume::<B>(&ops.node);
        let device = h.device();
        let segments = bounds.len() - 1;
        let ids = |rows: Vec<i32>| {
            let len = rows.len();
            B::int_from_data(TensorData::new(rows, [len]), &device)
        };
        let g = B::linear_recurrence(a.clone(), from_above, initial.clone(), bounds.clone(), true);
        if let Some(node) = of_b {
            grads.register::<B>(node.id, g.clone());
        }
        if let Some(node) = of_initial {
            let first = || ids(bounds[..segments].iter().map(|row| *row as i32).collect());
            let handed_on = B::float_mul(B::float_select(a, 0, first()), B::float_select(g.clone(), 0, first()));
            grads.register::<B>(node.id, handed_on);
        }
        if let Some(node) = of_a {
            // the row before each token: of its segment's results, or its initial state
            let before = |segment: usize| {
                let tokens = bounds[segment]..bounds[segment + 1];
                let inner = (tokens.start..tokens.end - 1).map(move |token| (segments + token) as i32);
                std::iter::once(segment as i32).chain(inner)
            };
            let before = ids((0..segments).flat_map(before).collect());
            let before = B::float_select(B::float_cat(vec![initial, h], 0), 0, before);
            grads.register::<B>(node.id, B::float_mul(g, before));
        }
    }
}

impl<B: RecurrenceOps, C: CheckpointStrategy> RecurrenceOps for Autodiff<B, C> {
    fn linear_recurrence(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        initial: FloatTensor<Self>,
        bounds: Vec<usize>,
        backwards: bool,
    ) -> FloatTensor<Self> {
        assert!(!backwards, "the gradient of the gradient is not asked for");
        let nodes = [a.node(), b.node(), initial.node()];
        let (a, initial) = (a.into_primitive(), initial.into_primitive());
        let run = |a, initial, bounds| B::linear_recurrence(a, b.into_primitive(), initial, bounds, false);
        match RecurrenceGradient.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let h = run(a.clone(), initial.clone(), bounds.clone());
                prep.finish((a, h.clone(), initial, bounds), h)
            }
            OpsKind::UnTracked(prep) => prep.finish(run(a, initial, bounds)),
        }
    }
}

/// The shared kernel on the slices of a CPU backend's tensors.
#[cfg(any(feature = "ndarray", feature = "flex"))]
fn on_cpu([a, b, initial]: [&[f32]; 3], bounds: &[usize], channels: usize, backwards: bool) -> TensorData {
    let mut out = vec![0.0; a.len()];
    let operands = Recurrence { a, b, initial, bounds, channels };
    cpu::linear_recurrence(cpu_level(), operands, backwards, &mut out);
    let tokens = bounds.last().copied().unwrap_or(0);
    TensorData::new(out, [tokens, channels])
}

/// The same for the gates.
#[cfg(any(feature = "ndarray", feature = "flex"))]
fn gates_on_cpu(gates: Gates<'_>) -> [TensorData; 2] {
    let (mut a, mut b) = (vec![0.0; gates.x.len()], vec![0.0; gates.x.len()]);
    cpu::gated_decay(cpu_level(), gates, &mut a, &mut b);
    [a, b].map(|values| TensorData::new(values, [gates.begins.len(), gates.decay.len()]))
}

#[cfg(feature = "ndarray")]
#[allow(deprecated, reason = "ndarray is one of the two backends this workspace promises")]
mod ndarray {
    use super::{GateOps, Gates, RecurrenceOps, gates_on_cpu, on_cpu};
    use crate::ops::ndarray::{slice, values};
    use burn::backend::{NdArray, ndarray::NdArrayTensor, tensor::FloatTensor};
    use std::borrow::Cow;

    impl RecurrenceOps for NdArray {
        fn linear_recurrence(
            a: FloatTensor<Self>,
            b: FloatTensor<Self>,
            initial: FloatTensor<Self>,
            bounds: Vec<usize>,
            backwards: bool,
        ) -> FloatTensor<Self> {
            let (a, b, initial) = (values!(&a, F32), values!(&b, F32), values!(&initial, F32));
            let channels = a.shape()[1];
            let (a, b, initial) = (a.view(), b.view(), initial.view());
            let operands = [&*slice!(a), &*slice!(b), &*slice!(initial)];
            NdArrayTensor::from_data(on_cpu(operands, &bounds, channels, backwards))
        }
    }

    impl GateOps for NdArray {
        fn gated_decay(
            x: FloatTensor<Self>,
            input_weight: FloatTensor<Self>,
            input_bias: FloatTensor<Self>,
            recurrent_weight: FloatTensor<Self>,
            recurrent_bias: FloatTensor<Self>,
            decay: FloatTensor<Self>,
            begins: Vec<bool>,
            blocks: usize,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            let (x, decay) = (values!(&x, F32), values!(&decay, F32));
            let (input_weight, input_bias) = (values!(&input_weight, F32), values!(&input_bias, F32));
            let (recurrent_weight, recurrent_bias) = (values!(&recurrent_weight, F32), values!(&recurrent_bias, F32));
            let (x, decay) = (x.view(), decay.view());
            let (input_weight, input_bias) = (input_weight.view(), input_bias.view());
            let (recurrent_weight, recurrent_bias) = (recurrent_weight.view(), recurrent_bias.view());
            let gates = Gates {
                x: &slice!(x),
                input: (&slice!(input_weight), &slice!(input_bias)),
                recurrent: (&slice!(recurrent_weight), &slice!(recurrent_bias)),
                decay: &slice!(decay),
                begins: &begins,
                blocks,
            };
            gates_on_cpu(gates).map(NdArrayTensor::from_data).into()
        }
    }
}

#[cfg(feature = "flex")]
mod flex {
    use super::{GateOps, Gates, RecurrenceOps, gates_on_cpu, on_cpu};
    use crate::ops::flex::{contiguous, slice};
    use burn::backend::{Flex, flex::FlexTensor, tensor::FloatTensor};

    impl RecurrenceOps for Flex {
        fn linear_recurrence(
            a: FloatTensor<Self>,
            b: FloatTensor<Self>,
            initial: FloatTensor<Self>,
            bounds: Vec<usize>,
            backwards: bool,
        ) -> FloatTensor<Self> {
            let [a, b, initial] = [a, b, initial].map(contiguous);
            let channels = a.layout().shape()[1];
            let operands = [slice!(a, f32), slice!(b, f32), slice!(initial, f32)];
            FlexTensor::from_data(on_cpu(operands, &bounds, channels, backwards))
        }
    }

    impl GateOps for Flex {
        fn gated_decay(
            x: FloatTensor<Self>,
            input_weight: FloatTensor<Self>,
            input_bias: FloatTensor<Self>,
            recurrent_weight: FloatTensor<Self>,
            recurrent_bias: FloatTensor<Self>,
            decay: FloatTensor<Self>,
            begins: Vec<bool>,
            blocks: usize,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            let [x, decay] = [x, decay].map(contiguous);
            let weights = [input_weight, input_bias, recurrent_weight, recurrent_bias].map(contiguous);
            let gates = Gates {
                x: slice!(x, f32),
                input: (slice!(weights[0], f32), slice!(weights[1], f32)),
                recurrent: (slice!(weights[2], f32), slice!(weights[3], f32)),
                decay: slice!(decay, f32),
                begins: &begins,
                blocks,
            };
            gates_on_cpu(gates).map(FlexTensor::from_data).into()
        }
    }
}

#[cfg(feature = "wgpu")]
mod cube {
    use super::RecurrenceOps;
    use crate::cube;
    use burn::backend::tensor::FloatTensor;
    use burn_cubecl::CubeBackend;

    impl RecurrenceOps for CubeBackend {
        fn linear_recurrence(
            a: FloatTensor<Self>,
            b: FloatTensor<Self>,
            initial: FloatTensor<Self>,
            bounds: Vec<usize>,
            backwards: bool,
        ) -> FloatTensor<Self> {
            cube::linear_recurrence(a, b, initial, &bounds, backwards)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, devices, tensor, values};
    use crate::plain;
    use burn::tensor::Device;

    /// Factors in (0, 1), as a decaying state has them.
    fn factors(shape: [usize; 2], seed: u64, device: &Device) -> Tensor<2> {
        tensor(shape, seed, device).mul_scalar(0.49).add_scalar(0.5)
    }

    #[test]
    fn a_recurrence_equals_its_plain_twin_in_every_segment() {
        for (backend, device) in devices() {
            for channels in [1, 5, 64, 300, 1030] {
                for lens in [&[1][..], &[7], &[3, 1, 9], &[1, 1, 1, 1], &[200, 2]] {
                    let tokens = lens.iter().sum();
                    let a = factors([tokens, channels], 1, &device);
                    let b = tensor([tokens, channels], 2, &device);
                    let initial = tensor([lens.len(), channels], 3, &device);
                    let found = linear_recurrence(a.clone(), b.clone(), initial.clone(), lens);
                    let expected = plain::linear_recurrence(a, b, initial, lens);
                    let context = format!("{backend}, {channels} channels, segments of {lens:?}");
                    assert_close(&values(found), &values(expected), 1e-5, &context);
                }
            }
        }
    }

    #[test]
    fn reading_in_pieces_changes_no_bit() {
        for (backend, device) in devices() {
            let (tokens, channels) = (40, 70);
            let a = factors([tokens, channels], 4, &device);
            let b = tensor([tokens, channels], 5, &device);
            let whole =
                values(linear_recurrence(a.clone(), b.clone(), Tensor::zeros([1, channels], &device), &[tokens]));
            for chunk in [1, 3, 7] {
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

    #[test]
    fn coefficients_equal_their_plain_twin() {
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
                    let decay = line(channels, 5).abs().mul_scalar(-3.0);
                    let x = tensor([tokens, channels], 6, &device);
                    let begins: Vec<bool> = (0..tokens).map(|token| token % 4 == 2).collect();
                    let found = gated_decay(x.clone(), gates.clone(), decay.clone(), &begins);
                    let expected = plain::gated_decay(x, gates, decay, &begins);
                    let context = format!("{backend}, {blocks} blocks of {size}, {tokens} tokens");
                    assert_close(&values(found.0), &values(expected.0), 1e-5, &context);
                    assert_close(&values(found.1), &values(expected.1), 1e-5, &context);
                }
            }
        }
    }

    #[test]
    fn its_gradient_equals_that_of_its_plain_twin() {
        for (backend, device) in devices() {
            let device = device.autodiff();
            let (lens, channels) = ([3, 1, 9], 6);
            let operands = || {
                let a = factors([13, channels], 6, &device).require_grad();
                let b = tensor([13, channels], 7, &device).require_grad();
                let initial = tensor([3, channels], 8, &device).require_grad();
                (a, b, initial)
            };
            let weight = tensor([13, channels], 9, &device);
            let gradients = |recurrence: fn(Tensor<2>, Tensor<2>, Tensor<2>, &[usize]) -> Tensor<2>| {
                let (a, b, initial) = operands();
                let h = recurrence(a.clone(), b.clone(), initial.clone(), &lens);
                let gradients = (h * weight.clone()).sum().backward();
                [a, b, initial].map(|x| values(x.grad(&gradients).expect("a gradient")))
            };
            let (found, expected) = (gradients(linear_recurrence), gradients(plain::linear_recurrence));
            for (name, (found, expected)) in ["a", "b", "initial"].iter().zip(found.iter().zip(&expected)) {
                assert_close(found, expected, 1e-5, &format!("{backend}, gradient of {name}"));
            }
        }
    }
}
