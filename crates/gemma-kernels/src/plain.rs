//! The reference implementation of each kernel, made of Burn's own tensor operations.
//!
//! They say in the shortest way what a kernel computes, run on every backend, and are differentiable. The tests
//! compare the kernels with them; training uses them.

use crate::{AttendParams, RecurrentGates};
use burn::tensor::activation::{gelu_approximate, sigmoid, softmax};
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

/// The steepest slope that the root in [`gated_decay`] passes on to its argument, as in the paper's code.
const STEEPEST: f32 = 1000.0;

/// [`gated_decay`](crate::gated_decay). Near `a = 1` the difference `1 - a²` would cancel;
/// `tanh(-log a) · (1 + a²)` is the same and does not.
pub fn gated_decay(x: Tensor<2>, gates: RecurrentGates, decay: Tensor<1>, begins: &[bool]) -> (Tensor<2>, Tensor<2>) {
    let RecurrentGates { input_weight, input_bias, recurrent_weight, recurrent_bias, blocks } = gates;
    let gate = |weight, bias| sigmoid(block_product(x.clone(), weight, bias, blocks));
    let log_a = gate(recurrent_weight, recurrent_bias) * decay.unsqueeze::<2>();
    let a = log_a.clone().exp();
    let rest = log_a.neg().tanh() * a.clone().square().add_scalar(1.0);
    let mut root = bounded_sqrt(rest);
    if begins.contains(&true) {
        let begins: Vec<f32> = begins.iter().map(|begins| f32::from(u8::from(*begins))).collect();
        let len = begins.len();
        let begins = Tensor::<2>::from_data(TensorData::new(begins, [len, 1]), &x.device());
        root = root * begins.clone().neg().add_scalar(1.0) + begins;
    }
    let input = gate(input_weight, input_bias) * x;
    (a, root * input)
}

/// `x W + b` with a block-diagonal `W`, `[blocks, in, out]`.
fn block_product(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, blocks: usize) -> Tensor<2> {
    let [tokens, channels] = x.dims();
    let size = channels / blocks;
    let parts = x.reshape([tokens, blocks, size]).swap_dims(0, 1); // [blocks, tokens, in]
    let mixed = parts.matmul(weight.reshape([blocks, size, size]));
    mixed.swap_dims(0, 1).reshape([tokens, channels]) + bias.unsqueeze::<2>()
}

/// The square root; its slope, which is without bound near zero, passed on as `1 / max(2 √x, 1/1000)`.
fn bounded_sqrt(x: Tensor<2>) -> Tensor<2> {
    if !x.is_autodiff() {
        return x.sqrt();
    }
    let constant = x.clone().detach();
    let root = constant.clone().sqrt();
    let slope = root.clone().mul_scalar(2.0).clamp_min(1.0 / STEEPEST).recip();
    // the second term is zero, and its derivative the slope
    root + slope * (x - constant)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::devices;

    #[test]
    fn the_root_hands_on_a_bounded_slope() {
        for (backend, device) in devices() {
            let x = Tensor::<2>::from_data([[0.25, 1e-8, 0.0]], &device.autodiff()).require_grad();
            let root = bounded_sqrt(x.clone());
            let found: Vec<f32> = root.clone().into_data().try_into_vec().expect("f32");
            assert!((found[0] - 0.5).abs() < 1e-6 && found[2] == 0.0, "{backend}: {found:?}");
            let slopes: Vec<f32> =
                x.grad(&root.sum().backward()).expect("a gradient").into_data().try_into_vec().expect("f32");
            for (slope, expected) in slopes.iter().zip([1.0, 1000.0, 1000.0]) {
                assert!((slope - expected).abs() < 1e-3 * expected, "{backend}: {slopes:?}");
            }
        }
    }
}
