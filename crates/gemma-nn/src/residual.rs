//! The residual stream of a network.

use crate::RmsNorm;
use burn::tensor::Tensor;
use gemma_kernels::add_then_norm;

/// The residual stream, `[tokens, hidden_size]`, to which each branch of a layer adds what it computes. An addition is put off until the next
/// norm, which computes it in the same pass.
#[derive(Clone, Debug)]
pub struct Residual<'a> {
    x: Tensor<2>,
    /// What is still to be added, and the norm that it passes before.
    branch: Option<(Tensor<2>, Option<&'a RmsNorm>)>,
}

impl<'a> Residual<'a> {
    /// The stream that begins with these values.
    pub fn new(x: Tensor<2>) -> Self {
        Self { x, branch: None }
    }

    /// Adds `y`, or `norm(y)` where there is a norm.
    pub fn add(&mut self, y: Tensor<2>, norm: Option<&'a RmsNorm>) {
        self.add_branch();
        self.branch = Some((y, norm));
    }

    /// The norm of the stream: what a branch computes with.
    pub fn normed(&mut self, norm: &RmsNorm) -> Tensor<2> {
        match self.branch.take() {
            None => norm.forward(self.x.clone()),
            Some((y, before)) => {
                let before = before.map(RmsNorm::to_weight);
                let [sum, normed] = add_then_norm(self.x.clone(), y, before, norm.to_weight());
                self.x = sum;
                normed
            }
        }
    }

    /// The values of the stream.
    pub fn into_values(mut self) -> Tensor<2> {
        self.add_branch();
        self.x
    }

    fn add_branch(&mut self) {
        if let Some((y, norm)) = self.branch.take() {
            let y = match norm {
                Some(norm) => norm.forward(y),
                None => y,
            };
            self.x = self.x.clone() + y;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_device;
    use crate::{RandomSource, RandomWeights};
    use gemma_kernels::Format;

    #[test]
    fn additions_that_are_put_off_are_not_forgotten() {
        for device in test_device::all() {
            let mut source = RandomSource::new(RandomWeights::Packed(Format::F32), 5, &device);
            let [first, second] = ["first", "second"].map(|name| RmsNorm::load(&mut source, name, 8, 1e-6));
            let [x, y, z] = [1.0f32, 2.0, 3.0].map(|scale| {
                let values: Vec<f32> = (0..16).map(|i| scale * ((i * 7 % 5) as f32 - 2.0 + scale)).collect();
                Tensor::<2>::from_data(burn::tensor::TensorData::new(values, [2, 8]), &device)
            });
            let values = |x: Tensor<2>| -> Vec<f32> { x.into_data().try_into_vec().unwrap() };
            let sum = x.clone() + first.forward(y.clone()) + z.clone();
            let mut residual = Residual::new(x);
            residual.add(y, Some(&first));
            residual.add(z, None);
            let close = |found: Vec<f32>, expected: Vec<f32>| {
                assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?} {expected:?}");
            };
            close(values(residual.clone().into_values()), values(sum.clone()));
            close(values(residual.normed(&second)), values(second.forward(sum.clone())));
            close(values(residual.normed(&first)), values(first.forward(sum.clone())));
            close(values(residual.into_values()), values(sum));
        }
    }
}
