//! Adding adapters to the weights of a checkpoint.

use gemma_kernels::Format;
use rayon::prelude::*;

use super::Adapter;
use crate::{Checkpoint, StoredTensor};

/// What an adapter adds to one matrix: `s B A`, made a row at a time.
struct Difference {
    a: Vec<f32>,
    b: Vec<f32>,
    rank: usize,
    scale: f32,
}

impl Difference {
    fn of(adapter: &Adapter, name: &str) -> Option<Self> {
        let module = adapter.module_of_weight(name)?;
        let scale = module.scale * adapter.strength;
        Some(Self { a: module.a.to_f32(), b: module.b.to_f32(), rank: module.a.shape[0], scale })
    }

    /// Adds row `row` to `values`. Sums are f64, so that the merged row is as exact as its format.
    fn add_row(&self, row: usize, values: &mut [f32]) {
        let mut sums: Vec<f64> = values.iter().copied().map(f64::from).collect();
        for (k, b) in self.b[row * self.rank..(row + 1) * self.rank].iter().enumerate() {
            let factor = f64::from(self.scale) * f64::from(*b);
            let a = &self.a[k * values.len()..(k + 1) * values.len()];
            sums.iter_mut().zip(a).for_each(|(sum, a)| *sum += factor * f64::from(*a));
        }
        values.iter_mut().zip(sums).for_each(|(value, sum)| *value = sum as f32);
    }
}

impl Checkpoint {
    /// The checkpoint with adapters added to its weights, `W + Σ s B A`. The matrices that an adapter changes are held in
    /// memory, in `format` (the stored one without it, or where its blocks do not fill a row); all others are those of
    /// the file. [`Adapter::check`] has to have accepted the model's tensors.
    #[must_use]
    pub fn merged(&self, adapters: &[Adapter], format: Option<Format>) -> Self {
        let mut merged = self.clone();
        for (name, tensor) in self.tensors() {
            let differences: Vec<Difference> =
                adapters.iter().filter_map(|adapter| Difference::of(adapter, name)).collect();
            if !differences.is_empty() {
                merged.replace(name, merge(tensor, &differences, format));
            }
        }
        merged
    }
}

fn merge(tensor: &StoredTensor, differences: &[Difference], format: Option<Format>) -> StoredTensor {
    let cols = tensor.shape[1];
    let format = format.filter(|format| format.row_bytes(cols).is_some()).unwrap_or(tensor.format);
    let stored_row = tensor.format.row_bytes(cols).expect("a stored row is whole blocks");
    let row_bytes = format.row_bytes(cols).expect("the format was chosen to fit");
    let mut bytes = vec![0; tensor.shape[0] * row_bytes];
    bytes.par_chunks_mut(row_bytes).zip(tensor.bytes.par_chunks(stored_row)).enumerate().for_each_init(
        || vec![0.0; cols],
        |values, (row, (merged, stored))| {
            tensor.format.decode_row(stored, values);
            differences.iter().for_each(|difference| difference.add_row(row, values));
            format.encode_row(values, merged);
        },
    );
    StoredTensor { format, shape: tensor.shape.clone(), bytes: bytes.into() }
}
