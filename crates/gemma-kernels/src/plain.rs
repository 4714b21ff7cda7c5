//! The plain twin of each kernel, made of Burn's own tensor operations.
//!
//! They say in the shortest way what a kernel computes, run on every backend, and are differentiable. The tests
//! compare the kernels with them; training uses them.

use crate::AttendParams;
use burn::tensor::{Bool, Tensor, TensorData, activation::softmax};

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

/// [`linear_recurrence`](crate::linear_recurrence), a token at a time.
pub fn linear_recurrence(a: Tensor<2>, b: Tensor<2>, initial: Tensor<2>, lens: &[usize]) -> Tensor<2> {
    let [tokens, channels] = a.dims();
    let row = |x: &Tensor<2>, index: usize| x.clone().slice([index..index + 1, 0..channels]);
    let mut rows = Vec::with_capacity(tokens);
    for (segment, len) in lens.iter().enumerate() {
        let mut state = row(&initial, segment);
        for token in rows.len()..rows.len() + len {
            state = row(&a, token) * state + row(&b, token);
            rows.push(state.clone());
        }
    }
    Tensor::cat(rows, 0)
}
