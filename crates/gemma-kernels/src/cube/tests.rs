//! Each kernel against plain loops in f64, with what must not be read filled with NaN.
//!
//! They need an adapter; a software one such as lavapipe (mesa-vulkan-drivers) will do. Without, they say that they
//! were skipped.

use super::*;
use crate::ops::linear::Arithmetic;
use crate::{ActivationPrecision, Phase};
use burn::backend::{DispatchDevice, ops::FloatTensorOps, ops::IntTensorOps, read_sync};
use burn::tensor::TensorData;
use burn_cubecl::{CubeBackend, CubeDevice};
use half::f16;

const ARITHMETIC: Arithmetic =
    Arithmetic { activations: ActivationPrecision::F32, phase: Phase::Decode, batch_invariant: false };

/// The device, or `None` with a word about it where there is none.
pub(super) fn device() -> Option<CubeDevice> {
    match gemma_backend::Backend::Wgpu.device() {
        Ok(device) => match device.as_dispatch() {
            DispatchDevice::Cube(device) => Some(device.clone()),
            other => panic!("wgpu is a CubeCL runtime, not {other:?}"),
        },
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

/// Numbers that look random and are the same in each run (Marsaglia's xorshift).
pub(super) struct Noise(pub(super) u64);

impl Noise {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.bits() >> 33) as usize % end
    }

    /// Values in -1..1.
    pub(super) fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// A finite half with its exponent below `exponent`: a subnormal for 1.
    fn half(&mut self, exponent: usize) -> [u8; 2] {
        let sign_and_fraction = self.bits() as u16 & 0x83ff;
        (sign_and_fraction | (self.below(exponent) as u16) << 10).to_le_bytes()
    }

    /// A packed matrix: its words, rows padded with ones, and its values. Blocks hold any bytes after their scale,
    /// halves and scales any number with an exponent below `exponent`.
    pub(super) fn matrix(&mut self, format: Format, rows: usize, cols: usize, exponent: usize) -> (Vec<u32>, Vec<f32>) {
        let (mut words, mut values) = (Vec::new(), vec![0.0; rows * cols]);
        for values in values.chunks_mut(cols) {
            let mut bytes = vec![0; format.row_bytes(cols).unwrap()];
            match format {
                Format::F32 | Format::Bf16 => format.encode_row(&self.values(cols), &mut bytes),
                _ => {
                    let halves: &[usize] = match format {
                        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
                        Format::Q6K => &[208],
                        _ => &[0],
                    };
                    for block in bytes.chunks_mut(format.block_bytes()) {
                        block.fill_with(|| self.bits() as u8);
                        for at in halves {
                            block[*at..at + 2].copy_from_slice(&self.half(exponent));
                        }
                    }
                }
            }
            format.decode_row(&bytes, values);
            bytes.resize(bytes.len().next_multiple_of(4), 0xff);
            words.extend(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)));
        }
        (words, values)
    }
}

pub(super) fn upload(values: &[f32], shape: &[usize], device: &CubeDevice) -> CubeTensor {
    CubeBackend::float_from_data(TensorData::new(values.to_vec(), shape.to_vec()), device)
}

pub(super) fn upload_ints<E: burn::tensor::Element>(
    values: Vec<E>,
    shape: &[usize],
    device: &CubeDevice,
) -> CubeTensor {
    CubeBackend::int_from_data(TensorData::new(values, shape.to_vec()), device)
}

pub(super) fn download(tensor: CubeTensor) -> Vec<f32> {
    read_sync(CubeBackend::float_into_data(tensor)).unwrap().try_to_vec().unwrap()
}

