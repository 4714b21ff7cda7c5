//! Blocks of the quantized formats: bytes to values and back, one function per format and direction.
//!
//! Layouts and the order of operations when reading are GGML's, so that a value read here is the value that
//! llama.cpp reads. Writing follows GGML to the byte for the blocks of 32; for the blocks of 256, where GGML searches for
//! scales that make the error small, it takes the scales that window the values.

use crate::math::f16_to_f32;
use half::f16;

/// Values of a block of Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1.
pub(super) const SMALL: usize = 32;
/// Values of a block of Q4_K, Q5_K and Q6_K.
pub(super) const LARGE: usize = 256;
/// Bytes of a block of Q4_K: two f16 scales, 12 bytes of scales in six bits, four bits a value.
pub(super) const Q4_K: usize = 4 + 12 + LARGE / 2;
/// Bytes of a block of Q5_K: the same and a bit a value.
pub(super) const Q5_K: usize = Q4_K + LARGE / 8;
/// Bytes of a block of Q6_K: four and two bits a value, a scale in eight bits for each 16, an f16 scale.
pub(super) const Q6_K: usize = LARGE / 2 + LARGE / 4 + LARGE / 16 + 2;

/// The value of the half at byte `at`.
#[inline(always)]
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    f16_to_f32([block[at], block[at + 1]])
}

