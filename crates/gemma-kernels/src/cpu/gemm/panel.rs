//! Products with many tokens: arithmetic is the limit, so everything serves the innermost loop.
//!
//! The activations are packed once, for all threads. A task is a stretch of weight rows; it decodes a few rows of
//! some hundred columns at a time, into a panel that stays in the L1 cache, and multiplies them with all
//! tokens, whose columns of that block stay in the L2 cache. The sums of a task are collected transposed,
//! `[rows, tokens]`, and written out at the end. A unit that leaves the vector registers idle has the next panel
//! [filled](Filling) meanwhile.
//!
//! What is multiplied are words of 32 bits: values here, two bf16 values each in [`bf16`](super::bf16). A [`Unit`] is
//! the innermost loop for one kind of words with one kind of instructions.

use crate::cpu::buffer::Buffer;
use crate::cpu::gemm::tile::{self, AHEAD_STEP, Ahead, Left, Right, Sums, block_width};
use crate::cpu::gemm::unit::{DEPTH, Filling, Unit};
use crate::cpu::isa::Lanes;
use crate::cpu::isa::{Isa, with_isa};
use crate::cpu::output::Output;
use crate::cpu::pool;
use crate::cpu::product::{Product, in_stretches, joint};
use crate::cpu::shape::Shape;
use std::cell::RefCell;
use std::ops::Range;

/// The most tokens of a packed block.
const MOST_WIDTH: usize = 32;
/// The most panels of a task.
const TASK_PANELS: usize = 8;
/// The most tokens whose sums are collected at a time.
pub(in crate::cpu) const TOKENS: usize = 512;
/// Words beyond the tokens of a row of sums: a cache line, so that rows do not fall into the same sets.
const SUMS_PAD: usize = 16;
/// The most cache lines of the next packed block that a step of [`AHEAD_STEP`] words requests.
const MOST_LINES: usize = 8;

