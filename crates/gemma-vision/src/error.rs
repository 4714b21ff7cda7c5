//! Why an image cannot be read.

use std::path::PathBuf;

/// Why an image cannot be read.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// An image cannot be written.
    #[error(transparent)]
    Write(#[from] gemma_weights::Error),
    /// A file of an image that is larger than any image should be.
    #[error("{}: {bytes} bytes are more than an image may have ({limit}); make it smaller first", path.display())]
    FileSize {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// The most that is read.
        limit: u64,
    },
    /// Bytes that are no image of a known format, or a damaged one.
    #[error("{name}: not an image that can be read ({reason}); give a whole PNG, JPEG, WebP, GIF, BMP or TIFF file")]
    Image {
        /// The file, or what stands for it.
        name: String,
        /// What the decoder said.
        reason: String,
    },
    /// An image with more pixels than are decoded, or none.
    #[error("{name}: an image of {width} x {height} pixels; at most {limit} pixels are decoded, make it smaller first")]
    ImageSize {
        /// The file, or what stands for it.
        name: String,
        /// Its width in pixels.
        width: u64,
        /// Its height in pixels.
        height: u64,
        /// The most pixels that are decoded.
        limit: u64,
    },
    /// An image with a side longer than is decoded.
    #[error(
        "{name}: an image of {width} x {height} pixels is too thin; sides of at most {limit} pixels are decoded, make it smaller first"
    )]
    ImageSide {
        /// The file, or what stands for it.
        name: String,
        /// Its width in pixels.
        width: u32,
        /// Its height in pixels.
        height: u32,
        /// The longest side that is decoded.
        limit: u32,
    },
}

/// The sentence, which is what a `main` prints that returns the error.
impl std::fmt::Debug for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}
