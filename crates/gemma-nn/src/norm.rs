//! Root-mean-square normalisation with a weight that is an offset from one.

use crate::{Saver, Source};
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use gemma_kernels::{NormWeight, rms_norm};

/// `y = x / sqrt(mean(x²) + eps) · (1 + w)` over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467; the
/// `1 +` is Gemma's). All in f32.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// The stored offset `w`, `[hidden_size]`.
    pub weight: Param<Tensor<1>>,
    eps: f32,
}

impl RmsNorm {
    /// The norm whose weight is called `{name}.weight`.
    pub fn load(source: &mut dyn Source, name: &str, hidden_size: usize, eps: f32) -> Self {
        Self { weight: source.vector(&format!("{name}.weight"), hidden_size), eps }
    }

    /// Hands the weight to a saver, under the name it was loaded by.
    pub fn save(&self, saver: &mut dyn Saver, name: &str) {
        saver.vector(&format!("{name}.weight"), &self.weight);
    }

    /// `[tokens, hidden_size]` to the same shape.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        rms_norm(x, self.weight.val(), self.eps)
    }

    /// The weight, as kernels take it.
    pub(crate) fn to_weight(&self) -> NormWeight {
        NormWeight { weight: self.weight.val(), eps: self.eps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_device;

    #[test]
    fn a_zero_weight_means_gain_one_and_eps_is_inside_the_root() {
        for device in test_device::all() {
            let x = Tensor::<2>::from_data([[3.0, -4.0], [0.0, 0.0], [1e-3, 1e-3]], &device);
            let norm = RmsNorm { weight: Param::from_tensor(Tensor::from_data([0.0, 1.0], &device)), eps: 1e-6 };
            let y: Vec<f32> = norm.forward(x).into_data().try_into_vec().unwrap();
            let rms = 12.5f32.sqrt();
            let expected = [3.0 / rms, -8.0 / rms, 0.0, 0.0, 1e-3 / 2e-6f32.sqrt(), 2e-3 / 2e-6f32.sqrt()];
            for (a, b) in y.iter().zip(expected) {
                assert!((a - b).abs() < 1e-5, "{y:?}");
            }
        }
    }
}
