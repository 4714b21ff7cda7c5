//! The formats in which a weight matrix lies in a file or in memory.
//!
//! The quantized ones are GGML's block layouts, so that a GGUF file is used as it is. All values are
//! little-endian; scales are IEEE half precision.

mod blocks;
mod code_books;
pub(crate) mod grids;
pub(crate) mod low_bits;

use crate::math::f16_to_f32;
use half::{bf16, f16};
use std::{fmt, str::FromStr};

/// How the values of one matrix row are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single precision, 4 bytes a value.
    F32,
    /// The upper half of an f32, 2 bytes a value.
    Bf16,
    /// IEEE half precision, 2 bytes a value.
    F16,
    /// Blocks of 32 values in 34 bytes: an f16 scale `d`, then 32 signed bytes `q`; value `d q`.
    Q8_0,
    /// Blocks of 32 values in 18 bytes: an f16 scale `d`, then 16 bytes; value `d (nibble - 8)`, low nibbles
    /// are values 0 to 15, high nibbles 16 to 31.
    Q4_0,
    /// Blocks of 32 values in 20 bytes: f16 `d` and `m`, then 16 bytes as in Q4_0; value `d nibble + m`.
    Q4_1,
    /// Blocks of 32 values in 22 bytes: an f16 scale `d`, the fifth bits in 4 bytes, the others as in Q4_0; value
    /// `d (q - 16)`.
    Q5_0,
    /// Blocks of 32 values in 24 bytes: f16 `d` and `m`, fifth bits, the others; value `d q + m`.
    Q5_1,
    /// Blocks of 256 values in 144 bytes: f16 `d` and `m`, 6-bit scales `a` and `b` for each 32 values, 4 bits a
    /// value; value `(d a) q - (m b)`.
    Q4K,
    /// Blocks of 256 values in 176 bytes: the same with a fifth bit a value.
    Q5K,
    /// Blocks of 256 values in 210 bytes: 6 bits a value, an 8-bit scale `a` for each 16, an f16 scale `d`; value
    /// `(d a) (q - 32)`.
    Q6K,
    /// Blocks of 256 values in 84 bytes: 2 bits a value, 4-bit scales `a` and `b` for each 16, f16 `d` and `m`; value
    /// `(d a) q - (m b)`.
    Q2K,
    /// Blocks of 256 values in 110 bytes: 3 bits a value, a 6-bit scale `a` for each 16, an f16 scale `d`; value
    /// `(d (a - 32)) (q - 4)`.
    Q3K,
    /// Blocks of 256 values in 50 bytes: eight values by one of 2048 groups, a 3-bit scale and an offset for each 32.
    Iq1S,
    /// Blocks of 256 values in 56 bytes: the same, with a scale for each 16 and an offset for each 8.
    Iq1M,
    /// Blocks of 256 values in 66 bytes: eight values by one of 256 groups and seven signs, a 4-bit scale for each 32.
    Iq2Xxs,
    /// Blocks of 256 values in 74 bytes: 512 groups, a 4-bit scale for each 16.
    Iq2Xs,
    /// Blocks of 256 values in 82 bytes: 1024 groups and all signs, a 4-bit scale for each 16.
    Iq2S,
    /// Blocks of 256 values in 98 bytes: four values by one of 256 groups, seven signs for eight, a 4-bit scale for
    /// each 32.
    Iq3Xxs,
    /// Blocks of 256 values in 110 bytes: 512 groups and all signs, a 4-bit scale for each 32.
    Iq3S,
    /// Blocks of 32 values in 18 bytes: an f16 scale `d`, then 16 bytes as in Q4_0; value `d level(nibble)`, the sixteen
    /// levels closer together near zero.
    Iq4Nl,
    /// Blocks of 256 values in 136 bytes: the same levels, a 6-bit scale for each 32, an f16 scale.
    Iq4Xs,
    /// Blocks of 256 values in 54 bytes: -1, 0 or 1, five to a byte, times an f16 scale.
    Tq1_0,
    /// Blocks of 256 values in 66 bytes: -1, 0 or 1, four to a byte, times an f16 scale.
    Tq2_0,
    /// Blocks of 32 values in 17 bytes: an exponent of 8 bits, then nibbles as in Q4_0 that are E2M1 floats (OCP
    /// microscaling formats).
    Mxfp4,
    /// Blocks of 64 values in 36 bytes: an E4M3 scale for each 16, and E2M1 floats.
    Nvfp4,
}

