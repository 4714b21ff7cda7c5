//! What shape things have: segment tokens to masks.
//!
//! The sixteen codes of an object are looked up in a table of vectors, laid out as a 4 x 4 map and decoded, by the
//! decoder of a VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937; residual blocks as in Ning et al. 2023,
//! arXiv:2301.02229), into a map of 64 x 64 values: above zero is inside. The map is stretched over the object's box.

use std::io::Read;
use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData, activation::relu};
use burn::tensor::{module::conv_transpose2d, module::conv2d, ops::ConvOptions, ops::ConvTransposeOptions};

use crate::Error;
use crate::loc::{BoundingBox, CODEBOOK, CODES};
use crate::npz::Archive;
use gemma_vision::{Filter, resize_map};

/// Width and height of a decoded map.
pub const MAP: usize = 64;
/// Numbers of a code vector.
const CODE_WIDTH: usize = 512;
/// Channels inside the decoder.
const CHANNELS: usize = 128;
/// Channels after each doubling of the size: 4, 8, 16, 32, 64.
const UPWARDS: [usize; 5] = [CHANNELS, 128, 64, 32, 16];
/// The files of weights that are looked for in a model folder: as big_vision publishes them, and as safetensors.
pub(crate) const MASK_DECODERS: [&str; 2] = ["vae-oid.npz", "mask_decoder.safetensors"];
/// The most bytes of a weights file that are read; the published one has 22 MB.
const FILE_LIMIT: u64 = 256 << 20;

/// The mask of an object: which pixels of an image belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Left edge of the part that is looked at, in pixels.
    pub x: usize,
    /// Upper edge, in pixels.
    pub y: usize,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Whether each pixel of that part belongs to the object, row by row; no pixel outside does.
    pub inside: Vec<bool>,
}

impl Mask {
    /// Stretches a decoded map over a box of an image (its edges cut off to whole pixels, by Pillow's bilinear
    /// filter); above zero is inside. `None` when the box contains no pixel.
    ///
    /// # Panics
    /// When the map does not have [`MAP`] x [`MAP`] values.
    pub fn stretch(map: &[f32], bounds: &BoundingBox) -> Option<Self> {
        assert_eq!(map.len(), MAP * MAP, "a map of the decoder");
        let [x, y, x_max, y_max] = bounds.whole_pixels();
        let (width, height) = (x_max.saturating_sub(x), y_max.saturating_sub(y));
        if width == 0 || height == 0 {
            return None;
        }
        let stretched = resize_map(map, MAP, MAP, width, height, Filter::Bilinear);
        Some(Self { x, y, width, height, inside: stretched.iter().map(|value| *value > 0.0).collect() })
    }

    /// Whether the pixel of the image belongs to the object.
    pub fn contains(&self, x: usize, y: usize) -> bool {
        let within = x >= self.x && x < self.x + self.width && y >= self.y && y < self.y + self.height;
        within && self.inside[(y - self.y) * self.width + (x - self.x)]
    }

    /// Number of pixels that belong to the object.
    pub fn area(&self) -> usize {
        self.inside.iter().filter(|inside| **inside).count()
    }

    /// A byte for each pixel of an image of that size, row by row: 255 inside, 0 outside.
    pub fn to_bytes(&self, width: usize, height: usize) -> Vec<u8> {
        (0..height).flat_map(|y| (0..width).map(move |x| if self.contains(x, y) { 255 } else { 0 })).collect()
    }
}

/// A convolution with a bias: `weight` `[out, in, k, k]`, or `[in, out, k, k]` for a transposed one.
#[derive(Module, Debug)]
struct Convolution {
    weight: Param<Tensor<4>>,
    bias: Param<Tensor<1>>,
}

impl Convolution {
    fn same(&self, x: Tensor<4>) -> Tensor<4> {
        let padding = self.weight.val().dims()[3] / 2;
        let options = ConvOptions::new([1, 1], [padding, padding], [1, 1], 1);
        conv2d(x, self.weight.val(), Some(self.bias.val()), options)
    }

    /// Kernel 4, stride 2, padding 1: twice the size.
    fn double(&self, x: Tensor<4>) -> Tensor<4> {
        let options = ConvTransposeOptions::new([2, 2], [1, 1], [0, 0], [1, 1], 1);
        conv_transpose2d(x, self.weight.val(), Some(self.bias.val()), options)
    }
}

