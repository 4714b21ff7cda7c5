//! The residual stream: what a branch computed is added to it, and the sum is normed for the next branch, in one pass.

use crate::rms_norm;
use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::Tensor;

/// What is added to the mean squares of the norms of [`add_then_norm`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResidualEps {
    /// In the norm of the branch; `None` where there is none.
    pub branch: Option<f32>,
    /// In the norm of the sum.
    pub sum: f32,
}

// The attribute names every backend of the list, ndarray included, which Burn 0.22 deprecates and this workspace promises.
#[allow(deprecated, reason = "ndarray is one of the backends this workspace promises")]
mod extension {
    use super::*;

    /// What a backend must be able to do for [`add_then_norm`](super::add_then_norm), which is the way to call it.
    #[backend_extension(NdArray: cfg(feature = "ndarray"), Flex: cfg(feature = "flex"), Cube: cfg(feature = "wgpu"))]
    pub trait ResidualOps: Backend {
        /// The sum and its norm. Where the branch has no norm, its weight is ignored.
        fn add_then_norm(
            residual: FloatTensor<Self>,
            branch: FloatTensor<Self>,
            branch_weight: FloatTensor<Self>,
            sum_weight: FloatTensor<Self>,
            eps: ResidualEps,
        ) -> (FloatTensor<Self>, FloatTensor<Self>);
    }
}

pub use extension::ResidualOps;

/// The weight of an RMS norm, `[width]`, as [`rms_norm`] takes it, and what is added to its mean squares.
#[derive(Clone, Debug)]
pub struct NormWeight {
    /// `[width]`.
    pub weight: Tensor<1>,
    /// Added to the mean square.
    pub eps: f32,
}

impl NormWeight {
    pub(crate) fn norm(self, x: Tensor<2>) -> Tensor<2> {
        rms_norm(x, self.weight, self.eps)
    }
}

/// `s = residual + branch` and `norm(s)`; where the branch has a norm of its own, as in Gemma 2 and 3, `s = residual + norm(branch)`. All are
/// `[tokens, width]`. The bits are those of [`rms_norm`] and an addition one by one, which it is on autodiff devices; elsewhere it is one pass,
/// on a GPU one launch.
///
/// # Panics
/// When the shapes do not match.
pub fn add_then_norm(
    residual: Tensor<2>,
    branch: Tensor<2>,
    branch_norm: Option<NormWeight>,
    sum_norm: NormWeight,
) -> [Tensor<2>; 2] {
    assert_eq!(residual.dims(), branch.dims(), "a residual for every value");
    let each = || [branch_norm.as_ref(), Some(&sum_norm)].into_iter().flatten();
    let is_recorded = each().any(|norm| norm.weight.is_autodiff());
    let are_whole = each().all(|norm| norm.weight.dims()[0] == branch.dims()[1]);
    if is_recorded || residual.is_autodiff() || branch.is_autodiff() {
        return reference_add_then_norm(residual, branch, branch_norm, sum_norm);
    }
    assert!(are_whole, "a weight for every column");
    let eps = ResidualEps { branch: branch_norm.as_ref().map(|norm| norm.eps), sum: sum_norm.eps };
    let weight = sum_norm.weight.into_dispatch();
    // what is not multiplied is not read
    let branch_weight = branch_norm.map_or_else(|| weight.clone(), |norm| norm.weight.into_dispatch());
    let [residual, branch] = [residual, branch].map(Tensor::into_dispatch);
    let (sum, normed) = <Dispatch as ResidualOps>::add_then_norm(residual, branch, branch_weight, weight, eps);
    [sum, normed].map(Tensor::from_dispatch)
}

/// The reference implementation of [`add_then_norm`]: its operations one by one.
pub fn reference_add_then_norm(
    residual: Tensor<2>,
    branch: Tensor<2>,
    branch_norm: Option<NormWeight>,
    sum_norm: NormWeight,
) -> [Tensor<2>; 2] {
    let sum = residual
        + match branch_norm {
            Some(norm) => norm.norm(branch),
            None => branch,
        };
    [sum.clone(), sum_norm.norm(sum)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, devices, tensor, values};
    use crate::packed::stores_words;

    #[test]
    fn a_sum_and_its_norm_are_those_of_the_operations_one_by_one() {
        for (backend, device) in devices() {
            for (tokens, width) in [(1, 2), (3, 33), (70, 64), (2, 2304), (0, 8)] {
                let [residual, branch] = [1, 2].map(|seed| tensor([tokens, width], seed, &device).mul_scalar(3.0));
                let norm = |seed, eps| NormWeight { weight: tensor([width], seed, &device), eps };
                for branch_norm in [None, Some(norm(3, 1e-3))] {
                    let (residual, branch) = (residual.clone(), branch.clone());
                    let expected =
                        reference_add_then_norm(residual.clone(), branch.clone(), branch_norm.clone(), norm(4, 1e-6));
                    let found = add_then_norm(residual, branch, branch_norm.clone(), norm(4, 1e-6));
                    for (what, (found, expected)) in ["sum", "norm"].into_iter().zip(found.into_iter().zip(expected)) {
                        let context = format!("{backend} {what} {tokens} x {width} {}", branch_norm.is_some());
                        // a shader's compiler may join a multiplication and an addition
                        let tolerance = if stores_words(&device) { 1e-5 } else { 0.0 };
                        assert_close(&values(found), &values(expected), tolerance, &context);
                    }
                }
            }
        }
    }
}
