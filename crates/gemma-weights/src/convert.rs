//! From the stored format of a matrix to the wanted one, row by row.

use bytes::Bytes;
use gemma_kernels::Format;
use rayon::prelude::*;

use crate::{Dtype, Error, Precision, StoredTensor};

/// Rows that one task converts before it asks for more: enough to make a task's cost negligible.
pub(crate) const ROWS_PER_TASK: usize = 16;

/// The format in which a matrix with rows of `cols` values will be held: the wish, or the stored format where there is
/// no wish or where whole blocks of the wished format do not fill a row.
pub(crate) fn held_format(stored: Format, wish: Option<Precision>, cols: usize) -> Format {
    let wished = wish.map_or(stored, Precision::format);
    if wished.row_bytes(cols).is_some() { wished } else { stored }
}

/// The bytes of a matrix with rows of `cols` values in `format`. Borrowed when it is stored so; otherwise made by all
/// cores, with one row of f32 per core beside the result.
pub(crate) fn matrix_bytes(tensor: &StoredTensor, cols: usize, format: Format) -> Bytes {
    let stored = tensor.format;
    if stored == format || tensor.bytes.is_empty() {
        return tensor.bytes.clone();
    }
    let stored_row = stored.row_bytes(cols).expect("a stored row is whole blocks");
    let held_row = format.row_bytes(cols).expect("held_format() chose a format whose blocks fill a row");
    let rows = tensor.bytes.len() / stored_row;
    let mut held = vec![0; rows * held_row];
    held.par_chunks_mut(held_row).zip(tensor.bytes.par_chunks(stored_row)).with_min_len(ROWS_PER_TASK).for_each_init(
        || vec![0.0; cols],
        |values, (held, stored_bytes)| {
            stored.decode_row(stored_bytes, values);
            format.encode_row(values, held);
        },
    );
    held.into()
}

/// [`matrix_bytes`], for a file that others will read.
///
/// # Errors
/// [`Error::NotFinite`] when the tensor, or what `format` makes of it, holds an infinity or NaN.
pub(crate) fn finite_bytes(name: &str, tensor: &StoredTensor, format: Format) -> Result<Bytes, Error> {
    let cols = tensor.shape.last().copied().unwrap_or(1);
    let bytes = matrix_bytes(tensor, cols, format);
    let is_finite = |format: Format, bytes: &[u8]| match format.row_bytes(cols) {
        // without a row nothing is decoded, however long one would be
        Some(row) if row > 0 && !bytes.is_empty() => {
            let rows = bytes.par_chunks(row).with_min_len(ROWS_PER_TASK);
            rows.map_init(|| vec![0.0; cols], |values, row| decoded_is_finite(format, row, values)).all(|finite| finite)
        }
        _ => true,
    };
    if is_finite(tensor.format, &tensor.bytes) && (format == tensor.format || is_finite(format, &bytes)) {
        return Ok(bytes);
    }
    Err(Error::NotFinite { tensor: name.to_owned(), format })
}

fn decoded_is_finite(format: Format, row: &[u8], values: &mut [f32]) -> bool {
    format.decode_row(row, values);
    values.iter().all(|value| value.is_finite())
}

impl StoredTensor {
    /// Number of values.
    pub fn elements(&self) -> usize {
        self.bytes.len() / self.format.block_bytes() * self.format.block_len()
    }

    /// The values in a type, little-endian, for a file: borrowed, or made by all cores where the type is another. `name` is the
    /// tensor's.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for an infinity or NaN, and for a value that is too large for the type.
    pub fn in_dtype(&self, name: &str, dtype: Dtype) -> Result<Bytes, Error> {
        finite_bytes(name, self, dtype.format())
    }

