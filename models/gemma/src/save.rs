//! Parameters on their way to disk.

use crate::{DecoderConfig, Error};
use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use gemma_kernels::Format;
use gemma_nn::{Sink, Weight};
use gemma_weights::Dtype;

/// A tensor as `gemma_weights::save_folder` takes it: name, dtype, shape, bytes.
pub type Stored = (String, Dtype, Vec<usize>, Vec<u8>);

/// Collects every parameter, converted to one dtype.
#[derive(Debug)]
pub struct Collect {
    dtype: Dtype,
    /// What came in.
    pub tensors: Vec<Stored>,
    /// A quantized format among it.
    pub quantized: Option<Format>,
}

impl Collect {
    /// An empty collection.
    pub fn new(dtype: Dtype) -> Self {
        Self { dtype, tensors: Vec::new(), quantized: None }
    }

    fn push(&mut self, name: &str, shape: Vec<usize>, values: &[f32]) {
        let format = self.dtype.format();
        let mut bytes = vec![0; values.len() * format.block_bytes()];
        format.encode_row(values, &mut bytes);
        self.tensors.push((name.to_owned(), self.dtype, shape, bytes));
    }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().expect("parameters are f32")
}

impl Sink for Collect {
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

    fn array(&mut self, name: &str, values: TensorData) {
        let shape = values.shape().to_vec();
        self.push(name, shape, &values.try_into_vec::<f32>().expect("parameters are f32"));
    }
}

/// `config.json` of a folder written in `dtype`.
pub(crate) fn config_file(config: &DecoderConfig, dtype: Dtype) -> Vec<u8> {
    let text = serde_json::to_vec_pretty(&config.to_json(dtype));
    text.map_err(|cause| Error::ConfigJson { cause }).expect("a configuration of plain numbers is written")
}
