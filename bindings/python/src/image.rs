//! Paths, bytes and arrays as images.

use std::path::PathBuf;

use paligemma::Image;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyString};

use crate::failure::Failure;

/// An image as a verb got it, to be decoded where the interpreter does not wait.
pub(crate) enum Given {
    File(PathBuf),
    Bytes(Vec<u8>),
    Decoded(Image),
}

impl Given {
    /// Takes a path, the bytes of an image file, or an array `[height, width, 3]` of `uint8`.
    ///
    /// # Errors
    /// `TypeError` for anything else, `ValueError` for an array of another shape.
    pub(crate) fn of(value: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = value.cast::<PyBytes>() {
            return Ok(Self::Bytes(bytes.as_bytes().to_vec()));
        }
        if let Ok(bytes) = value.cast::<PyByteArray>() {
            return Ok(Self::Bytes(bytes.to_vec()));
        }
        if value.is_instance_of::<PyString>() || value.hasattr("__fspath__")? {
            return Ok(Self::File(value.extract()?));
        }
        if value.is_instance(&value.py().import("numpy")?.getattr("ndarray")?)? {
            return Self::of_array(value);
        }
        let kind = value.get_type().name()?;
        Err(PyTypeError::new_err(format!(
            "an image must be a path, the bytes of an image file, or a numpy array of uint8 [height, width, 3], not {kind}"
        )))
    }

    fn of_array(array: &Bound<'_, PyAny>) -> PyResult<Self> {
        let shape: Vec<usize> = array.getattr("shape")?.extract()?;
        let dtype = array.getattr("dtype")?.str()?.to_string();
        if let ([height, width, 3], "uint8") = (&shape[..], dtype.as_str()) {
            let rgb: Vec<u8> = array.call_method0("tobytes")?.cast::<PyBytes>()?.as_bytes().to_vec();
            if let Some(image) = Image::from_rgb(rgb, *width, *height) {
                return Ok(Self::Decoded(image));
            }
        }
        Err(PyValueError::new_err(format!(
            "an image is an array of uint8 with the shape [height, width, 3], not {dtype} {shape:?}"
        )))
    }

    /// Reads it.
    ///
    /// # Errors
    /// When the file is not there or no image.
    pub(crate) fn decode(self) -> Result<Image, Failure> {
        Ok(match self {
            Self::File(path) => Image::open(&path)?,
            Self::Bytes(bytes) => Image::decode(&bytes, "the bytes given")?,
            Self::Decoded(image) => image,
        })
    }
}
