//! What the kernels choose among, chosen by hand: no choice may change a bit.

use super::*;
use crate::cube::tests::{Noise, assert_products, device, download, upload, upload_ints};
use burn_cubecl::CubeDevice;

/// A weight of random bits and random activations, on the device and off it.
struct Case {
    x: Vec<f32>,
    words: Vec<u32>,
    values: Vec<f32>,
    format: Format,
    shape: [usize; 3],
}

impl Case {
    fn new(noise: &mut Noise, format: Format, shape: [usize; 3]) -> Self {
        let [tokens, rows, cols] = shape;
        let (words, values) = noise.matrix(format, rows, cols, 16);
        Self { x: noise.values(tokens * cols), words, values, format, shape }
    }

    /// The first `rows` rows of the product, as `launch` computes them.
    fn product(&self, device: &CubeDevice, rows: usize, launch: impl Fn(Operands, &CubeTensor)) -> Vec<f32> {
        let [tokens, all, cols] = self.shape;
        let row_words = self.words.len() / all;
        let words = upload_ints(self.words[..rows * row_words].to_vec(), &[rows, row_words], device);
        let operands = operands(upload(&self.x, &[tokens, cols], device), words, self.format, cols);
        let y = output(&operands.x, [tokens, rows]);
        launch(operands, &y);
        download(y)
    }

    fn check(&self, y: &[f32], context: &str) {
        let [tokens, rows, cols] = self.shape;
        let context = format!("{}, {tokens} tokens, {rows} x {cols}, {context}", self.format);
        assert_products(y, &self.x, &self.values, self.shape, &context);
    }
}

/// Formats of each way of loading.
const FORMATS: [Format; 7] =
    [Format::Bf16, Format::F16, Format::Q8_0, Format::Q4_0, Format::Q4K, Format::Q5K, Format::Q6K];

#[test]
fn lanes_add_up_to_the_same_bits_across_planes_and_in_shared_memory() {
    let Some(device) = device() else { return };
    let mut noise = Noise(3);
    for format in FORMATS {
        for shape in [[1, 1, 512], [3, 9, 256], [4, 37, 768], [2, 5, 72]] {
            if format.row_bytes(shape[2]).is_none() {
                continue;
            }
            let case = Case::new(&mut noise, format, shape);
            let tree = case.product(&device, shape[1], |operands, y| vector::launch(operands, y, 0));
            case.check(&tree, "tree");
            let hardware = upload(&[0.0], &[1], &device).client.properties().hardware.clone();
            if hardware.plane_size_min != hardware.plane_size_max {
                println!("skipped: planes of {} to {}", hardware.plane_size_min, hardware.plane_size_max);
                continue;
            }
            let plane = hardware.plane_size_min as usize;
            let across = case.product(&device, shape[1], |operands, y| vector::launch(operands, y, plane));
            assert_eq!(across, tree, "{format}, {shape:?}, planes of {plane}");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_among_few_and_among_many() {
    let Some(device) = device() else { return };
    let mut noise = Noise(4);
    for format in FORMATS {
        let case = Case::new(&mut noise, format, [3, 8203, 256]);
        let launch = |operands: Operands, y: &CubeTensor| vector::launch(operands, y, 0);
        let all = case.product(&device, 8203, launch);
        case.check(&all, "four rows a unit");
        let few = case.product(&device, 10, launch);
        for (token, row) in few.chunks(10).enumerate() {
            assert_eq!(row, &all[token * 8203..][..10], "{format}, token {token}");
        }
    }
}

#[test]
fn tiles_of_every_depth_give_the_same_bits() {
    let Some(device) = device() else { return };
    let mut noise = Noise(5);
    for format in Format::ALL {
        for (tokens, rows, cols) in [(150, 70, 96), (129, 1, 37), (20, 65, 8), (5, 67, 256), (131, 64, 1)] {
            if format.row_bytes(cols).is_none() {
                continue;
            }
            let case = Case::new(&mut noise, format, [tokens, rows, cols]);
            let memory = upload(&[0.0], &[1], &device).client.properties().hardware.max_shared_memory_size;
            let depths: &[usize] = if tile::shared_bytes(8) <= memory { &[1, 2, 4, 8] } else { &[1, 2, 4] };
            let found: Vec<Vec<f32>> = depths
                .iter()
                .map(|depth| case.product(&device, rows, |operands, y| tile::launch(operands, y, *depth)))
                .collect();
            case.check(&found[0], "tiles");
            for (depth, y) in depths.iter().zip(&found) {
                assert!(*y == found[0], "{format}, {tokens} tokens, {rows} x {cols}, depth {depth}");
            }
        }
    }
}