/// Asserts that `y` is the product of `x` with the transpose of `values`, as a loop in f64 computes it.
pub(super) fn assert_products(y: &[f32], x: &[f32], values: &[f32], [tokens, rows, cols]: [usize; 3], context: &str) {
    assert_eq!(y.len(), tokens * rows, "{context}");
    for (i, y) in y.iter().enumerate() {
        let (x, w) = (&x[i / rows * cols..][..cols], &values[i % rows * cols..][..cols]);
        let terms = || x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
        let (sum, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
        assert!((f64::from(*y) - sum).abs() <= 3e-6 * size, "{context}, element {i}: {y} for {sum}");
    }
}

#[test]
fn cubes_are_spread_without_much_surplus() {
    for cubes in [1, 2, 65_535, 65_536, 70_000, 131_071, 10_000_000] {
        let CubeCount::Static(x, y, 1) = cube_count(cubes) else { panic!("static") };
        assert!(x as usize <= MOST_CUBES && y as usize <= MOST_CUBES);
        let launched = x as usize * y as usize;
        assert!(launched >= cubes && launched < cubes + y as usize, "{cubes}: {x} x {y}");
    }
}

#[test]
fn rows_come_back_exactly_down_to_subnormal_scales() {
    let Some(device) = device() else { return };
    let mut noise = Noise(1);
    for format in Format::ALL {
        for cols in [1, 2, 3, 5, 33, 64, 160, 768].into_iter().filter(|cols| format.row_bytes(*cols).is_some()) {
            for exponent in [1, 20] {
                let (words, values) = noise.matrix(format, 37, cols, exponent);
                let row_words = words.len() / 37;
                let ids: Vec<usize> = (0..70).map(|_| noise.below(37)).collect();
                let expected: Vec<f32> = ids.iter().flat_map(|id| values[id * cols..][..cols].to_vec()).collect();
                let words = upload_ints(words, &[37, row_words], &device);
                for ids in [
                    upload_ints(ids.iter().map(|id| *id as i32).collect(), &[70], &device),
                    upload_ints(ids.iter().map(|id| *id as u32).collect(), &[70], &device),
                ] {
                    let rows = download(packed_rows(words.clone(), ids, format, cols));
                    let context = format!("{format}, {cols} columns, exponents below {exponent}");
                    if matches!(format, Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K) {
                        // a product and a sum, which a driver may round together
                        let blocks = rows.chunks(format.block_len()).zip(expected.chunks(format.block_len()));
                        for (found, expected) in blocks {
                            let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
                            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * largest;
                            assert!(found.iter().zip(expected).all(close), "{context}");
                        }
                    } else {
                        assert!(rows == expected, "{context}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_half_is_decoded() {
    let Some(device) = device() else { return };
    let words: Vec<u32> = (0..1u32 << 15).map(|i| (2 * i) | ((2 * i + 1) << 16)).collect();
    let matrix = upload_ints(words, &[16, 2048], &device);
    let ids = upload_ints((0..16i32).collect(), &[16], &device);
    for (bits, value) in download(packed_rows(matrix, ids, Format::F16, 4096)).into_iter().enumerate() {
        let expected = f16::from_bits(bits as u16).to_f32();
        // shading languages do not promise infinities and NaNs
        assert!(value.to_bits() == expected.to_bits() || !expected.is_finite(), "{bits:#06x}: {value} for {expected}");
    }
}

#[test]
fn products_match_the_loops() {
    let Some(device) = device() else { return };
    let mut noise = Noise(2);
    for format in Format::ALL {
        for cols in [1, 5, 33, 64, 160, 512].into_iter().filter(|cols| format.row_bytes(*cols).is_some()) {
            // a driver compiles each number of tokens up to 4 and each depth of tiles: all of them for one format
            let few = [(7, 1), (300, 3), (7, 5), (65, 70)];
            let all = [(1, 1), (7, 2), (300, 3), (65, 4), (7, 5), (300, 17), (1, 40), (65, 70)];
            for &(rows, tokens) in if format == Format::Bf16 { &all[..] } else { &few } {
                let (words, values) = noise.matrix(format, rows, cols, 16);
                let x = noise.values(tokens * cols);
                let words = upload_ints(words.clone(), &[rows, words.len() / rows], &device);
                let y = download(packed_linear(
                    upload(&x, &[tokens, cols], &device),
                    words,
                    None,
                    format,
                    cols,
                    ARITHMETIC,
                ));
                let context = format!("{format}, {tokens} tokens, {rows} x {cols}");
                assert_products(&y, &x, &values, [tokens, rows, cols], &context);
            }
        }
    }
}
