//! CubeCL runtimes, wgpu above all.

use crate::cube;
use crate::ops::attention::{AttendSegment, AttentionOps, CacheRows, PagedCall};
use crate::ops::conv::ConvOps;
use crate::ops::elementwise::{Elementwise, ElementwiseOps};
use crate::ops::frozen::{FrozenOps, FrozenRows};
use crate::ops::heads::HeadOps;
use crate::ops::largest::LargestOps;
use crate::ops::linear::{Arithmetic, LayerShape, LinearOps, LinearShape, LinearsShape};
use crate::ops::recurrence::{GateOps, RecurrenceOps};
use crate::ops::residual::{ResidualEps, ResidualOps};
use crate::traffic::{Way, note};
use crate::{AttendParams, Format, Phase};
use burn::backend::ops::{FloatTensorOps, IntTensorOps};
use burn::backend::{
    Slice, TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::TensorData;
use burn_cubecl::CubeBackend;

/// The most f32 values that are decoded at a time: 32 MiB.
const DECODED: usize = 8 << 20;

impl LinearOps for CubeBackend {
    fn packed_linear(
        x: FloatTensor<Self>,
        weight: IntTensor<Self>,
        bias: FloatTensor<Self>,
        shape: LinearShape,
    ) -> FloatTensor<Self> {
        let LinearShape { format, has_bias, cols, arithmetic } = shape;
        cube::packed_linear(x, weight, has_bias.then_some(bias), format, cols, arithmetic)
    }

    fn packed_linears(
        x: FloatTensor<Self>,
        first: IntTensor<Self>,
        second: IntTensor<Self>,
        third: IntTensor<Self>,
        first_bias: FloatTensor<Self>,
        second_bias: FloatTensor<Self>,
        third_bias: FloatTensor<Self>,
        shape: LinearsShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [first, second, third] =
            cube::packed_linears(x, [first, second, third], [first_bias, second_bias, third_bias], shape);
        (first, second, third)
    }

    fn feed_forward(
        x: FloatTensor<Self>,
        gate: IntTensor<Self>,
        up: IntTensor<Self>,
        down: IntTensor<Self>,
        gate_bias: FloatTensor<Self>,
        up_bias: FloatTensor<Self>,
        down_bias: FloatTensor<Self>,
        layer: LayerShape,
    ) -> FloatTensor<Self> {
        cube::feed_forward(x, [gate, up, down], [gate_bias, up_bias, down_bias], layer)
    }

    fn packed_rows(weight: IntTensor<Self>, rows: IntTensor<Self>, format: Format, cols: usize) -> FloatTensor<Self> {
        cube::packed_rows(weight, rows, format, cols)
    }
}

impl FrozenOps for CubeBackend {
    fn frozen_linear(x: FloatTensor<Self>, weight: IntTensor<Self>, rows: FrozenRows) -> FloatTensor<Self> {
        let [all, words] = [weight.shape()[0], weight.shape()[1]];
        let weight = if rows.count == all {
            weight
        } else {
            Self::int_slice(weight, &[stretch(rows.first, rows.count), stretch(0, words)])
        };
        // what is trained is read like a prompt
        let arithmetic = Arithmetic { activations: rows.activations, phase: Phase::Prefill, batch_invariant: false };
        cube::packed_linear(x, weight, None, rows.format, rows.cols, arithmetic)
    }

    /// Some rows at a time are decoded and multiplied.
    fn frozen_transposed(y: FloatTensor<Self>, weight: IntTensor<Self>, rows: FrozenRows) -> FloatTensor<Self> {
        let device = y.device();
        let tokens = y.shape()[0];
        let chunk = (DECODED / rows.cols).clamp(1, rows.count);
        let mut sum = None;
        for begin in (0..rows.count).step_by(chunk) {
            let count = chunk.min(rows.count - begin);
            let ids: Vec<i32> = (0..count).map(|row| (rows.first + begin + row) as i32).collect();
            let ids = Self::int_from_data(TensorData::new(ids, [count]), &device);
            let decoded = cube::packed_rows(weight.clone(), ids, rows.format, rows.cols);
            let part = Self::float_slice(y.clone(), &[stretch(0, tokens), stretch(begin, count)]);
            let product = Self::float_matmul(part, decoded);
            sum = Some(match sum {
                None => product,
                Some(sum) => Self::float_add(sum, product),
            });
        }
        sum.expect("a product with at least one row")
    }
}

fn stretch(first: usize, count: usize) -> Slice {
    (first..first + count).into()
}

impl AttentionOps for CubeBackend {
    fn attend(
        _q: FloatTensor<Self>,
        _k: FloatTensor<Self>,
        _v: FloatTensor<Self>,
        _segments: &[AttendSegment<'_>],
        _params: AttendParams,
    ) -> FloatTensor<Self> {
        unreachable!("GPUs attend to rows or pages")
    }

    fn append(_k: FloatTensor<Self>, _v: FloatTensor<Self>, _caches: &mut [CacheRows<'_>]) -> usize {
        unreachable!("GPUs write pages")
    }

    fn attend_rows(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        queries: IntTensor<Self>,
        tables: IntTensor<Self>,
        call: PagedCall,
    ) -> FloatTensor<Self> {
        cube::attend(q, cube::Source::Rows([k, v]), [queries, tables], call)
    }

    fn attend_pages(
        q: FloatTensor<Self>,
        k: IntTensor<Self>,
        v: IntTensor<Self>,
        queries: IntTensor<Self>,
        tables: IntTensor<Self>,
        call: PagedCall,
    ) -> FloatTensor<Self> {
        let source = cube::Source::Pages { buffers: [k, v], precision: call.precision };
        cube::attend(q, source, [queries, tables], call)
    }

    fn write_pages(
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        keys: IntTensor<Self>,
        values: IntTensor<Self>,
        slots: IntTensor<Self>,
        call: PagedCall,
    ) -> usize {
        cube::write_pages([k, v], call.first, [keys, values], slots, call.precision)
    }
}

impl RecurrenceOps for CubeBackend {
    fn linear_recurrence(
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        initial: FloatTensor<Self>,
        bounds: Vec<usize>,
        backwards: bool,
    ) -> FloatTensor<Self> {
        note(Way::Up, 4 * bounds.len());
        cube::linear_recurrence(a, b, initial, &bounds, backwards)
    }
}

impl LargestOps for CubeBackend {
    fn largest(logits: FloatTensor<Self>, count: usize) -> IntTensor<Self> {
        cube::largest(logits, count)
    }
}

impl ConvOps for CubeBackend {
    fn causal_conv(
        line: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        firsts: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        cube::causal_conv(line, weight, bias, firsts)
    }
}

impl GateOps for CubeBackend {
    fn gated_decay(
        x: FloatTensor<Self>,
        input_weight: FloatTensor<Self>,
        input_bias: FloatTensor<Self>,
        recurrent_weight: FloatTensor<Self>,
        recurrent_bias: FloatTensor<Self>,
        recurrent_param: FloatTensor<Self>,
        begins: Vec<bool>,
        blocks: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if begins.contains(&true) {
            note(Way::Up, 4 * begins.len());
        }
        let gates = [input_weight, input_bias, recurrent_weight, recurrent_bias];
        cube::gated_decay(x, gates, recurrent_param, &begins, blocks)
    }
}

impl HeadOps for CubeBackend {
    fn norm_and_rotate(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        q_weight: FloatTensor<Self>,
        k_weight: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        eps: Option<[f32; 2]>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [q, k] = cube::norm_and_rotate([(q, q_weight), (k, k_weight)], [cos, sin], eps);
        (q, k)
    }
}

impl ResidualOps for CubeBackend {
    fn add_then_norm(
        residual: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        branch_weight: FloatTensor<Self>,
        sum_weight: FloatTensor<Self>,
        eps: ResidualEps,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [sum, normed] = cube::add_then_norm([residual, branch], [branch_weight, sum_weight], eps);
        (sum, normed)
    }
}

impl ElementwiseOps for CubeBackend {
    fn elementwise(
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        operation: Elementwise,
    ) -> FloatTensor<Self> {
        cube::elementwise(x, first, second, operation)
    }

    fn elementwise_gradient(
        _from_above: FloatTensor<Self>,
        _x: FloatTensor<Self>,
        _first: FloatTensor<Self>,
        _second: FloatTensor<Self>,
        operation: Elementwise,
    ) -> FloatTensor<Self> {
        unreachable!("GPUs differentiate Burn's operations of {operation:?}")
    }

    fn geglu_gradient(
        _from_above: FloatTensor<Self>,
        _gate: FloatTensor<Self>,
        _up: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("GPUs differentiate Burn's operations")
    }
}
