//! Attention over whole sequences in training on a CPU: the kernel of [`attend`](crate::attend), and one for its gradient.

use crate::AttendParams;
use burn::backend::{Backend, backend_extension, tensor::FloatTensor};
use std::ops::Range;

/// A sequence whose keys are those of its own tokens.
#[derive(Clone, Debug)]
pub struct WholeSequence {
    /// Tokens.
    pub len: usize,
    /// Intervals of positions that see themselves both ways; see [`Visibility`](crate::Visibility).
    pub blocks: Vec<Range<usize>>,
}

// The attribute names every backend of the list, ndarray included, which Burn 0.22 deprecates and this workspace promises.
#[allow(deprecated, reason = "ndarray is one of the backends this workspace promises")]
mod extension {
    use super::*;

    /// What a CPU backend must be able to do to train through attention. [`attend`](crate::attend) calls it.
    #[backend_extension(NdArray: cfg(feature = "ndarray"), Flex: cfg(feature = "flex"), Autodiff)]
    pub trait WholeAttentionOps: Backend {
        /// Attention of sequences that lie one after the other; operands and result are those of [`attend`](crate::attend).
        fn whole_attention(
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            sequences: Vec<WholeSequence>,
            params: AttendParams,
        ) -> FloatTensor<Self>;
        /// The gradients of `q`, `k` and `v`.
        fn whole_attention_gradient(
            from_above: FloatTensor<Self>,
            q: FloatTensor<Self>,
            k: FloatTensor<Self>,
            v: FloatTensor<Self>,
            sequences: Vec<WholeSequence>,
            params: AttendParams,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    }
}

pub use extension::WholeAttentionOps;

#[cfg(test)]
mod tests {
    use crate::ops::tests::{assert_close, devices, tensor, values};
    use crate::{ActivationPrecision, AttendParams, AttendSegment, Phase, Visibility, attend};
    use burn::tensor::Tensor;

    /// A packed call of two sequences against each of them alone by the reference.
    #[test]
    fn gradients_equal_those_of_the_reference() {
        let shapes = [([3, 1], 2, 1, 16), ([70, 20], 8, 1, 32), ([50, 100], 4, 4, 33), ([9, 60], 6, 2, 8)];
        let kinds = [
            (Visibility::CAUSAL, None, 0..0),
            (Visibility::Causal { window: Some(7) }, Some(3.0), 0..0),
            (Visibility::Causal { window: Some(20) }, None, 2..5),
            (Visibility::ALL, None, 0..0),
        ];
        for (backend, device) in devices() {
            let recorded = device.autodiff();
            for (lens, heads, kv_heads, head_dim) in &shapes {
                for (visibility, softcap, block) in &kinds {
                    let block = block.start.min(lens[1] - 1)..block.end.min(lens[1]);
                    let tokens = lens.iter().sum::<usize>();
                    let params = AttendParams {
                        visibility: *visibility,
                        scale: 0.4,
                        softcap: *softcap,
                        activations: ActivationPrecision::F32,
                    };
                    let blocks = [Vec::new(), if block.is_empty() { Vec::new() } else { vec![block] }];
                    let operands = || {
                        [(*heads, 1), (*kv_heads, 2), (*kv_heads, 3)].map(|(heads, seed)| {
                            tensor([tokens, heads, *head_dim], seed, &recorded).mul_scalar(2.0).detach().require_grad()
                        })
                    };
                    let above = tensor([tokens, *heads, *head_dim], 4, &recorded);
                    let gradients = |operands: [Tensor<3>; 3], y: Tensor<3>| {
                        let gradients = (y.clone() * above.clone()).sum().backward();
                        let [q, k, v] = operands.map(|x| values(x.grad(&gradients).expect("a gradient")));
                        [values(y), q, k, v]
                    };
                    let segment =
                        |(len, blocks)| AttendSegment { start: 0, len, blocks, phase: Phase::Prefill, cache: None };
                    let segments: Vec<AttendSegment<'_>> =
                        lens.iter().copied().zip(blocks.iter().map(Vec::as_slice)).map(segment).collect();
                    let [q, k, v] = operands();
                    let y = attend(q.clone(), k.clone(), v.clone(), &segments, &params);
                    let found = gradients([q, k, v], y);
                    let [q, k, v] = operands();
                    let mut first = 0;
                    let parts = lens.iter().zip(&blocks).map(|(len, blocks)| {
                        let part = |x: &Tensor<3>| x.clone().narrow(0, first, *len);
                        let (q, k, v) = (part(&q), part(&k), part(&v));
                        first += len;
                        let positions: Vec<usize> = (0..*len).collect();
                        crate::reference::attend(q, k, v, 0, &positions, blocks, &params)
                    });
                    let y = Tensor::cat(parts.collect(), 0);
                    let expected = gradients([q, k, v], y);
                    for (found, expected) in found.iter().zip(&expected) {
                        let context =
                            format!("{backend} {lens:?} {heads} {kv_heads} {head_dim} {visibility:?} {softcap:?}");
                        assert_close(found, expected, 2e-4, &context);
                    }
                }
            }
        }
    }
}
