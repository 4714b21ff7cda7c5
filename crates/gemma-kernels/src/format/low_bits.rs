//! Blocks of the formats that are read and not written: bytes to values, one function per format.
//!
//! Layouts and the order of operations are GGML's, so that a value read here is the value that llama.cpp reads. These
//! are the formats of two and three bits and below, and those whose four bits name a level of a table.

use super::blocks::{LARGE, SMALL, half_at};
use super::{code_books as books, grids};
use crate::math::f16_to_f32;

/// Bytes of a block of Q2_K: 16 scales and least values in four bits each, two bits a value, two f16 scales.
pub(super) const Q2_K: usize = LARGE / 16 + LARGE / 4 + 4;
/// Bytes of a block of Q3_K: one and two bits a value, 12 bytes of scales in six bits, an f16 scale.
pub(super) const Q3_K: usize = LARGE / 8 + LARGE / 4 + 12 + 2;
/// Bytes of a block of TQ1_0: five ternary values a byte, the last 16 four a byte, an f16 scale.
pub(super) const TQ1_0: usize = 48 + 4 + 2;
/// Bytes of a block of TQ2_0: two bits a value, an f16 scale.
pub(super) const TQ2_0: usize = LARGE / 4 + 2;
/// Values of a block of NVFP4.
pub(super) const NVFP4_VALUES: usize = 64;
/// The scale of eight values in IQ1_S and IQ1_M is off its middle by this much, either way.
const IQ1_DELTA: f32 = 0.125;

/// The levels that four bits of IQ4_NL and IQ4_XS name.
pub(crate) const IQ4_LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// The levels that four bits of MXFP4 and NVFP4 name: twice the numbers of E2M1.
pub(crate) const FP4_LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

#[inline(always)]
fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

#[inline(always)]
fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// The low nibbles of `bytes` in the first half of `values`, the high ones in the second, as levels of a table.
#[inline(always)]
fn nibble_levels(bytes: &[u8], levels: &[i8; 16], scale: f32, values: &mut [f32]) {
    let half = bytes.len();
    for (i, byte) in bytes.iter().enumerate() {
        values[i] = scale * f32::from(levels[usize::from(byte & 15)]);
        values[half + i] = scale * f32::from(levels[usize::from(byte >> 4)]);
    }
}

pub(super) fn decode_q2_k(block: &[u8; Q2_K], values: &mut [f32; LARGE]) {
    let (d, least) = (half_at(block, 80), half_at(block, 82));
    for (part, values) in values.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, least) = (d * f32::from(block[part] & 15), least * f32::from(block[part] >> 4));
        let quants = &block[16 + part / 8 * 32 + part % 2 * 16..][..16];
        let shift = part / 2 % 4 * 2;
        for (value, byte) in values.iter_mut().zip(quants) {
            *value = scale * f32::from(byte >> shift & 3) - least;
        }
    }
}

pub(super) fn decode_q3_k(block: &[u8; Q3_K], values: &mut [f32; LARGE]) {
    let (high, quants, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    for (part, values) in values.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = scales[part % 8] >> (part / 8 * 4) & 15;
        let two = scales[8 + part % 4] >> (part / 4 * 2) & 3;
        let scale = d * (f32::from(low | two << 4) - 32.0);
        let at = part % 2 * 16;
        let quants = &quants[part / 8 * 32 + at..][..16];
        let (shift, bit) = (part / 2 % 4 * 2, part / 2);
        for ((value, byte), high) in values.iter_mut().zip(quants).zip(&high[at..]) {
            // four is subtracted where the bit is not set
            let q = f32::from(byte >> shift & 3) - if high >> bit & 1 == 0 { 4.0 } else { 0.0 };
            *value = scale * q;
        }
    }
}

pub(super) fn decode_tq1_0(block: &[u8; TQ1_0], values: &mut [f32; LARGE]) {
    let d = half_at(block, 52);
    // a byte is a fraction of 243 (3^5) in 256 parts; multiplied by 3 to the n, its upper part is digit n
    let digit = |byte: u8, n: usize| {
        let shifted = byte.wrapping_mul([1, 3, 9, 27, 81][n]);
        d * (f32::from(((u16::from(shifted) * 3) >> 8) as u8) - 1.0)
    };
    for (i, value) in values.iter_mut().enumerate() {
        *value = match i {
            0..160 => digit(block[i % 32], i / 32),
            160..240 => digit(block[32 + (i - 160) % 16], (i - 160) / 16),
            _ => digit(block[48 + (i - 240) % 4], (i - 240) / 4),
        };
    }
}

pub(super) fn decode_tq2_0(block: &[u8; TQ2_0], values: &mut [f32; LARGE]) {
    let d = half_at(block, 64);
    for (part, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let quants = &block[part / 4 * 32..][..32];
        let shift = part % 4 * 2;
        for (value, byte) in values.iter_mut().zip(quants) {
            *value = d * (f32::from(byte >> shift & 3) - 1.0);
        }
    }
}

pub(super) fn decode_iq4_nl(block: &[u8; 18], values: &mut [f32; SMALL]) {
    nibble_levels(&block[2..], &IQ4_LEVELS, half_at(block, 0), values);
}

