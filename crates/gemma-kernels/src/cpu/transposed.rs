//! The transposed product with a packed matrix: what hands gradients on through a frozen weight.
//!
//! A task is a stretch of columns. It decodes those columns of some rows at a time, as they lie, into blocks that stay in the
//! L2 cache, and multiplies them with all tokens: the [units](Across) of the forward product do that, with the activations in the
//! place of the panel and the weights in that of the packed block. Pairs of bf16 are two rows' values of one column. Every
//! sum runs over the rows in order: it depends neither on the other tokens nor on the number of threads.

use crate::cpu::buffer::Buffer;
#[cfg(target_arch = "x86_64")]
use crate::cpu::gemm::amx;
#[cfg(target_arch = "x86_64")]
use crate::cpu::gemm::bf16;
use crate::cpu::gemm::f32::Values;
use crate::cpu::gemm::tile::{AHEAD_STEP, Ahead, Left, Right, Sums, block_width};
use crate::cpu::gemm::unit::{Across, DEPTH, PANEL_ROW};
use crate::cpu::isa::{Isa, Lanes, with_isa};
use crate::cpu::output::Output;
use crate::cpu::pool;
use crate::{ActivationPrecision, Format};
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

/// The most columns of a task: a superblock of the K formats.
const COLUMNS: usize = 256;
/// The fewest, where the format allows it: whole blocks of every instruction set.
const LEAST_COLUMNS: usize = 32;
/// The most tokens whose sums are collected at a time: with the weights and activations of a step they fit in an L2 cache.
const TOKENS: usize = 256;
/// Tokens are filled up to whole panels of every unit.
const WHOLE_PANELS: usize = 96;

struct Scratch {
    blocks: Buffer<f32>,
    sums: Buffer<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { blocks: Buffer::empty(), sums: Buffer::empty() }) };
}

/// What words are multiplied, and with which instructions.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Words {
    /// Values of f32.
    Values,
    /// Pairs of bf16.
    #[cfg(target_arch = "x86_64")]
    Pairs,
    /// Pairs of bf16 in tiles.
    #[cfg(target_arch = "x86_64")]
    Tiles,
    /// Those of a model of the instructions.
    #[cfg(all(test, target_arch = "x86_64"))]
    ModelledTiles,
}

impl Words {
    fn new(isa: Isa, activations: ActivationPrecision, format: Format) -> Self {
        #[cfg(target_arch = "x86_64")]
        if activations.round_prompts(format) && bf16::pays(isa) {
            return if isa >= Isa::Amx { Words::Tiles } else { Words::Pairs };
        }
        let _ = (isa, activations, format);
        Words::Values
    }

    /// Values of a word.
    fn each(self) -> usize {
        if self == Words::Values { 1 } else { 2 }
    }
}

/// The product of some tokens.
#[derive(Clone, Copy)]
struct Work<'a> {
    y: &'a [f32],
    weight: &'a [u8],
    format: Format,
    tokens: usize,
    rows: usize,
    row_bytes: usize,
    /// The activations as words, `[rows / DEPTH, tokens, PANEL_ROW]`, filled up with zeros.
    packed: Output,
    /// `[tokens, cols]`
    out: Output,
    cols: usize,
}

impl Work<'_> {
    /// Tokens with what they are filled up by.
    fn padded(&self) -> usize {
        self.tokens.next_multiple_of(WHOLE_PANELS)
    }
}

/// A part of the work.
enum Part {
    /// Packing the activations of so many words from one of them on.
    Activations(usize),
    /// The product with some columns.
    Columns(Range<usize>),
}

/// `out[t, c] = Σ_r y[t, r] w[r, c]` with `y` `[tokens, rows]` and `w` `[rows, cols]` in `format`, summed in f32. Both sides
/// are rounded to bf16 where `activations` lets a prompt's be, and the CPU is faster with it. Every value of `out` is
/// written.
///
/// # Panics
/// When a slice does not have the size of its shape.
pub(crate) fn transposed(
    isa: Isa,
    activations: ActivationPrecision,
    y: &[f32],
    weight: &[u8],
    format: Format,
    cols: usize,
    out: &mut [MaybeUninit<f32>],
) {
    product(isa, Words::new(isa, activations, format), y, weight, format, cols, out);
}

