//! The ndarray backend: the CPU kernels on its slices.
#![allow(deprecated, reason = "ndarray is one of the backends this workspace promises")]

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
    NdArray,
    ndarray::NdArrayTensor,
    tensor::{FloatTensor, IntTensor},
};
use std::borrow::Cow;

/// The values of an f32 tensor in row-major order, copied only when a view is not.
macro_rules! values {
    ($tensor:expr, $kind:ident) => {{
        let NdArrayTensor::$kind(storage) = $tensor else {
            panic!("a kernel was called with values of another type than {}", stringify!($kind))
        };
        storage
    }};
}
macro_rules! slice {
    ($view:expr) => {
        match $view.as_slice() {
            Some(slice) => Cow::Borrowed(slice),
            None => Cow::Owned($view.iter().copied().collect::<Vec<_>>()),
        }
    };
}

impl LinearOps for NdArray {
    fn packed_linear(
        x: FloatTensor<Self>,
        weight: IntTensor<Self>,
        bias: FloatTensor<Self>,
        shape: LinearShape,
    ) -> FloatTensor<Self> {
        let (x, weight, bias) = (values!(&x, F32), values!(&weight, U8), values!(&bias, F32));
        let (x, weight, bias) = (x.view(), weight.view(), bias.view());
        NdArrayTensor::from_data(slices::packed_linear(&slice!(x), &slice!(weight), &slice!(bias), shape))
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
        let (x, first, second, third) =
            (values!(&x, F32), values!(&first, U8), values!(&second, U8), values!(&third, U8));
        let (x, first, second, third) = (x.view(), first.view(), second.view(), third.view());
        let weights = [&*slice!(first), &*slice!(second), &*slice!(third)];
        let (a, b, c) = (values!(&first_bias, F32), values!(&second_bias, F32), values!(&third_bias, F32));
        let (a, b, c) = (a.view(), b.view(), c.view());
        let biases = [&*slice!(a), &*slice!(b), &*slice!(c)];
        let (first, second, third) = slices::packed_linears(&slice!(x), weights, biases, shape);
        (NdArrayTensor::from_data(first), NdArrayTensor::from_data(second), NdArrayTensor::from_data(third))
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
        let (x, a) = (values!(&x, F32), values!(&gate_bias, F32));
        let (b, c) = (values!(&up_bias, F32), values!(&down_bias, F32));
        let (gate, up, down) = (values!(&gate, U8), values!(&up, U8), values!(&down, U8));
        let (x, a, b, c) = (x.view(), a.view(), b.view(), c.view());
        let (gate, up, down) = (gate.view(), up.view(), down.view());
        let biases = [&*slice!(a), &*slice!(b), &*slice!(c)];
        let matrices = [&*slice!(gate), &*slice!(up), &*slice!(down)];
        NdArrayTensor::from_data(slices::feed_forward(&slice!(x), biases, matrices, layer))
    }

    fn packed_rows(weight: IntTensor<Self>, rows: IntTensor<Self>, format: Format, cols: usize) -> FloatTensor<Self> {
        let (weight, rows) = (values!(&weight, U8), values!(&rows, I32));
        let (weight, rows) = (weight.view(), rows.view());
        NdArrayTensor::from_data(slices::packed_rows(&slice!(weight), &slice!(rows), format, cols))
    }
}

impl FrozenOps for NdArray {
    fn frozen_linear(x: FloatTensor<Self>, weight: IntTensor<Self>, rows: FrozenRows) -> FloatTensor<Self> {
        let (x, weight) = (values!(&x, F32), values!(&weight, U8));
        let (x, weight) = (x.view(), weight.view());
        NdArrayTensor::from_data(slices::frozen_linear(&slice!(x), &slice!(weight), rows))
    }

    fn frozen_transposed(y: FloatTensor<Self>, weight: IntTensor<Self>, rows: FrozenRows) -> FloatTensor<Self> {
        let (y, weight) = (values!(&y, F32), values!(&weight, U8));
        let (y, weight) = (y.view(), weight.view());
        NdArrayTensor::from_data(slices::frozen_transposed(&slice!(y), &slice!(weight), rows))
    }
}