pub(super) fn decode_iq4_xs(block: &[u8; 136], values: &mut [f32; LARGE]) {
    let (d, high) = (half_at(block, 0), u16_at(block, 2));
    for (part, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = block[4 + part / 2] >> (part % 2 * 4) & 15;
        let two = (high >> (2 * part) & 3) as u8;
        let scale = d * (f32::from(low | two << 4) - 32.0);
        nibble_levels(&block[8 + part * 16..][..16], &IQ4_LEVELS, scale, values);
    }
}

/// Half of the power of two that an E8M0 exponent means; the levels are twice theirs.
#[inline(always)]
pub(crate) fn half_of_e8m0(exponent: u8) -> f32 {
    f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (u32::from(exponent) - 1) << 23 })
}

pub(super) fn decode_mxfp4(block: &[u8; 17], values: &mut [f32; SMALL]) {
    nibble_levels(&block[1..], &FP4_LEVELS, half_of_e8m0(block[0]), values);
}

pub(super) fn decode_nvfp4(block: &[u8; 36], values: &mut [f32; NVFP4_VALUES]) {
    for (part, values) in values.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        nibble_levels(&block[4 + part * 8..][..8], &FP4_LEVELS, half_of_ue4m3(block[part]), values);
    }
}

/// Half of an unsigned E4M3 number; its NaN is zero.
fn half_of_ue4m3(byte: u8) -> f32 {
    let (exponent, fraction) = (byte >> 3 & 15, f32::from(byte & 7));
    match (byte, exponent) {
        (0 | 0x7f, _) => 0.0,
        (_, 0) => fraction / 1024.0,
        _ => (1.0 + fraction / 8.0) * f32::from_bits((u32::from(exponent) + 127 - 7 - 1) << 23),
    }
}

/// Eight signs from seven bits: the eighth makes their number even.
#[inline(always)]
fn even_signs(seven: u32) -> u8 {
    (seven | (seven.count_ones() & 1) << 7) as u8
}

/// The magnitudes of a group of a code book, negative where `signs` has a bit.
#[inline(always)]
fn put_signed<const N: usize>(magnitudes: [u8; N], signs: u8, scale: f32, values: &mut [f32; N]) {
    for (i, (value, magnitude)) in values.iter_mut().zip(magnitudes).enumerate() {
        let level = scale * f32::from(magnitude);
        *value = if signs >> i & 1 == 0 { level } else { -level };
    }
}

pub(super) fn decode_iq2_xxs(block: &[u8; 66], values: &mut [f32; LARGE]) {
    let d = half_at(block, 0);
    for (part, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let at = 2 + part * 8;
        let packed = u32_at(block, at + 4);
        let scale = d * (0.5 + (packed >> 28) as f32) * 0.25;
        for (i, values) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let magnitudes = grids::IQ2_XXS[usize::from(block[at + i])].to_le_bytes();
            put_signed(magnitudes, even_signs(packed >> (7 * i) & 127), scale, values);
        }
    }
}

pub(super) fn decode_iq2_xs(block: &[u8; 74], values: &mut [f32; LARGE]) {
    let d = half_at(block, 0);
    for (i, values) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let packed = u16_at(block, 2 + 2 * i);
        let scale = d * (0.5 + f32::from(block[66 + i / 4] >> (i / 2 % 2 * 4) & 15)) * 0.25;
        let magnitudes = grids::IQ2_XS[usize::from(packed & 511)].to_le_bytes();
        put_signed(magnitudes, even_signs(u32::from(packed >> 9)), scale, values);
    }
}

pub(super) fn decode_iq2_s(block: &[u8; 82], values: &mut [f32; LARGE]) {
    let d = half_at(block, 0);
    for (i, values) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = usize::from(block[66 + i / 4] >> (i % 4 * 2) & 3);
        let scale = d * (0.5 + f32::from(block[74 + i / 4] >> (i / 2 % 2 * 4) & 15)) * 0.25;
        let magnitudes = grids::IQ2_S[usize::from(block[2 + i]) | high << 8].to_le_bytes();
        put_signed(magnitudes, block[34 + i], scale, values);
    }
}

pub(super) fn decode_iq3_xxs(block: &[u8; 98], values: &mut [f32; LARGE]) {
    let d = half_at(block, 0);
    for (part, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let packed = u32_at(block, 66 + part * 4);
        let scale = d * (0.5 + (packed >> 28) as f32) * 0.5;
        for (i, values) in values.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let signs = even_signs(packed >> (i / 2 * 7) & 127) >> (i % 2 * 4);
            let magnitudes = grids::IQ3_XXS[usize::from(block[2 + part * 8 + i])].to_le_bytes();
            put_signed(magnitudes, signs, scale, values);
        }
    }
}

