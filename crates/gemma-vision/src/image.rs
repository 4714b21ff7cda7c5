//! Images: from a file to RGB bytes, and from those to what the encoder reads.
//!
//! What Pillow's `convert("RGB")` makes of each kind of image is made of it here: grey is repeated, a palette looked
//! up, transparency dropped, 16-bit colours keep their upper byte; 16-bit grey is cut off at 255, as Pillow does. Of an
//! animation the first frame is taken. The orientation that a camera noted is applied first. Memory is bounded before a
//! pixel is decoded.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use gemma_weights::NewFile;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use crate::Error;
use crate::jpeg;
use crate::resample::{Filter, resize_rgb};

/// The most bytes of a file that are read.
const FILE_LIMIT: u64 = 256 << 20;
/// The most pixels that are decoded: 300 MB as RGB. Pillow warns a little below that.
pub const PIXEL_LIMIT: u64 = 100_000_000;
/// The longest side that is decoded, in pixels: resizing holds rows of the target's width for each row of the image.
pub const SIDE_LIMIT: u32 = 65_535;
/// The most bytes that a decoder and the RGB bytes of its image may hold together: an image of [`PIXEL_LIMIT`] with four
/// channels of 8 bits, and something for the decoder itself. With 16 bits an image may have fewer pixels.
const MEMORY_LIMIT: u64 = 900_000_000;

/// An image: RGB bytes, row after row, upright.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

/// A square image as the encoder reads it: `[3, side, side]`, values from -1 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    side: usize,
    values: Vec<f32>,
}

impl Image {
    /// An image of `[height, width, 3]` bytes; `None` when the sizes do not match or there is no pixel.
    pub fn from_rgb(rgb: Vec<u8>, width: usize, height: usize) -> Option<Self> {
        let bytes = width.checked_mul(height)?.checked_mul(3)?;
        (bytes > 0 && rgb.len() == bytes).then_some(Self { width, height, rgb })
    }

    /// Reads a PNG, JPEG, WebP, GIF, BMP or TIFF file.
    ///
    /// # Errors
    /// When the file cannot be read, is no such image, is damaged or cut off, or has more than [`PIXEL_LIMIT`]
    /// pixels or a side beyond [`SIDE_LIMIT`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let failed = |cause| Error::File { path: path.to_owned(), cause };
        let file = File::open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if found.is_dir() {
            return Err(failed(std::io::ErrorKind::IsADirectory.into()));
        }
        let too_large = |bytes| Error::FileSize { path: path.to_owned(), bytes, limit: FILE_LIMIT };
        if found.len() > FILE_LIMIT {
            return Err(too_large(found.len()));
        }
        let mut bytes = Vec::new();
        file.take(FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > FILE_LIMIT {
            return Err(too_large(bytes.len() as u64));
        }
        Self::decode(&bytes, &path.display().to_string())
    }

    /// Reads the bytes of such a file; `name` stands for it in messages.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn decode(bytes: &[u8], name: &str) -> Result<Self, Error> {
        let failed = |reason: String| Error::Image { name: name.to_owned(), reason };
        let format = image::guess_format(bytes).ok();
        match format {
            Some(ImageFormat::Png | ImageFormat::WebP | ImageFormat::Gif | ImageFormat::Bmp | ImageFormat::Tiff) => {}
            Some(ImageFormat::Jpeg) => match jpeg::end(bytes) {
                jpeg::End::Marker(end) => {
                    return decoded(&bytes[..end], ImageFormat::Jpeg, name).map_err(failed_as(name));
                }
                jpeg::End::Missing => {
                    let [first, second] = jpeg::completions(bytes)
                        .map(|completed| decoded(&completed, ImageFormat::Jpeg, name).map_err(failed_as(name)));
                    let image = first?;
                    return if second? == image { Ok(image) } else { Err(failed("the file is cut off".into())) };
                }
            },
            _ => {
                return Err(failed(match (foreign(bytes), gemma_weights::stand_in(bytes)) {
                    (Some(format), _) => format!("{format} is not supported; convert it first"),
                    (None, Some([what, advice])) => format!("it is {what}; {advice}"),
                    (None, None) if bytes.is_empty() => "the file is empty".into(),
                    (None, None) => "its first bytes are those of another format".into(),
                }));
            }
        }
        decoded(bytes, format.unwrap_or(ImageFormat::Png), name).map_err(failed_as(name))
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The bytes, `[height, width, 3]`.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// The bytes, to be drawn upon.
    pub fn rgb_mut(&mut self) -> &mut [u8] {
        &mut self.rgb
    }

