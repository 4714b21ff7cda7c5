//! The CPU kernels on the slices of tensors in memory, for the ndarray and the flex backend alike.

use crate::cpu::{self, Gates, Heads, Keys, Recurrence, Sequence, Stored, cpu_isa};
use crate::kv::{MemoryPage, Page};
use crate::ops::attention::{AttendSegment, CacheRows};
use crate::ops::elementwise::Elementwise;
use crate::ops::frozen::FrozenRows;
use crate::ops::linear::{Arithmetic, LayerShape, LinearShape, LinearsShape};
use crate::ops::residual::ResidualEps;
use crate::{AttendParams, Format, Phase, WholeSequence};
use burn::tensor::TensorData;
use std::mem::MaybeUninit;

pub(super) fn packed_linear(x: &[f32], weight: &[u8], bias: &[f32], shape: LinearShape) -> TensorData {
    let LinearShape { format, has_bias, cols, arithmetic } = shape;
    let (out, dims) = product(x, weight, format, cols, arithmetic);
    TensorData::new(cpu::biased(cpu_isa(), out, has_bias.then_some(bias)), dims)
}

pub(super) fn packed_linears(
    x: &[f32],
    weights: [&[u8]; 3],
    of_rows: [&[f32]; 3],
    shape: LinearsShape,
) -> (TensorData, TensorData, TensorData) {
    let LinearsShape { formats, biases, cols, arithmetic } = shape;
    let matrices = weights.into_iter().zip(formats);
    let matrices = matrices.map_while(|(weight, format)| Some(cpu::Matrix { weight, format: format? }));
    let tokens = x.len() / cols;
    let products = cpu::linears(cpu_isa(), arithmetic, x, cols, &matrices.collect::<Vec<_>>()).into_iter();
    let mut products = products.zip(biases).zip(of_rows);
    let mut next = || {
        let values = products.next().map(|((y, is_biased), bias)| cpu::biased(cpu_isa(), y, is_biased.then_some(bias)));
        let values = values.unwrap_or_default();
        let rows = values.len() / tokens.max(1);
        TensorData::new(values, [tokens, rows])
    };
    (next(), next(), next())
}

/// The biases and the matrices of the gate, its partner and the last product; what the layer does not have is ignored.
pub(super) fn feed_forward(
    x: &[f32],
    [gate_bias, up_bias, down_bias]: [&[f32]; 3],
    [gate, up, down]: [&[u8]; 3],
    layer: LayerShape,
) -> TensorData {
    let LayerShape { formats: (first, partner, last), biases, cols, arithmetic } = layer;
    let layer = cpu::FeedForward {
        gate: cpu::Matrix { weight: gate, format: first },
        up: partner.map(|format| cpu::Matrix { weight: up, format }),
        biases: [biases[0].then_some(gate_bias), biases[1].then_some(up_bias)],
        down: cpu::Matrix { weight: down, format: last },
    };
    let size = gate.len() / first.row_bytes(cols).expect("a packed weight has whole blocks");
    let rows = down.len() / last.row_bytes(size).expect("a packed weight has whole blocks");
    let write = |out: &mut [MaybeUninit<f32>]| cpu::feed_forward(cpu_isa(), arithmetic, x, cols, layer, out);
    let tokens = x.len() / cols;
    // SAFETY: it writes every value.
    let values = unsafe { cpu::written(tokens * rows, write) };
    TensorData::new(cpu::biased(cpu_isa(), values, biases[2].then_some(down_bias)), [tokens, rows])
}

/// A product and its shape.
fn product(x: &[f32], weight: &[u8], format: Format, cols: usize, arithmetic: Arithmetic) -> (Vec<f32>, [usize; 2]) {
    let row_bytes = format.row_bytes(cols).expect("a packed weight has whole blocks");
    let (tokens, rows) = (x.len() / cols, weight.len() / row_bytes);
    let product = |out: &mut [MaybeUninit<f32>]| cpu::linear(cpu_isa(), arithmetic, x, weight, format, cols, out);
    // SAFETY: a product writes every value.
    (unsafe { cpu::written(tokens * rows, product) }, [tokens, rows])
}

