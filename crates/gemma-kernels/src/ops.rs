//! The operations at the level of tensors, and the backend extension below them.

use crate::{ActivationPrecision, AttendParams, Format, PackedWeight, Past, plain};
use burn::backend::{
    Backend, Dispatch, backend_extension,
    tensor::{FloatTensor, IntTensor},
};

use burn::tensor::{DType, Int, Tensor, TensorData};

// The attribute names every backend of the list, ndarray included, which Burn 0.22 deprecates and this workspace promises.
#[allow(deprecated, reason = "ndarray is one of the backends this workspace promises")]
mod extension {
    use super::*;

    /// What a backend must be able to do for the models. The functions of the same names are the way to call it.
    #[backend_extension(NdArray: cfg(feature = "ndarray"), Flex: cfg(feature = "flex"), Cube: cfg(feature = "wgpu"))]
    pub trait KernelOps: Backend {
        /// See [`packed_linear`].
        fn packed_linear(
            x: FloatTensor<Self>,
            weight: IntTensor<Self>,
            format: Format,
            cols: usize,
            activations: ActivationPrecision,
        ) -> FloatTensor<Self>;
        /// See [`packed_rows`].
        fn packed_rows(
            weight: IntTensor<Self>,
            rows: IntTensor<Self>,
            format: Format,
            cols: usize,
        ) -> FloatTensor<Self>;
        /// See [`attend`].
        fn attend(
            q: FloatTensor<Self>,
            past_k: FloatTensor<Self>,
            past_v: FloatTensor<Self>,
            fresh_k: FloatTensor<Self>,
            fresh_v: FloatTensor<Self>,
            params: AttendParams,
        ) -> FloatTensor<Self>;
        /// See [`attend`], with a past in [`halves`](crate::halves).
        fn attend_halves(
            q: FloatTensor<Self>,
            past_k: IntTensor<Self>,
            past_v: IntTensor<Self>,
            fresh_k: FloatTensor<Self>,
            fresh_v: FloatTensor<Self>,
            params: AttendParams,
        ) -> FloatTensor<Self>;
        /// See [`halves`](crate::halves).
        fn halves(values: FloatTensor<Self>) -> IntTensor<Self>;
    }
}

pub use extension::KernelOps;

/// `y = x Wᵀ`: `[tokens, cols]` to `[tokens, rows]`, f32, accumulated in f32. On the CPU, the weight's
/// [`activations`](PackedWeight::activations) say how finely `x` is represented in the product.
///
/// On an autodiff device the product is differentiable with respect to `x`; the weight is a constant.
///
/// # Panics
/// When the shapes do not match.
pub fn packed_linear(x: Tensor<2>, weight: &PackedWeight) -> Tensor<2> {
    let [_, cols] = x.dims();
    assert_eq!(cols, weight.cols(), "a product of {cols} inputs with a matrix of {} columns", weight.cols());
    if x.is_autodiff() {
        return crate::packed_linear_rows(x, weight, 0..weight.rows());
    }
    let one = |shard: &Tensor<2, Int>| {
        Tensor::from_dispatch(<Dispatch as KernelOps>::packed_linear(
            x.clone().into_dispatch(),
            shard.clone().into_dispatch(),
            weight.format(),
            cols,
            weight.activations(),
        ))
    };
    match weight.shards() {
        [shard] => one(shard),
        shards => Tensor::cat(shards.iter().map(one).collect(), 1),
    }
}

/// Rows of a packed matrix as f32 values: `[rows.len(), cols]`. An embedding look-up.
///
/// # Panics
/// When an id is not a row of the matrix.
pub fn packed_rows(weight: &PackedWeight, rows: &[u32]) -> Tensor<2> {
    let count = weight.rows();
    assert!(rows.iter().all(|row| (*row as usize) < count), "a row id is outside the matrix of {count} rows");
    let device = weight.device();
    let gather = |shard: &Tensor<2, Int>, ids: Vec<i32>| {
        let len = ids.len();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [len]), (&device, DType::I32));
        Tensor::<2>::from_dispatch(<Dispatch as KernelOps>::packed_rows(
            shard.clone().into_dispatch(),
            ids.into_dispatch(),
            weight.format(),
            weight.cols(),
        ))
    };
    if let [shard] = weight.shards() {
        return gather(shard, rows.iter().map(|row| *row as i32).collect());
    }
    // runs of ids that lie in one shard are gathered together, in order
    let shard_of = |row: u32| row as usize / weight.rows_per_shard();
    let parts = rows
        .chunk_by(|a, b| shard_of(*a) == shard_of(*b))
        .map(|run| {
            let shard = shard_of(run[0]);
            let first = (shard * weight.rows_per_shard()) as u32;
            gather(&weight.shards()[shard], run.iter().map(|row| (row - first) as i32).collect())
        })
        .collect();
    Tensor::cat(parts, 0)
}