    /// The part within `[x_min, y_min, x_max, y_max]`, edges in pixels, of which the last ones are outside; what lies
    /// beyond the image is left out. `None` when nothing is left.
    pub fn crop(&self, [x_min, y_min, x_max, y_max]: [usize; 4]) -> Option<Self> {
        let (x_max, y_max) = (x_max.min(self.width), y_max.min(self.height));
        let (width, height) = (x_max.checked_sub(x_min)?, y_max.checked_sub(y_min)?);
        let row = |y: usize| &self.rgb[(y * self.width + x_min) * 3..][..width * 3];
        Self::from_rgb((y_min..y_max).flat_map(row).copied().collect(), width, height)
    }

    /// Writes the image into a PNG file, which appears complete or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let mut file = NewFile::open(path)?;
        self.write_png(file.as_file_mut()).map_err(|cause| Error::File { path: path.to_owned(), cause })?;
        Ok(file.finish()?)
    }

    /// The image squashed to a square, its aspect ratio given up: Pillow's bicubic.
    ///
    /// # Panics
    /// When `side` is zero.
    pub fn squashed(&self, side: usize) -> Self {
        let rgb = resize_rgb(&self.rgb, self.width, self.height, side, side, Filter::Bicubic);
        Self { width: side, height: side, rgb }
    }

    /// What the encoder reads: squashed, channels first, `(v / 255 - 0.5) / 0.5`.
    ///
    /// # Panics
    /// When `side` is zero.
    pub fn pixels(&self, side: usize) -> Pixels {
        Pixels::of_rgb(&self.squashed(side).rgb, side).expect("squashed to this size")
    }

    /// Writes the image as a PNG file.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn write_png(&self, to: impl std::io::Write) -> std::io::Result<()> {
        use ::image::ImageEncoder;
        let (width, height) = (self.width as u32, self.height as u32);
        ::image::codecs::png::PngEncoder::new(to)
            .write_image(&self.rgb, width, height, ::image::ExtendedColorType::Rgb8)
            .map_err(std::io::Error::other)
    }
}

impl Pixels {
    /// Of RGB bytes `[side, side, 3]`: channels first, `(v / 255 - 0.5) / 0.5`; `None` when there are more or fewer.
    pub fn of_rgb(rgb: &[u8], side: usize) -> Option<Self> {
        let value = |value: &u8| (f32::from(*value) / 255.0 - 0.5) / 0.5;
        let channel = |channel: usize| rgb.iter().skip(channel).step_by(3).map(value);
        Self::new((0..3).flat_map(channel).collect(), side)
    }

    /// Values of `[3, side, side]`; `None` when there are more or fewer.
    pub fn new(values: Vec<f32>, side: usize) -> Option<Self> {
        (side > 0 && values.len() == 3 * side * side).then_some(Self { side, values })
    }

    /// Width and height.
    pub fn side(&self) -> usize {
        self.side
    }

    /// The values, `[3, side, side]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The square patches of `patch` pixels, row by row, each flattened as `[3, patch, patch]`: what a convolution
    /// whose stride is its kernel multiplies. Rows and columns that fill no patch are left out.
    pub(crate) fn patches(&self, patch: usize) -> Vec<f32> {
        let (side, across) = (self.side, self.side / patch);
        let mut out = Vec::with_capacity(3 * across * across * patch * patch);
        for row in 0..across {
            for column in 0..across {
                for channel in 0..3 {
                    for y in row * patch..(row + 1) * patch {
                        let from = (channel * side + y) * side + column * patch;
                        out.extend_from_slice(&self.values[from..from + patch]);
                    }
                }
            }
        }
        out
    }
}

