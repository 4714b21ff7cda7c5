//! Where a training begins.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use gemma_nn::{Adapt, RandomSource, RandomWeights, Source};

/// Random trainable parameters.
///
/// Matrices are those of [`RandomSource`]; what that would make too small for a signal to pass is drawn wider, and the
/// decays `Λ` are spread over short and long memories as in the paper (De et al. 2024, arXiv:2402.19427, §2.4): a
/// channel whose gate is wide open keeps between 0.9⁸ and 0.999⁸ of its state from one token to the next.
#[derive(Debug)]
pub struct Initial;

/// The decays of the fastest and the slowest channel, before the power of eight.
const RADII: [f32; 2] = [0.9, 0.999];

/// The change to a source of random numbers, whose device keeps gradients.
impl Adapt for Initial {
    fn vector(&mut self, source: &mut dyn Source, name: &str, len: usize) -> Param<Tensor<1>> {
        if !name.ends_with(".recurrent_param") {
            return source.vector(name, len);
        }
        Param::from_tensor(Tensor::from_data(TensorData::new(decays(len), [len]), &source.device()))
    }

    /// Stacks of matrices and convolutions: normal, with the variance `1 / inputs`, where a convolution `[lru_width, 1,
    /// conv1d_width]` has its taps as inputs and a stack `[blocks, in, out]` its rows.
    fn tensor(&mut self, source: &mut dyn Source, name: &str, shape: &[usize]) -> Param<Tensor<1>> {
        let device = source.device();
        let inputs = match *shape {
            [_, 1, taps] => taps,
            [_, rows, _] => rows,
            _ => return Param::from_tensor(Tensor::zeros([shape.iter().product::<usize>()], &device)),
        };
        let values = source.array(name, shape).try_into_vec::<f32>().expect("an array has f32 values");
        let deviation = (values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32).sqrt();
        let factor = (inputs as f32).powf(-0.5) / deviation;
        let values: Vec<f32> = values.into_iter().map(|value| factor * value).collect();
        let len = values.len();
        Param::from_tensor(Tensor::from_data(TensorData::new(values, [len]), &device))
    }
}

impl Initial {
    /// Parameters that depend only on `seed` and on the order in which they are asked for.
    pub fn random(seed: u64, device: &Device) -> RandomSource {
        RandomSource::new(RandomWeights::Dense, seed, device)
    }
}

/// `Λ` with `exp(-softplus(Λ))` even over the squares of the radii.
fn decays(len: usize) -> Vec<f32> {
    let [fast, slow] = RADII.map(|radius| radius * radius);
    (0..len)
        .map(|channel| {
            let square = fast + (slow - fast) * (channel as f32 + 0.5) / len as f32;
            let softplus = -0.5 * square.ln();
            softplus.exp_m1().ln()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decays_lie_between_the_radii() {
        let radii: Vec<f32> = decays(64).into_iter().map(|lambda| (-lambda.exp().ln_1p()).exp()).collect();
        assert!(radii.is_sorted());
        assert!(radii.iter().all(|radius| (RADII[0]..=RADII[1]).contains(radius)), "{radii:?}");
        assert!(radii[0] < 0.905 && radii[63] > 0.998);
    }
}
