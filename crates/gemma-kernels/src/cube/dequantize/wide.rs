//! Formats whose groups, or what they need, begin at whole quads of words, so that 128 bits are loaded at a time.

use super::{GROUP, PARTS_WORDS, QUAD_GROUP, put_halves, put_parts};
use crate::Format;
use cubecl::prelude::*;

/// Words of a load.
const QUAD: usize = 4;

/// Whether rows of `cols` values of the format are read in quads of words: they are whole groups, and blocks, if
/// any, are whole quads.
pub(in super::super) fn is_wide(format: Format, cols: usize) -> bool {
    let quads = matches!(format, Format::F32 | Format::Bf16 | Format::F16 | Format::Q4K | Format::Q5K);
    quads && cols.is_multiple_of(GROUP)
}

/// Decodes group `group` of the row that starts at word `row`, which must be one of its whole groups.
#[cube]
pub(in super::super) fn decode_wide<M: Size>(
    words: &[Vector<u32, M>],
    row: usize,
    group: usize,
    values: &mut Array<f32>,
    #[comptime] to: usize,
    #[comptime] format: Format,
) {
    let row = row / QUAD;
    if comptime!(format == Format::F32) {
        #[unroll]
        for q in 0..QUAD_GROUP {
            let piece = words[row + group * QUAD_GROUP + q];
            #[unroll]
            for i in 0..QUAD {
                values[comptime!(to + q * QUAD + i)] = f32::reinterpret(piece.extract(i));
            }
        }
    } else if comptime!(format == Format::Bf16 || format == Format::F16) {
        widen(words[row + group], values, to, format);
    } else {
        // the scales are the first quad of a block, and a group's pair of words one half of another quad
        let fifth = comptime!(format == Format::Q5K);
        let nibbles = comptime!(if fifth { 3usize } else { 1 });
        let start = row + group / 32 * comptime!(nibbles + 8);
        let (part, within) = (group % 32 / 4, group % 4);
        let late = within % 2 == 1;
        let mut found = Array::<u32>::new(PARTS_WORDS);
        let scales = words[start];
        #[unroll]
        for i in 0..QUAD {
            found[i] = scales.extract(i);
        }
        let low = words[start + nibbles + part / 2 * 2 + within / 2];
        #[unroll]
        for i in 0..2usize {
            found[comptime!(4 + i)] = select(late, low.extract(comptime!(2 + i)), low.extract(i));
        }
        if comptime!(fifth) {
            let high = words[start + 1 + within / 2];
            #[unroll]
            for i in 0..2usize {
                found[comptime!(6 + i)] = select(late, high.extract(comptime!(2 + i)), high.extract(i));
            }
        }
        put_parts(&found, part, values, to, fifth);
    }
}

/// Decodes a group of bf16 or f16, which is one quad.
#[cube]
pub(in super::super) fn widen<M: Size>(
    piece: Vector<u32, M>,
    values: &mut Array<f32>,
    #[comptime] to: usize,
    #[comptime] format: Format,
) {
    #[unroll]
    for i in 0..QUAD {
        put_halves(piece.extract(i), values, comptime!(to + 2 * i), format);
    }
}