/// Why an image could not be decoded: what the decoder said, or its size.
enum Failure {
    Decoder(String),
    Size(Error),
}

fn failed_as(name: &str) -> impl Fn(Failure) -> Error {
    move |failure| match failure {
        Failure::Decoder(reason) => Error::Image { name: name.to_owned(), reason: one_line(&reason) },
        Failure::Size(error) => error,
    }
}

fn one_line(reason: &str) -> String {
    reason.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()
}

/// Decodes an image of a known format, upright.
fn decoded(bytes: &[u8], format: ImageFormat, name: &str) -> Result<Image, Failure> {
    let failed = |cause: image::ImageError| Failure::Decoder(cause.to_string());
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MEMORY_LIMIT);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    let name = name.to_owned();
    if pixels == 0 || pixels > PIXEL_LIMIT {
        let (width, height) = (width.into(), height.into());
        return Err(Failure::Size(Error::ImageSize { name, width, height, limit: PIXEL_LIMIT }));
    }
    if width.max(height) > SIDE_LIMIT {
        return Err(Failure::Size(Error::ImageSide { name, width, height, limit: SIDE_LIMIT }));
    }
    let memory = decoder.total_bytes().saturating_add(3 * pixels);
    if memory > MEMORY_LIMIT {
        let (width, height, limit) = (width.into(), height.into(), MEMORY_LIMIT / (memory / pixels));
        return Err(Failure::Size(Error::ImageSize { name, width, height, limit }));
    }
    // a camera's note that cannot be read does not make the image unreadable
    let orientation = decoder.orientation().ok();
    let rgb = rgb_bytes(DynamicImage::from_decoder(decoder).map_err(failed)?);
    // after the conversion, since a turned image is a copy, and one of few bytes then
    let rgb = RgbImage::from_raw(width, height, rgb).expect("three bytes for each pixel");
    let mut image = DynamicImage::ImageRgb8(rgb);
    if let Some(orientation) = orientation {
        image.apply_orientation(orientation);
    }
    let (width, height) = (image.width() as usize, image.height() as usize);
    Ok(Image { width, height, rgb: image.into_rgb8().into_raw() })
}

/// The name of a format that is known and not decoded.
fn foreign(bytes: &[u8]) -> Option<&'static str> {
    let brand = |bytes: &[u8]| bytes.get(8..12).filter(|_| bytes.get(4..8) == Some(b"ftyp")).map(<[u8]>::to_vec);
    if let Some(brand) = brand(bytes) {
        return Some(match &brand[..] {
            b"avif" | b"avis" => "AVIF",
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => "HEIC",
            _ => "this kind of media file",
        });
    }
    let starts: [(&[u8], &str); 10] = [
        (b"\xff\x0a", "JPEG XL"),
        (b"\0\0\0\x0cJXL ", "JPEG XL"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (b"8BPS", "a Photoshop file"),
        (b"%PDF", "PDF"),
        (b"<svg", "SVG"),
        (b"<?xml", "SVG"),
        (b"\0\0\x01\0", "ICO"),
        (b"\x76\x2f\x31\x01", "OpenEXR"),
        (b"qoif", "QOI"),
    ];
    starts.iter().find(|(start, _)| bytes.starts_with(start)).map(|(_, name)| *name)
}

