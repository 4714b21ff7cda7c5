//! CubeCL runtimes, wgpu above all.

use crate::cube;
use crate::kv::CachePrecision;
use crate::ops::attention::{AttendSegment, AttentionOps, CacheRows, PagedCall};
use crate::ops::elementwise::{Elementwise, ElementwiseOps};
use crate::ops::linear::{Arithmetic, LinearOps};
use crate::ops::recurrence::RecurrenceOps;
use crate::{AttendParams, Format};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn_cubecl::CubeBackend;

impl LinearOps for CubeBackend {
    fn packed_linear(
        x: FloatTensor<Self>,
        weight: IntTensor<Self>,
        format: Format,
        cols: usize,
        arithmetic: Arithmetic,
    ) -> FloatTensor<Self> {
        cube::packed_linear(x, weight, format, cols, arithmetic)
    }

    fn packed_rows(weight: IntTensor<Self>, rows: IntTensor<Self>, format: Format, cols: usize) -> FloatTensor<Self> {
        cube::packed_rows(weight, rows, format, cols)
    }
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
        let PagedCall { first, kv_heads, params, .. } = call;
        cube::attend(q, first, cube::Source::Rows([k, v]), kv_heads, [queries, tables], params)
    }

    fn attend_pages(
        q: FloatTensor<Self>,
        k: IntTensor<Self>,
        v: IntTensor<Self>,
        queries: IntTensor<Self>,
        tables: IntTensor<Self>,
        call: PagedCall,
    ) -> FloatTensor<Self> {
        let PagedCall { first, kv_heads, precision, params } = call;
        let source = cube::Source::Pages { buffers: [k, v], in_halves: precision == CachePrecision::F16 };
        cube::attend(q, first, source, kv_heads, [queries, tables], params)
    }

    fn write_pages(
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        keys: IntTensor<Self>,
        values: IntTensor<Self>,
        slots: IntTensor<Self>,
        call: PagedCall,
    ) -> usize {
        cube::write_pages([k, v], call.first, [keys, values], slots, call.precision == CachePrecision::F16)
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
        cube::linear_recurrence(a, b, initial, &bounds, backwards)
    }
}

impl ElementwiseOps for CubeBackend {
    fn elementwise(
        _x: FloatTensor<Self>,
        _first: FloatTensor<Self>,
        _second: FloatTensor<Self>,
        operation: Elementwise,
    ) -> FloatTensor<Self> {
        unreachable!("GPUs compute {operation:?} with Burn's operations")
    }
}