pub(super) fn packed_rows(weight: &[u8], rows: &[i32], format: Format, cols: usize) -> TensorData {
    let mut out = vec![0.0; rows.len() * cols];
    let ids = rows.iter().map(|row| usize::try_from(*row).expect("ids were checked"));
    cpu::rows(weight, ids, format, cols, &mut out);
    TensorData::new(out, [rows.len(), cols])
}

/// The bytes of some rows.
fn frozen_bytes(weight: &[u8], rows: FrozenRows) -> &[u8] {
    let row_bytes = rows.format.row_bytes(rows.cols).expect("a packed weight has whole blocks");
    &weight[rows.first * row_bytes..(rows.first + rows.count) * row_bytes]
}

/// What is trained is read like a prompt.
fn in_training(rows: FrozenRows) -> Arithmetic {
    Arithmetic { activations: rows.activations, phase: Phase::Prefill, batch_invariant: false }
}

pub(super) fn frozen_linear(x: &[f32], weight: &[u8], rows: FrozenRows) -> TensorData {
    let (out, dims) = product(x, frozen_bytes(weight, rows), rows.format, rows.cols, in_training(rows));
    TensorData::new(out, dims)
}

pub(super) fn frozen_transposed(y: &[f32], weight: &[u8], rows: FrozenRows) -> TensorData {
    let (out, dims) = transposed_product(y, weight, rows);
    TensorData::new(out, dims)
}

/// A transposed product and its shape.
fn transposed_product(y: &[f32], weight: &[u8], rows: FrozenRows) -> (Vec<f32>, [usize; 2]) {
    let FrozenRows { format, cols, count, activations, .. } = rows;
    let tokens = y.len() / count;
    let weight = frozen_bytes(weight, rows);
    let product = |out: &mut [MaybeUninit<f32>]| cpu::transposed(cpu_isa(), activations, y, weight, format, cols, out);
    // SAFETY: a product writes every value.
    (unsafe { cpu::written(tokens * cols, product) }, [tokens, cols])
}

/// `a` `[rank, cols]`, `b` `[rows, rank]`; the product, and what the factors make of `x` before the second one.
pub(super) fn adapted_linear(
    x: &[f32],
    weight: &[u8],
    [a, b]: [&[f32]; 2],
    rows: FrozenRows,
    scale: f32,
) -> [TensorData; 2] {
    let (mut y, dims) = product(x, frozen_bytes(weight, rows), rows.format, rows.cols, in_training(rows));
    let rank = a.len() / rows.cols;
    let u = cpu::narrow(cpu_isa(), x, a, rows.cols, scale);
    cpu::widen(cpu_isa(), &u, &cpu::transpose(cpu_isa(), b, rank), rows.count, &mut y);
    [TensorData::new(y, dims), TensorData::new(u, [dims[0], rank])]
}

/// `g` `[tokens, outputs]`, `x` `[tokens, inputs]`, `u` `[tokens, rank]`.
pub(super) fn factor_gradients(
    [g, x, u, b]: [&[f32]; 4],
    [outputs, inputs, rank]: [usize; 3],
    scale: f32,
) -> [TensorData; 3] {
    let isa = cpu_isa();
    let v = cpu::narrow(isa, g, &cpu::transpose(isa, b, rank), outputs, scale);
    let of_a = cpu::outer(isa, &v, x, inputs);
    let of_b = cpu::transpose(isa, &cpu::outer(isa, u, g, outputs), outputs);
    let tokens = g.len() / outputs;
    [TensorData::new(v, [tokens, rank]), TensorData::new(of_a, [rank, inputs]), TensorData::new(of_b, [outputs, rank])]
}

pub(super) fn adapted_transposed([g, v, a]: [&[f32]; 3], weight: &[u8], rows: FrozenRows) -> TensorData {
    let (mut out, dims) = transposed_product(g, weight, rows);
    cpu::widen(cpu_isa(), v, a, rows.cols, &mut out);
    TensorData::new(out, dims)
}

