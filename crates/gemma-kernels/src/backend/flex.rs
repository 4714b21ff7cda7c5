//! The flex backend: the CPU kernels on its slices.

use super::slices;
use crate::cpu::{self, Gates};
use crate::ops::adapted::AdaptedOps;
use crate::ops::attention::{AttendSegment, AttentionOps, CacheRows, PagedCall};
use crate::ops::conv::ConvOps;
use crate::ops::elementwise::{Elementwise, ElementwiseOps};
use crate::ops::frozen::{FrozenOps, FrozenRows};
use crate::ops::heads::HeadOps;
use crate::ops::largest::LargestOps;
use crate::ops::linear::{LayerShape, LinearOps, LinearShape, LinearsShape};
use crate::ops::recurrence::{GateOps, RecurrenceOps};
use crate::ops::residual::{ResidualEps, ResidualOps};
use crate::ops::whole_attention::{WholeAttentionOps, WholeSequence};
use crate::{AttendParams, Format};
use burn::backend::{
    Flex,
    flex::FlexTensor,
    tensor::{FloatTensor, IntTensor},
};

/// The tensor in row-major order, copied only when it is a view that is not.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

macro_rules! slice {
    ($tensor:expr, $kind:ty) => {
        $tensor.as_slice::<$kind>().expect("contiguous, and of the kind that the public function made")
    };
}

impl LinearOps for Flex {
    fn packed_linear(
        x: FloatTensor<Self>,
        weight: IntTensor<Self>,
        bias: FloatTensor<Self>,
        shape: LinearShape,
    ) -> FloatTensor<Self> {
        let [x, bias] = [x, bias].map(contiguous);
        FlexTensor::from_data(slices::packed_linear(slice!(x, f32), slice!(weight, u8), slice!(bias, f32), shape))
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
        let [x, a, b, c] = [x, first_bias, second_bias, third_bias].map(contiguous);
        let weights = [slice!(first, u8), slice!(second, u8), slice!(third, u8)];
        let biases = [slice!(a, f32), slice!(b, f32), slice!(c, f32)];
        let (first, second, third) = slices::packed_linears(slice!(x, f32), weights, biases, shape);
        (FlexTensor::from_data(first), FlexTensor::from_data(second), FlexTensor::from_data(third))
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
        let [x, a, b, c] = [x, gate_bias, up_bias, down_bias].map(contiguous);
        let biases = [slice!(a, f32), slice!(b, f32), slice!(c, f32)];
        let matrices = [slice!(gate, u8), slice!(up, u8), slice!(down, u8)];
        FlexTensor::from_data(slices::feed_forward(slice!(x, f32), biases, matrices, layer))
    }

    fn packed_rows(weight: IntTensor<Self>, rows: IntTensor<Self>, format: Format, cols: usize) -> FloatTensor<Self> {
        FlexTensor::from_data(slices::packed_rows(slice!(weight, u8), slice!(rows, i32), format, cols))
    }
}

impl FrozenOps for Flex {
    fn frozen_linear(x: FloatTensor<Self>, weight: IntTensor<Self>, rows: FrozenRows) -> FloatTensor<Self> {
        let x = contiguous(x);
        FlexTensor::from_data(slices::frozen_linear(slice!(x, f32), slice!(weight, u8), rows))
    }

    fn frozen_transposed(y: FloatTensor<Self>, weight: IntTensor<Self>, rows: FrozenRows) -> FloatTensor<Self> {
        let y = contiguous(y);
        FlexTensor::from_data(slices::frozen_transposed(slice!(y, f32), slice!(weight, u8), rows))
    }
}

impl AdaptedOps for Flex {
    fn adapted_linear(
        x: FloatTensor<Self>,
        weight: IntTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        rows: FrozenRows,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [x, a, b] = [x, a, b].map(contiguous);
        let factors = [slice!(a, f32), slice!(b, f32)];
        slices::adapted_linear(slice!(x, f32), slice!(weight, u8), factors, rows, scale)
            .map(FlexTensor::from_data)
            .into()
    }