/// Softmax attention of one segment over what was read before and over itself.
///
/// - `q` `[tokens, heads, head_dim]`, rotated; `fresh_k`, `fresh_v` `[tokens, kv_heads, head_dim]`, the segment's own;
/// - `past` the cache's key and value buffers, read in place: slot `s` holds the
///   last position before `params.start` that is congruent to `s` modulo the capacity. `None`: nothing before.
///
/// Query head `n` reads key head `n / (heads / kv_heads)`. Scores are `scale q·k`, capped, then softmax over the keys
/// that [`AttendParams::allows`]. The result is `[tokens, heads, head_dim]`.
///
/// On an autodiff device this is [`plain::attend`], which is differentiable and knows no past.
///
/// # Panics
/// When the shapes do not match, or on an autodiff device with a past.
pub fn attend(
    q: Tensor<3>,
    past: Option<Past<'_>>,
    fresh_k: Tensor<3>,
    fresh_v: Tensor<3>,
    params: AttendParams,
) -> Tensor<3> {
    if q.is_autodiff() {
        assert!(past.is_none(), "training reads sequences whole, without a cache");
        return plain::attend(q, fresh_k, fresh_v, &params);
    }
    if let Some(past) = past {
        let held = past.capacity();
        let reach = params.visible(params.start, params.start).start.min(params.start);
        assert!(
            params.start - reach <= held,
            "the cache holds {held} tokens, fewer than the attention window reaches back"
        );
    }
    let [_, kv_heads, head_dim] = fresh_k.dims();
    let (q, device) = (q.into_dispatch(), fresh_k.device());
    let (fresh_k, fresh_v) = (fresh_k.into_dispatch(), fresh_v.into_dispatch());
    Tensor::from_dispatch(match past {
        Some(Past::F32(k, v)) => {
            let (k, v) = (k.clone().into_dispatch(), v.clone().into_dispatch());
            <Dispatch as KernelOps>::attend(q, k, v, fresh_k, fresh_v, params)
        }
        Some(Past::F16(k, v)) => {
            let (k, v) = (k.clone().into_dispatch(), v.clone().into_dispatch());
            <Dispatch as KernelOps>::attend_halves(q, k, v, fresh_k, fresh_v, params)
        }
        None => {
            // a stand-in of one slot, which no query looks at: positions count from the segment's first token
            let nothing = Tensor::<3>::zeros([1, kv_heads, head_dim], &device).into_dispatch();
            assert!(params.start == 0, "a segment that starts at {} needs its past", params.start);
            <Dispatch as KernelOps>::attend(q, nothing.clone(), nothing, fresh_k, fresh_v, params)
        }
    })
}

/// The slices of the CPU backends' tensors, and the shared kernels on them.
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod on_cpu {
    use crate::cpu::{self, AttendShape, Keys, cpu_level};
    use crate::{ActivationPrecision, AttendParams, Format};
    use burn::tensor::TensorData;
    use std::mem::MaybeUninit;

    pub(super) fn packed_linear(
        x: &[f32],
        weight: &[u8],
        format: Format,
        cols: usize,
        activations: ActivationPrecision,
    ) -> TensorData {
        let row_bytes = format.row_bytes(cols).expect("a packed weight has whole blocks");
        let (tokens, rows) = (x.len() / cols, weight.len() / row_bytes);
        let product =
            |out: &mut [MaybeUninit<f32>]| cpu::linear(cpu_level(), activations, x, weight, format, cols, out);
        // SAFETY: a product writes every value.
        TensorData::new(unsafe { cpu::written(tokens * rows, product) }, [tokens, rows])
    }

    pub(super) fn packed_rows(weight: &[u8], rows: &[i32], format: Format, cols: usize) -> TensorData {
        let mut out = vec![0.0; rows.len() * cols];
        let ids = rows.iter().map(|row| usize::try_from(*row).expect("ids were checked"));
        cpu::rows(weight, ids, format, cols, &mut out);
        TensorData::new(out, [rows.len(), cols])
    }

    pub(super) fn attend(
        q: &[f32],
        keys: Keys<'_>,
        q_dims: [usize; 3],
        past_dims: [usize; 3],
        params: AttendParams,
    ) -> TensorData {
        let [tokens, heads, head_dim] = q_dims;
        let [capacity, kv_heads, _] = past_dims;
        let shape = AttendShape { tokens, heads, kv_heads, head_dim, capacity };
        let attend = |out: &mut [MaybeUninit<f32>]| cpu::attend(cpu_level(), q, keys, shape, params, out);
        // SAFETY: attention writes every value.
        TensorData::new(unsafe { cpu::written(q.len(), attend) }, q_dims)
    }

    pub(super) fn halves(values: &[f32], [a, b, dim]: [usize; 3]) -> TensorData {
        let word = |pair: &[f32; 2]| {
            let [low, high] = pair.map(|value| u32::from(crate::past::half_of(value).to_bits()));
            low | high << 16
        };
        TensorData::new(values.as_chunks().0.iter().map(word).collect(), [a, b, dim / 2])
    }

    pub(super) fn dims<const D: usize>(shape: &[usize]) -> [usize; D] {
        shape.try_into().expect("the rank is fixed by the public function")
    }
}