impl AdaptedOps for NdArray {
    fn adapted_linear(
        x: FloatTensor<Self>,
        weight: IntTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        rows: FrozenRows,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (x, weight, a, b) = (values!(&x, F32), values!(&weight, U8), values!(&a, F32), values!(&b, F32));
        let (x, weight, a, b) = (x.view(), weight.view(), a.view(), b.view());
        let factors = [&*slice!(a), &*slice!(b)];
        slices::adapted_linear(&slice!(x), &slice!(weight), factors, rows, scale).map(NdArrayTensor::from_data).into()
    }

    fn factor_gradients(
        g: FloatTensor<Self>,
        x: FloatTensor<Self>,
        u: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (g, x, u, b) = (values!(&g, F32), values!(&x, F32), values!(&u, F32), values!(&b, F32));
        let sizes = [g.shape()[1], x.shape()[1], u.shape()[1]];
        let (g, x, u, b) = (g.view(), x.view(), u.view(), b.view());
        let operands = [&*slice!(g), &*slice!(x), &*slice!(u), &*slice!(b)];
        slices::factor_gradients(operands, sizes, scale).map(NdArrayTensor::from_data).into()
    }

    fn adapted_transposed(
        g: FloatTensor<Self>,
        v: FloatTensor<Self>,
        weight: IntTensor<Self>,
        a: FloatTensor<Self>,
        rows: FrozenRows,
    ) -> FloatTensor<Self> {
        let (g, v, weight, a) = (values!(&g, F32), values!(&v, F32), values!(&weight, U8), values!(&a, F32));
        let (g, v, weight, a) = (g.view(), v.view(), weight.view(), a.view());
        let operands = [&*slice!(g), &*slice!(v), &*slice!(a)];
        NdArrayTensor::from_data(slices::adapted_transposed(operands, &slice!(weight), rows))
    }
}

impl WholeAttentionOps for NdArray {
    fn whole_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        sequences: Vec<WholeSequence>,
        params: AttendParams,
    ) -> FloatTensor<Self> {
        let (q, k, v) = (values!(&q, F32), values!(&k, F32), values!(&v, F32));
        let (dims, [_, kv_heads, _]) = (slices::dims(q.shape()), slices::dims(k.shape()));
        let (q, k, v) = (q.view(), k.view(), v.view());
        let rows = [&*slice!(q), &*slice!(k), &*slice!(v)];
        NdArrayTensor::from_data(slices::whole_attention(rows, dims, kv_heads, &sequences, params))
    }

    fn whole_attention_gradient(
        from_above: FloatTensor<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        sequences: Vec<WholeSequence>,
        params: AttendParams,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (from_above, q) = (values!(&from_above, F32), values!(&q, F32));
        let (k, v) = (values!(&k, F32), values!(&v, F32));
        let (dims, [_, kv_heads, _]) = (slices::dims(q.shape()), slices::dims(k.shape()));
        let (from_above, q, k, v) = (from_above.view(), q.view(), k.view(), v.view());
        let (from_above, rows) = (slice!(from_above), [&*slice!(q), &*slice!(k), &*slice!(v)]);
        let gradients = slices::whole_attention_gradient(&from_above, rows, dims, kv_heads, &sequences, params);
        gradients.map(NdArrayTensor::from_data).into()
    }
}

impl AttentionOps for NdArray {
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        segments: &[AttendSegment<'_>],
        params: AttendParams,
    ) -> FloatTensor<Self> {
        let (q, k, v) = (values!(&q, F32), values!(&k, F32), values!(&v, F32));
        let (dims, [_, kv_heads, _]) = (slices::dims(q.shape()), slices::dims(k.shape()));
        let (q, k, v) = (q.view(), k.view(), v.view());
        let rows = [&*slice!(q), &*slice!(k), &*slice!(v)];
        NdArrayTensor::from_data(slices::attend(rows, dims, kv_heads, segments, params))
    }

