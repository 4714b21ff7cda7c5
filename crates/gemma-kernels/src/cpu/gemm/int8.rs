//! Products of many tokens with quantized weights, in integers, with the VNNI of AVX-512 or of AVX; with AVX2 alone for Q4_0 and
//! activations of 8 bits.
//!
//! The plan is that of [`panel`](super::panel), with tokens along the vectors; but a panel holds bytes, moved up
//! to be unsigned, and a lane of the packed activations four bytes of one token. Within a block of 32 columns the sums
//! are exact; they are turned into f32 once per block, times the scales of both sides. 16-bit activations are two such
//! products: the sum over the high bytes is shifted before the low bytes are added to it.
//!
//! The register tiles are in `long`, `short` and, for weights of four bits where there is no VNNI, `nibbles`.

mod long;
mod nibbles;
mod short;

use crate::cpu::buffer::Buffer;
use crate::cpu::gemm::panel::in_panels;
use crate::cpu::gemm::tile;
use crate::cpu::isa::Isa;
use crate::cpu::isa::{Lanes, prefetch};
use crate::cpu::output::Output;
use crate::cpu::pool;
use crate::cpu::product::{Product, joint};
use crate::cpu::quantize::{Bytes, COARSE, FINE};
use crate::cpu::shape::Shape;
use crate::math::f16_to_f32;
use crate::{ActivationPrecision, Format};
use long::Long;
use nibbles::Nibbles;
use short::Short;
use std::cell::RefCell;
use std::ops::Range;

/// Columns that share a scale.
const BLOCK: usize = 32;
/// Vectors of a packed block of tokens.
const VECTORS: usize = 2;
/// The most rows of a register tile, and of a panel.
const ROWS: usize = 6;
/// Blocks of columns in a panel.
const DEPTH: usize = 16;
/// Bytes from one row of a panel to the next: a cache line more, so that rows do not fall into the same sets.
const PANEL_ROW: usize = DEPTH * BLOCK + 64;
/// Bytes of a panel.
const PANEL: usize = ROWS * PANEL_ROW;
/// The most rows of a task.
const TASK_ROWS: usize = 96;
/// The most tokens whose sums are collected at a time.
const TOKENS: usize = 512;

/// What multiplies bytes.
///
/// # Safety
/// Every method requires the CPU's instructions, and is expanded in a function that has them.
trait Unit {
    type Lanes: Lanes;
    /// Rows of a register tile.
    const ROWS: usize;
    /// Tokens of a packed block.
    const WIDTH: usize = VECTORS * Self::Lanes::N;
    /// Words of four activations, or of four high bytes, of a block of columns.
    const PLANE: usize = BLOCK / 4 * Self::WIDTH;

    /// What [`Bytes::new`] makes of a block.
    unsafe fn quantize(x: &[f32; BLOCK], limit: f32) -> Bytes;

    /// A tile with the first `V` vectors of tokens.
    unsafe fn multiply<const V: usize, const FINE: bool>(tile: &Tile);
}

/// Words of the record that holds a block of columns of a block of tokens: where the sums start, the scales, the low
/// bytes, and for 16-bit activations the high bytes.
fn record<U: Unit>(fine: bool) -> usize {
    2 * U::WIDTH + U::PLANE * (1 + usize::from(fine))
}

/// Whether there are kernels here for this format and these activations.
pub(in crate::cpu) fn has(isa: Isa, format: Format, activations: ActivationPrecision) -> bool {
    match isa {
        // two products for the bytes of Q8_0 were no faster than f32
        Isa::Avx2 => activations == ActivationPrecision::Int8 && format == Format::Q4_0,
        isa if isa == Isa::AvxVnni || isa >= Isa::Avx512Vnni => {
            activations != ActivationPrecision::F32 && matches!(format, Format::Q8_0 | Format::Q4_0)
        }
        _ => false,
    }
}

/// What the weights' bytes are moved up by.
fn offset(format: Format) -> i32 {
    if format == Format::Q8_0 { 128 } else { 8 }
}