#[cfg(feature = "ndarray")]
#[allow(deprecated, reason = "ndarray is one of the two backends this workspace promises")]
pub(crate) mod ndarray {
    use super::{KernelOps, on_cpu};
    use crate::cpu::{Keys, Stored};
    use crate::{ActivationPrecision, AttendParams, Format};
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

    pub(crate) use {slice, values};

    impl KernelOps for NdArray {
        fn packed_linear(
            x: FloatTensor<Self>,
            weight: IntTensor<Self>,
            format: Format,
            cols: usize,
            activations: ActivationPrecision,
        ) -> FloatTensor<Self> {
            let (x, weight) = (values!(&x, F32), values!(&weight, U8));
            let (x, weight) = (x.view(), weight.view());
            NdArrayTensor::from_data(on_cpu::packed_linear(&slice!(x), &slice!(weight), format, cols, activations))
        }

        fn packed_rows(
            weight: IntTensor<Self>,
            rows: IntTensor<Self>,
            format: Format,
            cols: usize,
        ) -> FloatTensor<Self> {
            let (weight, rows) = (values!(&weight, U8), values!(&rows, I32));
            let (weight, rows) = (weight.view(), rows.view());
            NdArrayTensor::from_data(on_cpu::packed_rows(&slice!(weight), &slice!(rows), format, cols))
        }

        fn attend(
            q: FloatTensor<Self>,
            past_k: FloatTensor<Self>,
            past_v: FloatTensor<Self>,
            fresh_k: FloatTensor<Self>,
            fresh_v: FloatTensor<Self>,
            params: AttendParams,
        ) -> FloatTensor<Self> {
            let (q, past_k, past_v) = (values!(&q, F32), values!(&past_k, F32), values!(&past_v, F32));
            let (fresh_k, fresh_v) = (values!(&fresh_k, F32), values!(&fresh_v, F32));
            let (q_dims, past_dims) = (on_cpu::dims(q.shape()), on_cpu::dims(past_k.shape()));
            let (q, past_k, past_v, fresh_k, fresh_v) =
                (q.view(), past_k.view(), past_v.view(), fresh_k.view(), fresh_v.view());
            let (past_k, past_v, fresh_k, fresh_v) = (slice!(past_k), slice!(past_v), slice!(fresh_k), slice!(fresh_v));
            let keys = Keys { past: Stored::F32(&past_k, &past_v), fresh_k: &fresh_k, fresh_v: &fresh_v };
            NdArrayTensor::from_data(on_cpu::attend(&slice!(q), keys, q_dims, past_dims, params))
        }

        fn attend_halves(
            q: FloatTensor<Self>,
            past_k: IntTensor<Self>,
            past_v: IntTensor<Self>,
            fresh_k: FloatTensor<Self>,
            fresh_v: FloatTensor<Self>,
            params: AttendParams,
        ) -> FloatTensor<Self> {
            let (q, past_k, past_v) = (values!(&q, F32), values!(&past_k, U32), values!(&past_v, U32));
            let (fresh_k, fresh_v) = (values!(&fresh_k, F32), values!(&fresh_v, F32));
            let (q_dims, past_dims) = (on_cpu::dims(q.shape()), on_cpu::dims(past_k.shape()));
            let (q, past_k, past_v, fresh_k, fresh_v) =
                (q.view(), past_k.view(), past_v.view(), fresh_k.view(), fresh_v.view());
            let (past_k, past_v, fresh_k, fresh_v) = (slice!(past_k), slice!(past_v), slice!(fresh_k), slice!(fresh_v));
            let keys = Keys { past: Stored::words(&past_k, &past_v), fresh_k: &fresh_k, fresh_v: &fresh_v };
            NdArrayTensor::from_data(on_cpu::attend(&slice!(q), keys, q_dims, past_dims, params))
        }

