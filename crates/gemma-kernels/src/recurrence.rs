//! The linear recurrence at the level of tensors: the backend extension, and its gradient.

#[cfg(any(feature = "ndarray", feature = "flex"))]
use crate::cpu::{self, Recurrence, cpu_level};
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension, tensor::FloatTensor};
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
}

pub use extension::RecurrenceOps;

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

#[cfg(feature = "ndarray")]
#[allow(deprecated, reason = "ndarray is one of the two backends this workspace promises")]
mod ndarray {
    use super::{RecurrenceOps, on_cpu};
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
}

#[cfg(feature = "flex")]
mod flex {
    use super::{RecurrenceOps, on_cpu};
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
