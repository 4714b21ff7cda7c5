//! Paths, bytes and arrays as images.

use std::path::PathBuf;

use numpy::{PyReadonlyArray3, PyUntypedArray, PyUntypedArrayMethods};
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
        if let Ok(array) = value.cast::<PyUntypedArray>() {
            return Self::of_array(array);
        }
        let kind = value.get_type().name()?;
        Err(PyTypeError::new_err(format!(
            "an image must be a path, the bytes of an image file, or a numpy array of uint8 [height, width, 3], not {kind}"
        )))
    }

    fn of_array(array: &Bound<'_, PyUntypedArray>) -> PyResult<Self> {
        let wrong = || {
            let (shape, dtype) = (array.shape().to_vec(), array.dtype());
            PyValueError::new_err(format!(
                "an image is an array of uint8 with the shape [height, width, 3], not {dtype} {shape:?}"
            ))
        };
        let rgb = array.extract::<PyReadonlyArray3<'_, u8>>().map_err(|_| wrong())?;
        let rgb = rgb.as_array();
        let (height, width, channels) = rgb.dim();
        let image = if channels == 3 { Image::from_rgb(rgb.iter().copied().collect(), width, height) } else { None };
        image.map(Self::Decoded).ok_or_else(wrong)
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
