//! Packed values out of 32-bit words.
//!
//! Values are decoded eight at a time, a *group*. In the plain formats a group is eight neighbours; in the
//! quantized ones it is a quarter of a block of 32. A block begins with its f16 scale, so blocks of 34 (Q8_0) or
//! 18 bytes (Q4_0) start at a word when their number is even and in the middle of a word when it is odd.

use crate::Format;
use cubecl::prelude::*;

/// Values of a group.
pub(super) const GROUP: usize = 8;

/// Groups of a row of `cols` values; the last one may be partial in the plain formats.
pub(super) fn groups(cols: usize) -> usize {
    cols.div_ceil(GROUP)
}

/// The f32 that the lower 16 bits of `bits` mean as an IEEE half.
///
/// In integer arithmetic, because shaders may flush the subnormal f32 that a shift and a multiplication would
/// pass through.
#[cube]
fn half_to_f32(bits: u32) -> f32 {
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
            if comptime!(format == Format::Bf16) {
                values[comptime!(to + 2 * i)] = f32::reinterpret(word << 16u32);
                values[comptime!(to + 2 * i + 1)] = f32::reinterpret(word & 0xffff_0000u32);
            } else {
                values[comptime!(to + 2 * i)] = half_to_f32(word & 0xffffu32);
                values[comptime!(to + 2 * i + 1)] = half_to_f32(word >> 16u32);
            }
        }
    } else if whole || group * GROUP < cols {
        let block = group / 4;
        let part = group % 4;
        if comptime!(format == Format::Q8_0) {
            let start = block * 17;
            let scale = half_to_f32(half_word(words, row, start));
            #[unroll]
            for i in 0..2usize {
                // two's complement bytes, moved up by 128 to count from zero
                let word = word_at(words, row, start + 1 + part * 4 + comptime!(2 * i)) ^ 0x8080_8080u32;
                #[unroll]
                for j in 0..4usize {
                    let byte = (word >> comptime!(8 * j as u32)) & 255u32;
                    values[comptime!(to + 4 * i + j)] = (f32::cast_from(byte) - 128.0f32) * scale;
                }
            }
        } else {
            let start = block * 9;
            let scale = half_to_f32(half_word(words, row, start));
            let word = word_at(words, row, start + 1 + part * 2);
            #[unroll]
            for j in 0..4usize {
                let low = (word >> comptime!(8 * j as u32)) & 15u32;
                let high = (word >> comptime!(8 * j as u32 + 4)) & 15u32;
                values[comptime!(to + j)] = (f32::cast_from(low) - 8.0f32) * scale;
                values[comptime!(to + 4 + j)] = (f32::cast_from(high) - 8.0f32) * scale;
            }
        }
    } else {
        #[unroll]
        for i in 0..GROUP {
            values[comptime!(to + i)] = 0.0f32;
        }
    }
}