fn put_half(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// `1 / scale`, and nothing for nothing.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

#[inline(always)]
pub(super) fn decode_q8_0(block: &[u8; 34], values: &mut [f32; SMALL]) {
    let scale = half_at(block, 0);
    for (value, q) in values.iter_mut().zip(&block[2..]) {
        *value = scale * f32::from(q.cast_signed());
    }
}

#[inline(always)]
pub(super) fn decode_q4_0(block: &[u8; 18], values: &mut [f32; SMALL]) {
    let scale = half_at(block, 0);
    for (i, q) in block[2..].iter().enumerate() {
        values[i] = scale * (f32::from(q & 15) - 8.0);
        values[i + SMALL / 2] = scale * (f32::from(q >> 4) - 8.0);
    }
}

#[inline(always)]
pub(super) fn decode_q4_1(block: &[u8; 20], values: &mut [f32; SMALL]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    for (i, q) in block[4..].iter().enumerate() {
        values[i] = scale * f32::from(q & 15) + least;
        values[i + SMALL / 2] = scale * f32::from(q >> 4) + least;
    }
}

#[inline(always)]
pub(super) fn decode_q5_0(block: &[u8; 22], values: &mut [f32; SMALL]) {
    let scale = half_at(block, 0);
    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for (i, q) in block[6..].iter().enumerate() {
        let [low, high] = five_bits(*q, fifth, i);
        values[i] = scale * (low - 16.0);
        values[i + SMALL / 2] = scale * (high - 16.0);
    }
}

#[inline(always)]
pub(super) fn decode_q5_1(block: &[u8; 24], values: &mut [f32; SMALL]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let fifth = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for (i, q) in block[8..].iter().enumerate() {
        let [low, high] = five_bits(*q, fifth, i);
        values[i] = scale * low + least;
        values[i + SMALL / 2] = scale * high + least;
    }
}

/// The two numbers of byte `i`, each with its fifth bit.
#[inline(always)]
fn five_bits(byte: u8, fifth: u32, i: usize) -> [f32; 2] {
    let low = u32::from(byte & 15) | (fifth >> i & 1) << 4;
    let high = u32::from(byte >> 4) | (fifth >> (i + SMALL / 2) & 1) << 4;
    [low as f32, high as f32]
}

#[inline(always)]
pub(super) fn decode_q4_k(block: &[u8; Q4_K], values: &mut [f32; LARGE]) {
    let quants = &block[16..];
    for (part, values) in values.as_chunks_mut::<SMALL>().0.iter_mut().enumerate() {
        let (scale, least) = part_scales(block, part);
        let bytes = &quants[part / 2 * SMALL..][..SMALL];
        let shift = part % 2 * 4;
        for (value, byte) in values.iter_mut().zip(bytes) {
            *value = scale * f32::from(byte >> shift & 15) - least;
        }
    }
}

#[inline(always)]
pub(super) fn decode_q5_k(block: &[u8; Q5_K], values: &mut [f32; LARGE]) {
    let (fifth, quants) = (&block[16..16 + SMALL], &block[16 + SMALL..]);
    for (part, values) in values.as_chunks_mut::<SMALL>().0.iter_mut().enumerate() {
        let (scale, least) = part_scales(block, part);
        let bytes = &quants[part / 2 * SMALL..][..SMALL];
        let shift = part % 2 * 4;
        for ((value, byte), fifth) in values.iter_mut().zip(bytes).zip(fifth) {
            *value = scale * f32::from((byte >> shift & 15) | (fifth >> part & 1) << 4) - least;
        }
    }
}

#[inline(always)]
pub(super) fn decode_q6_k(block: &[u8; Q6_K], values: &mut [f32; LARGE]) {
    let scale = half_at(block, 208);
    for (part, values) in values.as_chunks_mut::<SMALL>().0.iter_mut().enumerate() {
        let (half, quarter) = (part / 4, part % 4);
        let low = &block[half * 64 + quarter % 2 * SMALL..][..SMALL];
        let high = &block[128 + half * SMALL..][..SMALL];
        let (low_shift, high_shift) = (quarter / 2 * 4, quarter * 2);
        let scales = [0, 1].map(|i| scale * f32::from(block[192 + part * 2 + i].cast_signed()));
        for (i, value) in values.iter_mut().enumerate() {
            let q = (low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4;
            *value = scales[i / 16] * (f32::from(q) - 32.0);
        }
    }
}

/// The scale of part `part` of a block of Q4_K or Q5_K, and what is subtracted: 32 values share the two.
#[inline(always)]
fn part_scales(block: &[u8], part: usize) -> (f32, f32) {
    let packed = &block[4..16];
    let (a, b, c) = (packed[part % 4], packed[part % 4 + 4], packed[part % 4 + 8]);
    let (scale, least) = if part < 4 { (a & 63, b & 63) } else { ((c & 15) | a >> 6 << 4, (c >> 4) | b >> 6 << 4) };
    (half_at(block, 0) * f32::from(scale), half_at(block, 2) * f32::from(least))
}

pub(super) fn encode_q8_0(values: &[f32; SMALL], block: &mut [u8; 34]) {
    let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    let scale = largest / 127.0;
    put_half(block, 0, scale);
    let inverse = inverse(scale);
    for (quant, value) in block[2..].iter_mut().zip(values) {
        // the cast saturates, and maps NaN to 0
        *quant = ((value * inverse).round() as i8).cast_unsigned();
    }
}

pub(super) fn encode_q4_0(values: &[f32; SMALL], block: &mut [u8; 18]) {
    let scale = extreme(values) / -8.0;
    put_half(block, 0, scale);
    let inverse = inverse(scale);
    let nibble = |value: f32| ((value * inverse + 8.5) as u8).min(15);
    for (i, quant) in block[2..].iter_mut().enumerate() {
        *quant = nibble(values[i]) | (nibble(values[i + SMALL / 2]) << 4);
    }
}

pub(super) fn encode_q4_1(values: &[f32; SMALL], block: &mut [u8; 20]) {
    let (least, most) = window(values);
    let scale = (most - least) / 15.0;
    put_half(block, 0, scale);
    put_half(block, 2, least);
    let inverse = inverse(scale);
    let nibble = |value: f32| (((value - least) * inverse + 0.5) as u8).min(15);
    for (i, quant) in block[4..].iter_mut().enumerate() {
        *quant = nibble(values[i]) | (nibble(values[i + SMALL / 2]) << 4);
    }
}

pub(super) fn encode_q5_0(values: &[f32; SMALL], block: &mut [u8; 22]) {
    let scale = extreme(values) / -16.0;
    put_half(block, 0, scale);
    let inverse = inverse(scale);
    put_five_bits(&mut block[2..], values.map(|value| ((value * inverse + 16.5) as u8).min(31)));
}

pub(super) fn encode_q5_1(values: &[f32; SMALL], block: &mut [u8; 24]) {
    let (least, most) = window(values);
    let scale = (most - least) / 31.0;
    put_half(block, 0, scale);
    put_half(block, 2, least);
    let inverse = inverse(scale);
    put_five_bits(&mut block[4..], values.map(|value| (((value - least) * inverse + 0.5) as u8).min(31)));
}

/// Writes the fifth bits, then the other four.
fn put_five_bits(bytes: &mut [u8], quants: [u8; SMALL]) {
    let fifth = quants.iter().enumerate().fold(0u32, |bits, (i, q)| bits | u32::from(q >> 4) << i);
    bytes[..4].copy_from_slice(&fifth.to_le_bytes());
    for (i, byte) in bytes[4..].iter_mut().enumerate() {
        *byte = (quants[i] & 15) | (quants[i + SMALL / 2] & 15) << 4;
    }
}

pub(super) fn encode_q4_k(values: &[f32; LARGE], block: &mut [u8; Q4_K]) {
    let quants = encode_parts(values, block, 15);
    for (i, byte) in block[16..].iter_mut().enumerate() {
        let at = i / SMALL * 2 * SMALL + i % SMALL;
        *byte = quants[at] | quants[at + SMALL] << 4;
    }
}

pub(super) fn encode_q5_k(values: &[f32; LARGE], block: &mut [u8; Q5_K]) {
    let quants = encode_parts(values, block, 31);
    for (i, byte) in block[16..16 + SMALL].iter_mut().enumerate() {
        *byte = (0..8).fold(0, |bits, part| bits | (quants[part * SMALL + i] >> 4) << part);
    }
    for (i, byte) in block[16 + SMALL..].iter_mut().enumerate() {
        let at = i / SMALL * 2 * SMALL + i % SMALL;
        *byte = (quants[at] & 15) | (quants[at + SMALL] & 15) << 4;
    }
}

/// Writes the scales of a block of Q4_K or Q5_K and returns the numbers, each at most `most`.
fn encode_parts(values: &[f32; LARGE], block: &mut [u8], most: u8) -> [u8; LARGE] {
    let parts = values.as_chunks::<SMALL>().0;
    // what is subtracted is not negative, so that zero stays within the window
    let windows: Vec<(f32, f32)> = parts
        .iter()
        .map(|part| {
            let (low, high) = window(part);
            let least = (-low).max(0.0);
            ((high + least).max(0.0) / f32::from(most), least)
        })
        .collect();
    let largest = |of: fn(&(f32, f32)) -> f32| windows.iter().map(of).fold(0f32, f32::max);
    put_half(block, 0, largest(|window| window.0) / 63.0);
    put_half(block, 2, largest(|window| window.1) / 63.0);
    let (scale_step, least_step) = (inverse(half_at(block, 0)), inverse(half_at(block, 2)));
    let six_bits = |value: f32, step: f32| ((value * step).round() as u8).min(63);
    block[4..16].fill(0);
    for (part, (scale, least)) in windows.iter().enumerate() {
        let (scale, least) = (six_bits(*scale, scale_step), six_bits(*least, least_step));
        let packed = &mut block[4..16];
        if part < 4 {
            packed[part] = scale;
            packed[part + 4] = least;
        } else {
            packed[part + 4] = (scale & 15) | least << 4;
            packed[part - 4] |= scale >> 4 << 6;
            packed[part] |= least >> 4 << 6;
        }
    }
    let mut quants = [0; LARGE];
    for (part, quants) in quants.as_chunks_mut::<SMALL>().0.iter_mut().enumerate() {
        // as they will be read
        let (scale, least) = part_scales(block, part);
        let inverse = inverse(scale);
        for (quant, value) in quants.iter_mut().zip(&parts[part]) {
            *quant = (((value + least) * inverse).round() as u8).min(most);
        }
    }
    quants
}

pub(super) fn encode_q6_k(values: &[f32; LARGE], block: &mut [u8; Q6_K]) {
    // the value of largest magnitude becomes -32, the end of the range that has one number more
    let scales: Vec<f32> = values.as_chunks::<16>().0.iter().map(|part| extreme(part) / -32.0).collect();
    put_half(block, 208, extreme(&scales) / -128.0);
    let step = inverse(half_at(block, 208));
    for (byte, scale) in block[192..208].iter_mut().zip(&scales) {
        *byte = ((scale * step).round() as i8).cast_unsigned();
    }
    block[..192].fill(0);
    for (i, value) in values.iter().enumerate() {
        let scale = half_at(block, 208) * f32::from(block[192 + i / 16].cast_signed());
        let quant = ((value * inverse(scale)).round().clamp(-32.0, 31.0) + 32.0) as u8;
        let (half, quarter, at) = (i / 128, i / 32 % 4, i % 32);
        block[half * 64 + quarter % 2 * 32 + at] |= (quant & 15) << (quarter / 2 * 4);
        block[128 + half * 32 + at] |= quant >> 4 << (quarter * 2);
    }
}

/// The value of largest magnitude; the first of several.
fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |m, &v| if v.abs() > m.abs() { v } else { m })
}

fn window(values: &[f32; SMALL]) -> (f32, f32) {
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)))
}
