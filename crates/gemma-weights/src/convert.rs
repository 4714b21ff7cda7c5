//! From the stored format of a matrix to the wanted one, row by row.

use bytes::Bytes;
use gemma_kernels::Format;
use rayon::prelude::*;

use crate::{Precision, StoredTensor};

/// Rows that one task converts before it asks for more: enough to make a task's cost negligible.
const ROWS_PER_TASK: usize = 16;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;

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
    fn rows_that_are_no_whole_blocks_stay_as_they_are() {
        assert_eq!(held_format(Format::Bf16, Some(Precision::Q8_0), 48), Format::Bf16);
        assert_eq!(held_format(Format::F32, Some(Precision::Q4_0), 33), Format::F32);
        assert_eq!(held_format(Format::F32, Some(Precision::Bf16), 33), Format::Bf16);
        assert_eq!(held_format(Format::F32, None, 32), Format::F32);
    }
}
