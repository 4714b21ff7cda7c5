//! Rows of a packed matrix as f32: an embedding look-up.

use super::dequantize::{GROUP, column, decode, groups};
use super::{cube_count, is_empty, output, packed};
use crate::Format;
use burn::tensor::DType;
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::*;

/// Units of a cube; each decodes one group.
const UNITS: usize = 64;

/// The rows `ids` of the packed matrix in `words`: `[n]` to `[n, cols]`.
///
/// `words` is `[rows, row_words]` with each row of the format padded to a whole word. Ids past the last row are
/// the caller's mistake; they read the last row rather than memory that is not the matrix's.
///
/// # Panics
/// When the shapes contradict each other, or when the ids are not 32- or 64-bit integers.
pub(crate) fn packed_rows(words: CubeTensor, ids: CubeTensor, format: Format, cols: usize) -> CubeTensor {
    let (words, [rows, _]) = packed(words, format, cols);
    let ids = into_contiguous(ids);
    let [n] = ids.meta.shape().dims::<1>();
    let out = output(&words, [n, cols]);
    if is_empty(&out) {
        return out;
    }
    assert!(rows > 0, "a row is asked of a matrix that has none");
    match ids.dtype {
        DType::I32 => launch::<i32>(words, ids, &out, format),
        DType::U32 => launch::<u32>(words, ids, &out, format),
        DType::I64 => launch::<i64>(words, ids, &out, format),
        DType::U64 => launch::<u64>(words, ids, &out, format),
        other => panic!("row ids are 32- or 64-bit integers, not {other:?}"),
    }
    out
}

fn launch<I: Int>(words: CubeTensor, ids: CubeTensor, out: &CubeTensor, format: Format) {
    let [rows, row_words] = words.meta.shape().dims::<2>();
    let [n, cols] = out.meta.shape().dims::<2>();
    let client = words.client.clone();
    let work = n * groups(cols);
    // SAFETY: units past the last group do nothing, ids are clamped to the rows that exist, and columns are
    // guarded unless they are whole groups; the buffers hold rows x row_words, n and n x cols elements.
    unsafe {
        rows_kernel::launch_unchecked::<I>(
            &client,
            cube_count(work.div_ceil(UNITS)),
            CubeDim::new_1d(UNITS as u32),
            words.into_buffer_arg(),
            ids.into_buffer_arg(),
            out.clone().into_buffer_arg(),
            work,
            rows,
            row_words,
            cols,
            groups(cols),
            format,
            cols.is_multiple_of(GROUP),
        );
    }
}

/// Each unit decodes one group of one row.
#[cube(launch_unchecked)]
fn rows_kernel<I: Int>(
    words: &[u32],
    ids: &[I],
    out: &mut [f32],
    work: usize,
    rows: usize,
    row_words: usize,
    cols: usize,
    groups: usize,
    #[comptime] format: Format,
    #[comptime] whole: bool,
) {
    if ABSOLUTE_POS >= work {
        terminate!();
    }
    let index = ABSOLUTE_POS / groups;
    let group = ABSOLUTE_POS % groups;
    let row = min(usize::cast_from(ids[index]), rows - 1);
    let mut values = Array::<f32>::new(GROUP);
    decode(words, row * row_words, group, cols, &mut values, 0usize, format, whole);
    #[unroll]
    for i in 0..GROUP {
        let at = column(group, i, format);
        if whole || at < cols {
            out[index * cols + at] = values[i];
        }
    }
}
