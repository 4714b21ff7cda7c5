//! Products of many tokens with quantized weights in bf16, in which only the activations are rounded.
//!
//! A block of such a format holds small integers, which bf16 represents exactly, and a scale for every part of it. So a part's
//! sum over integers and activations is taken with [`Pairs`], and then multiplied by the scale in f32. A format whose
//! integers have an addend besides multiplies it by the sum of the part's activations, which lies in the packed block behind
//! them.

use crate::Format;
use crate::cpu::bf16::{of_word, pair};
use crate::cpu::buffer::Buffer;
use crate::cpu::gemm::tile::{AHEAD_STEP, Ahead, Left, Right, Sums};
use crate::cpu::gemm::unit::{DEPTH, Unit};
use crate::cpu::isa::{Avx512, Lanes, Pairs, prefetch};
use crate::cpu::output::Output;
use crate::cpu::pool;
use crate::cpu::shape::Shape;
use crate::cpu::sub_blocks::{Blocks, Q4K, Q5K, Q6K, Q41, Q50, Q51, Scales};
use crate::math::f16_to_f32;
use std::arch::x86_64::{__m512, __m512bh, _mm512_cvtne2ps_pbh, _mm512_storeu_ps};

/// Rows of a register tile: two sums, of a part and of all, for each row and vector, and the two vectors.
const ROWS: usize = 7;

/// What is multiplied here: `Scaled<8, _>` has parts of 16 values, `Scaled<16, _>` of 32; with `ADDEND`, something is added to
/// the numbers of a part.
pub(super) struct Scaled<const PART: usize, const ADDEND: bool>;

/// How a format is multiplied here: the words of its parts, and whether there are addends; `None`: it is not.
pub(in crate::cpu) fn parts(format: Format) -> Option<(usize, bool)> {
    match format {
        Format::Q8_0 | Format::Q4_0 | Format::Q5_0 => Some((16, false)),
        Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => Some((16, true)),
        Format::Q6K => Some((8, false)),
        _ => None,
    }
}

impl<const PART: usize, const ADDEND: bool> Unit for Scaled<PART, ADDEND> {
    type Lanes = Pairs;
    const EACH: usize = 2;
    const PANEL: usize = 2 * ROWS;
    const STEP: usize = 1;
    const PANEL_ROW: usize = DEPTH + DEPTH / PART * 2 + 16;

    fn left(words: usize) -> usize {
        words + words / PART * 2
    }

    fn right(words: usize) -> usize {
        words + if ADDEND { words / PART } else { 0 }
    }

    #[inline(always)]
    unsafe fn decode(format: Format, bytes: &[u8], words: &mut [f32]) {
        // SAFETY: as required of the caller.
        unsafe { decode(format, bytes, words) };
    }

    #[inline(always)]
    unsafe fn multiply(
        panel: Left,
        _rows: usize,
        block: Right,
        depth: usize,
        vectors: usize,
        sums: Sums,
        ahead: Ahead,
    ) {
        let begin = |row: usize| (panel.at.wrapping_add(row * panel.row), sums.at.wrapping_add(row * sums.row));
        for row in (0..Self::PANEL).step_by(ROWS) {
            let (at, to) = begin(row);
            let (left, sums) = (Left { at, ..panel }, Sums { at: to, ..sums });
            let ahead = if row == 0 { ahead } else { Ahead::NOTHING };
            // SAFETY: as required of the caller; a panel has all of its rows, and the sums as many.
            unsafe {
                match vectors {
                    2 => registers::<PART, ADDEND, 2>(left, block, depth, sums, ahead),
                    _ => registers::<PART, ADDEND, 1>(left, block, depth, sums, ahead),
                }
            }
        }
    }
}

/// [`ROWS`] rows times `V` vectors.
///
/// # Safety
/// As [`Unit::multiply`].
#[inline(always)]
unsafe fn registers<const PART: usize, const ADDEND: bool, const V: usize>(
    left: Left,
    right: Right,
    depth: usize,
    sums: Sums,
    ahead: Ahead,
) {
    // SAFETY: as required of the caller.
    unsafe {
        let mut tile = [[Avx512::splat(0.0); V]; ROWS];
        let (mut at, mut block) = (left.at, right.at);
        for begin in (0..depth).step_by(PART) {
            if begin.is_multiple_of(AHEAD_STEP) {
                for row in ahead.first..ahead.end {
                    prefetch(ahead.at.wrapping_add(row * ahead.row + begin / AHEAD_STEP * ahead.step));
                }
            }
            let mut part = [[Pairs::splat(0.0); V]; ROWS];
            for _ in 0..PART {
                // a closure would not have the instructions
                let mut vectors = [Pairs::splat(0.0); V];
                for (v, vector) in vectors.iter_mut().enumerate() {
                    *vector = Pairs::load(block.add(v * Pairs::N));
                }
                for (r, part) in part.iter_mut().enumerate() {
                    let numbers = Pairs::splat(*at.add(r * left.row));
                    for (part, vector) in part.iter_mut().zip(vectors) {
                        *part = numbers.mul_add(vector, *part);
                    }
                }
                at = at.wrapping_add(1);
                block = block.wrapping_add(right.row);
            }
            for (r, (tile, part)) in tile.iter_mut().zip(part).enumerate() {
                let factor = Avx512::splat(*at.add(r * left.row));
                for (tile, part) in tile.iter_mut().zip(part) {
                    *tile = part.sums().mul_add(factor, *tile);
                }
            }
            if ADDEND {
                let mut vectors = [Avx512::splat(0.0); V];
                for (v, vector) in vectors.iter_mut().enumerate() {
                    *vector = Avx512::load(block.add(v * Avx512::N));
                }
                for (r, tile) in tile.iter_mut().enumerate() {
                    let addend = Avx512::splat(*at.add(r * left.row + 1));
                    for (tile, vector) in tile.iter_mut().zip(vectors) {
                        *tile = vector.mul_add(addend, *tile);
                    }
                }
                block = block.wrapping_add(right.row);
            }
            at = at.wrapping_add(2);
        }
        for (r, tile) in tile.into_iter().enumerate() {
            for (v, sum) in tile.into_iter().enumerate() {
                let to = sums.at.add(r * sums.row + v * Avx512::N);
                let sum = if sums.add { sum.add(Avx512::load(to)) } else { sum };
                sum.store(to);
            }
        }
    }
}

