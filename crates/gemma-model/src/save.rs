//! Parameters on their way to disk.

use burn::module::Param;
use burn::tensor::Tensor;
use gemma_kernels::Format;
use gemma_nn::{LoraFactors, Saver, Weight};
use gemma_weights::{Dtype, SavedTensor};

/// Collects every parameter, converted to one dtype.
pub(crate) struct Collect {
    dtype: Dtype,
    pub(crate) tensors: Vec<SavedTensor>,
    pub(crate) quantized: Option<Format>,
    /// Whether a projection has LoRA factors, which have no place in a checkpoint.
    pub(crate) adapted: bool,
}

impl Collect {
    pub(crate) fn new(dtype: Dtype) -> Self {
        Self { dtype, tensors: Vec::new(), quantized: None, adapted: false }
    }

    fn push(&mut self, name: &str, shape: Vec<usize>, values: &[f32]) {
        let format = self.dtype.format();
        let mut bytes = vec![0; values.len() * format.block_bytes()];
        format.encode_row(values, &mut bytes);
        self.tensors.push((name.to_owned(), self.dtype, shape, bytes.into()));
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("parameters are f32")
}

impl Saver for Collect {
    fn matrix(&mut self, name: &str, weight: &Weight) {
        let shape = weight.shape().to_vec();
        match weight {
            Weight::Packed(packed) => {
                if packed.format().block_len() > 1 {
                    self.quantized = Some(packed.format());
                }
                self.push(name, shape, &values(packed.dequantize()));
            }
            Weight::Dense(dense) => self.push(name, shape, &values(dense.val())),
        }
    }

    fn vector(&mut self, name: &str, param: &Param<Tensor<1>>) {
        let values = values(param.val());
        self.push(name, vec![values.len()], &values);
    }

    fn tensor(&mut self, name: &str, shape: &[usize], param: &Param<Tensor<1>>) {
        self.push(name, shape.to_vec(), &values(param.val()));
    }

    fn lora(&mut self, _name: &str, _factors: &LoraFactors) {
        self.adapted = true;
    }
}
