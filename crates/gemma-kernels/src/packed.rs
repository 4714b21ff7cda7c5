//! A weight matrix as it lies in the file.

use crate::{ActivationPrecision, Format, KernelError};
use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor};
use burn::tensor::{AllocationProperty, Bytes, DType, Device, Int, Tensor, TensorData};

/// The most bytes that one GPU buffer of a matrix holds. Drivers differ in what they bind at once; 128 MiB is
/// the least that WebGPU guarantees, so larger matrices (the embedding table) are cut into shards of rows.
const SHARD_BYTES: usize = 128 << 20;

/// A frozen weight matrix of `rows` x `cols` values, `[out, in]`, each row contiguous, in one [`Format`].
///
/// On a CPU backend the bytes are those that were given, without a copy: usually a slice of a memory map. On a
/// GPU they are uploaded as 32-bit words (WGSL has no 8-bit integers), each row padded to a whole word, in
/// shards of rows; a matrix in a format with a code book, which shaders do not read, becomes f16 there.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    shards: Vec<Tensor<2, Int>>,
    rows_per_shard: usize,
    rows: usize,
    cols: usize,
    format: Format,
    activations: ActivationPrecision,
    batch_invariant: bool,
}

impl PackedWeight {
    /// A matrix from its bytes, row after row.
    ///
    /// # Errors
    /// When the format cannot hold rows of `cols` values, or when `bytes` does not have the size of the shape.
    pub fn new(
        bytes: bytes::Bytes,
        format: Format,
        rows: usize,
        cols: usize,
        device: &Device,
    ) -> Result<Self, KernelError> {
        if cols == 0 || !cols.is_multiple_of(format.block_len()) {
            return Err(KernelError::PartialBlock { format, cols });
        }
        let too_large = || KernelError::TooLarge { rows, cols };
        let row_bytes = format.row_bytes(cols).ok_or_else(too_large)?;
        let expected = row_bytes.checked_mul(rows).ok_or_else(too_large)?;
        if bytes.len() != expected {
            return Err(KernelError::Size { format, rows, cols, expected, found: bytes.len() });
        }
        // weights are constants: never on the autodiff side of a device
        let device = device.clone().without_autodiff();
        if stores_words(&device) && !is_decoded_by_gpus(format) {
            let bytes = as_f16(&bytes, format, cols);
            return Self::new(bytes, Format::F16, rows, cols, &device);
        }
        let (shards, rows_per_shard) = if stores_words(&device) {
            let row_words = row_bytes.div_ceil(4);
            let rows_per_shard = (SHARD_BYTES / (row_words * 4)).clamp(1, rows.max(1));
            let shards = bytes
                .chunks(rows_per_shard * row_bytes)
                .map(|shard| {
                    let shard_rows = shard.len() / row_bytes;
                    let data = TensorData::new(words(shard, row_bytes, row_words), [shard_rows, row_words]);
                    Tensor::from_data(data, (&device, DType::U32))
                })
                .collect();
            (shards, rows_per_shard)
        } else {
            let shared = Bytes::from_shared(bytes, AllocationProperty::File);
            let data = TensorData::from_bytes(shared, [rows, row_bytes], DType::U8);
            (vec![Tensor::from_data(data, (&device, DType::U8))], rows.max(1))
        };
        Ok(Self {
            shards,
            rows_per_shard,
            rows,
            cols,
            format,
            activations: ActivationPrecision::default(),
            batch_invariant: false,
        })
    }

    /// Encodes f32 values, row-major, in `format`.
    ///
    /// # Errors
    /// As [`PackedWeight::new`].
    pub fn encode(
        values: &[f32],
        format: Format,
        rows: usize,
        cols: usize,
        device: &Device,
    ) -> Result<Self, KernelError> {
        let row_bytes = format.row_bytes(cols).ok_or(KernelError::PartialBlock { format, cols })?;
        let mut bytes = vec![0; rows * row_bytes];
        for (values, bytes) in values.chunks(cols.max(1)).zip(bytes.chunks_mut(row_bytes.max(1))) {
            if values.len() == cols {
                format.encode_row(values, bytes);
            }
        }
        Self::new(bytes.into(), format, values.len() / cols.max(1), cols, device)
    }

    /// Number of rows: outputs of the product.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values per row: inputs of the product.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the values are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// How finely products with this matrix represent the other side.
    pub fn activations(&self) -> ActivationPrecision {
        self.activations
    }

    /// How finely attention between projections like this one need see its operands:
    /// [`AttendParams::activations`](crate::AttendParams::activations).
    pub fn attention_activations(&self) -> ActivationPrecision {
        if self.activations.round_prompts(self.format) { self.activations } else { ActivationPrecision::F32 }
    }