/// A stretch of a packed row: for every part its numbers, two to a word, then its factor and its addend.
///
/// # Safety
/// As [`Unit::decode`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn decode(format: Format, bytes: &[u8], words: &mut [f32]) {
    // SAFETY: as required of the caller.
    unsafe {
        match format {
            Format::Q8_0 => {
                simple::<34>(bytes, words, |block| [Avx512::load_i8(block), Avx512::load_i8(block.add(16))])
            }
            Format::Q4_0 => {
                simple::<18>(bytes, words, |block| [Avx512::load_low_nibbles(block), Avx512::load_high_nibbles(block)])
            }
            Format::Q4_1 => parted::<Q41>(bytes, words),
            Format::Q5_0 => parted::<Q50>(bytes, words),
            Format::Q5_1 => parted::<Q51>(bytes, words),
            Format::Q4K => parted::<Q4K>(bytes, words),
            Format::Q5K => parted::<Q5K>(bytes, words),
            Format::Q6K => parted::<Q6K>(bytes, words),
            other => unreachable!("{other} is not multiplied here"),
        }
    }
}

/// Blocks of 32 values behind a scale, the integers of which `read` takes from behind it.
///
/// # Safety
/// As [`decode`].
#[inline(always)]
unsafe fn simple<const BYTES: usize>(bytes: &[u8], words: &mut [f32], read: impl Fn(*const u8) -> [Avx512; 2]) {
    for (block, words) in bytes.chunks_exact(BYTES).zip(words.chunks_exact_mut(18)) {
        // SAFETY: as required of the caller; a block is there, and room for its words.
        unsafe { store(read(block[2..].as_ptr()), words.as_mut_ptr()) };
        words[16] = f16_to_f32([block[0], block[1]]);
        words[17] = 0.0;
    }
}

/// Blocks of one of the formats with parts.
///
/// # Safety
/// As [`decode`].
#[inline(always)]
unsafe fn parted<B: Blocks>(bytes: &[u8], words: &mut [f32]) {
    let part_words = B::PART / 2;
    let parts = B::FORMAT.block_len() / B::PART;
    let mut scales = Scales::new();
    let blocks = bytes.chunks_exact(B::FORMAT.block_bytes());
    for (block, words) in blocks.zip(words.chunks_exact_mut(parts * (part_words + 2))) {
        // SAFETY: as required of the caller; a block is there, and room for its words.
        unsafe {
            let block = block.as_ptr();
            B::scales::<Avx512>(block, &mut scales);
            let middle = Avx512::splat(-B::MIDDLE);
            for (part, words) in words.chunks_exact_mut(part_words + 2).enumerate() {
                let i = part * B::PART;
                let first = B::numbers::<Avx512>(block, i).add(middle);
                if B::PART == 32 {
                    store([first, B::numbers::<Avx512>(block, i + 16).add(middle)], words.as_mut_ptr());
                } else {
                    let mut whole = [0f32; 16];
                    store([first, first], whole.as_mut_ptr());
                    words[..8].copy_from_slice(&whole[..8]);
                }
                (words[part_words], words[part_words + 1]) = B::centered(&scales, part);
            }
        }
    }
}

/// 32 numbers as words of two.
///
/// # Safety
/// The instructions of [`Pairs`], and room for 16 words.
#[inline(always)]
unsafe fn store([first, second]: [Avx512; 2], words: *mut f32) {
    // SAFETY: as required of the caller.
    unsafe {
        let pairs = _mm512_cvtne2ps_pbh(second.vector(), first.vector());
        _mm512_storeu_ps(words, std::mem::transmute::<__m512bh, __m512>(pairs));
    }
}

/// Activations `[tokens, cols]` in words of two, with the sum of every part's values behind it.
pub(super) fn with_sums(x: &[f32], shape: Shape, part: usize) -> Buffer<f32> {
    let row = shape.cols / 2;
    let long = row + row / part;
    let mut with_sums = Buffer::<f32>::zeroed(shape.tokens * long);
    let to = Output(with_sums.as_mut_ptr());
    pool::for_each(shape.tokens, |token| {
        let values = &x[token * shape.cols..][..shape.cols];
        // SAFETY: a token's words belong to its task.
        let to = unsafe { std::slice::from_raw_parts_mut(to.at(token * long), long) };
        for (values, to) in values.chunks_exact(2 * part).zip(to.chunks_exact_mut(part + 1)) {
            let (words, sum) = to.split_at_mut(part);
            // SAFETY: the CPU has the instructions, as with all that is multiplied here.
            unsafe { pair(values, words) };
            sum[0] = words.iter().copied().map(of_word).map(|[first, second]| first + second).sum();
        }
    });
    with_sums
}
