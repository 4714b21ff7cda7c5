//! Queries and keys as attention takes them: each head normed, where a model does that, and rotated.

use crate::packed::stores_words;
use crate::{NormWeight, rotate};
use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;

// The attribute names every backend of the list, ndarray included, which Burn 0.22 deprecates and this workspace promises.
#[allow(deprecated, reason = "ndarray is one of the backends this workspace promises")]
mod extension {
    use super::*;

    /// What a GPU must be able to do for [`norm_and_rotate`](super::norm_and_rotate), which is the way to call it.
    #[backend_extension(NdArray: cfg(feature = "ndarray"), Flex: cfg(feature = "flex"), Cube: cfg(feature = "wgpu"))]
    pub trait HeadOps: Backend {
        /// See [`norm_and_rotate`](super::norm_and_rotate). `eps` is that of either norm; without it, there are none, and the weights are ignored.
        fn norm_and_rotate(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            q_weight: FloatTensor<Self>,
            k_weight: FloatTensor<Self>,
            cos: FloatTensor<Self>,
            sin: FloatTensor<Self>,
            eps: Option<[f32; 2]>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>);
    }
}

pub use extension::HeadOps;

/// [`rms_norm`](crate::rms_norm) over each head of the queries and of the keys, where there are norms (Gemma 3), then [`rotate`]: `q` `[tokens, heads, head_dim]` and `k`
/// `[tokens, kv_heads, head_dim]` to the same shapes; `cos`, `sin` `[tokens, 1, half]` with `2 half` at most `head_dim`. On a GPU this is one
/// launch; elsewhere, and on autodiff devices, it is the operations one by one.
///
/// # Panics
/// When the shapes do not match.
pub fn norm_and_rotate(
    q: Tensor<3>,
    k: Tensor<3>,
    norms: Option<[NormWeight; 2]>,
    cos: Tensor<3>,
    sin: Tensor<3>,
) -> [Tensor<3>; 2] {
    let is_recorded = norms.iter().flatten().any(|norm| norm.weight.is_autodiff());
    if is_recorded || q.is_autodiff() || k.is_autodiff() || !stores_words(&q.device()) {
        return reference_norm_and_rotate(q, k, norms, cos, sin);
    }
    let ([tokens, _, head_dim], [_, _, half]) = (q.dims(), cos.dims());
    assert_eq!([k.dims()[0], k.dims()[2]], [tokens, head_dim], "keys of the same tokens and size");
    assert_eq!([cos.dims(), sin.dims()], [[tokens, 1, half]; 2], "angles for {tokens} tokens");
    assert!(2 * half <= head_dim, "{half} angles for heads of {head_dim}");
    let eps = norms.as_ref().map(|norms| norms.each_ref().map(|norm| norm.eps));
    let [q_weight, k_weight] = match norms {
        Some(norms) => norms.map(|norm| {
            assert_eq!(norm.weight.dims(), [head_dim], "a weight for every column of a head");
            norm.weight.into_dispatch()
        }),
        // what is not multiplied is not read
        None => [&cos, &sin].map(|angles| angles.clone().into_dispatch()),
    };
    let [q, k, cos, sin] = [q, k, cos, sin].map(Tensor::into_dispatch);
    let (q, k) = <Dispatch as HeadOps>::norm_and_rotate(q, k, q_weight, k_weight, cos, sin, eps);
    [q, k].map(Tensor::from_dispatch)
}

/// The reference implementation of [`norm_and_rotate`]: its operations one by one.
pub fn reference_norm_and_rotate(
    q: Tensor<3>,
    k: Tensor<3>,
    norms: Option<[NormWeight; 2]>,
    cos: Tensor<3>,
    sin: Tensor<3>,
) -> [Tensor<3>; 2] {
    let norms = norms.map_or([None, None], |norms| norms.map(Some));
    let mut each = [q, k].into_iter().zip(norms).map(|(x, norm)| {
        let [tokens, heads, head_dim] = x.dims();
        let normed = match norm {
            Some(norm) => norm.norm(x.reshape([tokens * heads, head_dim])),
            None => return rotate(x, cos.clone(), sin.clone()),
        };
        rotate(normed.reshape([tokens, heads, head_dim]), cos.clone(), sin.clone())
    });
    std::array::from_fn(|_| each.next().expect("queries and keys"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, devices, tensor, values};

    #[test]
    fn heads_are_normed_and_rotated_as_by_the_operations_one_by_one() {
        for (backend, device) in devices() {
            for (tokens, heads, kv_heads, head_dim) in
                [(1, 1, 1, 2), (3, 4, 2, 33), (40, 3, 1, 64), (2, 8, 4, 256), (1, 2, 2, 300)]
            {
                for half in [1, head_dim / 4, head_dim / 2].into_iter().filter(|half| *half > 0) {
                    let q = || tensor([tokens, heads, head_dim], 1, &device).mul_scalar(3.0);
                    let k = || tensor([tokens, kv_heads, head_dim], 2, &device).mul_scalar(0.5);
                    let angles = |seed| tensor([tokens, 1, half], seed, &device);
                    let norm = |seed, eps| NormWeight { weight: tensor([head_dim], seed, &device), eps };
                    let norms = [norm(3, 1e-6), norm(4, 1e-3)];
                    for norms in [None, Some(norms)] {
                        let found = norm_and_rotate(q(), k(), norms.clone(), angles(5), angles(6));
                        let expected = reference_norm_and_rotate(q(), k(), norms.clone(), angles(5), angles(6));
                        for (what, (found, expected)) in ["q", "k"].into_iter().zip(found.into_iter().zip(expected)) {
                            let context =
                                format!("{backend} {what} {tokens} {heads} {head_dim} {half} {}", norms.is_some());
                            assert_close(&values(found), &values(expected), 1e-5, &context);
                        }
                    }
                }
            }
        }
    }
}
