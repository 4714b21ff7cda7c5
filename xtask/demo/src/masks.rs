//! The mask decoder of the PaliGemma demo, and the encoder that belongs to it.
//!
//! The decoder has the layers and shapes of the published one ([`MaskDecoder`]), but its weights are constructed, not
//! trained. A mask is cut into 4 x 4 cells. In each cell the edge of a shape is nearly straight, so a code stands for
//! a half-plane: one of 18 directions at one of 7 distances from the middle of the cell; two more codes stand for an
//! empty cell and for a full one. The vector of a code is the part of each of the cell's 8 x 8 patches that lies inside.
//! Three transposed convolutions move the 64 numbers of each cell to their places in a map of 32 x 32, the fourth doubles
//! that by bilinear interpolation, and a bias of -0.5 puts the edge where half of a patch is covered.

use std::f32::consts::TAU;

use paligemma::loc::{CODEBOOK, CODES};
use paligemma::seg::MaskDecoder;

/// Cells of a mask, across and down.
const CELLS: usize = CODES.isqrt();
/// Patches of a cell, across and down.
const PATCHES: usize = 8;
/// Sample points of a patch, across and down.
const SAMPLES: usize = 4;
/// Directions of the half-planes.
const DIRECTIONS: usize = 18;
/// Distances of an edge from the middle of the cell.
const DISTANCES: usize = 7;

/// The part of each patch of a cell that is inside, row by row, where `inside` is asked about points in fractions of the
/// cell.
fn coverage(inside: impl Fn(f32, f32) -> bool) -> [f32; PATCHES * PATCHES] {
    let at = |patch: usize, sample: usize| ((patch * SAMPLES + sample) as f32 + 0.5) / (PATCHES * SAMPLES) as f32;
    std::array::from_fn(|patch| {
        let (column, row) = (patch % PATCHES, patch / PATCHES);
        let samples = 0..SAMPLES * SAMPLES;
        let hits = samples.filter(|sample| inside(at(column, sample % SAMPLES), at(row, sample / SAMPLES))).count();
        hits as f32 / (SAMPLES * SAMPLES) as f32
    })
}

/// The table of codes: what each makes of a cell.
#[derive(Debug)]
pub struct MaskCodes {
    patches: Vec<[f32; PATCHES * PATCHES]>,
}

impl Default for MaskCodes {
    fn default() -> Self {
        Self::new()
    }
}

impl MaskCodes {
    /// The codes of the demo: empty, full, and the half-planes.
    ///
    /// # Panics
    /// Never: there are as many codes as segment tokens.
    pub fn new() -> Self {
        let half_plane = |index: usize| {
            let (direction, distance) = (index / DISTANCES, index % DISTANCES);
            let (sine, cosine) = (direction as f32 / DIRECTIONS as f32 * TAU).sin_cos();
            // from -0.45 to 0.45 of a cell
            let offset = (distance as f32 - (DISTANCES - 1) as f32 / 2.0) * 0.15;
            coverage(|x, y| (x - 0.5) * cosine + (y - 0.5) * sine < offset)
        };
        let plain = [coverage(|_, _| false), coverage(|_, _| true)];
        let patches: Vec<_> = plain.into_iter().chain((0..DIRECTIONS * DISTANCES).map(half_plane)).collect();
        assert_eq!(patches.len(), CODEBOOK, "a code for each segment token");
        Self { patches }
    }

    /// The codes of a mask, row by row; `inside` is asked about points in fractions of its box.
    pub fn encode(&self, inside: impl Fn(f32, f32) -> bool) -> [u8; CODES] {
        std::array::from_fn(|cell| {
            let (left, upper) = ((cell % CELLS) as f32, (cell / CELLS) as f32);
            let wanted = coverage(|x, y| inside((left + x) / CELLS as f32, (upper + y) / CELLS as f32));
            let error =
                |code: &usize| -> f32 { self.patches[*code].iter().zip(&wanted).map(|(a, b)| (a - b).powi(2)).sum() };
            (0..CODEBOOK).min_by(|a, b| error(a).total_cmp(&error(b))).unwrap_or(0) as u8
        })
    }

    /// The values of one of the decoder's tensors, by the name and shape that [`MaskDecoder::new`] asks for.
    ///
    /// # Errors
    /// When the demo has no tensor of that name.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, String> {
        let mut values = vec![0.0; shape.iter().product()];
        let mut put = |place: [usize; 4], value: f32| {
            let index = place.iter().zip(shape).fold(0, |index, (at, axis)| index * axis + at);
            values[index] = value;
        };
        match name {
            "_vq_vae._embedding" => {
                for (code, patches) in self.patches.iter().enumerate() {
                    values[code * shape[1]..][..patches.len()].copy_from_slice(patches);
                }
            }
            "decoder.0.weight" => (0..PATCHES * PATCHES).for_each(|channel| put([channel, channel, 0, 0], 1.0)),
            "decoder.4.weight" => spread(PATCHES, put),
            "decoder.6.weight" => spread(PATCHES / 2, put),
            "decoder.8.weight" => spread(PATCHES / 4, put),
            "decoder.10.weight" => {
                let bilinear = [0.25, 0.75, 0.75, 0.25];
                (0..16).for_each(|at| put([0, 0, at / 4, at % 4], bilinear[at / 4] * bilinear[at % 4]));
            }
            "decoder.12.weight" => put([0; 4], 1.0),
            "decoder.12.bias" => values.fill(-0.5),
            // the residual blocks add nothing, and no other layer has a bias
            name if name.starts_with("decoder.") => {}
            other => return Err(format!("the demo's mask decoder has no tensor {other}")),
        }
        Ok(values)
    }
}

