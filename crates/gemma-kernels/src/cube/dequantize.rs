//! Packed values out of 32-bit words.
//!
//! Values are decoded eight at a time, a *group*: eight neighbours, but for Q4_0, where the low and high nibbles of four
//! bytes are a quarter of a block. Blocks whose bytes are no multiple of four start at a word when their number is
//! even and in the middle of a word when it is odd. What [`wide`] decodes is loaded 128 bits at a time.

mod wide;

pub(super) use wide::{decode_wide, is_wide, widen};

use crate::Format;
use cubecl::prelude::*;

/// Values of a group.
pub(super) const GROUP: usize = 8;
/// Quads of neighbouring values in a group.
pub(super) const QUAD_GROUP: usize = GROUP / 4;

/// Groups of a row of `cols` values; the last one may be partial in the plain formats.
pub(super) fn groups(cols: usize) -> usize {
    cols.div_ceil(GROUP)
}

/// The f32 that the lower 16 bits of `bits` mean as an IEEE half.
///
/// In integer arithmetic, because shaders may flush the subnormal f32 that a shift and a multiplication would
/// pass through.
#[cube]
pub(super) fn half_to_f32(bits: u32) -> f32 {
    let exponent = (bits >> 10u32) & 31u32;
    let fraction = bits & 1023u32;
    let normal = ((exponent + 112u32) << 23u32) | (fraction << 13u32);
    // zero and subnormals count steps of 2^-24, which f32 represents as normal numbers
    let small = u32::reinterpret(f32::cast_from(fraction) * 5.960_464_5e-8f32);
    // infinities and NaNs
    let special = 0x7f80_0000u32 | (fraction << 13u32);
    let magnitude = select(exponent == 0u32, small, select(exponent == 31u32, special, normal));
    f32::reinterpret(magnitude | ((bits & 0x8000u32) << 16u32))
}

/// The 16-bit half number `half` of the row that starts at word `row`.
#[cube]
fn half_word(words: &[u32], row: usize, half: usize) -> u32 {
    (words[row + half / 2] >> ((half % 2) as u32 * 16u32)) & 0xffffu32
}

/// The word that starts at half number `half` of the row: aligned, or made of two words.
#[cube]
fn word_at(words: &[u32], row: usize, half: usize) -> u32 {
    let at = row + half / 2;
    let mut word = words[at];
    if half % 2 == 1 {
        word = (word >> 16u32) | (words[at + 1] << 16u32);
    }
    word
}

/// The `count` words that start at half number `half` of the row, with a load for each and one more. Of neighbouring
/// units some have an odd `half` and some an even one, so there is no branch.
#[cube]
fn words_at(words: &[u32], row: usize, half: usize, #[comptime] count: usize) -> Array<u32> {
    let mut found = Array::<u32>::new(count);
    let at = row + half / 2;
    let odd = half % 2 == 1;
    let mut low = words[at];
    #[unroll]
    for i in 0..count {
        let mut next = at + comptime!(i + 1);
        if comptime!(i + 1 == count) {
            // where words are aligned, the last load repeats one, so as not to pass the row's end
            next = at + i + half % 2;
        }
        let high = words[next];
        found[i] = select(odd, (low >> 16u32) | (high << 16u32), low);
        low = high;
    }
    found
}

/// The column in which value `index` of group `group` stands.
#[cube]
pub(super) fn column(group: usize, #[comptime] index: usize, #[comptime] format: Format) -> usize {
    if comptime!(format == Format::Q4_0) {
        // four low nibbles, and the four high ones of the same bytes
        let within = comptime!(index % 4 + index / 4 * 16);
        group / 4 * 32 + group % 4 * 4 + within
    } else {
        group * GROUP + index
    }
}

/// The two values of bf16 or f16 in a word, the lower half first.
#[cube]
fn put_halves(word: u32, values: &mut Array<f32>, #[comptime] to: usize, #[comptime] format: Format) {
    if comptime!(format == Format::Bf16) {
        values[to] = f32::reinterpret(word << 16u32);
        values[comptime!(to + 1)] = f32::reinterpret(word & 0xffff_0000u32);
    } else {
        values[to] = half_to_f32(word & 0xffffu32);
        values[comptime!(to + 1)] = half_to_f32(word >> 16u32);
    }
}

