//! Products of many tokens with quantized weights, in integers: with the VNNI of AVX-512 or of AVX, with NEON's dot products, and with
//! AVX2 alone for activations of 8 bits.
//!
//! The plan is that of [`panel`](super::panel), with tokens along the vectors; but a panel holds the weights'
//! [`Numbers`], bytes, and a lane of the packed activations four bytes of one token. Within a part of the weights that has a
//! scale, 16 or 32 columns, the sums are exact; they are turned into f32 once per part, times the scales of both sides. What numbers
//! are moved up by is taken from the exact sums, and addends of the parts are multiplied by the sums of the activations. 16-bit
//! activations are two such products: the sum over the high bytes is shifted before the low bytes are added to it.
//!
//! The register tiles are in `long`, for sixteen tokens in a vector, and in `short` for eight; what multiplies bytes there is in `avx`
//! and `neon`.

#[cfg(target_arch = "x86_64")]
mod avx;
#[cfg(target_arch = "x86_64")]
mod long;
#[cfg(target_arch = "aarch64")]
mod neon;
mod short;

use crate::cpu::buffer::Buffer;
use crate::cpu::gemm::panel::in_panels;
use crate::cpu::gemm::tile;
use crate::cpu::gemv::int8::{Numbers, take_apart};
use crate::cpu::isa::{Isa, Lanes, prefetch};
use crate::cpu::output::Output;
use crate::cpu::pool;
use crate::cpu::product::{Product, joint};
use crate::cpu::quantize::{Bytes, COARSE, FINE};
use crate::{ActivationPrecision, Format};
use short::Short;
use std::cell::RefCell;
use std::ops::Range;
#[cfg(target_arch = "x86_64")]
use {
    avx::{Pairs, Vnni},
    long::Long,
};

/// Columns whose activations share a scale.
const BLOCK: usize = 32;
/// The most parts of a block of columns whose weights have scales of their own.
const PARTS: usize = 2;
/// Vectors of a packed block of tokens.
const VECTORS: usize = 2;
/// The most rows of a register tile, and of a panel.
const ROWS: usize = 6;
/// Blocks of columns in a panel.
const DEPTH: usize = 16;
/// Bytes from one row of a panel to the next: a cache line more, so that rows do not fall into the same sets.
const PANEL_ROW: usize = DEPTH * BLOCK + 64;
/// Scales from one row of a panel to the next.
const SCALES: usize = DEPTH * PARTS;
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

    /// A tile with the first `V` vectors of tokens and `PARTS` parts of a block of columns. With `FINE` activations have 16 bits, else 8;
    /// with `ADDENDS` each part has one, else an offset.
    unsafe fn multiply<const V: usize, const FINE: bool, const PARTS: usize, const ADDENDS: bool>(tile: &Tile);
}

/// Words of the record that holds a block of columns of a block of tokens: for each part of the weights where the exact sums start, or
/// the sum of the activations, the scales, the low bytes, and for 16-bit activations the high bytes.
const fn record<U: Unit>(fine: bool, parts: usize) -> usize {
    plane::<U>(parts) + U::PLANE * (1 + fine as usize)
}

/// Where the low bytes lie in a record.
const fn plane<U: Unit>(parts: usize) -> usize {
    (parts + 1) * U::WIDTH
}

/// Whether there are kernels here for this format and these activations.
pub(in crate::cpu) fn has(isa: Isa, format: Format, activations: ActivationPrecision) -> bool {
    let numbers = Numbers::of(format);
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 => {
            activations == ActivationPrecision::Int8 && numbers.is_some_and(|numbers| Pairs::fit(numbers.largest))
        }
        #[cfg(target_arch = "x86_64")]
        isa if isa >= Isa::AvxVnni => activations != ActivationPrecision::F32 && numbers.is_some(),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDot => activations != ActivationPrecision::F32 && numbers.is_some(),
        _ => false,
    }
}

