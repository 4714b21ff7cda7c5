//! Parameters to begin a training with.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use gemma_nn::{RandomSource, RandomWeights, Source, Weight};

/// Random parameters as in the paper's appendix (De et al. 2024, arXiv:2402.19427): the decays of the recurrence
/// spread between 0.9 and 0.999, gates and convolutions by the number of their inputs, everything else as
/// [`RandomSource`] makes it.
pub(crate) struct Initial {
    random: RandomSource,
}

/// The range of the decay `a` at the start, where the recurrent gate is open.
const DECAYS: (f32, f32) = (0.9, 0.999);
/// The power of the gate; see `rg_lru`.
const STRENGTH: f32 = 8.0;
/// Standard deviation of what [`RandomSource`] draws.
const DRAWN: f32 = 0.02;

impl Initial {
    pub(crate) fn new(seed: u64, device: &Device) -> Self {
        Self { random: RandomSource::new(RandomWeights::Dense, seed, device) }
    }
}

impl Source for Initial {
    fn device(&self) -> Device {
        self.random.device()
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Weight {
        self.random.matrix(name, rows, cols)
    }

    fn vector(&mut self, name: &str, len: usize) -> Param<Tensor<1>> {
        if !name.ends_with("recurrent_param") {
            return self.random.vector(name, len);
        }
        let values = (0..len)
            .map(|channel| {
                let decay = DECAYS.0 + (DECAYS.1 - DECAYS.0) * (channel as f32 + 0.5) / len as f32;
                // softplus(x) = -ln(decay) / 8
                (-decay.ln() / STRENGTH).exp_m1().ln()
            })
            .collect::<Vec<f32>>();
        Param::from_tensor(Tensor::from_data(TensorData::new(values, [len]), &self.device()))
    }

    fn array(&mut self, name: &str, shape: &[usize]) -> TensorData {
        let data = self.random.array(name, shape);
        if name.ends_with("_bias") {
            return TensorData::zeros::<f32, _>(shape);
        }
        // a block `[in, out]` of a gate, or the taps of a convolution
        let inputs = if name.ends_with("_gate_weight") { shape[1] } else { shape[shape.len() - 1] };
        let factor = 1.0 / ((inputs as f32).sqrt() * DRAWN);
        let values = data.try_into_vec::<f32>().expect("random values are f32").into_iter().map(|x| x * factor).collect();
        TensorData::new(values, shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decays_begin_between_nine_tenths_and_nearly_one() {
        let device = gemma_backend::default_device().unwrap();
        let values: Vec<f32> =
            Initial::new(0, &device).vector("x.recurrent_param", 64).val().into_data().try_into_vec().unwrap();
        let decays: Vec<f32> = values.iter().map(|x| (-STRENGTH * x.exp().ln_1p()).exp()).collect();
        assert!((decays[0] - 0.9008).abs() < 1e-3 && (decays[63] - 0.9982).abs() < 1e-3, "{decays:?}");
        assert!(decays.is_sorted());
    }
}