/// `q` `[tokens, heads, head_dim]`, `k` and `v` `[tokens, kv_heads, head_dim]`.
pub(super) fn attend(
    [q, k, v]: [&[f32]; 3],
    dims: [usize; 3],
    kv_heads: usize,
    segments: &[AttendSegment<'_>],
    params: AttendParams,
) -> TensorData {
    let [_, heads, head_dim] = dims;
    let mut first = 0;
    let sequences: Vec<Sequence<'_>> = segments
        .iter()
        .map(|segment| {
            let AttendSegment { start, len, blocks, phase, cache } = *segment;
            let rows = first * kv_heads * head_dim..(first + len) * kv_heads * head_dim;
            first += len;
            let keys = match cache {
                None => Keys::Rows(Stored::F32(&k[rows.clone()], &v[rows])),
                Some(cache) => {
                    let pages = cache.list().iter().map(|page| match page {
                        Page::Memory(page) => match &**page {
                            MemoryPage::F32([k, v]) => Stored::F32(k, v),
                            MemoryPage::F16([k, v]) => Stored::F16(k, v),
                            MemoryPage::Q8_0([k, v]) => Stored::Q8_0(k, v),
                        },
                        Page::Pool(_) => unreachable!("pages of a CPU"),
                    });
                    Keys::Pages { first: cache.base(), pages: pages.collect() }
                }
            };
            Sequence { start, len, blocks, phase, keys }
        })
        .collect();
    let heads = Heads { heads, kv_heads, head_dim };
    let attend = |out: &mut [MaybeUninit<f32>]| cpu::attend(cpu_isa(), q, &sequences, heads, &params, out);
    // SAFETY: attention writes every value.
    TensorData::new(unsafe { cpu::written(q.len(), attend) }, dims)
}

/// [`attend`] to sequences that are all there.
pub(super) fn whole_attention(
    rows: [&[f32]; 3],
    dims: [usize; 3],
    kv_heads: usize,
    sequences: &[WholeSequence],
    params: AttendParams,
) -> TensorData {
    let segments: Vec<AttendSegment<'_>> = sequences
        .iter()
        .map(|WholeSequence { len, blocks }| AttendSegment {
            start: 0,
            len: *len,
            blocks,
            phase: Phase::Prefill,
            cache: None,
        })
        .collect();
    attend(rows, dims, kv_heads, &segments, params)
}

/// The gradients of `q`, `k` and `v`.
pub(super) fn whole_attention_gradient(
    from_above: &[f32],
    rows: [&[f32]; 3],
    [tokens, heads, head_dim]: [usize; 3],
    kv_heads: usize,
    sequences: &[WholeSequence],
    params: AttendParams,
) -> [TensorData; 3] {
    let sizes = Heads { heads, kv_heads, head_dim };
    let gradients = cpu::attend_gradient(cpu_isa(), from_above, rows, sequences, sizes, &params);
    let mut heads = [heads, kv_heads, kv_heads].into_iter();
    gradients.map(|values| TensorData::new(values, [tokens, heads.next().expect("three of them"), head_dim]))
}

/// `k` and `v` `[tokens, kv_heads, head_dim]`.
pub(super) fn append([k, v]: [&[f32]; 2], [_, kv_heads, head_dim]: [usize; 3], caches: &mut [CacheRows<'_>]) -> usize {
    let row = kv_heads * head_dim;
    for CacheRows { cache, rows } in &mut *caches {
        let rows = rows.start * row..rows.end * row;
        cache.append([&k[rows.clone()], &v[rows]], [kv_heads, head_dim]);
    }
    caches.iter().map(|cache| cache.rows.len()).sum()
}

/// `dims` are those of `x`.
pub(super) fn elementwise(
    x: &[f32],
    [first, second]: [&[f32]; 2],
    dims: &[usize],
    operation: Elementwise,
) -> TensorData {
    let write = |out: &mut [MaybeUninit<f32>]| match operation {
        Elementwise::GeGlu => cpu::geglu(cpu_isa(), x, first, out),
        Elementwise::RmsNorm { eps } => cpu::rms_norm(cpu_isa(), x, first, eps, out),
        Elementwise::Rotate => {
            let &[tokens, heads, head_dim] = dims else { unreachable!("heads have three axes") };
            let half = first.len() / tokens.max(1);
            cpu::rotate(cpu_isa(), x, [first, second], [heads, head_dim, half], 1.0, out);
        }
        Elementwise::AddBias => cpu::add_bias(cpu_isa(), x, first, out),
        Elementwise::GeluOfBiased => cpu::gelu_of_biased(cpu_isa(), x, first, out),
        Elementwise::LayerNorm { eps } => cpu::layer_norm(cpu_isa(), x, [first, second], eps, out),
        Elementwise::Softcap { cap } => cpu::softcap(cpu_isa(), x, cap, out),
    };
    // SAFETY: each writes every value.
    let out = unsafe { cpu::written(x.len(), write) };
    TensorData::new(out, dims.to_vec())
}

/// The gradient with respect to `x`, of which `dims` are.
pub(super) fn elementwise_gradient(
    from_above: &[f32],
    x: &[f32],
    [first, second]: [&[f32]; 2],
    dims: &[usize],
    operation: Elementwise,
) -> TensorData {
    let write = |out: &mut [MaybeUninit<f32>]| match operation {
        Elementwise::GeGlu => unreachable!("its operands' gradients come together"),
        Elementwise::AddBias
        | Elementwise::GeluOfBiased
        | Elementwise::LayerNorm { .. }
        | Elementwise::Softcap { .. } => {
            unreachable!("its reference implementation is differentiated")
        }
        Elementwise::RmsNorm { eps } => cpu::rms_norm_gradient(cpu_isa(), from_above, x, first, eps, out),
        Elementwise::Rotate => {
            let &[tokens, heads, head_dim] = dims else { unreachable!("heads have three axes") };
            let half = first.len() / tokens.max(1);
            cpu::rotate(cpu_isa(), from_above, [first, second], [heads, head_dim, half], -1.0, out);
        }
    };
    // SAFETY: each writes every value.
    let out = unsafe { cpu::written(x.len(), write) };
    TensorData::new(out, dims.to_vec())
}

/// `residual` and `branch` `[tokens, width]`, the weights `[width]`, that of the branch first.
pub(super) fn add_then_norm(
    [residual, branch]: [&[f32]; 2],
    [branch_weight, weight]: [&[f32]; 2],
    eps: ResidualEps,
) -> (TensorData, TensorData) {
    let branch_norm = eps.branch.map(|eps| (branch_weight, eps));
    let (len, dims) = (branch.len(), [branch.len() / weight.len().max(1), weight.len()]);
    let mut normed = Vec::new();
    let write = |sums: &mut [MaybeUninit<f32>]| {
        let write = |out: &mut [MaybeUninit<f32>]| {
            cpu::add_then_norm(cpu_isa(), [residual, branch], branch_norm, (weight, eps.sum), sums, out);
        };
        // SAFETY: it writes every value of both.
        normed = unsafe { cpu::written(len, write) };
    };
    // SAFETY: as above.
    let sums = unsafe { cpu::written(len, write) };
    (TensorData::new(sums, dims), TensorData::new(normed, dims))
}

pub(super) fn causal_conv(line: &[f32], [weight, bias]: [&[f32]; 2], firsts: &[u32]) -> TensorData {
    let write = |out: &mut [MaybeUninit<f32>]| cpu::causal_conv(cpu_isa(), line, weight, bias, firsts, out);
    // SAFETY: it writes every value.
    let out = unsafe { cpu::written(firsts.len() * bias.len(), write) };
    TensorData::new(out, [firsts.len(), bias.len()])
}

pub(super) fn linear_recurrence(
    [a, b, initial]: [&[f32]; 3],
    bounds: &[usize],
    channels: usize,
    backwards: bool,
) -> TensorData {
    let mut out = vec![0.0; a.len()];
    let operands = Recurrence { a, b, initial, bounds, channels };
    cpu::linear_recurrence(cpu_isa(), operands, backwards, &mut out);
    let tokens = bounds.last().copied().unwrap_or(0);
    TensorData::new(out, [tokens, channels])
}

pub(super) fn gated_decay(gates: Gates<'_>) -> [TensorData; 2] {
    let (mut a, mut b) = (vec![0.0; gates.x.len()], vec![0.0; gates.x.len()]);
    cpu::gated_decay(cpu_isa(), gates, &mut a, &mut b);
    [a, b].map(|values| TensorData::new(values, [gates.begins.len(), gates.recurrent_param.len()]))
}

pub(super) fn dims<const D: usize>(shape: &[usize]) -> [usize; D] {
    shape.try_into().expect("the rank is fixed by the public function")
}
