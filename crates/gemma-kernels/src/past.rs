//! Keys and values that were read before, in 32 or 16 bits.

use crate::ops::KernelOps;
use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor, TensorData};
use half::f16;
use std::str::FromStr;

/// In how many bits the keys and values of a sequence are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CachePrecision {
    /// f32: as they were computed.
    #[default]
    F32,
    /// f16, half the memory: to the nearest value, ties to even, with 65504 for what is larger. The steps are 2⁻¹⁰ of a
    /// value, an eighth of those of bf16.
    F16,
}

impl CachePrecision {
    /// Its name, as [`FromStr`] reads it.
    pub const fn name(self) -> &'static str {
        match self {
            CachePrecision::F32 => "f32",
            CachePrecision::F16 => "f16",
        }
    }

    /// Bytes of a value.
    pub const fn bytes(self) -> usize {
        match self {
            CachePrecision::F32 => 4,
            CachePrecision::F16 => 2,
        }
    }
}

/// The name is of no [`CachePrecision`].
#[derive(Debug, thiserror::Error)]
#[error("unknown cache precision `{0}`; it is f32 or f16")]
pub struct ParseCachePrecisionError(String);

impl FromStr for CachePrecision {
    type Err = ParseCachePrecisionError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let (all, wanted) = ([CachePrecision::F32, CachePrecision::F16], name.to_ascii_lowercase());
        all.into_iter()
            .find(|precision| precision.name() == wanted)
            .ok_or_else(|| ParseCachePrecisionError(name.into()))
    }
}

/// The buffers of a cache, keys and values, `[capacity, kv_heads, head_dim]` each.
#[derive(Clone, Copy, Debug)]
pub enum Past<'a> {
    /// Values.
    F32(&'a Tensor<3>, &'a Tensor<3>),
    /// Words of two values, as [`halves`] makes them: `[capacity, kv_heads, head_dim / 2]`, u32.
    F16(&'a Tensor<3, Int>, &'a Tensor<3, Int>),
}

impl Past<'_> {
    /// How many tokens the buffers have room for.
    pub fn capacity(&self) -> usize {
        match self {
            Past::F32(keys, _) => keys.dims()[0],
            Past::F16(keys, _) => keys.dims()[0],
        }
    }
}

/// Values as f16, two in a word of 32 bits, the earlier one in the lower half: `[a, b, 2 n]` to `[a, b, n]`, u32.
///
/// # Panics
/// When the last axis is odd.
pub fn halves(values: Tensor<3>) -> Tensor<3, Int> {
    assert!(values.dims()[2].is_multiple_of(2), "two values share a word");
    Tensor::from_dispatch(<Dispatch as KernelOps>::halves(values.into_dispatch()))
}

/// The values of [`halves`], f32.
pub fn from_halves(words: &Tensor<3, Int>) -> Tensor<3> {
    let ([a, b, n], device) = (words.dims(), words.device());
    let words: Vec<u32> = words.clone().into_data().try_into_vec().expect("halves are u32");
    let each = |word: u32| [word as u16, (word >> 16) as u16].map(|half| f16::from_bits(half).to_f32());
    let values: Vec<f32> = words.into_iter().flat_map(each).collect();
    Tensor::from_data(TensorData::new(values, [a, b, 2 * n]), &device)
}

/// To the nearest f16, ties to even; larger values become the largest.
#[cfg(any(feature = "ndarray", feature = "flex", test))]
pub(crate) fn half_of(value: f32) -> f16 {
    // NaN stays what it is
    f16::from_f32(value.clamp(-f16::MAX.to_f32(), f16::MAX.to_f32()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::devices;

    #[test]
    fn halves_are_the_nearest_on_every_backend() {
        let mut values: Vec<f32> = (0..2000).map(|i| (i as f32 - 1000.0) * 0.01 * 1.37f32.powi(i % 40 - 30)).collect();
        // ties, subnormal halves, what is too large
        values.extend([1.000_488_3, 1.001_464_8, 2.98e-8, 2.99e-8, 8.94e-8, 6.1e-5, 65519.0, 65520.0, 1e9, -1e30]);
        values.extend([f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MIN_POSITIVE, -1e-40]);
        let expected: Vec<f32> = values.iter().map(|value| half_of(*value).to_f32()).collect();
        for (backend, device) in devices() {
            let data = TensorData::new(values.clone(), [values.len() / 12, 2, 6]);
            let found: Vec<f32> =
                from_halves(&halves(Tensor::from_data(data, &device))).into_data().try_into_vec().expect("f32");
            for ((value, found), expected) in values.iter().zip(&found).zip(&expected) {
                assert_eq!(found, expected, "{backend}: {value}");
            }
        }
        assert!(half_of(f32::NAN).is_nan());
        assert_eq!(half_of(1e9).to_f32(), 65504.0);
    }

    #[test]
    fn names_are_read() {
        for precision in [CachePrecision::F32, CachePrecision::F16] {
            assert_eq!(precision.name().parse::<CachePrecision>().unwrap(), precision);
        }
        assert!("f64".parse::<CachePrecision>().unwrap_err().to_string().contains("f32 or f16"));
    }
}
