//! The formats in which a weight matrix lies in a file or in memory.
//!
//! The quantized ones are GGML's block layouts, so that a GGUF file is used as it is. All values are
//! little-endian; scales are IEEE half precision.

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
}

/// A word that names no format.
#[derive(Debug, thiserror::Error)]
#[error("unknown format `{0}`; the formats are f32, bf16, f16, q8_0 and q4_0")]
pub struct ParseFormatError(String);

/// Values per block of the quantized formats.
pub(crate) const BLOCK: usize = 32;

impl Format {
    /// Every format.
    pub const ALL: [Format; 5] = [Format::F32, Format::Bf16, Format::F16, Format::Q8_0, Format::Q4_0];

    /// The name used on command lines and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Format::F32 => "f32",
            Format::Bf16 => "bf16",
            Format::F16 => "f16",
            Format::Q8_0 => "q8_0",
            Format::Q4_0 => "q4_0",
        }
    }

    /// Values per block: 32 for the quantized formats, 1 for the others.
    pub fn block_len(self) -> usize {
        match self {
            Format::F32 | Format::Bf16 | Format::F16 => 1,
            Format::Q8_0 | Format::Q4_0 => BLOCK,
        }
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::Bf16 | Format::F16 => 2,
            Format::Q8_0 => 2 + BLOCK,
            Format::Q4_0 => 2 + BLOCK / 2,
        }
    }

    /// Bytes of a row of `cols` values; `None` when `cols` is not a whole number of blocks (or overflows).
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Stores a row of values.
    ///
    /// Rounding is to nearest, ties to even, for bf16 and f16. The quantized formats follow GGML: Q8_0 takes
    /// `d = max|x| / 127` and rounds `x / d` half away from zero; Q4_0 takes `d = m / -8` with `m` the value of
    /// largest magnitude and rounds `x / d + 8` half up, at most 15.
    ///
    /// # Panics
    /// When `values` is not a whole number of blocks or `bytes` does not have their size.
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
            Format::Q8_0 => {
                for (block, out) in values.as_chunks::<BLOCK>().0.iter().zip(bytes.as_chunks_mut::<34>().0) {
                    encode_q8_0(block, out);
                }
            }
            Format::Q4_0 => {
                for (block, out) in values.as_chunks::<BLOCK>().0.iter().zip(bytes.as_chunks_mut::<18>().0) {
                    encode_q4_0(block, out);
                }
            }
        }
    }

    /// Reads a row of values back.
    ///
    /// # Panics
    /// When `values` is not a whole number of blocks or `bytes` does not have their size.
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
                    *value = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            Format::Q8_0 => {
                for (out, block) in values.as_chunks_mut::<BLOCK>().0.iter_mut().zip(bytes.as_chunks::<34>().0) {
                    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                    for (value, &q) in out.iter_mut().zip(&block[2..]) {
                        *value = scale * f32::from(q.cast_signed());
                    }
                }
            }
            Format::Q4_0 => {
                for (out, block) in values.as_chunks_mut::<BLOCK>().0.iter_mut().zip(bytes.as_chunks::<18>().0) {
                    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
                    for (i, &q) in block[2..].iter().enumerate() {
                        out[i] = scale * (f32::from(q & 15) - 8.0);
                        out[i + BLOCK / 2] = scale * (f32::from(q >> 4) - 8.0);
                    }
                }
            }
        }
    }
}

fn encode_q8_0(block: &[f32; BLOCK], out: &mut [u8; 34]) {
    let largest = block.iter().fold(0f32, |m, v| m.max(v.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let (head, quants) = out.split_at_mut(2);
    head.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (quant, value) in quants.iter_mut().zip(block) {
        // the cast saturates, and maps NaN to 0
        *quant = ((value * inverse).round() as i8).cast_unsigned();
    }
}

fn encode_q4_0(block: &[f32; BLOCK], out: &mut [u8; 18]) {
    let extreme = block.iter().fold(0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    let scale = extreme / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let (head, quants) = out.split_at_mut(2);
    head.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    let nibble = |value: f32| ((value * inverse + 8.5) as u8).min(15);
    for (i, quant) in quants.iter_mut().enumerate() {
        *quant = nibble(block[i]) | (nibble(block[i + BLOCK / 2]) << 4);
    }
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
        let values = wave(96);
        for format in Format::ALL {
            let mut bytes = vec![0; format.row_bytes(values.len()).unwrap()];
            let mut back = vec![0.0; values.len()];
            format.encode_row(&values, &mut bytes);
            format.decode_row(&bytes, &mut back);
            for (i, (a, b)) in values.iter().zip(&back).enumerate() {
                let largest = 1.0 + (i / 32) as f32;
                let step = match format {
                    Format::F32 => 0.0,
                    Format::Bf16 => largest / 256.0,
                    Format::F16 => largest / 2048.0,
                    Format::Q8_0 => largest / 127.0 * 0.51 + largest / 1000.0,
                    Format::Q4_0 => largest / 8.0 * 1.01, // the positive end saturates at 7/8
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
        for format in [Format::Q8_0, Format::Q4_0] {
            let mut bytes = vec![0; format.row_bytes(32).unwrap()];
            let mut back = vec![1.0; 32];
            format.encode_row(&[0.0; 32], &mut bytes);
            format.decode_row(&bytes, &mut back);
            assert!(back.iter().all(|v| *v == 0.0), "{format}: {back:?}");
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