/// A transposed convolution `[in, out, 4, 4]` with stride 2 and padding 1 that takes channels which are `side` x `side`
/// places of a cell apart into 2 x 2 cells of half as many places: position 1 of the kernel is the left or upper one of
/// the two, position 2 the other.
fn spread(side: usize, mut put: impl FnMut([usize; 4], f32)) {
    let half = side / 2;
    for (row, column) in (0..side * side).map(|channel| (channel / side, channel % side)) {
        let inner = (row % half) * half + column % half;
        put([row * side + column, inner, 1 + row / half, 1 + column / half], 1.0);
    }
}

/// A name, a shape and values.
pub type NamedTensor = (String, Vec<usize>, Vec<f32>);

/// The decoder as a list of tensors, as it is stored: names, shapes and values.
///
/// # Errors
/// When the decoder asks for a tensor that the demo does not have, or the device fails.
pub fn decoder_tensors(device: &gemma_backend::Device) -> Result<Vec<NamedTensor>, String> {
    let codes = MaskCodes::new();
    let asked = std::cell::RefCell::new(Vec::new());
    let get = |name: &str, shape: &[usize]| {
        let values = codes.tensor(name, shape)?;
        asked.borrow_mut().push((name.to_owned(), shape.to_vec(), values.clone()));
        Ok(values)
    };
    MaskDecoder::new(&get, device)?;
    Ok(asked.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenes::Shape;
    use paligemma::seg::MAP;

    /// Intersection over union of a decoded map and of what was encoded.
    fn overlap(map: &[f32], inside: impl Fn(f32, f32) -> bool) -> f32 {
        let (mut both, mut either) = (0, 0);
        for (place, value) in map.iter().enumerate() {
            let at = |pixel: usize| (pixel as f32 + 0.5) / MAP as f32;
            let (is, should) = (*value > 0.0, inside(at(place % MAP), at(place / MAP)));
            both += usize::from(is && should);
            either += usize::from(is || should);
        }
        both as f32 / either as f32
    }

    #[test]
    fn a_shape_comes_back_from_its_codes() {
        let device = gemma_backend::default_device().unwrap();
        let codes = MaskCodes::new();
        let decoder = MaskDecoder::new(&|name, shape| codes.tensor(name, shape), &device).unwrap();
        for shape in Shape::ALL {
            let map = decoder.decode(&[codes.encode(|x, y| shape.contains(x, y))]).remove(0);
            let overlap = overlap(&map, |x, y| shape.contains(x, y));
            println!("{shape:?}: {overlap:.3}");
            assert!(overlap > 0.9, "{shape:?}: {overlap}");
        }
        // shapes that the demo does not draw: the codes are not four masks
        let ellipse = |x: f32, y: f32| (x - 0.6).powi(2) / 0.09 + (y - 0.4).powi(2) / 0.16 < 1.0;
        assert!(overlap(&decoder.decode(&[codes.encode(ellipse)])[0], ellipse) > 0.9);
        let slanted = |x: f32, y: f32| x + 0.3 * y < 0.7;
        assert!(overlap(&decoder.decode(&[codes.encode(slanted)])[0], slanted) > 0.9);
        assert!(decoder.decode(&[codes.encode(|_, _| false)])[0].iter().all(|value| *value < 0.0));
    }

    #[test]
    fn no_two_codes_say_the_same() {
        let codes = MaskCodes::new();
        for (index, one) in codes.patches.iter().enumerate() {
            assert!(codes.patches[..index].iter().all(|other| other != one), "code {index}");
        }
    }

    /// The stored file is what the program would write: it holds the tensors in bf16, which is exact.
    #[test]
    fn the_stored_decoder_is_the_constructed_one() {
        let device = gemma_backend::default_device().unwrap();
        let stored = paligemma::demo(&device).unwrap();
        let codes = MaskCodes::new();
        let made = MaskDecoder::new(&|name, shape| codes.tensor(name, shape), &device).unwrap();
        let object = codes.encode(|x, y| Shape::Circle.contains(x, y));
        assert_eq!(stored.mask_decoder().unwrap().decode(&[object]), made.decode(&[object]));
    }
}