/// Calls `multiply` with all rows of all products, in stretches of whole panels of `panel` rows for the threads, at most `most` of
/// them.
pub(in crate::cpu) fn in_panels<'a>(
    products: &[Product<'a>],
    (panel, most): (usize, usize),
    multiply: impl Fn(Product<'a>, Range<usize>) + Sync,
) {
    let panels = joint(products).rows.div_ceil(panel);
    in_stretches(products, panel * panels.div_ceil(4 * pool::threads()).clamp(1, most), multiply);
}

/// The same, with what a thread keeps.
pub(in crate::cpu) fn with_scratch<'a>(
    products: &[Product<'a>],
    panel: usize,
    multiply: impl Fn(Product<'a>, Range<usize>, &mut Scratch) + Sync,
) {
    in_panels(products, (panel, TASK_PANELS), |product, range| {
        with_own_scratch(|scratch| multiply(product, range, scratch));
    });
}

/// Calls `task` with what this thread keeps.
pub(in crate::cpu) fn with_own_scratch(task: impl FnOnce(&mut Scratch)) {
    SCRATCH.with_borrow_mut(task);
}

/// Activations, `[tokens, words]`, in blocks of [`block_width`] tokens, `[blocks, rows, block_width]`, where the rows
/// are the words, filled up with zeros to a multiple of `step`. `source` says where some words of some tokens begin and how
/// many lie from one token to the next; it may put them into the scratch that it is given, [`DEPTH`] for a token.
pub(in crate::cpu) fn pack(
    isa: Isa,
    tokens: usize,
    words: usize,
    step: usize,
    source: impl Fn(Range<usize>, Range<usize>, &mut [f32]) -> (*const f32, usize) + Sync,
) -> Buffer<f32> {
    #[inline(always)]
    unsafe fn width<L: Lanes>() -> usize {
        block_width::<L>()
    }
    #[inline(always)]
    unsafe fn part<L: Lanes>(from: *const f32, row: usize, tokens: usize, columns: Range<usize>, block: *mut f32) {
        // SAFETY: the tokens and columns exist, and the packed block of these tokens has a row for each column. The
        // lanes' instructions are available where this is expanded.
        unsafe {
            tile::pack::<L>(from, row, tokens, columns.len(), block.add(columns.start * block_width::<L>()));
        }
    }
    let width = with_isa!(isa, width() -> usize);
    let (blocks, rows) = (tokens.div_ceil(width), words.next_multiple_of(step));
    let mut packed = Buffer::<f32>::zeroed(blocks * width * rows);
    let to = Output(packed.as_mut_ptr());
    let parts = words.div_ceil(DEPTH);
    pool::for_each(blocks * parts, |task| {
        let (block, column) = (task / parts, task % parts * DEPTH);
        let range = block * width..((block + 1) * width).min(tokens);
        let columns = column..(column + DEPTH).min(words);
        let mut scratch = [0f32; MOST_WIDTH * DEPTH];
        let tokens = range.len();
        let (from, row) = source(range, columns.clone(), &mut scratch);
        // SAFETY: the block exists, and every task has rows of its own.
        let block = unsafe { to.at(block * width * rows) };
        with_isa!(isa, part(from: *const f32, row: usize, tokens: usize, columns: Range<usize>, block: *mut f32));
    });
    packed
}

/// A product and its [packed](pack) activations.
pub(in crate::cpu) struct Work<'a> {
    /// The activations, or the terms whose sum they are.
    pub(in crate::cpu) packed: &'a [Buffer<f32>],
    pub(in crate::cpu) product: Product<'a>,
}

/// What a thread keeps from task to task.
pub(in crate::cpu) struct Scratch {
    /// The panel that is multiplied, and the one that is filled meanwhile.
    panels: [Buffer<f32>; 2],
    /// The sums of one product, and of a second one where two are combined.
    sums: [Buffer<f32>; 2],
}

impl Scratch {
    /// Nothing yet.
    pub(in crate::cpu) const fn new() -> Self {
        Self { panels: [const { Buffer::empty() }; 2], sums: [const { Buffer::empty() }; 2] }
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

/// The rows `range` of a product.
///
/// # Safety
/// The unit's instructions must be available, the activations packed as it needs them, and the rows the calling task's.
#[inline(always)]
pub(in crate::cpu) unsafe fn stretch<U: Unit>(work: &Work<'_>, range: Range<usize>, scratch: &mut Scratch) {
    let Product { weight, shape, out } = work.product;
    let after = weight.as_ptr().wrapping_add(range.end * shape.row_bytes);
    // SAFETY: as required of the caller; this task owns its columns of the output.
    unsafe {
        each_sums::<U, 1>(work.packed, shape, [(weight, after)], range.clone(), scratch, |[sums], row, tokens| {
            let to = out.at(tokens.start * shape.rows + range.start);
            tile::unpack::<U::Lanes>(sums, row, range.len(), tokens.len(), to, shape.rows);
        });
    }
}

/// The sums of the rows `range` of one or two matrices of the same shape, some tokens at a time: `with` gets where they begin,
/// `[rows, tokens]` for each matrix, how far the rows lie apart, and the tokens, of which the first is a block's. Each matrix
/// comes with the memory that is read after its rows.
///
/// # Safety
/// As [`stretch`].
#[inline(always)]
pub(in crate::cpu) unsafe fn each_sums<U: Unit, const M: usize>(
    packed: &[Buffer<f32>],
    shape: Shape,
    weights: [(&[u8], *const u8); M],
    range: Range<usize>,
    scratch: &mut Scratch,
    with: impl Fn([*mut f32; M], usize, Range<usize>),
) {
    let interleaves = U::INTERLEAVES && shape.format.block_len() > 1;
    let row = TOKENS.min(padded::<U>(shape.tokens)) + SUMS_PAD;
    scratch.panels[0].resize(U::PANEL * U::PANEL_ROW);
    scratch.panels[1].resize(if interleaves { U::PANEL * U::PANEL_ROW } else { 0 });
    for sums in &mut scratch.sums[..M] {
        sums.resize(range.len().next_multiple_of(U::PANEL) * row);
    }
    let panels = [scratch.panels[0].as_mut_ptr(), scratch.panels[usize::from(interleaves)].as_mut_ptr()];
    let mut sums = [std::ptr::null_mut(); M];
    for (at, buffer) in sums.iter_mut().zip(&mut scratch.sums) {
        *at = buffer.as_mut_ptr();
    }
    // SAFETY: as required of the caller; the buffers were just made as large as is needed.
    unsafe {
        U::begin();
        for first in (0..shape.tokens).step_by(TOKENS) {
            let tokens = first..(first + TOKENS).min(shape.tokens);
            let row = padded::<U>(tokens.len()) + SUMS_PAD;
            for ((weight, after), sums) in weights.into_iter().zip(sums) {
                some_tokens::<U>((packed, weight, after), shape, range.clone(), tokens.clone(), panels, sums);
            }
            with(sums, row, tokens);
        }
        U::end();
    }
}

/// Tokens, filled up to whole blocks.
#[inline(always)]
fn padded<U: Unit>(tokens: usize) -> usize {
    tokens.next_multiple_of(block_width::<U::Lanes>())
}

/// A panel of a task: rows and a stretch of their words.
#[derive(Clone, Copy)]
struct Place {
    /// Its first row.
    first: usize,
    rows: usize,
    /// The first word of a row.
    begin: usize,
    depth: usize,
}

impl Place {
    /// Panel `index` of the rows `range`: stretch by stretch of the words, and within each row by row.
    #[inline(always)]
    fn new<U: Unit>(range: &Range<usize>, words: usize, index: usize) -> Self {
        let panels = range.len().div_ceil(U::PANEL);
        let (first, begin) = (range.start + index % panels * U::PANEL, index / panels * DEPTH);
        Self { first, rows: U::PANEL.min(range.end - first), begin, depth: DEPTH.min(words - begin) }
    }
}

/// The rows `range` of a matrix times `tokens`, into `sums`.
///
/// # Safety
/// As [`stretch`]; panels have `PANEL` rows, and `sums` whole panels of rows of whole blocks of tokens and [`SUMS_PAD`]. The two
/// panels are different ones where a unit interleaves.
#[inline(always)]
unsafe fn some_tokens<U: Unit>(
    (terms, weight, after): (&[Buffer<f32>], &[u8], *const u8),
    shape: Shape,
    range: Range<usize>,
    tokens: Range<usize>,
    panels: [*mut f32; 2],
    sums: *mut f32,
) {
    let (width, lanes) = (block_width::<U::Lanes>(), <U::Lanes as Lanes>::N);
    let words = shape.cols / U::EACH;
    let block_rows = U::right(words.next_multiple_of(U::STEP));
    let padded = padded::<U>(tokens.len());
    let sums_row = padded + SUMS_PAD;
    let in_stretch = range.len().div_ceil(U::PANEL);
    let count = in_stretch * words.div_ceil(DEPTH);
    let interleaves = U::INTERLEAVES && shape.format.block_len() > 1;
    let filling = |index: usize, panel: *mut f32, steps: usize| {
        let Place { first, rows, begin, depth } = Place::new::<U>(&range, words, index);
        let row = &weight[first * shape.row_bytes..(first + rows) * shape.row_bytes];
        Filling::<U>::new(shape, row, begin..begin + depth, panel, steps)
    };
    if interleaves {
        // SAFETY: the panel has its rows, and the unit's instructions are available.
        unsafe { filling(0, panels[0], 1).finish() };
    }
    for index in 0..count {
        let Place { first, rows, begin, depth } = Place::new::<U>(&range, words, index);
        let panel = panels[index % 2];
        if !interleaves {
            let bytes = shape.bytes(U::EACH * begin)..shape.bytes(U::EACH * (begin + depth));
            for row in 0..rows {
                let bytes =
                    &weight[(first + row) * shape.row_bytes..(first + row + 1) * shape.row_bytes][bytes.clone()];
                // SAFETY: the row is one of the panel's, and the unit's instructions are available.
                unsafe {
                    let len = U::left(depth);
                    let row = panel.add(row * U::PANEL_ROW);
                    let row = std::slice::from_raw_parts_mut(row, len.next_multiple_of(U::STEP));
                    U::decode(shape.format, bytes, &mut row[..len]);
                    row[len..].fill(0.0);
                }
            }
        }
        let steps = depth.div_ceil(AHEAD_STEP);
        // the next panel is filled from memory that was requested, and the one after it, or the next one, is requested
        let is_next = interleaves && index + 1 < count;
        let mut fill = is_next.then(|| filling(index + 1, panels[(index + 1) % 2], padded / width * steps));
        let requested = index + 1 + usize::from(interleaves);
        let ahead_at = if requested < count {
            let place = Place::new::<U>(&range, words, requested);
            weight.as_ptr().wrapping_add(place.first * shape.row_bytes + shape.bytes(U::EACH * place.begin))
        } else {
            after
        };
        let ahead_bytes = shape.bytes(U::EACH * depth);
        // of the next blocks each panel requests a part
        let next = if begin + DEPTH < words { begin + DEPTH } else { 0 };
        let lines = if U::INTERLEAVES && words > DEPTH {
            (U::right(DEPTH.min(words - next)) * width * size_of::<f32>())
                .div_ceil(64)
                .div_ceil(in_stretch * steps)
                .min(MOST_LINES)
        } else {
            0
        };
        for token in (0..tokens.len()).step_by(width) {
            let vectors = width.min(tokens.len() - token).div_ceil(lanes);
            // it is requested row by row with the blocks of tokens, since the memory does not send it by itself
            let part = |token: usize| token.min(padded) * U::PANEL / padded;
            for (term, packed) in terms.iter().enumerate() {
                let block = &packed[(tokens.start + token) * block_rows + U::right(begin) * width..];
                let next = packed[(tokens.start + token) * block_rows + U::right(next) * width..].as_ptr();
                let ahead = Ahead {
                    at: ahead_at,
                    row: shape.row_bytes,
                    step: ahead_bytes.div_ceil(steps),
                    first: part(token),
                    end: if term == 0 { part(token + width) } else { 0 },
                    block: next.cast::<u8>().wrapping_add((first - range.start) / U::PANEL * lines * steps * 64),
                    lines,
                };
                // SAFETY: as above. The panel has its rows of `depth` words and zeros, the block as many rows, and the
                // sums a row for each row of the panel.
                unsafe {
                    let left = Left { at: panel, row: U::PANEL_ROW, step: 1 };
                    let at = sums.add((first - range.start) * sums_row + token);
                    let to = Sums { at, row: sums_row, add: begin > 0 || term > 0 };
                    let block = Right::block::<U::Lanes>(block);
                    match &mut fill {
                        Some(fill) if term == 0 => {
                            U::multiply_and_fill(left, block, depth, vectors, to, ahead, fill);
                        }
                        _ => U::multiply(left, rows, block, depth, vectors, to, ahead),
                    }
                }
            }
        }
        if let Some(fill) = &mut fill {
            // SAFETY: as above.
            unsafe { fill.finish() };
        }
    }
}