    /// Whether two tensors have the same shape and hold the same values, in whatever format.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let cols = self.shape.last().copied().unwrap_or(1);
        let rows = |tensor: &Self| tensor.format.row_bytes(cols).filter(|row| *row > 0);
        if self.shape != other.shape || self.format == other.format {
            return self.shape == other.shape && self.bytes == other.bytes;
        }
        let (Some(ours), Some(theirs)) = (rows(self), rows(other)) else { return self.bytes.is_empty() };
        let pairs = self.bytes.par_chunks(ours).zip(other.bytes.par_chunks(theirs)).with_min_len(ROWS_PER_TASK);
        pairs
            .map_init(
                || (vec![0.0f32; cols], vec![0.0f32; cols]),
                |(a, b), (ours, theirs)| {
                    self.format.decode_row(ours, a);
                    other.format.decode_row(theirs, b);
                    a == b
                },
            )
            .all(|same| same)
    }

    /// The values as f32, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.elements()];
        self.format.decode_row(&self.bytes, &mut values);
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(dtype: Dtype, rows: usize, cols: usize) -> (Vec<f32>, StoredTensor) {
        // multiples of 1/8 up to 16: exact in every stored type
        let values: Vec<f32> = (0..rows * cols).map(|i| (i * 53 % 257) as f32 / 8.0 - 16.0).collect();
        let mut bytes = vec![0; values.len() * dtype.bytes()];
        dtype.format().encode_row(&values, &mut bytes);
        (values, StoredTensor { format: dtype.format(), shape: vec![rows, cols], bytes: bytes.into() })
    }

    #[test]
    fn the_stored_format_is_borrowed() {
        let (_, tensor) = stored(Dtype::Bf16, 5, 40);
        assert_eq!(matrix_bytes(&tensor, 40, Format::Bf16).as_ptr(), tensor.bytes.as_ptr());
    }

    #[test]
    fn each_row_is_converted_as_it_would_be_alone() {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            for precision in Precision::ALL {
                let (values, tensor) = stored(dtype, 37, 64);
                let format = held_format(dtype.format(), Some(precision), 64);
                assert_eq!(format, precision.format());
                let bytes = matrix_bytes(&tensor, 64, format);
                let row_bytes = format.row_bytes(64).unwrap();
                assert_eq!(bytes.len(), 37 * row_bytes);
                let mut alone = vec![0; row_bytes];
                for (row, values) in values.chunks(64).enumerate() {
                    format.encode_row(values, &mut alone);
                    assert_eq!(alone, bytes[row * row_bytes..][..row_bytes], "{dtype} to {precision}, row {row}");
                }
            }
        }
    }

    #[test]
    fn what_a_format_cannot_hold_is_not_written() {
        let of = |value: f32| {
            let mut values = vec![0.5f32; 3 * 32];
            values[70] = value;
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            StoredTensor { format: Format::F32, shape: vec![3, 32], bytes: bytes.into() }
        };
        for format in [Format::F32, Format::Bf16, Format::F16, Format::Q8_0, Format::Q4_0, Format::Q5_1] {
            assert!(finite_bytes("w", &of(1000.0), format).is_ok(), "{format}");
            for bad in [f32::NAN, f32::INFINITY] {
                let error = finite_bytes("w", &of(bad), format).unwrap_err();
                assert!(matches!(&error, Error::NotFinite { tensor, .. } if tensor == "w"), "{format}: {error}");
            }
            let is_wide = matches!(format, Format::F32 | Format::Bf16);
            assert_eq!(finite_bytes("w", &of(1e30), format).is_ok(), is_wide, "{format}");
        }
    }

    #[test]
    fn rows_that_are_no_whole_blocks_stay_as_they_are() {
        assert_eq!(held_format(Format::Bf16, Some(Precision::Q8_0), 48), Format::Bf16);
        assert_eq!(held_format(Format::F32, Some(Precision::Q4_0), 33), Format::F32);
        assert_eq!(held_format(Format::F32, Some(Precision::Bf16), 33), Format::Bf16);
        assert_eq!(held_format(Format::F32, None, 32), Format::F32);
    }
}