    /// The same matrix, with products of another compute_precision.
    #[must_use]
    pub fn with_activations(self, activations: ActivationPrecision) -> Self {
        Self { activations, ..self }
    }

    /// Whether products with this matrix add up a row's sums in an order that does not depend on how many rows there
    /// are: then a row's result is bit for bit the same in any company.
    pub fn is_batch_invariant(&self) -> bool {
        self.batch_invariant
    }

    /// The same matrix, with products that are batch-invariant or not.
    #[must_use]
    pub fn with_batch_invariance(self, batch_invariant: bool) -> Self {
        Self { batch_invariant, ..self }
    }

    /// Size of the matrix in its format, in bytes, without the padding that a GPU may need.
    pub fn bytes_len(&self) -> usize {
        self.rows * self.format.row_bytes(self.cols).expect("checked on construction")
    }

    /// The device that holds the bytes.
    pub fn device(&self) -> Device {
        self.shards.first().expect("a matrix has at least one shard").device()
    }

    pub(crate) fn shards(&self) -> &[Tensor<2, Int>] {
        &self.shards
    }

    pub(crate) fn rows_per_shard(&self) -> usize {
        self.rows_per_shard
    }
}

/// Whether weights on this device are stored as 32-bit words: on a GPU.
pub(crate) fn stores_words(device: &Device) -> bool {
    // CubeCL runtimes are the only ones without byte storage
    #[cfg(feature = "wgpu")]
    {
        use burn::backend::DispatchDevice;
        matches!(device.as_dispatch(), DispatchDevice::Cube(_))
    }
    #[cfg(not(feature = "wgpu"))]
    {
        let _ = device;
        false
    }
}

/// Whether shaders decode a format. Those with large code books are not worth a table in every shader.
fn is_decoded_by_gpus(format: Format) -> bool {
    use Format::{Iq4Nl, Iq4Xs, Mxfp4, Q2K, Q3K};
    !Format::READ_ONLY.contains(&format) || matches!(format, Q2K | Q3K | Iq4Nl | Iq4Xs | Mxfp4)
}

/// Rows of `cols` values in another format as f16; relative error at most 2^-11.
fn as_f16(bytes: &[u8], format: Format, cols: usize) -> bytes::Bytes {
    use rayon::prelude::*;
    let row_bytes = format.block_bytes() * (cols / format.block_len());
    let mut halves = vec![0; bytes.len() / row_bytes * cols * 2];
    halves.par_chunks_mut(cols * 2).zip(bytes.par_chunks(row_bytes)).for_each_init(
        || vec![0.0; cols],
        |values, (halves, row)| {
            format.decode_row(row, values);
            Format::F16.encode_row(values, halves);
        },
    );
    halves.into()
}

/// The bytes of each row as little-endian words, the last one padded with zeros.
fn words(bytes: &[u8], row_bytes: usize, row_words: usize) -> Vec<u32> {
    let mut words = Vec::with_capacity(bytes.len() / row_bytes * row_words);
    for row in bytes.chunks_exact(row_bytes) {
        let (whole, rest) = row.as_chunks::<4>();
        words.extend(whole.iter().map(|word| u32::from_le_bytes(*word)));
        if !rest.is_empty() {
            let mut last = [0; 4];
            last[..rest.len()].copy_from_slice(rest);
            words.push(u32::from_le_bytes(last));
        }
    }
    words
}

// A packed weight is a constant of its module: no parameter for an optimizer, nothing to record.
impl Module for PackedWeight {
    fn visit<V: ModuleVisitor>(&self, _visitor: &mut V) {}

    fn map<M: ModuleMapper>(self, _mapper: &mut M) -> Self {
        self
    }

    fn to_device(self, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        assert_eq!(device, self.device(), "a packed weight stays on the device it was loaded to; load it again there");
        self
    }

    fn fork(self, device: &Device) -> Self {
        self.to_device(device)
    }

    fn collect_devices(&self, mut devices: Devices) -> Devices {
        let device = self.device();
        if !devices.contains(&device) {
            devices.push(device);
        }
        devices
    }

    fn materialize(self) -> Self {
        self
    }

    fn valid(&self) -> Self {
        self.clone()
    }

    fn train(self) -> Self {
        self
    }
}

impl ModuleDisplayDefault for PackedWeight {
    fn content(&self, content: Content) -> Option<Content> {
        content
            .add("rows", &self.rows)
            .add("cols", &self.cols)
            .add_formatted(&format!("format: {}", self.format))
            .optional()
    }
}

impl ModuleDisplay for PackedWeight {}