/// `x + conv1(relu(conv3(relu(conv3(x)))))`.
#[derive(Module, Debug)]
struct Residual {
    first: Convolution,
    second: Convolution,
    third: Convolution,
}

impl Residual {
    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let inner = relu(self.first.same(x.clone()));
        let inner = relu(self.second.same(inner));
        x + self.third.same(inner)
    }
}

/// The decoder of masks.
#[derive(Module, Debug)]
pub struct MaskDecoder {
    /// `[codes, 512]`.
    embedding: Param<Tensor<2>>,
    enter: Convolution,
    residuals: Vec<Residual>,
    doublings: Vec<Convolution>,
    leave: Convolution,
}

/// The values of a parameter by name and shape, or why there are none.
pub type Parameters<'a> = &'a dyn Fn(&str, &[usize]) -> Result<Vec<f32>, String>;

impl MaskDecoder {
    /// Reads the weights: a NumPy archive in the layout of the published `vae-oid.npz`, or a safetensors file of tensors
    /// with the same names.
    ///
    /// # Errors
    /// When the file cannot be read or lacks a tensor of the right shape.
    pub fn open(path: &Path, device: &Device) -> Result<Self, Error> {
        let failed = |cause| Error::File { path: path.to_owned(), cause };
        let mut content = Vec::new();
        // a device has no length, and no end
        std::fs::File::open(path)
            .and_then(|file| file.take(FILE_LIMIT + 1).read_to_end(&mut content))
            .map_err(failed)?;
        Self::from_bytes(path, content, device)
    }