/// Decodes group `group` of the row that starts at word `row` into `values` from index `to` on, in the order of
/// [`column`].
///
/// With `whole`, the row consists of whole groups and `group` is one of them; otherwise columns from `cols` on
/// give zero.
#[cube]
pub(super) fn decode(
    words: &[u32],
    row: usize,
    group: usize,
    cols: usize,
    values: &mut Array<f32>,
    #[comptime] to: usize,
    #[comptime] format: Format,
    #[comptime] whole: bool,
) {
    if comptime!(format == Format::F32) {
        #[unroll]
        for i in 0..GROUP {
            let at = group * GROUP + i;
            values[comptime!(to + i)] = 0.0f32;
            if whole || at < cols {
                values[comptime!(to + i)] = f32::reinterpret(words[row + at]);
            }
        }
    } else if comptime!(format == Format::Bf16 || format == Format::F16) {
        #[unroll]
        for i in 0..comptime!(GROUP / 2) {
            let at = group * comptime!(GROUP / 2) + i;
            let mut word = 0u32;
            if whole || at * 2 < cols {
                word = words[row + at];
                if comptime!(!whole) && at * 2 + 1 == cols {
                    // an odd row ends in the middle of its last word
                    word &= 0xffffu32;
                }
            }
            put_halves(word, values, comptime!(to + 2 * i), format);
        }
    } else if whole || group * GROUP < cols {
        if comptime!(format == Format::Q8_0 || format == Format::Q4_0) {
            let scale = quants(words, row, group, values, to, format);
            #[unroll]
            for i in 0..GROUP {
                values[comptime!(to + i)] *= scale;
            }
        } else if comptime!(format == Format::Q6K) {
            decode_six_bits(words, row, group, values, to);
        } else if comptime!(format == Format::Q2K) {
            decode_two_bits(words, row, group, values, to);
        } else if comptime!(format == Format::Q3K) {
            decode_three_bits(words, row, group, values, to);
        } else if comptime!(format == Format::Iq4Nl) {
            let (start, part) = (group / 4 * 9, group % 4);
            let scale = half_to_f32(half_word(words, row, start));
            let shift = part as u32 / 2u32 * 4u32;
            let at = start + 1 + part % 2 * 4;
            put_levels(word_at(words, row, at) >> shift, scale, values, to, true);
            put_levels(word_at(words, row, at + 2) >> shift, scale, values, comptime!(to + 4), true);
        } else if comptime!(format == Format::Iq4Xs) {
            decode_six_bit_levels(words, row, group, values, to);
        } else if comptime!(format == Format::Mxfp4) {
            let (start, part) = (group / 4 * 17, group % 4);
            let exponent = word_at_byte(words, row, start) & 255u32;
            let bits = select(exponent < 2u32, 0x0020_0000u32 << exponent, (max(exponent, 1u32) - 1u32) << 23u32);
            let scale = f32::reinterpret(bits);
            let shift = part as u32 / 2u32 * 4u32;
            let at = start + 1 + part % 2 * 8;
            put_levels(word_at_byte(words, row, at) >> shift, scale, values, to, false);
            put_levels(word_at_byte(words, row, at + 4) >> shift, scale, values, comptime!(to + 4), false);
        } else if comptime!(format == Format::Q4K || format == Format::Q5K) {
            decode_parts(words, row, group, values, to, comptime!(format == Format::Q5K));
        } else {
            decode_small(
                words,
                row,
                group,
                values,
                to,
                comptime!(format != Format::Q4_1),
                comptime!(format != Format::Q5_0),
            );
        }
    } else {
        #[unroll]
        for i in 0..GROUP {
            values[comptime!(to + i)] = 0.0f32;
        }
    }
}

