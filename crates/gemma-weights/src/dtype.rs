//! The types a tensor can be stored in, and the precisions a user can ask for.

use std::fmt::{self, Display};
use std::str::FromStr;

use gemma_kernels::Format;

use crate::Error;

/// The type of a stored tensor's values.
///
/// The safetensors format knows others (integers, 8-bit floats, ...); no released checkpoint of these model
/// families uses them, and they are refused by [`Error::UnsupportedDtype`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision, 4 bytes.
    F32,
    /// The upper half of an f32, 2 bytes.
    Bf16,
    /// IEEE half precision, 2 bytes.
    F16,
}

impl Dtype {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// The type's name in a safetensors header.
    pub fn safetensors_name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
        }
    }

    /// The inverse of [`safetensors_name`](Self::safetensors_name).
    pub(crate) fn from_safetensors_name(name: &str) -> Option<Self> {
        [Self::F32, Self::Bf16, Self::F16].into_iter().find(|dtype| dtype.safetensors_name() == name)
    }

    /// The weight format with these values, one per block.
    pub fn format(self) -> Format {
        match self {
            Self::F32 => Format::F32,
            Self::Bf16 => Format::Bf16,
            Self::F16 => Format::F16,
        }
    }

    /// The type whose values a format stores one by one.
    pub fn of_format(format: Format) -> Option<Self> {
        [Self::F32, Self::Bf16, Self::F16].into_iter().find(|dtype| dtype.format() == format)
    }

    /// `value` as arithmetic in this type would hold it.
    pub fn round(self, value: f32) -> f32 {
        let mut bytes = [0; 4];
        let bytes = &mut bytes[..self.bytes()];
        let mut rounded = [0.0];
        self.format().encode_row(&[value], bytes);
        self.format().decode_row(bytes, &mut rounded);
        rounded[0]
    }
}

/// The name used in config.json (`float32`, `bfloat16`, `float16`).
impl Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        })
    }
}

/// The precision in which a user wants the matrices of a model to be held; norms and biases are always f32.
///
/// ```
/// # use gemma_weights::Precision;
/// assert_eq!("q8_0".parse::<Precision>()?, Precision::Q8_0);
/// # Ok::<(), gemma_weights::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// 4 bytes a value.
    F32,
    /// 2 bytes a value: the upper half of an f32.
    Bf16,
    /// 2 bytes a value: IEEE half precision; values beyond 65 504 become infinite.
    F16,
    /// 34 bytes for 32 values: GGML's 8-bit blocks.
    Q8_0,
    /// 18 bytes for 32 values: GGML's 4-bit blocks.
    Q4_0,
}

impl Precision {
    /// Every precision, from the largest to the smallest.
    pub const ALL: [Self; 5] = [Self::F32, Self::Bf16, Self::F16, Self::Q8_0, Self::Q4_0];

    /// The name on the command line: `f32`, `bf16`, `f16`, `q8_0` or `q4_0`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// The weight format that holds this precision.
    pub fn format(self) -> Format {
        match self {
            Self::F32 => Format::F32,
            Self::Bf16 => Format::Bf16,
            Self::F16 => Format::F16,
            Self::Q8_0 => Format::Q8_0,
            Self::Q4_0 => Format::Q4_0,
        }
    }
}

impl From<Dtype> for Precision {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
            Dtype::F16 => Self::F16,
        }
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|precision| precision.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| Error::UnknownPrecision { name: name.to_owned() })
    }
}

impl Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_rounded_as_the_checkpoint_rounds() {
        for (width, scale) in [(2048, 45.25), (3072, 55.5), (2304, 48.0), (3584, 59.75), (4608, 68.0)] {
            assert_eq!(Dtype::Bf16.round((width as f32).sqrt()), scale, "width {width}");
        }
        assert_eq!(Dtype::F32.round(3072f32.sqrt()), 3072f32.sqrt());
    }

    #[test]
    fn precisions_are_read_back_from_their_names() {
        for precision in Precision::ALL {
            assert_eq!(precision.to_string().parse::<Precision>().unwrap(), precision);
        }
        let error = "int8".parse::<Precision>().unwrap_err().to_string();
        assert!(error.contains("int8") && error.contains("q8_0"), "{error}");
    }

    #[test]
    fn stored_types_are_read_back_from_their_names() {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            assert_eq!(Dtype::from_safetensors_name(dtype.safetensors_name()), Some(dtype));
            assert_eq!(dtype.format().block_bytes(), dtype.bytes());
        }
        assert_eq!(Dtype::from_safetensors_name("I64"), None);
    }
}
