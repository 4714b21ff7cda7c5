//! From a checked checkpoint to a layer's parameters: the archive's door to `gemma-nn`.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use gemma_kernels::{Format, PackedWeight};
use gemma_nn::{Source, Weight};

use crate::convert::{held_format, matrix_bytes};
use crate::{Checkpoint, Precision, StoredTensor};

/// Called with the bytes loaded so far and the bytes of the whole checkpoint, both as stored.
pub type OnProgress<'a> = Box<dyn FnMut(u64, u64) + 'a>;

/// Builds a model's parameters from a checkpoint, one tensor at a time.
///
/// A matrix is held in the wished precision. Where that is how it is stored, its bytes are borrowed from the memory map
/// and nothing is copied (on a CPU); otherwise the rows are converted by all cores, and the converted matrix is all the
/// memory that costs. A matrix whose rows are not whole blocks of a quantized format stays as stored; those are listed
/// by [`unquantized`](Self::unquantized). Vectors and other parameters are always f32.
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    precision: Option<Precision>,
    device: Device,
    on_progress: Option<OnProgress<'a>>,
    done: u64,
    total: u64,
    unquantized: Vec<String>,
}

impl<'a> Loader<'a> {
    /// A loader to `device`; a precision of `None` holds matrices as they are stored.
    ///
    /// [`Checkpoint::check`] has to have accepted the names and shapes that will be asked for.
    pub fn new(checkpoint: &'a Checkpoint, precision: Option<Precision>, device: &Device) -> Self {
        let total = checkpoint.bytes_len();
        let device = device.clone();
        Self { checkpoint, precision, device, on_progress: None, done: 0, total, unquantized: Vec::new() }
    }

    /// Reports progress after each tensor.
    pub fn on_progress(mut self, report: OnProgress<'a>) -> Self {
        self.on_progress = Some(report);
        self
    }

    /// The matrices loaded so far that could not be quantized as wished, because their rows are not whole blocks.
    pub fn unquantized(&self) -> &[String] {
        &self.unquantized
    }

    fn stored(&self, name: &str, shape: &[usize]) -> &'a StoredTensor {
        let tensor =
            self.checkpoint.get(name).unwrap_or_else(|| panic!("tensor {name} was not checked before loading"));
        assert_eq!(tensor.shape, shape, "shape of tensor {name}, which was not checked before loading");
        tensor
    }

    fn report(&mut self, tensor: &StoredTensor) {
        self.done += tensor.bytes.len() as u64;
        if let Some(report) = &mut self.on_progress {
            // a tensor may be read twice, for example by two models
            report(self.done.min(self.total), self.total);
        }
    }
}

/// # Panics
/// When a name is not in the checkpoint or has another shape: [`Checkpoint::check`] comes first.
impl Source for Loader<'_> {
    fn device(&self) -> Device {
        self.device.clone()
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Weight {
        let tensor = self.stored(name, &[rows, cols]);
        let format: Format = held_format(tensor.format, self.precision, cols);
        if self.precision.is_some_and(|wish| wish.format() != format) {
            self.unquantized.push(name.to_owned());
        }
        let packed = PackedWeight::new(matrix_bytes(tensor, cols, format), format, rows, cols, &self.device)
            .expect("the shape was checked and the format chosen to fit it");
        self.report(tensor);
        Weight::Packed(packed)
    }

    fn vector(&mut self, name: &str, len: usize) -> Param<Tensor<1>> {
        let data = self.array(name, &[len]);
        Param::from_tensor(Tensor::from_data(data, &self.device))
    }

    fn array(&mut self, name: &str, shape: &[usize]) -> TensorData {
        let tensor = self.stored(name, shape);
        let data = TensorData::new(tensor.to_f32(), shape);
        self.report(tensor);
        data
    }
}