    /// Reads the weights from the content of such a file; the ending of `path` says which kind of file it is.
    ///
    /// # Errors
    /// When the content lacks a tensor of the right shape.
    pub fn from_bytes(path: &Path, content: Vec<u8>, device: &Device) -> Result<Self, Error> {
        let wrong = |reason: String| Error::MaskWeights { path: path.to_owned(), reason };
        if content.len() as u64 > FILE_LIMIT {
            return Err(wrong(format!("more than {FILE_LIMIT} bytes are too many")));
        }
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            let tensors = gemma_weights::parse_safetensors(path, &content.into())?;
            let get = |name: &str, shape: &[usize]| {
                let tensor = tensors.get(name).ok_or_else(|| format!("it has no tensor {name}"))?;
                if tensor.shape != shape {
                    return Err(format!("tensor {name} has shape {:?}, not {shape:?}", tensor.shape));
                }
                Ok(tensor.to_f32())
            };
            return Self::new(&get, device).map_err(wrong);
        }
        let archive = Archive::open(&content).map_err(wrong)?;
        Self::new(&|name, shape| archive.array(name, shape), device).map_err(wrong)
    }

    /// A decoder of the values that `get` gives, which is asked once for each tensor of a file.
    ///
    /// # Errors
    /// What `get` says.
    ///
    /// # Panics
    /// When `get` gives more or fewer values than the shape has.
    pub fn new(get: Parameters<'_>, device: &Device) -> Result<Self, String> {
        let device = &device.clone().without_autodiff();
        let convolution = |name: &str, shape: [usize; 4], outputs: usize| -> Result<Convolution, String> {
            let weight = TensorData::new(get(&format!("{name}.weight"), &shape)?, shape);
            let bias = TensorData::new(get(&format!("{name}.bias"), &[outputs])?, [outputs]);
            Ok(Convolution {
                weight: Param::from_tensor(Tensor::from_data(weight, device)),
                bias: Param::from_tensor(Tensor::from_data(bias, device)),
            })
        };
        let same = |name: &str, inputs, outputs, kernel| convolution(name, [outputs, inputs, kernel, kernel], outputs);
        let residual = |name: &str| -> Result<Residual, String> {
            Ok(Residual {
                first: same(&format!("{name}.net.0"), CHANNELS, CHANNELS, 3)?,
                second: same(&format!("{name}.net.2"), CHANNELS, CHANNELS, 3)?,
                third: same(&format!("{name}.net.4"), CHANNELS, CHANNELS, 1)?,
            })
        };
        let codes = TensorData::new(get("_vq_vae._embedding", &[CODEBOOK, CODE_WIDTH])?, [CODEBOOK, CODE_WIDTH]);
        let doubling = |(index, pair): (usize, &[usize])| {
            convolution(&format!("decoder.{}", 4 + 2 * index), [pair[0], pair[1], 4, 4], pair[1])
        };
        Ok(Self {
            embedding: Param::from_tensor(Tensor::from_data(codes, device)),
            enter: same("decoder.0", CODE_WIDTH, CHANNELS, 1)?,
            residuals: vec![residual("decoder.2")?, residual("decoder.3")?],
            doublings: UPWARDS.windows(2).enumerate().map(doubling).collect::<Result<_, _>>()?,
            leave: same("decoder.12", UPWARDS[4], 1, 1)?,
        })
    }

    /// Decodes the codes of objects into maps of [`MAP`] x [`MAP`] values, row by row; above zero is inside.
    ///
    /// # Panics
    /// When a code is not below 128.
    pub fn decode(&self, objects: &[[u8; CODES]]) -> Vec<Vec<f32>> {
        if objects.is_empty() {
            return Vec::new();
        }
        let codes: Vec<i32> = objects.iter().flatten().map(|code| i32::from(*code)).collect();
        assert!(codes.iter().all(|code| (*code as usize) < CODEBOOK), "a code is below {CODEBOOK}");
        let embedding = self.embedding.val();
        let index = Tensor::from_data(TensorData::new(codes, [objects.len() * CODES]), &embedding.device());
        let side = CODES.isqrt();
        let x = embedding.select(0, index).reshape([objects.len(), side, side, CODE_WIDTH]);
        let x = x.permute([0, 3, 1, 2]);
        let x = relu(self.enter.same(x));
        let x = self.residuals.iter().fold(x, |x, block| block.forward(x));
        let x = self.doublings.iter().fold(x, |x, step| relu(step.double(x)));
        let maps: Vec<f32> = self.leave.same(x).into_data().try_into_vec().expect("the maps are f32");
        maps.chunks_exact(MAP * MAP).map(<[f32]>::to_vec).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::npz;

    fn bounds(x_min: f32, y_min: f32, x_max: f32, y_max: f32) -> BoundingBox {
        BoundingBox { x_min, y_min, x_max, y_max }
    }

    #[test]
    fn a_map_is_stretched_over_the_whole_pixels_of_its_box() {
        let map: Vec<f32> = (0..MAP * MAP).map(|i| if i % MAP < MAP / 2 { 1.0 } else { -1.0 }).collect();
        let mask = Mask::stretch(&map, &bounds(10.9, 5.2, 30.9, 15.7)).unwrap();
        assert_eq!((mask.x, mask.y, mask.width, mask.height), (10, 5, 20, 10));
        assert!(mask.contains(10, 5) && mask.contains(19, 14));
        assert!(!mask.contains(20, 5) && !mask.contains(9, 5) && !mask.contains(10, 15));
        assert_eq!(mask.area(), 100);
        let bytes = mask.to_bytes(40, 20);
        assert_eq!(bytes.iter().filter(|byte| **byte == 255).count(), 100);
        assert_eq!(bytes[5 * 40 + 10], 255);
    }

    #[test]
    fn a_box_without_a_pixel_has_no_mask() {
        let map = vec![1.0; MAP * MAP];
        assert_eq!(Mask::stretch(&map, &bounds(10.1, 5.0, 10.9, 15.0)), None);
        assert_eq!(Mask::stretch(&map, &bounds(20.0, 5.0, 10.0, 15.0)), None);
        assert_eq!(Mask::stretch(&map, &bounds(3.0, 4.0, 4.0, 5.0)).unwrap().inside, [true]);
    }

    #[test]
    fn files_that_are_no_decoder_are_refused_in_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let device = gemma_backend::default_device().unwrap();
        let path = folder.path().join("vae.npz");
        assert!(matches!(MaskDecoder::open(&path, &device), Err(Error::File { .. })));
        std::fs::write(&path, npz::tests::archive(&[("decoder.0.bias", vec![2], vec![0.0; 2])], true)).unwrap();
        let error = MaskDecoder::open(&path, &device).expect_err("incomplete").to_string();
        assert!(error.contains("no array _vq_vae._embedding"), "{error}");
        std::fs::write(&path, b"PK").unwrap();
        assert!(MaskDecoder::open(&path, &device).is_err());
    }
}