/// Products of `x` with matrices in `q8_0` or `q4_0`, where the ISA [has](has()) it; see [`linear`](crate::cpu::linear()).
pub(in crate::cpu) fn multiply(isa: Isa, x: &[f32], products: &[Product<'_>], fine: bool) {
    let shape = joint(products);
    let activations = if fine { ActivationPrecision::Int16OrBf16 } else { ActivationPrecision::Int8 };
    assert!(has(isa, shape.format, activations), "bytes");
    /// `$unit` with the instructions of its own.
    macro_rules! with_unit {
        ($unit:ident, $features:literal) => {{
            /// # Safety
            /// As [`pack`].
            #[target_feature(enable = $features)]
            unsafe fn some(
                x: &[f32],
                shape: Shape,
                tokens: Range<usize>,
                blocks: Range<usize>,
                fine: bool,
                to: Output,
            ) {
                // SAFETY: as required of the caller.
                unsafe { pack::<$unit>(x, shape, tokens, blocks, fine, to) };
            }
            /// # Safety
            /// As [`rows`].
            #[target_feature(enable = $features)]
            unsafe fn of_task(work: &Work<'_>, range: Range<usize>, scratch: &mut Scratch) {
                // SAFETY: as required of the caller.
                unsafe { rows::<$unit>(work, range, scratch) };
            }
            // SAFETY: the ISA says that the CPU has the instructions.
            let pack = |tokens, blocks, to| unsafe { some(x, shape, tokens, blocks, fine, to) };
            // SAFETY: as above.
            let rows = |work: &Work<'_>, range, scratch: &mut Scratch| unsafe { of_task(work, range, scratch) };
            with_unit::<$unit>(products, fine, pack, rows);
        }};
    }
    match isa {
        Isa::Avx2 => with_unit!(Nibbles, "avx2,fma,f16c"),
        Isa::AvxVnni => with_unit!(Short, "avxvnni,avx2,fma,f16c"),
        _ => with_unit!(Long, "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"),
    }
}

/// `pack` is called with tokens and blocks whose records are its own, `rows` with rows that are.
fn with_unit<U: Unit>(
    products: &[Product<'_>],
    fine: bool,
    pack: impl Fn(Range<usize>, Range<usize>, Output) + Sync,
    rows: impl Fn(&Work<'_>, Range<usize>, &mut Scratch) + Sync,
) {
    let shape = joint(products);
    let blocks = shape.cols / BLOCK;
    let token_blocks = shape.tokens.div_ceil(U::WIDTH);
    let mut packed = Buffer::<f32>::zeroed(token_blocks * blocks * record::<U>(fine));
    let to = Output(packed.as_mut_ptr());
    let parts = blocks.div_ceil(DEPTH);
    pool::for_work(shape.work(), token_blocks * parts, |task| {
        let (token, block) = (task / parts * U::WIDTH, task % parts * DEPTH);
        pack(token..(token + U::WIDTH).min(shape.tokens), block..(block + DEPTH).min(blocks), to);
    });
    in_panels(products, (U::ROWS, TASK_ROWS / U::ROWS), |product, range| {
        let work = Work { packed: &packed, product, fine };
        SCRATCH.with_borrow_mut(|scratch| rows(&work, range, scratch));
    });
}

/// A product and its packed activations.
struct Work<'a> {
    packed: &'a [f32],
    product: Product<'a>,
    /// Whether activations have 16 bits.
    fine: bool,
}

/// Quantizes some blocks of columns of a block of tokens into their records.
///
/// # Safety
/// As [`Unit`], and nobody else touches these records.
#[inline(always)]
unsafe fn pack<U: Unit>(x: &[f32], shape: Shape, tokens: Range<usize>, blocks: Range<usize>, fine: bool, to: Output) {
    let offset = offset(shape.format);
    for b in blocks {
        // SAFETY: the record exists.
        let record = unsafe { to.at((tokens.start / U::WIDTH * (shape.cols / BLOCK) + b) * record::<U>(fine)) };
        // the record stays in the L1 cache while all tokens are written to it
        for (t, token) in tokens.clone().enumerate() {
            let x = &x[token * shape.cols + b * BLOCK..][..BLOCK];
            let limit = if fine { FINE } else { COARSE };
            // SAFETY: as required of the caller; the record has these places.
            unsafe {
                let Bytes { scale, low, high, sums } = U::quantize(x.first_chunk().expect("a block"), limit);
                let at = record.add(t);
                at.cast::<i32>().write(-offset * (sums[0] + sums[1]));
                at.add(U::WIDTH).write(scale);
                for (four, low) in low.as_chunks::<4>().0.iter().enumerate() {
                    at.add((2 + four) * U::WIDTH).cast::<[i8; 4]>().write(*low);
                }
                if fine {
                    for (four, high) in high.as_chunks::<4>().0.iter().enumerate() {
                        at.add(U::PLANE + (2 + four) * U::WIDTH).cast::<[i8; 4]>().write(*high);
                    }
                }
            }
        }
    }
}

/// What a thread keeps from task to task.
struct Scratch {
    /// Unsigned bytes, `[ROWS, PANEL_ROW]`, or in two such panels their lower and upper four bits.
    panel: [u8; PANEL],
    /// Their scales, `[ROWS, DEPTH]`.
    scales: [f32; ROWS * DEPTH],
    /// The sums of a task, `[rows, tokens]`, both rounded up to whole tiles.
    sums: Buffer<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            panel: [0; PANEL],
            scales: [0.0; ROWS * DEPTH],
            sums: Buffer::empty(),
        })
    };
}