        fn halves(x: FloatTensor<Self>) -> IntTensor<Self> {
            let x = values!(&x, F32);
            let dims = on_cpu::dims(x.shape());
            NdArrayTensor::from_data(on_cpu::halves(&slice!(x.view()), dims))
        }
    }
}

#[cfg(feature = "flex")]
pub(crate) mod flex {
    use super::{KernelOps, on_cpu};
    use crate::cpu::{Keys, Stored};
    use crate::{ActivationPrecision, AttendParams, Format};
    use burn::backend::{
        Flex,
        flex::FlexTensor,
        tensor::{FloatTensor, IntTensor},
    };

    /// The tensor in row-major order, copied only when it is a view that is not.
    pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
        if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
    }

    macro_rules! slice {
        ($tensor:expr, $kind:ty) => {
            $tensor.as_slice::<$kind>().expect("contiguous, and of the kind that the public function made")
        };
    }

    pub(crate) use slice;

    impl KernelOps for Flex {
        fn packed_linear(
            x: FloatTensor<Self>,
            weight: IntTensor<Self>,
            format: Format,
            cols: usize,
            activations: ActivationPrecision,
        ) -> FloatTensor<Self> {
            let x = contiguous(x);
            FlexTensor::from_data(on_cpu::packed_linear(slice!(x, f32), slice!(weight, u8), format, cols, activations))
        }

        fn packed_rows(
            weight: IntTensor<Self>,
            rows: IntTensor<Self>,
            format: Format,
            cols: usize,
        ) -> FloatTensor<Self> {
            FlexTensor::from_data(on_cpu::packed_rows(slice!(weight, u8), slice!(rows, i32), format, cols))
        }

        fn attend(
            q: FloatTensor<Self>,
            past_k: FloatTensor<Self>,
            past_v: FloatTensor<Self>,
            fresh_k: FloatTensor<Self>,
            fresh_v: FloatTensor<Self>,
            params: AttendParams,
        ) -> FloatTensor<Self> {
            let [q, past_k, past_v, fresh_k, fresh_v] = [q, past_k, past_v, fresh_k, fresh_v].map(contiguous);
            let past = Stored::F32(slice!(past_k, f32), slice!(past_v, f32));
            let keys = Keys { past, fresh_k: slice!(fresh_k, f32), fresh_v: slice!(fresh_v, f32) };
            let (q_dims, past_dims) = (on_cpu::dims(q.layout().shape()), on_cpu::dims(past_k.layout().shape()));
            FlexTensor::from_data(on_cpu::attend(slice!(q, f32), keys, q_dims, past_dims, params))
        }

        fn attend_halves(
            q: FloatTensor<Self>,
            past_k: IntTensor<Self>,
            past_v: IntTensor<Self>,
            fresh_k: FloatTensor<Self>,
            fresh_v: FloatTensor<Self>,
            params: AttendParams,
        ) -> FloatTensor<Self> {
            let [q, past_k, past_v, fresh_k, fresh_v] = [q, past_k, past_v, fresh_k, fresh_v].map(contiguous);
            let past = Stored::words(slice!(past_k, u32), slice!(past_v, u32));
            let keys = Keys { past, fresh_k: slice!(fresh_k, f32), fresh_v: slice!(fresh_v, f32) };
            let (q_dims, past_dims) = (on_cpu::dims(q.layout().shape()), on_cpu::dims(past_k.layout().shape()));
            FlexTensor::from_data(on_cpu::attend(slice!(q, f32), keys, q_dims, past_dims, params))
        }

        fn halves(x: FloatTensor<Self>) -> IntTensor<Self> {
            let x = contiguous(x);
            let dims = on_cpu::dims(x.layout().shape());
            FlexTensor::from_data(on_cpu::halves(slice!(x, f32), dims))
        }
    }
}

#[cfg(feature = "wgpu")]
mod cube {
    use super::KernelOps;
    use crate::{ActivationPrecision, AttendParams, Format, cube};
    use burn::backend::tensor::{FloatTensor, IntTensor};
    use burn_cubecl::CubeBackend;