/// The pixels as RGB bytes, `[height, width, 3]`, in the way of Pillow's `convert("RGB")`.
fn rgb_bytes(image: DynamicImage) -> Vec<u8> {
    let high = |value: u16| (value >> 8) as u8;
    let grey = |value: u8| [value; 3];
    match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageRgba8(image) => image.pixels().flat_map(|p| [p[0], p[1], p[2]]).collect(),
        DynamicImage::ImageLuma8(image) => image.pixels().flat_map(|p| grey(p[0])).collect(),
        DynamicImage::ImageLumaA8(image) => image.pixels().flat_map(|p| grey(p[0])).collect(),
        DynamicImage::ImageLuma16(image) => image.pixels().flat_map(|p| grey(p[0].min(255) as u8)).collect(),
        DynamicImage::ImageLumaA16(image) => image.pixels().flat_map(|p| grey(high(p[0]))).collect(),
        DynamicImage::ImageRgb16(image) => image.pixels().flat_map(|p| [p[0], p[1], p[2]].map(high)).collect(),
        DynamicImage::ImageRgba16(image) => image.pixels().flat_map(|p| [p[0], p[1], p[2]].map(high)).collect(),
        // no format that is read has other kinds
        other => other.into_rgb8().into_raw(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::image::ExtendedColorType::{self, L8, L16, La8, La16, Rgb8, Rgb16, Rgba8, Rgba16};
    use ::image::ImageEncoder;

    fn png(bytes: &[u8], width: u32, height: u32, kind: ExtendedColorType) -> Vec<u8> {
        let mut out = Vec::new();
        ::image::codecs::png::PngEncoder::new(&mut out).write_image(bytes, width, height, kind).unwrap();
        out
    }

    fn samples(values: &[u16]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_ne_bytes()).collect()
    }

    /// What Pillow 13.0.0 gives for the same files.
    #[test]
    fn every_kind_of_colour_becomes_rgb_as_pillow_makes_it() {
        let decode = |bytes: &[u8], kind| Image::decode(&png(bytes, 1, 1, kind), "one pixel").unwrap().rgb;
        assert_eq!(decode(&[9], L8), [9, 9, 9]);
        assert_eq!(decode(&[9, 3], La8), [9, 9, 9]);
        assert_eq!(decode(&[9, 8, 7], Rgb8), [9, 8, 7]);
        assert_eq!(decode(&[9, 8, 7, 0], Rgba8), [9, 8, 7], "transparency is dropped, not applied");
        for (value, grey, colour) in [(0, 0, 0), (127, 127, 0), (256, 255, 1), (511, 255, 1), (65535, 255, 255)] {
            assert_eq!(decode(&samples(&[value]), L16), [grey; 3], "{value}");
            assert_eq!(decode(&samples(&[value, 9]), La16), [colour; 3], "{value}");
            assert_eq!(decode(&samples(&[value, 0, 512]), Rgb16), [colour, 0, 2], "{value}");
            assert_eq!(decode(&samples(&[value, 0, 512, 9]), Rgba16), [colour, 0, 2], "{value}");
        }
    }

    #[test]
    fn pixels_run_from_minus_one_to_one_channels_first() {
        let image = Image::from_rgb(vec![0, 255, 51, 255, 0, 102], 2, 1).unwrap();
        let pixels = image.pixels(2);
        assert_eq!(pixels.values()[..2], [-1.0, 1.0]);
        assert_eq!(pixels.values()[4..6], [1.0, -1.0]);
        assert!((pixels.values()[8] - (51.0 / 255.0 - 0.5) / 0.5).abs() < 1e-6);
        assert_eq!(pixels.values().len(), 12);
    }

    #[test]
    fn patches_come_row_by_row_and_channel_by_channel() {
        let values: Vec<f32> = (0..3 * 25).map(|i| i as f32).collect();
        let patches = Pixels::new(values, 5).unwrap().patches(2);
        assert_eq!(patches.len(), 4 * 12, "the fifth row and column fill no patch");
        assert_eq!(patches[..12], [0., 1., 5., 6., 25., 26., 30., 31., 50., 51., 55., 56.]);
        assert_eq!(patches[12..14], [2., 3.]);
        assert_eq!(patches[24..26], [10., 11.]);
    }

    #[test]
    fn an_image_of_one_pixel_fills_the_square() {
        let image = Image::decode(&png(&[7, 8, 9], 1, 1, Rgb8), "dot").unwrap();
        assert_eq!(image.squashed(28).rgb(), [7, 8, 9].repeat(28 * 28));
    }

    #[test]
    fn damaged_and_foreign_files_are_refused_in_a_sentence() {
        let whole = png(&[5; 30 * 30 * 3], 30, 30, Rgb8);
        for length in 0..whole.len() - 13 {
            let error = Image::decode(&whole[..length], "cut.png").expect_err("a cut file").to_string();
            assert!(error.starts_with("cut.png: not an image"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        for other in [&b"GIF89a\x01\x00\x01\x00\x80\x00\x00"[..], b"%PDF-1.7", b"\0\0\0\0", b"BM1234567890", b"II*\0"] {
            let error = Image::decode(other, "x").expect_err("no image").to_string();
            assert!(!error.contains('\n'), "{error}");
        }
        for (foreign, name) in [
            (&b"\0\0\0\x1cftypavif\0\0\0\0"[..], "AVIF"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
            (b"\xff\x0a\xfa\x1f", "JPEG XL"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
            (b"\n<!DOCTYPE html><html></html>", "web page"),
        ] {
            let error = Image::decode(foreign, "x").expect_err("another format").to_string();
            assert!(error.contains(name), "{error}");
        }
        let mut jpeg = Vec::new();
        let noise: Vec<u8> = (0..64 * 64 * 3).map(|i| (i * i % 251) as u8).collect();
        ::image::codecs::jpeg::JpegEncoder::new(&mut jpeg).write_image(&noise, 64, 64, Rgb8).unwrap();
        assert!(Image::decode(&jpeg, "whole.jpg").is_ok());
        for length in [jpeg.len() / 2, 10] {
            assert!(Image::decode(&jpeg[..length], "cut.jpg").is_err(), "{length} of {} bytes", jpeg.len());
        }
    }

    /// Bytes behind the image, or no end marker: what phones and panorama programs write.
    #[test]
    fn what_stands_behind_a_jpeg_image_does_not_matter() {
        let mut jpeg = Vec::new();
        let noise: Vec<u8> = (0..40 * 30 * 3).map(|i| (i * i % 251) as u8).collect();
        ::image::codecs::jpeg::JpegEncoder::new(&mut jpeg).write_image(&noise, 40, 30, Rgb8).unwrap();
        let whole = Image::decode(&jpeg, "whole.jpg").unwrap();
        let bare = &jpeg[..jpeg.len() - 2];
        let video: Vec<u8> = (0..5000_u32).map(|i| ((i * 7919) >> 3) as u8).chain([0xff, 0xda, 0, 1, 2]).collect();
        for (name, file) in [
            ("a video", [&jpeg[..], &video].concat()),
            ("zeros", [&jpeg[..], &[0; 100]].concat()),
            ("another image", [&jpeg[..], &jpeg].concat()),
            ("no end", bare.to_vec()),
            ("no end, then zeros", [bare, &[0; 100]].concat()),
        ] {
            assert!(Image::decode(&file, "x.jpg").unwrap() == whole, "{name}");
        }
        for length in [bare.len() / 2, bare.len() - 40] {
            let error = Image::decode(&bare[..length], "cut.jpg").expect_err("cut off").to_string();
            assert!(error.contains("cut off"), "{error}");
        }
    }

    #[test]
    fn other_formats_are_read_by_their_bytes() {
        let pixels = [10, 20, 30, 40, 50, 60];
        let whole = Image::from_rgb(pixels.to_vec(), 2, 1).unwrap();
        for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::Gif] {
            let mut file = Cursor::new(Vec::new());
            let image = ::image::RgbImage::from_raw(2, 1, pixels.to_vec()).unwrap();
            image.write_to(&mut file, format).unwrap();
            assert!(Image::decode(file.get_ref(), "x").unwrap() == whole, "{format:?}");
        }
    }

    #[test]
    fn a_crop_is_cut_at_the_edges_and_a_saved_image_is_read_again() {
        let image = Image::from_rgb((0..5 * 4 * 3).collect(), 5, 4).unwrap();
        let part = image.crop([1, 2, 3, 9]).unwrap();
        assert_eq!((part.width(), part.height()), (2, 2));
        assert_eq!(part.rgb(), [33, 34, 35, 36, 37, 38, 48, 49, 50, 51, 52, 53]);
        assert_eq!([image.crop([2, 2, 2, 3]), image.crop([7, 0, 9, 3]), image.crop([3, 0, 1, 3])], [None, None, None]);
        let file = std::env::temp_dir().join(format!("gemma-vision-saved-{}.png", std::process::id()));
        image.save(&file).unwrap();
        assert_eq!(Image::open(&file).unwrap(), image);
        std::fs::remove_file(&file).unwrap();
        assert!(image.save(file.join("x.png")).unwrap_err().to_string().contains("x.png"));
    }

    /// An image of one column needs rows of the target's width for each of its pixels.
    #[test]
    fn a_thin_image_is_refused_by_its_header() {
        let mut file = png(&[5], 1, 1, L8);
        file[20..24].copy_from_slice(&10_000_000_u32.to_be_bytes());
        let mut crc = flate2::Crc::new();
        crc.update(&file[12..29]);
        file[29..33].copy_from_slice(&crc.sum().to_be_bytes());
        let error = Image::decode(&file, "tall.png").expect_err("thin").to_string();
        assert!(error.contains("1 x 10000000"), "{error}");
    }

    /// A small file whose pixels would take more than a gigabyte while they are made RGB.
    #[test]
    fn channels_of_16_bits_count_twice() {
        let header = |side: u32, kind: ExtendedColorType| {
            let mut file = png(&samples(&[5; 4])[..kind.bits_per_pixel() as usize / 8], 1, 1, kind);
            file[16..20].copy_from_slice(&side.to_be_bytes());
            file[20..24].copy_from_slice(&side.to_be_bytes());
            let mut crc = flate2::Crc::new();
            crc.update(&file[12..29]);
            file[29..33].copy_from_slice(&crc.sum().to_be_bytes());
            Image::decode(&file, "x.png").expect_err("cut off").to_string()
        };
        let error = header(9500, Rgba16);
        assert!(error.contains("at most 81818181 pixels"), "{error}");
        assert!(header(3000, Rgba16).contains("not an image"), "fewer pixels are decoded, until the data ends");
        assert!(header(9500, Rgba8).contains("not an image"));
    }

    /// A header that claims more pixels than any memory holds is refused before anything is allocated.
    #[test]
    fn a_decompression_bomb_is_refused_by_its_header() {
        let mut bomb = png(&[5], 1, 1, L8);
        bomb[16..20].copy_from_slice(&60_000u32.to_be_bytes());
        bomb[20..24].copy_from_slice(&60_000u32.to_be_bytes());
        let crc = {
            let mut crc = flate2::Crc::new();
            crc.update(&bomb[12..29]);
            crc.sum()
        };
        bomb[29..33].copy_from_slice(&crc.to_be_bytes());
        let error = Image::decode(&bomb, "bomb.png").expect_err("a bomb").to_string();
        assert!(error.contains("60000 x 60000"), "{error}");
    }

    /// Six is "rotate by 90 degrees": what was the left lower corner is the left upper one.
    #[test]
    fn the_orientation_noted_by_a_camera_is_applied() {
        let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec();
        let mut jpeg = Vec::new();
        let left_white: Vec<u8> = (0..16 * 8).flat_map(|i| [if i % 16 < 8 { 255u8 } else { 0 }; 3]).collect();
        ::image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 100)
            .write_image(&left_white, 16, 8, Rgb8)
            .unwrap();
        let mut segment = vec![0xff, 0xe1];
        segment.extend_from_slice(&(exif.len() as u16 + 2).to_be_bytes());
        segment.append(&mut exif);
        jpeg.splice(2..2, segment);
        let image = Image::decode(&jpeg, "turned.jpg").unwrap();
        assert_eq!((image.width(), image.height()), (8, 16));
        assert!(image.rgb()[0] > 200 && image.rgb()[16 * 8 * 3 - 1] < 50, "white is on top");
    }
}
