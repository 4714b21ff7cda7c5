//! The weights of a network in numbers: how many, how large, and in which format most of them are held.

use burn::module::Param;
use burn::tensor::Tensor;
use gemma_nn::{LoraFactors, Saver, Weight};

/// The parameters that a network hands to a saver, counted. The factors of adapters are in the bytes and not among the
/// parameters, which are those of the base model.
#[derive(Clone, Debug, Default)]
pub struct WeightSummary {
    /// Values; a tied output head counts once.
    pub parameters: u64,
    /// Bytes in memory.
    pub bytes: usize,
    /// Values of matrices by the name of their format.
    formats: Vec<(&'static str, u64)>,
}

impl WeightSummary {
    /// The format in which most values of matrices are held, such as `bf16` or `q8_0`; `f32` without a matrix.
    pub fn format(&self) -> &'static str {
        self.formats.iter().max_by_key(|(_, values)| *values).map_or("f32", |(name, _)| name)
    }
}

impl Saver for WeightSummary {
    fn matrix(&mut self, _name: &str, weight: &Weight) {
        let values = weight.shape().iter().map(|len| *len as u64).product();
        self.parameters += values;
        self.bytes += weight.bytes_len();
        let name = weight.format().name();
        match self.formats.iter_mut().find(|(other, _)| *other == name) {
            Some((_, sum)) => *sum += values,
            None => self.formats.push((name, values)),
        }
    }

    fn vector(&mut self, _name: &str, values: &Param<Tensor<1>>) {
        let len = values.val().dims()[0];
        self.parameters += len as u64;
        self.bytes += 4 * len;
    }

    fn tensor(&mut self, name: &str, _shape: &[usize], values: &Param<Tensor<1>>) {
        self.vector(name, values);
    }

    fn lora(&mut self, _name: &str, factors: &LoraFactors) {
        self.bytes += factors.lora_a.bytes_len() + factors.lora_b.bytes_len();
    }
}
