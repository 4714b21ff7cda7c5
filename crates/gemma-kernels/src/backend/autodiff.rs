//! Training: the gradients of operations that would be loops in Burn's own.

use crate::ops::frozen::{FrozenOps, FrozenRows};
use crate::ops::recurrence::RecurrenceOps;
use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{
    Autodiff, TensorMetadata,
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
