//! A stretch of a packed row as f32 values.

use crate::Format;
use crate::cpu::isa::Lanes;
use crate::cpu::sub_blocks::{Blocks, Q4K, Q5K, Q6K, Q41, Q50, Q51, Scales};
use crate::math::f16_to_f32;

/// A stretch of a row as f32.
///
/// # Safety
/// The lanes' instruction set must be available; `bytes` holds `values.len()` values.
#[inline(always)]
pub(in crate::cpu) unsafe fn decode<L: Lanes>(format: Format, bytes: &[u8], values: &mut [f32]) {
    let whole = values.len() / L::N * L::N;
    // SAFETY: every load and store stays inside the two slices.
    unsafe {
        let (from, to) = (bytes.as_ptr(), values.as_mut_ptr());
        match format {
            Format::Bf16 => (0..whole).step_by(L::N).for_each(|i| L::load_bf16(from.add(i * 2)).store(to.add(i))),
            Format::F16 => (0..whole).step_by(L::N).for_each(|i| L::load_f16(from.add(i * 2)).store(to.add(i))),
            Format::Q8_0 => {
                for b in 0..values.len() / 32 {
                    let block = from.add(b * 34);
                    let scale = L::splat(f16_to_f32(block.cast::<[u8; 2]>().read()));
                    for i in (0..32).step_by(L::N) {
                        L::load_i8(block.add(2 + i)).mul(scale).store(to.add(b * 32 + i));
                    }
                }
                return;
            }
            Format::Q4_0 => {
                for b in 0..values.len() / 32 {
                    let block = from.add(b * 18);
                    let scale = L::splat(f16_to_f32(block.cast::<[u8; 2]>().read()));
                    for i in (0..16).step_by(L::N) {
                        L::load_low_nibbles(block.add(2 + i)).mul(scale).store(to.add(b * 32 + i));
                        L::load_high_nibbles(block.add(2 + i)).mul(scale).store(to.add(b * 32 + 16 + i));
                    }
                }
                return;
            }
            Format::Q4_1 => return parted::<L, Q41>(bytes, values),
            Format::Q5_0 => return parted::<L, Q50>(bytes, values),
            Format::Q5_1 => return parted::<L, Q51>(bytes, values),
            Format::Q4K => return parted::<L, Q4K>(bytes, values),
            Format::Q5K => return parted::<L, Q5K>(bytes, values),
            Format::Q6K => return parted::<L, Q6K>(bytes, values),
            // the formats that are only read
            other if other.block_len() > 1 => return other.decode_row(bytes, values),
            Format::F32 => (0..whole).step_by(L::N).for_each(|i| L::load(from.add(i * 4).cast()).store(to.add(i))),
            _ => unreachable!("every format without blocks stands above"),
        }
    }
    let size = format.block_bytes();
    format.decode_row(&bytes[whole * size..], &mut values[whole..]);
}

/// Blocks of one of the formats with parts.
///
/// # Safety
/// As [`decode`].
#[inline(always)]
unsafe fn parted<L: Lanes, B: Blocks>(bytes: &[u8], values: &mut [f32]) {
    let mut scales = Scales::new();
    let blocks = bytes.chunks_exact(B::FORMAT.block_bytes());
    for (block, values) in blocks.zip(values.chunks_exact_mut(B::FORMAT.block_len())) {
        // SAFETY: as required of the caller; a block's values are a multiple of the lanes.
        unsafe {
            B::scales::<L>(block.as_ptr(), &mut scales);
            for i in (0..values.len()).step_by(L::N) {
                B::values::<L>(block.as_ptr(), &scales, i).store(values.as_mut_ptr().add(i));
            }
        }
    }
}