    impl KernelOps for CubeBackend {
        fn packed_linear(
            x: FloatTensor<Self>,
            weight: IntTensor<Self>,
            format: Format,
            cols: usize,
            _activations: ActivationPrecision, // f32 there, always
        ) -> FloatTensor<Self> {
            cube::packed_linear(x, weight, format, cols)
        }

        fn packed_rows(
            weight: IntTensor<Self>,
            rows: IntTensor<Self>,
            format: Format,
            cols: usize,
        ) -> FloatTensor<Self> {
            cube::packed_rows(weight, rows, format, cols)
        }

        fn attend(
            q: FloatTensor<Self>,
            past_k: FloatTensor<Self>,
            past_v: FloatTensor<Self>,
            fresh_k: FloatTensor<Self>,
            fresh_v: FloatTensor<Self>,
            params: AttendParams,
        ) -> FloatTensor<Self> {
            cube::attend(q, [past_k, past_v], false, [fresh_k, fresh_v], params)
        }

        fn attend_halves(
            q: FloatTensor<Self>,
            past_k: IntTensor<Self>,
            past_v: IntTensor<Self>,
            fresh_k: FloatTensor<Self>,
            fresh_v: FloatTensor<Self>,
            params: AttendParams,
        ) -> FloatTensor<Self> {
            cube::attend(q, [past_k, past_v], true, [fresh_k, fresh_v], params)
        }

        fn halves(x: FloatTensor<Self>) -> IntTensor<Self> {
            cube::halves(x)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cpu::noise;
    use burn::tensor::Device;
    use gemma_backend::Backend;

    pub(crate) fn devices() -> Vec<(Backend, Device)> {
        Backend::compiled()
            .into_iter()
            .map(|backend| (backend, backend.device().expect("a compiled backend opens")))
            .collect()
    }

    pub(crate) fn tensor<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new(noise(shape.iter().product(), seed), shape), device)
    }

    pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_into_vec().expect("f32")
    }

    pub(crate) fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, context: &str) {
        assert_eq!(found.len(), expected.len(), "{context}");
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            assert!((a - b).abs() <= tolerance, "{context}: value {i} is {a}, expected {b}");
        }
    }

    #[test]
    fn packed_products_and_rows_equal_dense_ones() {
        for (backend, device) in devices() {
            for format in Format::ALL {
                for (rows, cols) in [(1, 32), (7, 96), (300, 64), (65, 160), (9, 5), (3, 1), (40, 33), (5, 512)] {
                    let Some(row_bytes) = format.row_bytes(cols) else { continue };
                    let dense = noise(rows * cols, 3);
                    let mut decoded = vec![0.0; rows * cols];
                    let mut bytes = vec![0; row_bytes];
                    for (from, to) in dense.chunks(cols).zip(decoded.chunks_mut(cols)) {
                        format.encode_row(from, &mut bytes);
                        format.decode_row(&bytes, to);
                    }
                    let weight = PackedWeight::encode(&dense, format, rows, cols, &device).unwrap();
                    let twin = Tensor::<2>::from_data(TensorData::new(decoded.clone(), [rows, cols]), &device);
                    for tokens in [1, 2, 5, 17, 70] {
                        let x = tensor([tokens, cols], 4, &device);
                        let context = format!("{backend} {format} {tokens} x {cols} x {rows}");
                        let expected = values(x.clone().matmul(twin.clone().transpose()));
                        // a prompt's operands are bf16 where the CPU has instructions for that
                        let fine = if tokens > 8 { 0.2 } else { 5e-4 };
                        for (activations, tolerance) in
                            [(ActivationPrecision::F32, 1e-4), (ActivationPrecision::Int16OrBf16, fine)]
                        {
                            let weight = weight.clone().with_activations(activations);
                            assert_close(&values(packed_linear(x.clone(), &weight)), &expected, tolerance, &context);
                        }
                    }
                    let ids: Vec<u32> = (0..rows as u32).rev().chain([0, 0]).collect();
                    let expected: Vec<f32> =
                        ids.iter().flat_map(|id| decoded[*id as usize * cols..][..cols].to_vec()).collect();
                    assert_close(
                        &values(packed_rows(&weight, &ids)),
                        &expected,
                        1e-6,
                        &format!("{backend} {format} rows"),
                    );
                }
            }
        }
    }

    #[test]
    fn a_view_that_is_not_contiguous_is_read_in_its_own_order() {
        for (backend, device) in devices() {
            let x = tensor([32, 6], 5, &device);
            let weight = PackedWeight::encode(&noise(32 * 4, 6), Format::F32, 4, 32, &device).unwrap();
            let expected =
                values(packed_linear(Tensor::from_data(x.clone().transpose().into_data(), &device), &weight));
            assert_close(&values(packed_linear(x.transpose(), &weight)), &expected, 1e-6, &backend.to_string());
        }
    }

    #[test]
    fn attention_equals_its_plain_twin() {
        for (backend, device) in devices() {
            for (heads, kv_heads, head_dim) in [(4, 1, 16), (4, 2, 8), (3, 3, 5), (8, 1, 64), (2, 1, 1)] {
                for (start, tokens, capacity) in
                    [(0, 1, 1), (0, 9, 1), (5, 1, 8), (5, 4, 8), (20, 3, 6), (150, 2, 160), (6, 70, 6)]
                {
                    for (window, prefix_len, softcap) in [
                        (None, 0, None),
                        (Some(6), 0, Some(2.0)),
                        (Some(1), 0, None),
                        (None, 7, None),
                        (Some(6), 4, Some(1.0)),
                    ] {
                        // a ring holds what a window needs; a full cache holds everything; a prefix is read in one piece
                        let holds = capacity >= start || window.is_some_and(|window| window <= capacity);
                        let whole = start == 0 && tokens >= prefix_len || start >= prefix_len;
                        if !holds || !whole {
                            continue;
                        }
                        let params = AttendParams {
                            start,
                            prefix_len,
                            window,
                            scale: 0.4,
                            softcap,
                            activations: ActivationPrecision::F32,
                        };
                        let q = tensor([tokens, heads, head_dim], 7, &device);
                        let all_k = tensor([start + tokens, kv_heads, head_dim], 8, &device);
                        let all_v = tensor([start + tokens, kv_heads, head_dim], 9, &device);
                        let rows = |all: &Tensor<3>, from: usize, to: usize| {
                            all.clone().slice([from..to, 0..kv_heads, 0..head_dim])
                        };
                        let held: Vec<i32> = (0..capacity)
                            .map(|slot| params.position_of_slot(slot, capacity).unwrap_or(0) as i32)
                            .collect();
                        let held = Tensor::<1, Int>::from_data(TensorData::new(held, [capacity]), &device);
                        let (past_k, past_v) = (all_k.clone().select(0, held.clone()), all_v.clone().select(0, held));
                        let found = |past| {
                            let fresh = |all: &Tensor<3>| rows(all, start, start + tokens);
                            attend(q.clone(), past, fresh(&all_k), fresh(&all_v), params)
                        };
                        let past = (start > 0).then_some(Past::F32(&past_k, &past_v));
                        let positions: Vec<usize> = (0..start + tokens).collect();
                        let expected = plain::attend_at(q.clone(), all_k.clone(), all_v.clone(), &positions, &params);
                        let context = format!(
                            "{backend} {heads}/{kv_heads} heads of {head_dim}, {tokens} after {start} in {capacity}, {params:?}"
                        );
                        assert_close(&values(found(past)), &values(expected), 2e-5, &context);
                        if start > 0 && head_dim % 2 == 0 {
                            // halves are their values
                            let words = [&past_k, &past_v].map(|past| crate::halves(past.clone()));
                            let rounded = words.each_ref().map(crate::from_halves);
                            let expected = values(found(Some(Past::F32(&rounded[0], &rounded[1]))));
                            let found = values(found(Some(Past::F16(&words[0], &words[1]))));
                            assert_close(&found, &expected, 1e-6, &format!("{context} in halves"));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_frozen_product_passes_gradients_to_its_input() {
        for (backend, device) in devices() {
            let weight = PackedWeight::encode(&noise(3 * 32, 1), Format::Q8_0, 3, 32, &device).unwrap();
            let x = tensor([2, 32], 2, &device.clone().autodiff()).require_grad();
            let gradients = packed_linear(x.clone(), &weight).sum().backward();
            let found = values(x.grad(&gradients).expect("a gradient"));
            let dense = values(weight.dequantize());
            let expected: Vec<f32> = (0..64).map(|i| (0..3).map(|row| dense[row * 32 + i % 32]).sum()).collect();
            assert_close(&found, &expected, 1e-5, &backend.to_string());
        }
    }
}