/// A word that names no format.
#[derive(Debug, thiserror::Error)]
#[error(
    "unknown format `{0}`; the formats that are written are f32, bf16, f16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k and q6_k"
)]
pub struct ParseFormatError(String);

impl Format {
    /// Every format that is read and written. The others are [`READ_ONLY`](Self::READ_ONLY).
    pub const ALL: [Format; 11] = [
        Format::F32,
        Format::Bf16,
        Format::F16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
    ];

    /// The formats that files have and that are not written: [`encode_row`](Self::encode_row) does not take them.
    pub const READ_ONLY: [Format; 15] = [
        Format::Q2K,
        Format::Q3K,
        Format::Iq1S,
        Format::Iq1M,
        Format::Iq2Xxs,
        Format::Iq2Xs,
        Format::Iq2S,
        Format::Iq3Xxs,
        Format::Iq3S,
        Format::Iq4Nl,
        Format::Iq4Xs,
        Format::Tq1_0,
        Format::Tq2_0,
        Format::Mxfp4,
        Format::Nvfp4,
    ];

    /// The name used on command lines and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Format::F32 => "f32",
            Format::Bf16 => "bf16",
            Format::F16 => "f16",
            Format::Q8_0 => "q8_0",
            Format::Q4_0 => "q4_0",
            Format::Q4_1 => "q4_1",
            Format::Q5_0 => "q5_0",
            Format::Q5_1 => "q5_1",
            Format::Q4K => "q4_k",
            Format::Q5K => "q5_k",
            Format::Q6K => "q6_k",
            Format::Q2K => "q2_k",
            Format::Q3K => "q3_k",
            Format::Iq1S => "iq1_s",
            Format::Iq1M => "iq1_m",
            Format::Iq2Xxs => "iq2_xxs",
            Format::Iq2Xs => "iq2_xs",
            Format::Iq2S => "iq2_s",
            Format::Iq3Xxs => "iq3_xxs",
            Format::Iq3S => "iq3_s",
            Format::Iq4Nl => "iq4_nl",
            Format::Iq4Xs => "iq4_xs",
            Format::Tq1_0 => "tq1_0",
            Format::Tq2_0 => "tq2_0",
            Format::Mxfp4 => "mxfp4",
            Format::Nvfp4 => "nvfp4",
        }
    }

    /// Values per block: 32, 64 or 256 for the quantized formats, 1 for the others.
    pub const fn block_len(self) -> usize {
        match self {
            Format::F32 | Format::Bf16 | Format::F16 => 1,
            Format::Q8_0 | Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 => blocks::SMALL,
            Format::Iq4Nl | Format::Mxfp4 => blocks::SMALL,
            Format::Nvfp4 => low_bits::NVFP4_VALUES,
            _ => blocks::LARGE,
        }
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::Bf16 | Format::F16 => 2,
            Format::Q8_0 => 34,
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q4K => blocks::Q4_K,
            Format::Q5K => blocks::Q5_K,
            Format::Q6K => blocks::Q6_K,
            Format::Q2K => low_bits::Q2_K,
            Format::Q3K => low_bits::Q3_K,
            Format::Iq1S => 50,
            Format::Iq1M => 56,
            Format::Iq2Xxs => 66,
            Format::Iq2Xs => 74,
            Format::Iq2S => 82,
            Format::Iq3Xxs => 98,
            Format::Iq3S => 110,
            Format::Iq4Nl => 18,
            Format::Iq4Xs => 136,
            Format::Tq1_0 => low_bits::TQ1_0,
            Format::Tq2_0 => low_bits::TQ2_0,
            Format::Mxfp4 => 17,
            Format::Nvfp4 => 36,
        }
    }

    /// Bytes of a row of `cols` values; `None` when `cols` is not an integer of blocks (or overflows).
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Stores a row of values.
    ///
    /// Rounding is to nearest, ties to even, for bf16 and f16. The blocks of 32 follow GGML to the byte: Q8_0 takes
    /// `d = max|x| / 127` and rounds `x / d` half away from zero; Q4_0 and Q5_0 take `d = m / -8` (16) with `m` the
    /// value of largest magnitude and round `x / d + 8` (16) half up, at most 15 (31); Q4_1 and Q5_1 divide the window of
    /// the values. So do the blocks of 256, for which GGML searches longer.
    ///
    /// # Panics
    /// When `values` is not an integer of blocks or `bytes` does not have their size.
    pub fn encode_row(self, values: &[f32], bytes: &mut [u8]) {
        assert_eq!(self.row_bytes(values.len()), Some(bytes.len()), "row size");
        match self {
            Format::F32 => {
                for (value, out) in values.iter().zip(bytes.as_chunks_mut::<4>().0) {
                    *out = value.to_le_bytes();
                }
            }
            Format::Bf16 => {
                for (value, out) in values.iter().zip(bytes.as_chunks_mut::<2>().0) {
                    *out = bf16::from_f32(*value).to_le_bytes();
                }
            }
            Format::F16 => {
                for (value, out) in values.iter().zip(bytes.as_chunks_mut::<2>().0) {
                    *out = f16::from_f32(*value).to_le_bytes();
                }
            }
            Format::Q8_0 => each_to(values, bytes, blocks::encode_q8_0),
            Format::Q4_0 => each_to(values, bytes, blocks::encode_q4_0),
            Format::Q4_1 => each_to(values, bytes, blocks::encode_q4_1),
            Format::Q5_0 => each_to(values, bytes, blocks::encode_q5_0),
            Format::Q5_1 => each_to(values, bytes, blocks::encode_q5_1),
            Format::Q4K => each_to(values, bytes, blocks::encode_q4_k),
            Format::Q5K => each_to(values, bytes, blocks::encode_q5_k),
            Format::Q6K => each_to(values, bytes, blocks::encode_q6_k),
            other => panic!("{other} is read and not written"),
        }
    }

    /// Reads a row of values back.
    ///
    /// # Panics
    /// When `values` is not an integer of blocks or `bytes` does not have their size.
    pub fn decode_row(self, bytes: &[u8], values: &mut [f32]) {
        assert_eq!(self.row_bytes(values.len()), Some(bytes.len()), "row size");
        match self {
            Format::F32 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Format::Bf16 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                }
            }
            Format::F16 => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = f16_to_f32(*bytes);
                }
            }
            Format::Q8_0 => each_from(bytes, values, blocks::decode_q8_0),
            Format::Q4_0 => each_from(bytes, values, blocks::decode_q4_0),
            Format::Q4_1 => each_from(bytes, values, blocks::decode_q4_1),
            Format::Q5_0 => each_from(bytes, values, blocks::decode_q5_0),
            Format::Q5_1 => each_from(bytes, values, blocks::decode_q5_1),
            Format::Q4K => each_from(bytes, values, blocks::decode_q4_k),
            Format::Q5K => each_from(bytes, values, blocks::decode_q5_k),
            Format::Q6K => each_from(bytes, values, blocks::decode_q6_k),
            Format::Q2K => each_from(bytes, values, low_bits::decode_q2_k),
            Format::Q3K => each_from(bytes, values, low_bits::decode_q3_k),
            Format::Iq1S => each_from(bytes, values, low_bits::decode_iq1_s),
            Format::Iq1M => each_from(bytes, values, low_bits::decode_iq1_m),
            Format::Iq2Xxs => each_from(bytes, values, low_bits::decode_iq2_xxs),
            Format::Iq2Xs => each_from(bytes, values, low_bits::decode_iq2_xs),
            Format::Iq2S => each_from(bytes, values, low_bits::decode_iq2_s),
            Format::Iq3Xxs => each_from(bytes, values, low_bits::decode_iq3_xxs),
            Format::Iq3S => each_from(bytes, values, low_bits::decode_iq3_s),
            Format::Iq4Nl => each_from(bytes, values, low_bits::decode_iq4_nl),
            Format::Iq4Xs => each_from(bytes, values, low_bits::decode_iq4_xs),
            Format::Tq1_0 => each_from(bytes, values, low_bits::decode_tq1_0),
            Format::Tq2_0 => each_from(bytes, values, low_bits::decode_tq2_0),
            Format::Mxfp4 => each_from(bytes, values, low_bits::decode_mxfp4),
            Format::Nvfp4 => each_from(bytes, values, low_bits::decode_nvfp4),
        }
    }
}