fn product(
    isa: Isa,
    words: Words,
    y: &[f32],
    weight: &[u8],
    format: Format,
    cols: usize,
    out: &mut [MaybeUninit<f32>],
) {
    let row_bytes = format.row_bytes(cols).expect("a packed weight has whole blocks");
    let rows = weight.len() / row_bytes;
    assert_eq!(weight.len(), rows * row_bytes, "weights");
    assert!(rows > 0, "a product with at least one row");
    let tokens = y.len() / rows;
    assert_eq!(y.len(), tokens * rows, "activations");
    assert_eq!(out.len(), tokens * cols, "outputs");
    if out.is_empty() {
        return;
    }
    let least = format.block_len().max(LEAST_COLUMNS);
    let stretch = cols.div_ceil(2 * pool::threads()).next_multiple_of(least).min(COLUMNS.max(least));
    let steps = rows.div_ceil(words.each()).div_ceil(DEPTH);
    let mut packed = Buffer::<f32>::empty();
    for (y, out) in y.chunks(TOKENS * rows).zip(out.chunks_mut(TOKENS * cols)) {
        let tokens = y.len() / rows;
        packed.resize(steps * tokens.next_multiple_of(WHOLE_PANELS) * PANEL_ROW);
        let (packed, out) = (Output(packed.as_mut_ptr()), Output(out.as_mut_ptr().cast()));
        let work = &Work { y, weight, format, tokens, rows, row_bytes, packed, out, cols };
        pool::for_work(tokens * rows, steps, |step| run(isa, words, work, Part::Activations(step)));
        pool::for_work(tokens * rows * cols, cols.div_ceil(stretch), |task| {
            let range = task * stretch..((task + 1) * stretch).min(cols);
            run(isa, words, work, Part::Columns(range));
        });
    }
}