    fn factor_gradients(
        g: FloatTensor<Self>,
        x: FloatTensor<Self>,
        u: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [g, x, u, b] = [g, x, u, b].map(contiguous);
        let sizes = [&g, &x, &u].map(|tensor| tensor.layout().shape()[1]);
        let operands = [slice!(g, f32), slice!(x, f32), slice!(u, f32), slice!(b, f32)];
        slices::factor_gradients(operands, sizes, scale).map(FlexTensor::from_data).into()
    }

    fn adapted_transposed(
        g: FloatTensor<Self>,
        v: FloatTensor<Self>,
        weight: IntTensor<Self>,
        a: FloatTensor<Self>,
        rows: FrozenRows,
    ) -> FloatTensor<Self> {
        let [g, v, a] = [g, v, a].map(contiguous);
        let operands = [slice!(g, f32), slice!(v, f32), slice!(a, f32)];
        FlexTensor::from_data(slices::adapted_transposed(operands, slice!(weight, u8), rows))
    }
}

impl WholeAttentionOps for Flex {
    fn whole_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        sequences: Vec<WholeSequence>,
        params: AttendParams,
    ) -> FloatTensor<Self> {
        let [q, k, v] = [q, k, v].map(contiguous);
        let (dims, [_, kv_heads, _]) = (slices::dims(q.layout().shape()), slices::dims(k.layout().shape()));
        let rows = [slice!(q, f32), slice!(k, f32), slice!(v, f32)];
        FlexTensor::from_data(slices::whole_attention(rows, dims, kv_heads, &sequences, params))
    }

    fn whole_attention_gradient(
        from_above: FloatTensor<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        sequences: Vec<WholeSequence>,
        params: AttendParams,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [from_above, q, k, v] = [from_above, q, k, v].map(contiguous);
        let (dims, [_, kv_heads, _]) = (slices::dims(q.layout().shape()), slices::dims(k.layout().shape()));
        let (from_above, rows) = (slice!(from_above, f32), [slice!(q, f32), slice!(k, f32), slice!(v, f32)]);
        let gradients = slices::whole_attention_gradient(from_above, rows, dims, kv_heads, &sequences, params);
        gradients.map(FlexTensor::from_data).into()
    }
}

impl AttentionOps for Flex {
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        segments: &[AttendSegment<'_>],
        params: AttendParams,
    ) -> FloatTensor<Self> {
        let [q, k, v] = [q, k, v].map(contiguous);
        let (dims, [_, kv_heads, _]) = (slices::dims(q.layout().shape()), slices::dims(k.layout().shape()));
        let rows = [slice!(q, f32), slice!(k, f32), slice!(v, f32)];
        FlexTensor::from_data(slices::attend(rows, dims, kv_heads, segments, params))
    }

    fn append(k: FloatTensor<Self>, v: FloatTensor<Self>, caches: &mut [CacheRows<'_>]) -> usize {
        let [k, v] = [k, v].map(contiguous);
        slices::append([slice!(k, f32), slice!(v, f32)], slices::dims(k.layout().shape()), caches)
    }

    fn attend_rows(
        _q: FloatTensor<Self>,
        _k: FloatTensor<Self>,
        _v: FloatTensor<Self>,
        _queries: IntTensor<Self>,
        _tables: IntTensor<Self>,
        _call: PagedCall,
    ) -> FloatTensor<Self> {
        unreachable!("CPUs attend to slices")
    }

    fn attend_pages(
        _q: FloatTensor<Self>,
        _k: IntTensor<Self>,
        _v: IntTensor<Self>,
        _queries: IntTensor<Self>,
        _tables: IntTensor<Self>,
        _call: PagedCall,
    ) -> FloatTensor<Self> {
        unreachable!("CPUs attend to slices")
    }

    fn write_pages(
        _k: FloatTensor<Self>,
        _v: FloatTensor<Self>,
        _keys: IntTensor<Self>,
        _values: IntTensor<Self>,
        _slots: IntTensor<Self>,
        _call: PagedCall,
    ) -> usize {
        unreachable!("pages of a CPU are slices")
    }
}

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
        FlexTensor::from_data(slices::linear_recurrence(operands, &bounds, channels, backwards))
    }
}