pub(super) fn decode_iq3_s(block: &[u8; 110], values: &mut [f32; LARGE]) {
    let d = half_at(block, 0);
    for (i, values) in values.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let high = usize::from(block[66 + i / 8] >> (i % 8) & 1);
        let scale = d * f32::from(1 + 2 * (block[106 + i / 16] >> (i / 8 % 2 * 4) & 15));
        let signs = block[74 + i / 2] >> (i % 2 * 4);
        let magnitudes = grids::IQ3_S[usize::from(block[2 + i]) | high << 8].to_le_bytes();
        put_signed(magnitudes, signs, scale, values);
    }
}

/// Eight values of the code book of IQ1_S and IQ1_M.
#[inline(always)]
fn put_iq1(index: usize, delta: f32, scale: f32, values: &mut [f32]) {
    let code = books::IQ1[index];
    for (i, value) in values.iter_mut().enumerate() {
        *value = scale * (f32::from(code >> (2 * i) & 3) - 1.0 + delta);
    }
}

pub(super) fn decode_iq1_s(block: &[u8; 50], values: &mut [f32; LARGE]) {
    let d = half_at(block, 0);
    for (part, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let packed = u16_at(block, 34 + 2 * part);
        let scale = d * f32::from(2 * (packed >> 12 & 7) + 1);
        let delta = if packed & 0x8000 == 0 { IQ1_DELTA } else { -IQ1_DELTA };
        for (i, values) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let high = usize::from(packed >> (3 * i) & 7);
            put_iq1(usize::from(block[2 + part * 4 + i]) | high << 8, delta, scale, values);
        }
    }
}

pub(super) fn decode_iq1_m(block: &[u8; 56], values: &mut [f32; LARGE]) {
    // the f16 scale lies in the upper four bits of the four words of scales
    let d = (0..4).fold(0, |bits, i| bits | (u16_at(block, 48 + 2 * i) >> 12) << (4 * i));
    let d = f16_to_f32(d.to_le_bytes());
    for (i, values) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let part = i / 2;
        let scale = d * f32::from(2 * (u16_at(block, 48 + part / 4 * 2) >> (part % 4 * 3) & 7) + 1);
        let packed = block[32 + part] >> (i % 2 * 4);
        let delta = if packed & 8 == 0 { IQ1_DELTA } else { -IQ1_DELTA };
        put_iq1(usize::from(block[i]) | usize::from(packed & 7) << 8, delta, scale, values);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::ops::tests::{assert_close, devices, tensor, values};
    use crate::{ActivationPrecision, Format, PackedWeight, packed_linear, packed_rows};
    use burn::tensor::{Tensor, TensorData};

    /// Rows of blocks of any bytes, with scales that are small numbers.
    pub(crate) fn blocks(format: Format, rows: usize, cols: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let mut bytes: Vec<u8> = (0..format.row_bytes(cols).unwrap() * rows).map(|_| byte()).collect();
        for block in bytes.chunks_mut(format.block_bytes()) {
            let places: &[usize] = match format {
                Format::Q2K => &[80, 82],
                Format::Q3K => &[108],
                Format::Tq1_0 => &[52],
                Format::Tq2_0 => &[64],
                Format::Iq1M | Format::Mxfp4 | Format::Nvfp4 => &[],
                _ => &[0],
            };
            // f16 from 2^-7 to 2^-6
            places.iter().for_each(|at| block[at + 1] = 0x20 | block[at + 1] & 0x83);
            match format {
                Format::Iq1M => block[55] = 0x20 | block[55] & 15,
                Format::Mxfp4 => block[0] = 120 + block[0] % 4,
                Format::Nvfp4 => block[..4].iter_mut().for_each(|scale| *scale &= 0x3f),
                _ => {}
            }
        }
        bytes
    }

    #[test]
    fn products_and_rows_are_those_of_the_decoded_values() {
        let (rows, cols) = (67, 512);
        for (backend, device) in devices() {
            for format in Format::READ_ONLY {
                let bytes = blocks(format, rows, cols);
                let mut decoded = vec![0.0; rows * cols];
                for (row, values) in bytes.chunks(format.row_bytes(cols).unwrap()).zip(decoded.chunks_mut(cols)) {
                    format.decode_row(row, values);
                }
                let largest = decoded.iter().fold(0f32, |most, value| most.max(value.abs()));
                assert!(largest.is_finite() && largest > 1e-4, "{format}: {largest}");
                let weight = PackedWeight::new(bytes.into(), format, rows, cols, &device).unwrap();
                let weight = weight.with_activations(ActivationPrecision::F32);
                let dense = Tensor::<2>::from_data(TensorData::new(decoded.clone(), [rows, cols]), &device);
                for tokens in [1, 3, 7, 20] {
                    let x = tensor([tokens, cols], 4, &device);
                    let expected = values(x.clone().matmul(dense.clone().transpose()));
                    let context = format!("{backend} {format} {tokens}");
                    assert_close(&values(packed_linear(x, &weight)), &expected, 0.02 * largest, &context);
                }
                let found = values(packed_rows(&weight, &[66, 0, 5]));
                let expected = [66, 0, 5].map(|row| &decoded[row * cols..][..cols]).concat();
                assert_close(&found, &expected, largest / 2000.0, &format!("{backend} {format} rows"));
            }
        }
    }
}