/// The integers of group `group` of Q8_0 or Q4_0, in the order of [`column`], and the scale to multiply them with.
///
/// An integer of less than 23 bits in the fraction of 2^23 is that number plus 2^23: one operation where a conversion
/// would be another, at half the rate or less.
#[cube]
pub(super) fn quants(
    words: &[u32],
    row: usize,
    group: usize,
    values: &mut Array<f32>,
    #[comptime] to: usize,
    #[comptime] format: Format,
) -> f32 {
    let (block, part) = (group / 4, group % 4);
    let start = block * comptime!(if format == Format::Q8_0 { 17usize } else { 9 });
    if comptime!(format == Format::Q8_0) {
        let pair = words_at(words, row, start + 1 + part * 4, 2usize);
        #[unroll]
        for i in 0..2usize {
            // two's complement bytes, moved up by 128 to count from zero
            let word = pair[i] ^ 0x8080_8080u32;
            #[unroll]
            for j in 0..4usize {
                let byte = (word >> comptime!(8 * j as u32)) & 255u32;
                values[comptime!(to + 4 * i + j)] = f32::reinterpret(byte | 0x4b00_0000u32) - 8_388_736.0f32;
            }
        }
    } else {
        let found = words_at(words, row, start + 1 + part * 2, 1usize);
        let word = found[0];
        #[unroll]
        for j in 0..4usize {
            let low = (word >> comptime!(8 * j as u32)) & 15u32;
            let high = (word >> comptime!(8 * j as u32 + 4)) & 15u32;
            values[comptime!(to + j)] = f32::reinterpret(low | 0x4b00_0000u32) - 8_388_616.0f32;
            values[comptime!(to + 4 + j)] = f32::reinterpret(high | 0x4b00_0000u32) - 8_388_616.0f32;
        }
    }
    half_to_f32(half_word(words, row, start))
}

/// A group of Q4_1, Q5_0 or Q5_1: blocks of 32 values, the high nibbles after the low ones, with a `fifth` bit or a
/// `least` value or both.
#[cube]
fn decode_small(
    words: &[u32],
    row: usize,
    group: usize,
    values: &mut Array<f32>,
    #[comptime] to: usize,
    #[comptime] fifth: bool,
    #[comptime] least: bool,
) {
    // in half words: the scale, the least value, the fifth bits, the nibbles
    let bits = comptime!(if least { 2usize } else { 1 });
    let nibbles = comptime!(bits + if fifth { 2 } else { 0 });
    let (start, part) = (group / 4 * comptime!(nibbles + 8), group % 4);
    let scale = half_to_f32(half_word(words, row, start));
    let mut addend = 0.0f32;
    if comptime!(least) {
        addend = half_to_f32(half_word(words, row, start + 1));
    }
    let mut fifths = 0u32;
    if comptime!(fifth) {
        fifths = word_at(words, row, start + bits) >> (part as u32 * 8u32);
    }
    let shift = part as u32 / 2u32 * 4u32;
    #[unroll]
    for i in 0..2usize {
        let word = word_at(words, row, start + nibbles + part % 2 * 4 + comptime!(2 * i)) >> shift;
        #[unroll]
        for j in 0..4usize {
            let nibble = (word >> comptime!(8 * j as u32)) & 15u32;
            let high = ((fifths >> comptime!((4 * i + j) as u32)) & 1u32) << 4u32;
            if comptime!(least) {
                values[comptime!(to + 4 * i + j)] = f32::cast_from(nibble | high) * scale + addend;
            } else {
                values[comptime!(to + 4 * i + j)] = (f32::cast_from(nibble | high) - 16.0f32) * scale;
            }
        }
    }
}

/// A group of Q4_K or Q5_K: blocks of 256 values, whole words, in parts of 32 with scales of six bits.
#[cube]
fn decode_parts(
    words: &[u32],
    row: usize,
    group: usize,
    values: &mut Array<f32>,
    #[comptime] to: usize,
    #[comptime] fifth: bool,
) {
    let nibbles = comptime!(if fifth { 12usize } else { 4 });
    let start = row + group / 32 * comptime!(nibbles + 32);
    let (part, within) = (group % 32 / 4, group % 4);
    let mut found = Array::<u32>::new(PARTS_WORDS);
    #[unroll]
    for i in 0..4usize {
        found[i] = words[start + i];
    }
    #[unroll]
    for i in 0..2usize {
        found[comptime!(4 + i)] = words[start + nibbles + part / 2 * 8 + within * 2 + i];
        if comptime!(fifth) {
            found[comptime!(6 + i)] = words[start + 4 + within * 2 + i];
        }
    }
    put_parts(&found, part, values, to, fifth);
}

/// Words from which a group of Q4_K or Q5_K is decoded: four with the scales of its block, two with its nibbles, two
/// with its fifth bits.
const PARTS_WORDS: usize = 8;