    fn append(k: FloatTensor<Self>, v: FloatTensor<Self>, caches: &mut [CacheRows<'_>]) -> usize {
        let (k, v) = (values!(&k, F32), values!(&v, F32));
        let dims = slices::dims(k.shape());
        let (k, v) = (k.view(), v.view());
        slices::append([&*slice!(k), &*slice!(v)], dims, caches)
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
        NdArrayTensor::from_data(slices::linear_recurrence(operands, &bounds, channels, backwards))
    }
}

impl GateOps for NdArray {
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
        let (x, recurrent_param) = (values!(&x, F32), values!(&recurrent_param, F32));
        let (input_weight, input_bias) = (values!(&input_weight, F32), values!(&input_bias, F32));
        let (recurrent_weight, recurrent_bias) = (values!(&recurrent_weight, F32), values!(&recurrent_bias, F32));
        let (x, recurrent_param) = (x.view(), recurrent_param.view());
        let (input_weight, input_bias) = (input_weight.view(), input_bias.view());
        let (recurrent_weight, recurrent_bias) = (recurrent_weight.view(), recurrent_bias.view());
        let gates = Gates {
            x: &slice!(x),
            input: (&slice!(input_weight), &slice!(input_bias)),
            recurrent: (&slice!(recurrent_weight), &slice!(recurrent_bias)),
            recurrent_param: &slice!(recurrent_param),
            begins: &begins,
            blocks,
        };
        slices::gated_decay(gates).map(NdArrayTensor::from_data).into()
    }
}

impl ConvOps for NdArray {
    fn causal_conv(
        line: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        firsts: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let (line, weight) = (values!(&line, F32), values!(&weight, F32));
        let (bias, firsts) = (values!(&bias, F32), values!(&firsts, U32));
        let (line, weight, bias, firsts) = (line.view(), weight.view(), bias.view(), firsts.view());
        let factors = [&*slice!(weight), &*slice!(bias)];
        NdArrayTensor::from_data(slices::causal_conv(&slice!(line), factors, &slice!(firsts)))
    }
}

impl HeadOps for NdArray {
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

impl ResidualOps for NdArray {
    fn add_then_norm(
        residual: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        branch_weight: FloatTensor<Self>,
        sum_weight: FloatTensor<Self>,
        eps: ResidualEps,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (residual, branch) = (values!(&residual, F32), values!(&branch, F32));
        let (first, second) = (values!(&branch_weight, F32), values!(&sum_weight, F32));
        let (residual, branch, first, second) = (residual.view(), branch.view(), first.view(), second.view());
        let operands = [&*slice!(residual), &*slice!(branch)];
        let (sum, normed) = slices::add_then_norm(operands, [&*slice!(first), &*slice!(second)], eps);
        (NdArrayTensor::from_data(sum), NdArrayTensor::from_data(normed))
    }
}

impl LargestOps for NdArray {
    fn largest(_logits: FloatTensor<Self>, _count: usize) -> IntTensor<Self> {
        unreachable!("a CPU's logits are read where they lie")
    }
}

impl ElementwiseOps for NdArray {
    fn elementwise(
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        operation: Elementwise,
    ) -> FloatTensor<Self> {
        let (x, first, second) = (values!(&x, F32), values!(&first, F32), values!(&second, F32));
        let dims = x.shape().to_vec();
        let (x, first, second) = (x.view(), first.view(), second.view());
        let operands = [&*slice!(first), &*slice!(second)];
        NdArrayTensor::from_data(slices::elementwise(&slice!(x), operands, &dims, operation))
    }

    fn elementwise_gradient(
        from_above: FloatTensor<Self>,
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        operation: Elementwise,
    ) -> FloatTensor<Self> {
        let (from_above, x) = (values!(&from_above, F32), values!(&x, F32));
        let (first, second) = (values!(&first, F32), values!(&second, F32));
        let dims = x.shape().to_vec();
        let (from_above, x, first, second) = (from_above.view(), x.view(), first.view(), second.view());
        let operands = [&*slice!(first), &*slice!(second)];
        let gradient = slices::elementwise_gradient(&slice!(from_above), &slice!(x), operands, &dims, operation);
        NdArrayTensor::from_data(gradient)
    }

    fn geglu_gradient(
        from_above: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        // in the operands' memory, where nobody else has them
        let (mut gate, mut up) = (values!(gate, F32), values!(up, F32));
        let from_above = values!(&from_above, F32).view();
        let [gate_array, up_array] = [&mut gate, &mut up].map(|operand| {
            let array = operand.ensure_owned();
            if !array.is_standard_layout() {
                *array = array.as_standard_layout().into_owned().into_shared();
            }
            array
        });
        let contiguous = "in standard layout, as was just made sure";
        let of_gate = gate_array.as_slice_mut().expect(contiguous);
        let of_up = up_array.as_slice_mut().expect(contiguous);
        cpu::geglu_gradient(cpu::cpu_isa(), &slice!(from_above), of_gate, of_up);
        (NdArrayTensor::F32(gate), NdArrayTensor::F32(up))
    }
}