/// A part of the work, with the instructions of the words.
fn run(isa: Isa, words: Words, work: &Work<'_>, part: Part) {
    #[inline(always)]
    unsafe fn values<L: Lanes>(work: &Work<'_>, part: Part, scratch: &mut Scratch) {
        // SAFETY: as required of the caller.
        unsafe { part_of::<Values<L>>(work, part, scratch) };
    }
    /// # Safety
    /// As [`part_of`].
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    unsafe fn pairs<U: Across>(work: &Work<'_>, part: Part, scratch: &mut Scratch) {
        // SAFETY: as required of the caller.
        unsafe { part_of::<U>(work, part, scratch) };
    }
    SCRATCH.with_borrow_mut(|scratch| match words {
        Words::Values => with_isa!(isa, values(work: &Work<'_>, part: Part, scratch: &mut Scratch)),
        // SAFETY: the words are chosen only where the CPU has their instructions; a part belongs to one task.
        #[cfg(target_arch = "x86_64")]
        Words::Pairs => unsafe { pairs::<bf16::Vectors>(work, part, scratch) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Words::Tiles => unsafe { pairs::<amx::Tiled<amx::Hardware>>(work, part, scratch) },
        // SAFETY: as above.
        #[cfg(all(test, target_arch = "x86_64"))]
        Words::ModelledTiles => unsafe { pairs::<amx::Tiled<amx::tests::Modelled>>(work, part, scratch) },
    });
}

/// # Safety
/// The unit's instructions must be available, and the part the calling task's.
#[inline(always)]
unsafe fn part_of<U: Across>(work: &Work<'_>, part: Part, scratch: &mut Scratch) {
    const { assert!(WHOLE_PANELS.is_multiple_of(U::PANEL) && LEAST_COLUMNS.is_multiple_of(block_width::<U::Lanes>())) };
    // SAFETY: as required of the caller.
    unsafe {
        match part {
            Part::Activations(step) => pack::<U>(work, step),
            Part::Columns(range) => columns::<U>(work, range, scratch),
        }
    }
}

/// The activations of some rows as words.
///
/// # Safety
/// As [`part_of`].
#[inline(always)]
unsafe fn pack<U: Across>(work: &Work<'_>, step: usize) {
    let Work { y, tokens, rows, packed, .. } = *work;
    let range = U::EACH * step * DEPTH..(U::EACH * (step + 1) * DEPTH).min(rows);
    for token in 0..work.padded() {
        // SAFETY: the packed activations have this row, which is this task's, and the unit's instructions are available.
        unsafe {
            let to = packed.at((step * work.padded() + token) * PANEL_ROW);
            let words = std::slice::from_raw_parts_mut(to, DEPTH);
            if token >= tokens {
                words.fill(0.0);
                continue;
            }
            let values = &y[token * rows..][range.clone()];
            let (paired, rest) = values.split_at(values.len() / U::EACH * U::EACH);
            let (whole, behind) = words.split_at_mut(paired.len() / U::EACH);
            U::decode(Format::F32, bytes_of(paired), whole);
            behind.fill(0.0);
            if let [last] = rest {
                U::decode(Format::F32, bytes_of(&[*last, 0.0]), &mut behind[..1]);
            }
        }
    }
}

/// Values in f32 as the bytes of a packed row.
fn bytes_of(values: &[f32]) -> &[u8] {
    // SAFETY: every byte of a number is one.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The columns `range` of the product.
///
/// # Safety
/// As [`part_of`], with the activations packed.
#[inline(always)]
unsafe fn columns<U: Across>(work: &Work<'_>, range: Range<usize>, scratch: &mut Scratch) {
    let Work { weight, format, tokens, rows, row_bytes, packed, out, cols, .. } = *work;
    let block = block_width::<U::Lanes>();
    let width = range.len();
    let padded = width.next_multiple_of(block);
    scratch.blocks.resize(DEPTH * padded);
    scratch.sums.resize(work.padded() * padded);
    let (blocks, sums) = (scratch.blocks.as_mut_ptr(), scratch.sums.as_mut_ptr());
    let from = range.start / format.block_len() * format.block_bytes();
    let len = width.div_ceil(format.block_len()) * format.block_bytes();
    let words = rows.div_ceil(U::EACH);
    let mut line = [0f32; COLUMNS];
    // SAFETY: as required of the caller; the buffers were just made as large as is needed.
    unsafe { U::begin() };
    for begin in (0..words).step_by(DEPTH) {
        let depth = DEPTH.min(words - begin);
        for word in 0..depth.next_multiple_of(U::STEP) {
            line.fill(0.0);
            if word < depth {
                let first = U::EACH * (begin + word);
                let row = |row: usize| &weight[row * row_bytes + from..][..len];
                let next = (U::EACH > 1 && first + 1 < rows).then(|| row(first + 1));
                // SAFETY: the unit's instructions are available.
                unsafe { U::decode_across(format, row(first), next, &mut line[..width]) };
            }
            for (index, part) in line[..padded].chunks_exact(block).enumerate() {
                // SAFETY: each block has `DEPTH` rows.
                unsafe {
                    std::ptr::copy_nonoverlapping(part.as_ptr(), blocks.add((index * DEPTH + word) * block), block)
                };
            }
        }
        // the next rows are requested meanwhile
        let next_row = U::EACH * (begin + depth);
        let next_rows = (U::EACH * DEPTH).min(rows.saturating_sub(next_row));
        let (panels, mut call) = (tokens.div_ceil(U::PANEL), 0);
        let calls = panels * (padded / block);
        for index in 0..padded / block {
            for token in (0..tokens).step_by(U::PANEL) {
                let ahead = Ahead {
                    at: weight.as_ptr().wrapping_add(next_row * row_bytes + from),
                    row: row_bytes,
                    step: len.div_ceil(depth.div_ceil(AHEAD_STEP)),
                    first: call * next_rows / calls,
                    end: (call + 1) * next_rows / calls,
                    ..Ahead::NOTHING
                };
                call += 1;
                let here = U::PANEL.min(tokens - token);
                let vectors = block.min(width - index * block).div_ceil(<U::Lanes as Lanes>::N);
                // SAFETY: the packed activations have whole panels of rows, the block its rows, and the sums a row for
                // each token of whole panels.
                unsafe {
                    let at = packed.at((begin / DEPTH * work.padded() + token) * PANEL_ROW);
                    let left = Left { at, row: PANEL_ROW, step: 1 };
                    let right = Right { at: blocks.add(index * DEPTH * block), row: block };
                    let at = sums.add(token * padded + index * block);
                    U::multiply(left, here, right, depth, vectors, Sums { at, row: padded, add: begin > 0 }, ahead);
                }
            }
        }
    }
    // SAFETY: as required of the caller.
    unsafe { U::end() };
    for token in 0..tokens {
        // SAFETY: this task owns these columns of the output.
        unsafe {
            let to = out.at(token * cols + range.start);
            std::ptr::copy_nonoverlapping(sums.add(token * padded), to, width);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{noise, places};

    /// The ways in which an instruction set multiplies, whether or not they are fast here.
    fn ways(isa: Isa) -> Vec<Words> {
        let mut ways = vec![Words::Values];
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512Bf16 {
            ways.extend([Words::Pairs, Words::ModelledTiles]);
        }
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Amx {
            ways.push(Words::Tiles);
        }
        ways
    }

    #[test]
    fn every_instruction_set_sums_what_a_plain_loop_does() {
        for format in Format::ALL {
            for (rows, cols) in
                [(1, 32), (7, 96), (130, 160), (70, 2080), (5, 1), (3, 17), (40, 67), (65, 768), (1031, 256)]
            {
                let Some(row_bytes) = format.row_bytes(cols) else { continue };
                let mut weight = vec![0; rows * row_bytes];
                let mut decoded = vec![0.0; rows * cols];
                for (row, values) in noise(rows * cols, 1).chunks(cols).enumerate() {
                    let bytes = &mut weight[row * row_bytes..][..row_bytes];
                    format.encode_row(values, bytes);
                    format.decode_row(bytes, &mut decoded[row * cols..][..cols]);
                }
                for tokens in [1, 2, 7, 13, 300] {
                    let y = noise(tokens * rows, 2);
                    for (isa, words) in
                        Isa::available().into_iter().flat_map(|isa| ways(isa).into_iter().map(move |w| (isa, w)))
                    {
                        let mut out = vec![f32::NAN; tokens * cols];
                        product(isa, words, &y, &weight, format, cols, places(&mut out));
                        let rounded = |value: f32| {
                            if words == Words::Values { f64::from(value) } else { half::bf16::from_f32(value).to_f64() }
                        };
                        // a decoded value next to the middle of two bf16 may be rounded to either
                        let near = if words != Words::Values && format.block_len() > 1 { 1e-2 } else { 1e-5 };
                        // every value of a small product, some of a large one
                        for place in (0..out.len()).step_by(1 + out.len() / 5000) {
                            let (token, column, found) = (place / cols, place % cols, out[place]);
                            let exact: f64 = (0..rows)
                                .map(|row| rounded(y[token * rows + row]) * rounded(decoded[row * cols + column]))
                                .sum();
                            let error = (f64::from(found) - exact).abs();
                            assert!(
                                error < near + 1e-6 * rows as f64,
                                "{isa:?} {words:?} {format} {tokens} {rows} {cols}: {error}"
                            );
                        }
                    }
                }
            }
        }
    }

    /// The tile instructions of 256 tokens' gradients through 256 columns, as docs/performance.md has them: one load for each
    /// multiplication, and sums that are loaded and stored once for 512 rows.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn tile_instructions_of_a_transposed_product_are_counted() {
        use amx::tests::{Counted, Counts, counts};
        if crate::cpu::isa::cpu_isa() < Isa::Avx512Bf16 {
            return println!("skipped: this CPU cannot pack pairs");
        }
        for (format, rows) in [(Format::Bf16, 2048), (Format::Q8_0, 2048), (Format::Q4K, 1024), (Format::Bf16, 1152)] {
            let (tokens, cols) = (TOKENS, COLUMNS);
            let row_bytes = format.row_bytes(cols).unwrap();
            let (y, weight, mut out) = (vec![0.0; tokens * rows], vec![0; rows * row_bytes], vec![0.0; tokens * cols]);
            let steps = rows.div_ceil(2 * DEPTH);
            let mut packed = Buffer::<f32>::zeroed(steps * tokens.next_multiple_of(WHOLE_PANELS) * PANEL_ROW);
            let (packed, out) = (Output(packed.as_mut_ptr()), Output(out.as_mut_ptr()));
            let work = Work { y: &y, weight: &weight, format, tokens, rows, row_bytes, packed, out, cols };
            let mut scratch = Scratch { blocks: Buffer::empty(), sums: Buffer::empty() };
            // SAFETY: the CPU has what packs and decodes, and the tiles need nothing.
            unsafe { columns::<amx::Tiled<Counted>>(&work, 0..cols, &mut scratch) };
            let tiles = tokens / 16 * cols / 16;
            let dots = tiles * rows / 32;
            let expected = Counts { dots, loads: dots + tiles * (steps - 1), stores: tiles * steps, zeros: tiles };
            assert_eq!(counts(), expected, "{format} {rows}");
        }
    }

    /// A prompt's precision is a gradient's, too.
    #[test]
    fn exact_activations_are_never_rounded() {
        for isa in Isa::available() {
            for format in Format::ALL {
                assert_eq!(Words::new(isa, ActivationPrecision::F32, format), Words::Values, "{isa:?} {format}");
            }
            let kept = Words::new(isa, ActivationPrecision::Int16OrBf16, Format::F32);
            assert_eq!(kept, Words::Values, "{isa:?}: f32 weights are kept for exactness");
        }
    }
}