/// Encodes a row block by block.
fn each_to<const N: usize, const SIZE: usize>(
    values: &[f32],
    bytes: &mut [u8],
    encode: fn(&[f32; N], &mut [u8; SIZE]),
) {
    values.as_chunks::<N>().0.iter().zip(bytes.as_chunks_mut::<SIZE>().0).for_each(|(from, to)| encode(from, to));
}

/// Decodes a row block by block.
#[inline(always)]
fn each_from<const N: usize, const SIZE: usize>(
    bytes: &[u8],
    values: &mut [f32],
    decode: impl Fn(&[u8; SIZE], &mut [f32; N]),
) {
    bytes.as_chunks::<SIZE>().0.iter().zip(values.as_chunks_mut::<N>().0).for_each(|(from, to)| decode(from, to));
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = ParseFormatError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let wanted = word.to_ascii_lowercase();
        Format::ALL.into_iter().find(|format| format.name() == wanted).ok_or_else(|| ParseFormatError(word.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * (1.0 + (i / 32) as f32)).collect()
    }

    #[test]
    fn every_format_comes_back_within_its_step() {
        let values = wave(512);
        for format in Format::ALL {
            let mut bytes = vec![0; format.row_bytes(values.len()).unwrap()];
            let mut back = vec![0.0; values.len()];
            format.encode_row(&values, &mut bytes);
            format.decode_row(&bytes, &mut back);
            for (i, (a, b)) in values.iter().zip(&back).enumerate() {
                let largest = 1.0 + (i / 32) as f32;
                let block_largest = 8.0 + (i / 256 * 8) as f32;
                let step = match format {
                    Format::F32 => 0.0,
                    Format::Bf16 => largest / 256.0,
                    Format::F16 => largest / 2048.0,
                    Format::Q8_0 => largest / 127.0 * 0.51 + largest / 1000.0,
                    Format::Q4_0 => largest / 8.0 * 1.01, // the positive end saturates at 7/8
                    Format::Q5_0 => largest / 16.0 * 1.01,
                    Format::Q4_1 => largest / 15.0 * 1.01,
                    Format::Q5_1 => largest / 31.0 * 1.01,
                    // the scales of a block's parts have steps of their own, of the largest part's
                    Format::Q4K => block_largest / 15.0 * 1.3,
                    Format::Q5K => block_largest / 31.0 * 1.6,
                    Format::Q6K => block_largest / 32.0 * 1.2,
                    other => panic!("{other} is only read"),
                };
                assert!((a - b).abs() <= step, "{format} value {i}: {a} became {b}");
            }
        }
    }

    #[test]
    fn blocks_have_ggml_layout() {
        let mut block = [0f32; 32];
        block[0] = -8.0;
        block[1] = 7.0;
        block[16] = 3.0;
        let mut q4 = [0; 18];
        Format::Q4_0.encode_row(&block, &mut q4);
        assert_eq!(q4[..2], f16::from_f32(1.0).to_le_bytes());
        assert_eq!(q4[2], 0xb0, "value 0 is nibble 0 (low), value 16 is nibble 11 (high)");
        assert_eq!(q4[3], 0x8f);
        block[0] = -127.0;
        let mut q8 = [0; 34];
        Format::Q8_0.encode_row(&block, &mut q8);
        assert_eq!(q8[..2], f16::from_f32(1.0).to_le_bytes());
        assert_eq!((q8[2].cast_signed(), q8[3], q8[18]), (-127, 7, 3));
    }

    #[test]
    fn zeros_and_odd_values_do_not_divide_by_zero() {
        for format in Format::ALL {
            let mut bytes = vec![0; format.row_bytes(256).unwrap()];
            let mut back = vec![1.0; 256];
            format.encode_row(&[0.0; 256], &mut bytes);
            format.decode_row(&bytes, &mut back);
            assert!(back.iter().all(|v| *v == 0.0), "{format}: {back:?}");
        }
    }

    #[test]
    fn blocks_of_the_formats_that_are_only_read_have_a_size_and_a_name() {
        for format in Format::READ_ONLY {
            let bytes = vec![0; format.row_bytes(512).expect("whole blocks")];
            let mut values = vec![1.0; 512];
            format.decode_row(&bytes, &mut values);
            // the offset of IQ1 and the least level are times a scale of zero
            assert!(values.iter().all(|value| value.abs() < 1e-37), "{format}: {values:?}");
            assert!(format.name().parse::<Format>().is_err(), "{format} cannot be asked for");
        }
    }

    #[test]
    fn partial_blocks_have_no_size() {
        assert_eq!(Format::Q8_0.row_bytes(33), None);
        assert_eq!(Format::Q4_0.row_bytes(64), Some(36));
        assert_eq!(Format::F32.row_bytes(usize::MAX), None);
        assert!("q5_9".parse::<Format>().is_err());
        assert_eq!("Q8_0".parse::<Format>().unwrap(), Format::Q8_0);
    }
}