/// A function `$name` that multiplies `x` with matrices, the unit's methods expanded in functions with the instructions.
macro_rules! with_features {
    ($name:ident, $features:literal) => {
        /// # Safety
        /// The CPU must have these instructions, which are the unit's.
        unsafe fn $name<U: Unit>(x: &[f32], products: &[Product<'_>], kind: Kind) {
            /// # Safety
            /// As [`pack_some`].
            #[target_feature(enable = $features)]
            unsafe fn pack<U: Unit>(
                x: &[f32],
                cols: usize,
                tokens: Range<usize>,
                blocks: Range<usize>,
                kind: Kind,
                to: Output,
            ) {
                // SAFETY: as required of the caller.
                unsafe { pack_some::<U>(x, cols, tokens, blocks, kind, to) };
            }
            /// # Safety
            /// As [`rows`].
            #[target_feature(enable = $features)]
            unsafe fn of_task<U: Unit>(work: &Work<'_>, range: Range<usize>, scratch: &mut Scratch) {
                // SAFETY: as required of the caller.
                unsafe { rows::<U>(work, range, scratch) };
            }
            let cols = joint(products).cols;
            // SAFETY: as required of the caller.
            let pack = |tokens, blocks, to| unsafe { pack::<U>(x, cols, tokens, blocks, kind, to) };
            // SAFETY: as above.
            let rows = |work: &Work<'_>, range, scratch: &mut Scratch| unsafe { of_task::<U>(work, range, scratch) };
            with_unit::<U>(products, kind, pack, rows);
        }
    };
}
#[cfg(target_arch = "x86_64")]
with_features!(avx2, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
with_features!(avx_vnni, "avxvnni,avx2,fma,f16c");
#[cfg(target_arch = "aarch64")]
with_features!(neon_dot, "neon,dotprod");
#[cfg(target_arch = "x86_64")]
with_features!(avx512_vnni, "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");

/// Products of `x` with matrices of quantized weights, where the ISA [has](has()) it; see [`linear`](crate::cpu::linear()).
pub(in crate::cpu) fn multiply(isa: Isa, x: &[f32], products: &[Product<'_>], fine: bool) {
    let format = joint(products).format;
    let activations = if fine { ActivationPrecision::Int16OrBf16 } else { ActivationPrecision::Int8 };
    assert!(has(isa, format, activations), "bytes");
    let kind = Kind { fine, numbers: Numbers::of(format).expect("a format that is multiplied here") };
    // SAFETY: the ISA says that the CPU has the instructions.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => avx2::<Short<Pairs>>(x, products, kind),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => avx_vnni::<Short<Vnni>>(x, products, kind),
            #[cfg(target_arch = "x86_64")]
            _ => avx512_vnni::<Long>(x, products, kind),
            #[cfg(target_arch = "aarch64")]
            _ => neon_dot::<Short<neon::Signed>>(x, products, kind),
        }
    }
}

/// How the activations and the weights of a product are represented.
#[derive(Clone, Copy)]
struct Kind {
    /// Whether activations have 16 bits.
    fine: bool,
    numbers: Numbers,
}

impl Kind {
    /// Parts of a block of columns whose weights have scales of their own.
    fn parts(self) -> usize {
        BLOCK / self.numbers.part
    }

    /// Words of a record.
    fn record<U: Unit>(self) -> usize {
        record::<U>(self.fine, self.parts())
    }

    /// A tile with so many vectors of tokens.
    ///
    /// # Safety
    /// As [`Unit::multiply`].
    #[inline(always)]
    unsafe fn multiply<U: Unit>(self, vectors: usize, tile: &Tile) {
        // SAFETY: as required of the caller.
        unsafe {
            match (vectors, self.fine) {
                (2, true) => self.vectors::<U, 2, true>(tile),
                (2, false) => self.vectors::<U, 2, false>(tile),
                (_, true) => self.vectors::<U, 1, true>(tile),
                (_, false) => self.vectors::<U, 1, false>(tile),
            }
        }
    }

    /// # Safety
    /// As [`Unit::multiply`].
    #[inline(always)]
    unsafe fn vectors<U: Unit, const V: usize, const FINE: bool>(self, tile: &Tile) {
        // SAFETY: as required of the caller.
        unsafe {
            match (self.numbers.offset, self.parts()) {
                (Some(_), 1) => U::multiply::<V, FINE, 1, false>(tile),
                (Some(_), _) => U::multiply::<V, FINE, 2, false>(tile),
                (None, 1) => U::multiply::<V, FINE, 1, true>(tile),
                (None, _) => U::multiply::<V, FINE, 2, true>(tile),
            }
        }
    }
}

/// `pack` is called with tokens and blocks whose records are its own, `rows` with rows that are.
fn with_unit<U: Unit>(
    products: &[Product<'_>],
    kind: Kind,
    pack: impl Fn(Range<usize>, Range<usize>, Output) + Sync,
    rows: impl Fn(&Work<'_>, Range<usize>, &mut Scratch) + Sync,
) {
    let shape = joint(products);
    let blocks = shape.cols / BLOCK;
    let token_blocks = shape.tokens.div_ceil(U::WIDTH);
    let mut packed = Buffer::<f32>::zeroed(token_blocks * blocks * kind.record::<U>());
    let to = Output(packed.as_mut_ptr());
    let parts = blocks.div_ceil(DEPTH);
    pool::for_work(shape.work(), token_blocks * parts, |task| {
        let (token, block) = (task / parts * U::WIDTH, task % parts * DEPTH);
        pack(token..(token + U::WIDTH).min(shape.tokens), block..(block + DEPTH).min(blocks), to);
    });
    in_panels(products, (U::ROWS, TASK_ROWS / U::ROWS), |product, range| {
        let work = Work { packed: &packed, product, kind };
        SCRATCH.with_borrow_mut(|scratch| rows(&work, range, scratch));
    });
}

/// A product and its packed activations.
struct Work<'a> {
    packed: &'a [f32],
    product: Product<'a>,
    kind: Kind,
}

/// Quantizes some blocks of columns of a block of tokens into their records.
///
/// # Safety
/// As [`Unit`], and nobody else touches these records.
#[inline(always)]
unsafe fn pack_some<U: Unit>(
    x: &[f32],
    cols: usize,
    tokens: Range<usize>,
    blocks: Range<usize>,
    kind: Kind,
    to: Output,
) {
    let (words, parts, plane) = (kind.record::<U>(), kind.parts(), plane::<U>(kind.parts()));
    let limit = if kind.fine { FINE } else { COARSE };
    for b in blocks {
        // SAFETY: the record exists.
        let record = unsafe { to.at((tokens.start / U::WIDTH * (cols / BLOCK) + b) * words) };
        // the record stays in the L1 cache while all tokens are written to it
        for (t, token) in tokens.clone().enumerate() {
            let x = &x[token * cols + b * BLOCK..][..BLOCK];
            // SAFETY: as required of the caller; the record has these places.
            unsafe {
                let Bytes { scale, low, high, sums } = U::quantize(x.first_chunk().expect("a block"), limit);
                let at = record.add(t);
                let sums = if parts == 1 { [sums[0] + sums[1], 0] } else { sums };
                for (part, sum) in sums.into_iter().take(parts).enumerate() {
                    let at = at.add(part * U::WIDTH);
                    match kind.numbers.offset {
                        Some(offset) => at.cast::<i32>().write(-offset * sum),
                        None => at.write(sum as f32 * scale),
                    }
                }
                at.add(parts * U::WIDTH).write(scale);
                for (four, low) in low.as_chunks::<4>().0.iter().enumerate() {
                    at.add(plane + four * U::WIDTH).cast::<[i8; 4]>().write(*low);
                }
                if kind.fine {
                    for (four, high) in high.as_chunks::<4>().0.iter().enumerate() {
                        at.add(plane + U::PLANE + four * U::WIDTH).cast::<[i8; 4]>().write(*high);
                    }
                }
            }
        }
    }
}

/// What a thread keeps from task to task.
struct Scratch {
    /// Bytes, `[ROWS, PANEL_ROW]`.
    panel: [u8; PANEL],
    /// The scales of their parts, `[ROWS, SCALES]`.
    scales: [f32; ROWS * SCALES],
    /// The addends, if there are any, `[ROWS, SCALES]`.
    addends: [f32; ROWS * SCALES],
    /// The sums of a task, `[rows, tokens]`, both rounded up to whole tiles.
    sums: Buffer<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            panel: [0; PANEL],
            scales: [0.0; ROWS * SCALES],
            addends: [0.0; ROWS * SCALES],
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
        unsafe { some_tokens::<U>(work, range.clone(), tokens, scratch) };
    }
}

/// The rows `range` times `tokens`.
///
/// # Safety
/// As [`Unit`], and the rows must belong to the calling task.
#[inline(always)]
unsafe fn some_tokens<U: Unit>(work: &Work<'_>, range: Range<usize>, tokens: Range<usize>, scratch: &mut Scratch) {
    let Work { packed, product: Product { weight, shape, out }, kind } = *work;
    let blocks = shape.cols / BLOCK;
    let padded = tokens.len().next_multiple_of(U::WIDTH);
    scratch.sums.resize(range.len().next_multiple_of(U::ROWS) * padded);
    for begin in (0..blocks).step_by(DEPTH) {
        let depth = DEPTH.min(blocks - begin);
        let bytes = shape.bytes(begin * BLOCK)..shape.bytes((begin + depth) * BLOCK);
        for first in range.clone().step_by(U::ROWS) {
            for (i, row) in (first..range.end.min(first + U::ROWS)).enumerate() {
                // the rows of the next panel, which the memory does not send by itself
                for line in (0..bytes.len()).step_by(64) {
                    prefetch(weight.as_ptr().wrapping_add((row + U::ROWS) * shape.row_bytes + bytes.start + line));
                }
                let row = &weight[row * shape.row_bytes..(row + 1) * shape.row_bytes][bytes.clone()];
                // four blocks of 32 are taken apart at a time
                let depth = depth.next_multiple_of(4);
                let panel = &mut scratch.panel[i * PANEL_ROW..][..depth * BLOCK];
                let scales = i * SCALES..i * SCALES + depth * kind.parts();
                let (scales, addends) = (&mut scratch.scales[scales.clone()], &mut scratch.addends[scales]);
                // SAFETY: every unit has these instructions; there are whole blocks.
                unsafe { take_apart(shape.format, row, panel, scales, addends) };
            }
            for token in (0..tokens.len()).step_by(U::WIDTH) {
                let records = &packed[((tokens.start + token) / U::WIDTH * blocks + begin) * kind.record::<U>()..];
                let sums = &mut scratch.sums[(first - range.start) * padded + token..];
                let tile = Tile {
                    panel: scratch.panel.as_ptr(),
                    scales: scratch.scales.as_ptr(),
                    addends: scratch.addends.as_ptr(),
                    records: records.as_ptr(),
                    blocks: depth,
                    sums: sums.as_mut_ptr(),
                    row: padded,
                    add: begin > 0,
                    largest: kind.numbers.largest,
                };
                // SAFETY: the panel has `ROWS` rows of `depth` blocks, each block has a record, and there is room for
                // the sums.
                unsafe { kind.multiply::<U>((tokens.len() - token).div_ceil(U::Lanes::N).min(VECTORS), &tile) };
            }
        }
    }
    // SAFETY: as required of the caller.
    unsafe {
        let to = out.at(tokens.start * shape.rows + range.start);
        tile::unpack::<U::Lanes>(scratch.sums.as_ptr(), padded, range.len(), tokens.len(), to, shape.rows);
    }
}

/// A register tile: `ROWS` rows times some vectors of tokens.
struct Tile {
    panel: *const u8,
    scales: *const f32,
    addends: *const f32,
    records: *const f32,
    /// Blocks of columns.
    blocks: usize,
    sums: *mut f32,
    /// Values from one row of the sums to the next.
    row: usize,
    /// Whether to add to what lies there.
    add: bool,
    /// The largest byte that the panel can hold.
    largest: u8,
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::avx::Evex;
    use super::*;
    use crate::cpu::shape::Shape;
    use crate::cpu::{all_formats, encoded, noise};

    /// No byte of a panel is larger than what the sums of pairs are made for, whatever the blocks hold.
    #[test]
    fn no_byte_is_larger_than_its_format_says() {
        /// # Safety
        /// As [`take_apart`].
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn apart(format: Format, row: &[u8], panel: &mut [u8], parts: &mut [[f32; 64]; 2]) {
            let [factors, addends] = parts;
            // SAFETY: as required of the caller.
            unsafe { take_apart(format, row, panel, factors, addends) };
        }
        if !Isa::available().contains(&Isa::Avx2) {
            println!("skipped: no {}", Isa::Avx2);
            return;
        }
        for format in all_formats() {
            let Some(numbers) = Numbers::of(format) else { continue };
            let cols = 1024;
            let bytes = format.row_bytes(cols).unwrap();
            let mut most = 0;
            for seed in 0..64 {
                let random = noise(bytes, seed).into_iter().map(|value| (128.0 * value).floor() as i8 as u8);
                let row: Vec<u8> = random.collect();
                let mut panel = vec![0; cols];
                // SAFETY: AVX2 is there, and a row's blocks, numbers and parts fit.
                unsafe { apart(format, &row, &mut panel, &mut [[0.0; 64]; 2]) };
                most = panel.into_iter().fold(most, u8::max);
            }
            assert!(most <= numbers.largest, "{format}: {most}, not up to {}", numbers.largest);
            assert!(most > numbers.largest / 2 || numbers.largest == u8::MAX, "{format}: {most} at most");
        }
    }

    /// The tiles of eight tokens, which CPUs with VNNI for AVX use, with the same instruction as AVX-512 has it: the products that
    /// tiles of sixteen tokens give, and those of pairs, bit for bit.
    #[test]
    fn short_tiles_give_the_products_of_long_ones() {
        if !Isa::available().contains(&Isa::Avx512Vnni) {
            println!("skipped: no {}", Isa::Avx512Vnni);
            return;
        }
        for (format, (tokens, rows, cols)) in all_formats()
            .filter(|format| Numbers::of(*format).is_some())
            .flat_map(|format| [(9, 7, 256), (40, 13, 768), (17, 5, 96)].map(|shape| (format, shape)))
        {
            let Some(row_bytes) = format.row_bytes(cols) else { continue };
            let (weight, _) = encoded(format, rows, cols);
            let x = noise(tokens * cols, 2);
            for fine in [false, true] {
                let kind = Kind { fine, numbers: Numbers::of(format).unwrap() };
                let of = |multiply: unsafe fn(&[f32], &[Product<'_>], Kind)| {
                    let mut out = vec![f32::NAN; tokens * rows];
                    let shape = Shape { format, tokens, rows, cols, row_bytes };
                    // SAFETY: AVX-512 VNNI is there, and with it the instructions of all three; the result has its size.
                    unsafe { multiply(&x, &[Product { weight: &weight, shape, out: Output(out.as_mut_ptr()) }], kind) };
                    out
                };
                let (short, long) = (of(avx512_vnni::<Short<Evex>>), of(avx512_vnni::<Long>));
                let context = format!("{format} {tokens}x{cols}x{rows} {fine}");
                let size = long.iter().fold(0f32, |most, value| most.max(value.abs()));
                assert!(short.iter().zip(&long).all(|(a, b)| (a - b).abs() <= 2e-6 * size), "{context}");
                if !fine && Pairs::fit(kind.numbers.largest) {
                    assert!(short == of(avx2::<Short<Pairs>>), "{context}");
                }
            }
        }
    }
}
