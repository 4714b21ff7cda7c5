//! The plain twin of each kernel, made of Burn's own tensor operations.
//!
//! They say in the shortest way what a kernel computes, run on every backend, and are differentiable. The tests
//! compare the kernels with them; training uses them.

use crate::AttendParams;
use burn::tensor::activation::{gelu_approximate, softmax};
use burn::tensor::{Bool, Tensor, TensorData};

/// [`attend`](crate::attend) without a past: `[tokens, heads, head_dim]` from q of that shape and k, v
/// `[tokens, kv_heads, head_dim]`, all starting at position `params.start` with nothing before.
pub fn attend(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, params: &AttendParams) -> Tensor<3> {
    let positions: Vec<usize> = (params.start..params.start + k.dims()[0]).collect();
    attend_at(q, k, v, &positions, params)
}

/// Attention over keys at any positions: key `j` stands at `positions[j]`, query `i` at `params.start + i`.
pub fn attend_at(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, positions: &[usize], params: &AttendParams) -> Tensor<3> {
    let [tokens, heads, head_dim] = q.dims();
    let [keys, kv_heads, _] = k.dims();
    let group = heads / kv_heads;
    let device = q.device();
    // [tokens, heads, d] -> [kv_heads, group * tokens, d]: query head n reads key head n / group
    let q = q.swap_dims(0, 1).reshape([kv_heads, group * tokens, head_dim]);
    let k = k.swap_dims(0, 1); // [kv_heads, keys, d]
    let v = v.swap_dims(0, 1);
    let scores = q.matmul(k.swap_dims(1, 2)).mul_scalar(params.scale); // [kv_heads, group * tokens, keys]
    let scores = match params.softcap {
        Some(cap) => scores.div_scalar(cap).tanh().mul_scalar(cap),
        None => scores,
    };
    let hidden: Vec<bool> = (0..tokens)
        .flat_map(|query| positions.iter().map(move |key| !params.allows(params.start + query, *key)))
        .collect();
    let hidden = Tensor::<2, Bool>::from_data(TensorData::new(hidden, [tokens, keys]), &device);
    let scores = scores
        .reshape([heads, tokens, keys])
        .mask_fill(hidden.unsqueeze::<3>().expand([heads, tokens, keys]), f32::NEG_INFINITY);
    let weights = softmax(scores, 2).reshape([kv_heads, group * tokens, keys]);
    weights.matmul(v).reshape([heads, tokens, head_dim]).swap_dims(0, 1)
}

/// [`geglu`](crate::geglu).
pub fn geglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    gelu_approximate(gate) * up
}

/// [`rms_norm`](crate::rms_norm).
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f32) -> Tensor<2> {
    let mean_square = x.clone().square().mean_dim(1);
    let inverse = mean_square.add_scalar(eps).sqrt().recip();
    x.mul(inverse).mul(weight.add_scalar(1.0).unsqueeze::<2>())
}

/// [`rotate`](crate::rotate).
pub fn rotate(x: Tensor<3>, cos: Tensor<3>, sin: Tensor<3>) -> Tensor<3> {
    let [tokens, heads, head_dim] = x.dims();
    let [_, _, half] = cos.dims();
    let part = |from: usize, to: usize| x.clone().slice([0..tokens, 0..heads, from..to]);
    let (a, b) = (part(0, half), part(half, 2 * half));
    let first = a.clone() * cos.clone() - b.clone() * sin.clone();
    let second = b * cos + a * sin;
    let mut parts = vec![first, second];
    if 2 * half < head_dim {
        parts.push(part(2 * half, head_dim));
    }
    Tensor::cat(parts, 2)
}