/// The rows `range` of a product.
///
/// # Safety
/// As [`Unit`], and the rows must belong to the calling task.
#[inline(always)]
unsafe fn rows<U: Unit>(work: &Work<'_>, range: Range<usize>, scratch: &mut Scratch) {
    let tokens = work.product.shape.tokens;
    for first in (0..tokens).step_by(TOKENS) {
        let tokens = first..(first + TOKENS).min(tokens);
        // SAFETY: as required of the caller.
        unsafe {
            match work.fine {
                true => some_tokens::<U, true>(work, range.clone(), tokens, scratch),
                false => some_tokens::<U, false>(work, range.clone(), tokens, scratch),
            }
        }
    }
}

/// The rows `range` times `tokens`.
///
/// # Safety
/// As [`Unit`], and the rows must belong to the calling task.
#[inline(always)]
unsafe fn some_tokens<U: Unit, const FINE: bool>(
    work: &Work<'_>,
    range: Range<usize>,
    tokens: Range<usize>,
    scratch: &mut Scratch,
) {
    let Work { packed, product: Product { weight, shape, out }, .. } = *work;
    let blocks = shape.cols / BLOCK;
    let padded = tokens.len().next_multiple_of(U::WIDTH);
    let block_bytes = shape.format.block_bytes();
    scratch.sums.resize(range.len().next_multiple_of(U::ROWS) * padded);
    for begin in (0..blocks).step_by(DEPTH) {
        let depth = DEPTH.min(blocks - begin);
        let bytes = begin * block_bytes..(begin + depth) * block_bytes;
        for first in range.clone().step_by(U::ROWS) {
            for (i, row) in (first..range.end.min(first + U::ROWS)).enumerate() {
                // the rows of the next panel, which the memory does not send by itself
                for line in (0..bytes.len()).step_by(64) {
                    prefetch(weight.as_ptr().wrapping_add((row + U::ROWS) * shape.row_bytes + bytes.start + line));
                }
                let row = &weight[row * shape.row_bytes..(row + 1) * shape.row_bytes][bytes.clone()];
                let panel = &mut scratch.panel[i * PANEL_ROW..][..depth * BLOCK];
                unpack(shape.format, row, panel, &mut scratch.scales[i * DEPTH..][..depth]);
            }
            for token in (0..tokens.len()).step_by(U::WIDTH) {
                let records = &packed[((tokens.start + token) / U::WIDTH * blocks + begin) * record::<U>(FINE)..];
                let sums = &mut scratch.sums[(first - range.start) * padded + token..];
                let tile = Tile {
                    panel: scratch.panel.as_ptr(),
                    scales: scratch.scales.as_ptr(),
                    records: records.as_ptr(),
                    blocks: depth,
                    sums: sums.as_mut_ptr(),
                    row: padded,
                    add: begin > 0,
                };
                // SAFETY: the panel has `ROWS` rows of `depth` blocks, each block has a record, and there is room for
                // the sums.
                unsafe {
                    if tokens.len() - token > U::Lanes::N {
                        U::multiply::<2, FINE>(&tile);
                    } else {
                        U::multiply::<1, FINE>(&tile);
                    }
                }
            }
        }
    }
    // SAFETY: as required of the caller.
    unsafe {
        let to = out.at(tokens.start * shape.rows + range.start);
        tile::unpack::<U::Lanes>(scratch.sums.as_ptr(), padded, range.len(), tokens.len(), to, shape.rows);
    }
}

/// Blocks of a row as unsigned bytes in the order of the columns, and their scales. A block is copied before it is changed:
/// for all that the compiler knows, the row might lie among the bytes.
#[inline(always)]
fn unpack(format: Format, row: &[u8], bytes: &mut [u8], scales: &mut [f32]) {
    let bytes = bytes.as_chunks_mut::<BLOCK>().0;
    if format == Format::Q8_0 {
        for ((block, bytes), scale) in row.as_chunks::<34>().0.iter().zip(bytes).zip(scales) {
            let [first, second, values @ ..] = *block;
            *scale = f16_to_f32([first, second]);
            for (to, eight) in bytes.as_chunks_mut().0.iter_mut().zip(values.as_chunks().0) {
                *to = (u64::from_ne_bytes(*eight) ^ u64::from_ne_bytes([128; 8])).to_ne_bytes();
            }
        }
    } else {
        for ((block, bytes), scale) in row.as_chunks::<18>().0.iter().zip(bytes).zip(scales) {
            let [first, second, values @ ..] = *block;
            *scale = f16_to_f32([first, second]);
            let (low, high) = bytes.split_at_mut(BLOCK / 2);
            low.copy_from_slice(&values.map(|byte| byte & 15));
            high.copy_from_slice(&values.map(|byte| byte >> 4));
        }
    }
}

/// A register tile: `ROWS` rows times some vectors of tokens.
struct Tile {
    panel: *const u8,
    scales: *const f32,
    records: *const f32,
    /// Blocks of columns.
    blocks: usize,
    sums: *mut f32,
    /// Values from one row of the sums to the next.
    row: usize,
    /// Whether to add to what lies there.
    add: bool,
}
