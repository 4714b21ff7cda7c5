//! Training: the gradients of operations that would be loops in Burn's own.

use crate::AttendParams;
use crate::ops::adapted::AdaptedOps;
use crate::ops::elementwise::{Elementwise, ElementwiseOps};
use crate::ops::frozen::{FrozenOps, FrozenRows};
use crate::ops::recurrence::RecurrenceOps;
use crate::ops::whole_attention::{WholeAttentionOps, WholeSequence};
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::TensorData;

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

/// `∂L/∂x = ∂L/∂y W`.
#[derive(Debug)]
struct TransposedProduct;

impl<B: FrozenOps> Backward<B, 1> for TransposedProduct {
    type State = (IntTensor<B>, FrozenRows);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let (weight, rows) = ops.state;
        let [of_x] = ops.parents;
        let from_above = grads.consume::<B>(&ops.node);
        if let Some(node) = of_x {
            grads.register::<B>(node.id, B::frozen_transposed(from_above, weight, rows));
        }
    }
}

impl<B: FrozenOps, C: CheckpointStrategy> FrozenOps for Autodiff<B, C> {
    fn frozen_linear(x: FloatTensor<Self>, weight: IntTensor<Self>, rows: FrozenRows) -> FloatTensor<Self> {
        let nodes = [x.node()];
        let x = x.into_primitive();
        match TransposedProduct.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let y = B::frozen_linear(x, weight.clone(), rows);
                prep.finish((weight, rows), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::frozen_linear(x, weight, rows)),
        }
    }

    fn frozen_transposed(_y: FloatTensor<Self>, _weight: IntTensor<Self>, _rows: FrozenRows) -> FloatTensor<Self> {
        unreachable!("the gradient of the gradient is not asked for")
    }
}

/// `∂L/∂x = ∂L/∂y W + v A`, and the gradients of both factors.
#[derive(Debug)]
struct AdaptedProduct;

/// What the gradient needs: the input, what the first factor made of it, the matrix, the factors, and how they are computed.
#[derive(Clone, Debug)]
struct KeptProduct<B: Backend> {
    x: FloatTensor<B>,
    u: FloatTensor<B>,
    weight: IntTensor<B>,
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    rows: FrozenRows,
    scale: f32,
}

impl<B: AdaptedOps> Backward<B, 3> for AdaptedProduct {
    type State = KeptProduct<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let KeptProduct { x, u, weight, a, b, rows, scale } = ops.state;
        let [of_x, of_a, of_b] = ops.parents;
        let g = grads.consume::<B>(&ops.node);
        let (v, a_gradient, b_gradient) = B::factor_gradients(g.clone(), x, u, b, scale);
        for (node, gradient) in [(of_a, a_gradient), (of_b, b_gradient)] {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
        if let Some(node) = of_x {
            grads.register::<B>(node.id, B::adapted_transposed(g, v, weight, a, rows));
        }
    }
}

impl<B: AdaptedOps, C: CheckpointStrategy> AdaptedOps for Autodiff<B, C> {
    fn adapted_linear(
        x: FloatTensor<Self>,
        weight: IntTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        rows: FrozenRows,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let nodes = [x.node(), a.node(), b.node()];
        let (x, a, b) = (x.into_primitive(), a.into_primitive(), b.into_primitive());
        let (y, u) = B::adapted_linear(x.clone(), weight.clone(), a.clone(), b.clone(), rows, scale);
        let inner = <Self as AutodiffBackend>::from_inner(u.clone());
        let y = match AdaptedProduct.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(KeptProduct { x, u, weight, a, b, rows, scale }, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        };
        (y, inner)
    }

    fn factor_gradients(
        _g: FloatTensor<Self>,
        _x: FloatTensor<Self>,
        _u: FloatTensor<Self>,
        _b: FloatTensor<Self>,
        _scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("the gradient of the gradient is not asked for")
    }

    fn adapted_transposed(
        _g: FloatTensor<Self>,
        _v: FloatTensor<Self>,
        _weight: IntTensor<Self>,
        _a: FloatTensor<Self>,
        _rows: FrozenRows,
    ) -> FloatTensor<Self> {
        unreachable!("the gradient of the gradient is not asked for")
    }
}

/// The gradients of an operation that takes its operands in one pass.
#[derive(Debug)]
struct OnePass;

impl<B: ElementwiseOps> Backward<B, 2> for OnePass {
    type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, Elementwise);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let (x, first, second, operation) = ops.state;
        let [of_x, of_first] = ops.parents;
        let from_above = grads.consume::<B>(&ops.node);
        let (x_gradient, first_gradient) = match operation {
            Elementwise::GeGlu => {
                // the same as the first one, which is to be overwritten
                drop(second);
                let (gate, up) = B::geglu_gradient(from_above, x, first);
                (gate, Some(up))
            }
            _ => (B::elementwise_gradient(from_above, x, first, second, operation), None),
        };
        if let Some(node) = of_x {
            grads.register::<B>(node.id, x_gradient);
        }
        if let (Some(node), Some(gradient)) = (of_first, first_gradient) {
            grads.register::<B>(node.id, gradient);
        }
    }
}

impl<B: ElementwiseOps, C: CheckpointStrategy> ElementwiseOps for Autodiff<B, C> {
    fn elementwise(
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        operation: Elementwise,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), first.node()];
        let (x, first, second) = (x.into_primitive(), first.into_primitive(), second.into_primitive());
        let y = B::elementwise(x.clone(), first.clone(), second.clone(), operation);
        match OnePass.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, first, second, operation), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn elementwise_gradient(
        _from_above: FloatTensor<Self>,
        _x: FloatTensor<Self>,
        _first: FloatTensor<Self>,
        _second: FloatTensor<Self>,
        _operation: Elementwise,
    ) -> FloatTensor<Self> {
        unreachable!("the gradient of the gradient is not asked for")
    }

    fn geglu_gradient(
        _from_above: FloatTensor<Self>,
        _gate: FloatTensor<Self>,
        _up: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("the gradient of the gradient is not asked for")
    }
}

/// The gradients of queries, keys and values.
#[derive(Debug)]
struct AttentionGradient;

impl<B: WholeAttentionOps> Backward<B, 3> for AttentionGradient {
    type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, Vec<WholeSequence>, AttendParams);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let (q, k, v, sequences, params) = ops.state;
        let from_above = grads.consume::<B>(&ops.node);
        let (of_q, of_k, of_v) = B::whole_attention_gradient(from_above, q, k, v, sequences, params);
        for (node, gradient) in ops.parents.into_iter().zip([of_q, of_k, of_v]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

impl<B: WholeAttentionOps, C: CheckpointStrategy> WholeAttentionOps for Autodiff<B, C> {
    fn whole_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        sequences: Vec<WholeSequence>,
        params: AttendParams,
    ) -> FloatTensor<Self> {
        let nodes = [q.node(), k.node(), v.node()];
        let (q, k, v) = (q.into_primitive(), k.into_primitive(), v.into_primitive());
        let y = B::whole_attention(q.clone(), k.clone(), v.clone(), sequences.clone(), params);
        match AttentionGradient.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((q, k, v, sequences, params), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn whole_attention_gradient(
        _from_above: FloatTensor<Self>,
        _q: FloatTensor<Self>,
        _k: FloatTensor<Self>,
        _v: FloatTensor<Self>,
        _sequences: Vec<WholeSequence>,
        _params: AttendParams,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("the gradient of the gradient is not asked for")
    }
}