impl GateOps for Flex {
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
        let [x, recurrent_param] = [x, recurrent_param].map(contiguous);
        let weights = [input_weight, input_bias, recurrent_weight, recurrent_bias].map(contiguous);
        let gates = Gates {
            x: slice!(x, f32),
            input: (slice!(weights[0], f32), slice!(weights[1], f32)),
            recurrent: (slice!(weights[2], f32), slice!(weights[3], f32)),
            recurrent_param: slice!(recurrent_param, f32),
            begins: &begins,
            blocks,
        };
        slices::gated_decay(gates).map(FlexTensor::from_data).into()
    }
}

impl ConvOps for Flex {
    fn causal_conv(
        line: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        firsts: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let [line, weight, bias, firsts] = [line, weight, bias, firsts].map(contiguous);
        let factors = [slice!(weight, f32), slice!(bias, f32)];
        FlexTensor::from_data(slices::causal_conv(slice!(line, f32), factors, slice!(firsts, u32)))
    }
}

impl HeadOps for Flex {
    fn norm_and_rotate(
        _q: FloatTensor<Self>,
        _k: FloatTensor<Self>,
        _q_weight: FloatTensor<Self>,
        _k_weight: FloatTensor<Self>,
        _cos: FloatTensor<Self>,
        _sin: FloatTensor<Self>,
        _eps: Option<[f32; 2]>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("norms and rotations are an operation each on a CPU")
    }
}

impl ResidualOps for Flex {
    fn add_then_norm(
        residual: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        branch_weight: FloatTensor<Self>,
        sum_weight: FloatTensor<Self>,
        eps: ResidualEps,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [residual, branch, first, second] = [residual, branch, branch_weight, sum_weight].map(contiguous);
        let operands = [slice!(residual, f32), slice!(branch, f32)];
        let (sum, normed) = slices::add_then_norm(operands, [slice!(first, f32), slice!(second, f32)], eps);
        (FlexTensor::from_data(sum), FlexTensor::from_data(normed))
    }
}

impl LargestOps for Flex {
    fn largest(_logits: FloatTensor<Self>, _count: usize) -> IntTensor<Self> {
        unreachable!("a CPU's logits are read where they lie")
    }
}

impl ElementwiseOps for Flex {
    fn elementwise(
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        operation: Elementwise,
    ) -> FloatTensor<Self> {
        let [x, first, second] = [x, first, second].map(contiguous);
        let dims = x.layout().shape().to_vec();
        let operands = [slice!(first, f32), slice!(second, f32)];
        FlexTensor::from_data(slices::elementwise(slice!(x, f32), operands, &dims, operation))
    }

    fn elementwise_gradient(
        from_above: FloatTensor<Self>,
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        operation: Elementwise,
    ) -> FloatTensor<Self> {
        let [from_above, x, first, second] = [from_above, x, first, second].map(contiguous);
        let dims = x.layout().shape().to_vec();
        let operands = [slice!(first, f32), slice!(second, f32)];
        let (from_above, x) = (slice!(from_above, f32), slice!(x, f32));
        FlexTensor::from_data(slices::elementwise_gradient(from_above, x, operands, &dims, operation))
    }

    fn geglu_gradient(
        from_above: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [from_above, mut gate, mut up] = [from_above, gate, up].map(contiguous);
        // in the operands' memory, where nobody else has them
        let (of_gate, of_up) = (gate.storage_mut::<f32>(), up.storage_mut::<f32>());
        cpu::geglu_gradient(cpu::cpu_isa(), slice!(from_above, f32), of_gate, of_up);
        (gate, up)
    }
}