/// Decodes a group of Q4_K or Q5_K in part `part` of its block from the words that it needs.
#[cube]
fn put_parts(words: &Array<u32>, part: usize, values: &mut Array<f32>, #[comptime] to: usize, #[comptime] fifth: bool) {
    // three words hold the four bytes a, b and c of the scales
    let shift = (part % 4) as u32 * 8u32;
    let a = words[1] >> shift;
    let b = words[2] >> shift;
    let c = words[3] >> shift;
    let late = part >= 4;
    let scale = select(late, (c & 15u32) | ((a >> 6u32 & 3u32) << 4u32), a & 63u32);
    let least = select(late, (c >> 4u32 & 15u32) | ((b >> 6u32 & 3u32) << 4u32), b & 63u32);
    let scale = half_to_f32(words[0] & 0xffffu32) * f32::cast_from(scale);
    let least = half_to_f32(words[0] >> 16u32) * f32::cast_from(least);
    let shift = (part % 2) as u32 * 4u32;
    #[unroll]
    for i in 0..2usize {
        let word = words[comptime!(4 + i)] >> shift;
        let mut high = 0u32;
        if comptime!(fifth) {
            high = words[comptime!(6 + i)] >> part as u32;
        }
        #[unroll]
        for j in 0..4usize {
            let nibble = (word >> comptime!(8 * j as u32)) & 15u32;
            let bit = ((high >> comptime!(8 * j as u32)) & 1u32) << 4u32;
            values[comptime!(to + 4 * i + j)] = f32::cast_from(nibble | bit) * scale - least;
        }
    }
}

/// A group of Q6_K: blocks of 256 values in 105 half words.
#[cube]
fn decode_six_bits(words: &[u32], row: usize, group: usize, values: &mut Array<f32>, #[comptime] to: usize) {
    let start = group / 32 * 105;
    let (half, quarter, within) = (group % 32 / 16, group % 16 / 4, group % 4);
    // a signed byte for each 16 values
    let index = group % 32 / 2;
    let bytes = half_word(words, row, start + 96 + index / 2);
    let byte = ((bytes >> ((index % 2) as u32 * 8u32)) & 255u32) ^ 128u32;
    let scale = half_to_f32(half_word(words, row, start + 104)) * (f32::cast_from(byte) - 128.0f32);
    let low_at = start + half * 32 + quarter % 2 * 16 + within * 4;
    let high_at = start + 64 + half * 16 + within * 4;
    let (low_shift, high_shift) = ((quarter / 2) as u32 * 4u32, quarter as u32 * 2u32);
    #[unroll]
    for i in 0..2usize {
        let low = word_at(words, row, low_at + comptime!(2 * i)) >> low_shift;
        let high = word_at(words, row, high_at + comptime!(2 * i)) >> high_shift;
        #[unroll]
        for j in 0..4usize {
            let nibble = (low >> comptime!(8 * j as u32)) & 15u32;
            let bits = ((high >> comptime!(8 * j as u32)) & 3u32) << 4u32;
            values[comptime!(to + 4 * i + j)] = (f32::cast_from(nibble | bits) - 32.0f32) * scale;
        }
    }
}

/// The word that starts at byte number `byte` of the row: aligned, or made of two words.
#[cube]
fn word_at_byte(words: &[u32], row: usize, byte: usize) -> u32 {
    let at = row + byte / 4;
    let shift = (byte % 4) as u32 * 8u32;
    let mut word = words[at] >> shift;
    if shift > 0u32 {
        word |= words[at + 1] << (32u32 - shift);
    }
    word
}

