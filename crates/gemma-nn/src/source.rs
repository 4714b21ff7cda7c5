//! Where a layer's parameters come from when it is built.

use crate::{LoraFactors, SplitMix64, Weight};
use burn::module::{Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use gemma_kernels::{ActivationPrecision, CachePrecision, Format, PackedWeight};

/// A supplier of parameters by name.
///
/// Names are those of the checkpoint (`model.layers.0.mlp.up_proj.weight`). A source answers every question: names
/// and shapes of a file are checked before a network is built from it, so building cannot fail.
pub trait Source {
    /// The device on which parameters are made.
    fn device(&self) -> Device;
    /// A weight matrix, `[rows, cols]` = `[out, in]`.
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Weight;
    /// A vector in f32: a norm's weight or a bias.
    fn vector(&mut self, name: &str, len: usize) -> Param<Tensor<1>>;
    /// Any other parameter: f32 values in row-major order.
    fn array(&mut self, name: &str, shape: &[usize]) -> TensorData;
    /// A parameter of any other shape (a stack of matrices, a convolution): its values in f32 and row-major order,
    /// as one line; the layer that has it gives it its shape.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Param<Tensor<1>> {
        let line = self.array(name, shape).try_into_vec::<f32>().expect("arrays are f32");
        let data = TensorData::new(line, [shape.iter().product::<usize>()]);
        Param::from_tensor(Tensor::from_data(data, &self.device()))
    }
    /// In which precision the layers built from it keep keys and values.
    fn cache_precision(&self) -> CachePrecision {
        CachePrecision::F32
    }
    /// The LoRA factors of the projection `name` (its weight is `{name}.weight`), one pair for each adapter that changes
    /// it.
    fn lora(&mut self, _name: &str, _inputs: usize, _outputs: usize) -> Vec<LoraFactors> {
        Vec::new()
    }
}

/// A taker of parameters by name, the inverse of [`Source`]: what saves a network.
pub trait Saver {
    /// A weight matrix.
    fn matrix(&mut self, name: &str, weight: &Weight);
    /// A vector in f32.
    fn vector(&mut self, name: &str, values: &Param<Tensor<1>>);
    /// A parameter of any other shape, in f32: its values in row-major order, as [`Source::tensor`] gave them.
    fn tensor(&mut self, name: &str, shape: &[usize], values: &Param<Tensor<1>>);
    /// The LoRA factors beside the projection `name`; once for each adapter. What saves a checkpoint passes them over.
    fn lora(&mut self, _name: &str, _factors: &LoraFactors) {}
}

/// A source that only writes down what a network asks for. Nothing is allocated.
#[derive(Debug)]
pub struct ParameterList {
    device: Device,
    asked: Vec<(String, Vec<usize>)>,
}

impl ParameterList {
    /// An empty list.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), asked: Vec::new() }
    }

    /// Names and shapes, in the order in which they were asked for.
    pub fn into_list(self) -> Vec<(String, Vec<usize>)> {
        self.asked
    }
}

/// A parameter whose values are made when they are first used: never, in a parameter list.
fn unmade<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Param::uninitialized(
        ParamId::new(),
        move |device, _| Tensor::zeros(shape, device),
        device.clone(),
        false,
        shape.into(),
    )
}

impl Source for ParameterList {
    fn device(&self) -> Device {
        self.device.clone()
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Weight {
        self.asked.push((name.to_owned(), vec![rows, cols]));
        Weight::Dense(unmade([rows, cols], &self.device))
    }

    fn vector(&mut self, name: &str, len: usize) -> Param<Tensor<1>> {
        self.asked.push((name.to_owned(), vec![len]));
        unmade([len], &self.device)
    }

    fn array(&mut self, name: &str, shape: &[usize]) -> TensorData {
        self.asked.push((name.to_owned(), shape.to_vec()));
        TensorData::zeros::<f32, _>(shape)
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) -> Param<Tensor<1>> {
        self.asked.push((name.to_owned(), shape.to_vec()));
        unmade([shape.iter().product()], &self.device)
    }
}

/// How finely layers compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ComputePrecision {
    /// How products on the CPU represent activations.
    pub activations: ActivationPrecision,
    /// In how many bits keys and values are kept.
    pub cache: CachePrecision,
    /// Whether a token's results are the same bits whatever else is in the call
    /// ([`PackedWeight::with_batch_invariance`](gemma_kernels::PackedWeight::with_batch_invariance)).
    pub batch_invariant: bool,
}

/// What [`RandomSource`] makes of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RandomWeights {
    /// Trainable f32 values, all different: the start of a training.
    Dense,
    /// Frozen rows in a format, a short stretch of random rows repeated: the size and speed of a real model without
    /// its file.
    Packed(Format),
}

/// Random parameters: matrices normal with standard deviation 0.02, vectors zero.
#[derive(Debug)]
pub struct RandomSource {
    device: Device,
    weights: RandomWeights,
    random: SplitMix64,
}

/// Rows of a packed random matrix before they repeat.
const DISTINCT_ROWS: usize = 64;
/// Standard deviation of random weights.
const DEVIATION: f32 = 0.02;

impl RandomSource {
    /// Parameters that depend only on `seed` and on the order in which they are asked for.
    pub fn new(weights: RandomWeights, seed: u64, device: &Device) -> Self {
        Self { device: device.clone(), weights, random: SplitMix64::new(seed) }
    }

    /// The next number, a fraction in (0, 1).
    fn uniform(&mut self) -> f32 {
        ((self.random.next_u64() >> 40) as f32 + 0.5) / (1u64 << 24) as f32
    }

    /// Normal values by the Box-Muller transform.
    fn normal(&mut self, len: usize) -> Vec<f32> {
        (0..len)
            .map(|_| {
                let radius = (-2.0 * self.uniform().ln()).sqrt();
                DEVIATION * radius * (std::f32::consts::TAU * self.uniform()).cos()
            })
            .collect()
    }
}

impl Source for RandomSource {
    fn device(&self) -> Device {
        self.device.clone()
    }

    fn matrix(&mut self, _name: &str, rows: usize, cols: usize) -> Weight {
        match self.weights {
            RandomWeights::Dense => {
                let values = self.normal(rows * cols);
                Weight::Dense(Param::from_tensor(Tensor::from_data(
                    TensorData::new(values, [rows, cols]),
                    &self.device,
                )))
            }
            RandomWeights::Packed(format) => {
                let format = if format.row_bytes(cols).is_some() { format } else { Format::Bf16 };
                let row_bytes = format.row_bytes(cols).expect("bf16 holds any row");
                let distinct = rows.min(DISTINCT_ROWS);
                let mut stretch = vec![0; distinct * row_bytes];
                for row in stretch.chunks_exact_mut(row_bytes) {
                    format.encode_row(&self.normal(cols), row);
                }
                let mut bytes = stretch.repeat(rows.div_ceil(distinct));
                bytes.truncate(rows * row_bytes);
                let weight = PackedWeight::new(bytes.into(), format, rows, cols, &self.device);
                Weight::Packed(weight.expect("the bytes were made for this shape"))
            }
        }
    }

    fn vector(&mut self, _name: &str, len: usize) -> Param<Tensor<1>> {
        Param::from_tensor(Tensor::zeros([len], &self.device))
    }

    fn array(&mut self, _name: &str, shape: &[usize]) -> TensorData {
        TensorData::new(self.normal(shape.iter().product()), shape)
    }
}
