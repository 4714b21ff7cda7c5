//! From a checkpoint to parameters: every stored type to every precision, on every backend that is compiled in.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

use std::cell::RefCell;

use gemma_backend::{Backend, Device};
use gemma_kernels::Format;
use gemma_nn::{Source, Weight};
use gemma_weights::{Checkpoint, Dtype, Loader, Precision, save_folder};
use tempfile::TempDir;

const ROWS: usize = 5;
const COLS: usize = 64;

fn devices() -> Vec<Device> {
    Backend::compiled().into_iter().map(|backend| backend.device().expect("a compiled backend opens")).collect()
}

/// Multiples of 1/8 below 16: exact in every stored type.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 53 % 251) as f32 / 8.0 - 15.0).collect()
}

fn encoded(format: Format, values: &[f32], cols: usize) -> Vec<u8> {
    let row_bytes = format.row_bytes(cols).unwrap();
    let mut bytes = vec![0; values.len() / cols * row_bytes];
    for (values, bytes) in values.chunks(cols).zip(bytes.chunks_mut(row_bytes)) {
        format.encode_row(values, bytes);
    }
    bytes
}

/// A folder with a matrix of whole blocks, one of 33 columns, a vector and an array of three axes.
fn folder(dtype: Dtype) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let shapes: [(&str, &[usize]); 4] = [
        ("model.proj.weight", &[ROWS, COLS]),
        ("model.odd.weight", &[2, 33]),
        ("model.norm.weight", &[33]),
        ("model.conv", &[2, 3, 4]),
    ];
    let mut tensors = shapes.into_iter().map(|(name, shape)| {
        let values = values(shape.iter().product());
        (name.to_owned(), dtype, shape.to_vec(), encoded(dtype.format(), &values, values.len()).into())
    });
    save_folder(folder.path(), &[], &mut tensors).unwrap();
    folder
}

fn packed(weight: &Weight) -> &gemma_kernels::PackedWeight {
    match weight {
        Weight::Packed(packed) => packed,
        Weight::Dense(_) => panic!("a loaded matrix is packed"),
    }
}

#[test]
fn a_matrix_is_held_as_wished_and_everything_else_as_f32() {
    for device in devices() {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            let folder = folder(dtype);
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            for wish in Precision::ALL.map(Some).into_iter().chain([None]) {
                let mut loader = Loader::new(&checkpoint, wish, &device);
                let format = wish.unwrap_or(dtype.into()).format();
                let weight = loader.matrix("model.proj.weight", ROWS, COLS);
                let packed = packed(&weight);
                assert_eq!((packed.rows(), packed.cols(), packed.format()), (ROWS, COLS, format));
                // what the format makes of these values
                let mut expected = vec![0.0; ROWS * COLS];
                let bytes = encoded(format, &values(ROWS * COLS), COLS);
                for (bytes, row) in bytes.chunks(bytes.len() / ROWS).zip(expected.chunks_mut(COLS)) {
                    format.decode_row(bytes, row);
                }
                let rows: Vec<f32> = weight.rows(&[0, 1, 2, 3, 4]).into_data().try_into_vec().unwrap();
                assert_eq!(rows, expected, "{dtype} as {wish:?}");

                let vector = loader.vector("model.norm.weight", 33).val().into_data();
                assert_eq!(vector.try_into_vec::<f32>().unwrap(), values(33));
                let array = loader.array("model.conv", &[2, 3, 4]);
                assert_eq!(array.shape().as_slice(), [2, 3, 4]);
                assert_eq!(array.try_into_vec::<f32>().unwrap(), values(24));
            }
        }
    }
}

#[test]
fn rows_that_are_no_whole_blocks_stay_as_stored_and_are_listed() {
    let device = devices().swap_remove(0);
    let folder = folder(Dtype::Bf16);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let mut loader = Loader::new(&checkpoint, Some(Precision::Q8_0), &device);
    assert_eq!(packed(&loader.matrix("model.proj.weight", ROWS, COLS)).format(), Format::Q8_0);
    assert!(loader.unquantized().is_empty());
    let odd = loader.matrix("model.odd.weight", 2, 33);
    assert_eq!(packed(&odd).format(), Format::Bf16);
    assert_eq!(odd.rows(&[1]).into_data().try_into_vec::<f32>().unwrap(), values(66)[33..]);
    assert_eq!(loader.unquantized(), ["model.odd.weight"]);
    assert_eq!(
        packed(&Loader::new(&checkpoint, Some(Precision::F32), &device).matrix("model.odd.weight", 2, 33)).format(),
        Format::F32
    );
}

#[test]
fn progress_ends_at_the_size_of_the_checkpoint() {
    let device = devices().swap_remove(0);
    let folder = folder(Dtype::F32);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let reports = RefCell::new(Vec::new());
    let mut loader = Loader::new(&checkpoint, None, &device)
        .on_progress(Box::new(|done, total| reports.borrow_mut().push((done, total))));
    loader.matrix("model.proj.weight", ROWS, COLS);
    loader.matrix("model.odd.weight", 2, 33);
    loader.vector("model.norm.weight", 33);
    loader.array("model.conv", &[2, 3, 4]);
    loader.vector("model.norm.weight", 33);
    drop(loader);
    let total = checkpoint.bytes_len();
    let done = [1280, 1544, 1676, 1772, 1772];
    assert_eq!(reports.into_inner(), done.map(|done| (done, total)));
    assert_eq!(total, 1772);
}