/// The levels that the low nibbles of four bytes name, times a scale: those of IQ4, or of four-bit floats (twice their
/// value). The tables hold a level plus 128 in each byte.
#[cube]
fn put_levels(word: u32, scale: f32, values: &mut Array<f32>, #[comptime] to: usize, #[comptime] iq4: bool) {
    #[unroll]
    for j in 0..4usize {
        let nibble = (word >> comptime!(8 * j as u32)) & 15u32;
        let first = comptime!(if iq4 { 0x3f2d_1801u32 } else { 0x8382_8180u32 });
        let second = comptime!(if iq4 { 0x766a_5d4fu32 } else { 0x8c88_8684u32 });
        let third = comptime!(if iq4 { 0xa699_8d81u32 } else { 0x7d7e_7f80u32 });
        let fourth = comptime!(if iq4 { 0xf1d9_c5b5u32 } else { 0x7478_7a7cu32 });
        let low = select(nibble < 4u32, first, second);
        let high = select(nibble < 12u32, third, fourth);
        let table = select(nibble < 8u32, low, high);
        let level = (table >> ((nibble & 3u32) * 8u32)) & 255u32;
        values[comptime!(to + j)] = (f32::cast_from(level) - 128.0f32) * scale;
    }
}

/// A group of Q2_K: blocks of 256 values in 21 words, in parts of 16 with scales of four bits.
#[cube]
fn decode_two_bits(words: &[u32], row: usize, group: usize, values: &mut Array<f32>, #[comptime] to: usize) {
    let start = row + group / 32 * 21;
    let within = group % 32;
    let part = within / 2;
    let scales = words[start + part / 4] >> ((part % 4) as u32 * 8u32);
    let last = words[start + 20];
    let scale = half_to_f32(last & 0xffffu32) * f32::cast_from(scales & 15u32);
    let least = half_to_f32(last >> 16u32) * f32::cast_from(scales >> 4u32 & 15u32);
    let shift = (within / 4 % 4) as u32 * 2u32;
    #[unroll]
    for i in 0..2usize {
        let word = words[start + 4 + within / 16 * 8 + within % 4 * 2 + i] >> shift;
        #[unroll]
        for j in 0..4usize {
            let quant = (word >> comptime!(8 * j as u32)) & 3u32;
            values[comptime!(to + 4 * i + j)] = f32::cast_from(quant) * scale - least;
        }
    }
}

/// A group of Q3_K: blocks of 256 values in 55 half words, in parts of 16 with scales of six bits.
#[cube]
fn decode_three_bits(words: &[u32], row: usize, group: usize, values: &mut Array<f32>, #[comptime] to: usize) {
    let start = group / 32 * 55;
    let within = group % 32;
    let part = within / 2;
    let low = half_word(words, row, start + 48 + part % 8 / 2) >> ((part % 2 * 8 + part / 8 * 4) as u32) & 15u32;
    let two = half_word(words, row, start + 52 + part % 4 / 2) >> ((part % 2 * 8 + part / 4 * 2) as u32) & 3u32;
    let scale = half_to_f32(half_word(words, row, start + 54)) * (f32::cast_from(low | (two << 4u32)) - 32.0f32);
    let (shift, bit) = ((within / 4 % 4) as u32 * 2u32, (within / 4) as u32);
    #[unroll]
    for i in 0..2usize {
        let at = within % 4 * 4 + comptime!(2 * i);
        let quants = word_at(words, row, start + 16 + within / 16 * 16 + at) >> shift;
        let highs = word_at(words, row, start + at) >> bit;
        #[unroll]
        for j in 0..4usize {
            let quant = (quants >> comptime!(8 * j as u32)) & 3u32;
            let high = ((highs >> comptime!(8 * j as u32)) & 1u32) << 2u32;
            values[comptime!(to + 4 * i + j)] = (f32::cast_from(quant | high) - 4.0f32) * scale;
        }
    }
}

/// A group of IQ4_XS: blocks of 256 values in 34 words, in parts of 32 with scales of six bits.
#[cube]
fn decode_six_bit_levels(words: &[u32], row: usize, group: usize, values: &mut Array<f32>, #[comptime] to: usize) {
    let start = row + group / 32 * 34;
    let (part, within) = (group % 32 / 4, group % 4);
    let first = words[start];
    let low = words[start + 1] >> (part as u32 * 4u32) & 15u32;
    let two = first >> (part as u32 * 2u32 + 16u32) & 3u32;
    let scale = half_to_f32(first & 0xffffu32) * (f32::cast_from(low | (two << 4u32)) - 32.0f32);
    let shift = within as u32 / 2u32 * 4u32;
    let at = start + 2 + part * 4 + within % 2 * 2;
    put_levels(words[at] >> shift, scale, values, to, true);
    put_levels(words[at + 1] >> shift, scale, values, comptime!(to + 4), true);
}
