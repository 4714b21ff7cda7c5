//! Products of bf16 pairs on Intel's matrix unit (AMX): tiles of 16 rows of 64 bytes in registers of their own.
//!
//! A tile of weights holds 16 rows of 32 values, as a panel of [`panel`](super::panel) has them; a tile of
//! activations holds 16 words of two values for each of 16 tokens, as a packed block has them; so only the multiplication
//! differs from that with vectors. 32 rows and 32 tokens are four sums of 16 x 16, fed by four loads.
//!
//! The tiles are a trait, which tests also give to plain Rust, so that everything but the instructions themselves is
//! tested on CPUs without them.

use crate::Format;
use crate::cpu::bf16::{decode_pairs, decode_rows};
use crate::cpu::gemm::tile::{Ahead, Left, Right, Sums};
use crate::cpu::gemm::unit::{Across, Filling, Unit};
use crate::cpu::isa::{Avx512, prefetch, prefetch_into_l2};
use std::arch::asm;
use std::marker::PhantomData;

/// Rows, and words of a row, of a tile.
pub(in crate::cpu) const SIDE: usize = 16;

/// Eight tiles of 16 rows of 16 words. Words are f32 sums, or two bf16 values, the earlier one in the lower half.
///
/// # Safety
/// Every method requires the instructions of the implementing type, and between [`configure`](Self::configure) and
/// [`release`](Self::release) in the same thread. Rows lie `row` bytes apart and must be there.
pub(in crate::cpu) trait Tiles {
    /// Makes all tiles usable in this thread.
    unsafe fn configure();
    /// Gives them up.
    unsafe fn release();
    unsafe fn zero<const C: u8>();
    unsafe fn load<const I: u8>(at: *const f32, row: usize);
    /// The same for what will not be needed soon again.
    unsafe fn load_once<const I: u8>(at: *const f32, row: usize);
    unsafe fn store<const C: u8>(at: *mut f32, row: usize);
    /// `C[m][n] += Σ_k A[m][k] B[k][n]`, where the product of words is that of their lower plus that of their upper
    /// halves. Subnormal values count as zero.
    unsafe fn dot<const C: u8, const A: u8, const B: u8>();
}

/// The CPU's tiles.
pub(in crate::cpu) struct Hardware;

// SAFETY (for every block below): `Tiles` demands the instructions, and rows that are there. No tile register is ever
// allocated by the compiler, so their contents pass from one block to the next.
#[allow(clippy::undocumented_unsafe_blocks, reason = "said once, above")]
impl Tiles for Hardware {
    #[inline(always)]
    unsafe fn configure() {
        /// Palette 1; then, from byte 16 on, bytes of a row, and from byte 48 on, rows, of each tile.
        #[repr(align(64))]
        struct Configuration([u8; 64]);
        let mut configuration = Configuration([0; 64]);
        configuration.0[0] = 1;
        for tile in 0..8 {
            configuration.0[16 + 2 * tile] = 64;
            configuration.0[48 + tile] = SIDE as u8;
        }
        // not `nomem`: all 64 bytes must have been written
        unsafe { asm!("ldtilecfg [{at}]", at = in(reg) &raw const configuration, options(nostack, readonly)) };
    }

    #[inline(always)]
    unsafe fn release() {
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }

    #[inline(always)]
    unsafe fn zero<const C: u8>() {
        unsafe { asm!("tilezero tmm{c}", c = const C, options(nostack, nomem)) };
    }

    #[inline(always)]
    unsafe fn load<const I: u8>(at: *const f32, row: usize) {
        unsafe {
            asm!("tileloadd tmm{i}, [{at} + {row}*1]", i = const I, at = in(reg) at, row = in(reg) row, options(nostack, readonly));
        }
    }

    #[inline(always)]
    unsafe fn load_once<const I: u8>(at: *const f32, row: usize) {
        unsafe {
            asm!("tileloaddt1 tmm{i}, [{at} + {row}*1]", i = const I, at = in(reg) at, row = in(reg) row, options(nostack, readonly));
        }
    }

    #[inline(always)]
    unsafe fn store<const C: u8>(at: *mut f32, row: usize) {
        unsafe {
            asm!("tilestored [{at} + {row}*1], tmm{c}", c = const C, at = in(reg) at, row = in(reg) row, options(nostack));
        }
    }

    #[inline(always)]
    unsafe fn dot<const C: u8, const A: u8, const B: u8>() {
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B, options(nostack, nomem));
        }
    }
}

/// Panels of 32 rows, multiplied in tiles.
pub(in crate::cpu) struct Tiled<T>(PhantomData<T>);

impl<T: Tiles> Unit for Tiled<T> {
    type Lanes = Avx512;
    const EACH: usize = 2;
    const PANEL: usize = 2 * SIDE;
    const STEP: usize = SIDE;
    const INTERLEAVES: bool = true;

    #[inline(always)]
    unsafe fn begin() {
        // SAFETY: as required of the caller.
        unsafe { T::configure() };
    }

    #[inline(always)]
    unsafe fn end() {
        // SAFETY: as required of the caller.
        unsafe { T::release() };
    }

    #[inline(always)]
    unsafe fn decode(format: Format, bytes: &[u8], words: &mut [f32]) {
        // SAFETY: as required of the caller.
        unsafe { decode_pairs(format, bytes, words) };
    }

    /// All 32 rows, whatever is in those beyond `rows`.
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
        // SAFETY: as required of the caller.
        unsafe { Self::products(panel, block, depth, vectors, sums, ahead, None) };
    }

    #[inline(always)]
    unsafe fn multiply_and_fill(
        panel: Left,
        block: Right,
        depth: usize,
        vectors: usize,
        sums: Sums,
        ahead: Ahead,
        filling: &mut Filling<'_, Self>,
    ) {
        // SAFETY: as required of the caller.
        unsafe { Self::products(panel, block, depth, vectors, sums, ahead, Some(filling)) };
    }
}

impl<T: Tiles> Tiled<T> {
    /// # Safety
    /// As [`Unit::multiply_and_fill`].
    #[inline(always)]
    unsafe fn products(
        panel: Left,
        block: Right,
        depth: usize,
        vectors: usize,
        sums: Sums,
        ahead: Ahead,
        mut filling: Option<&mut Filling<'_, Self>>,
    ) {
        let (panel_row, block_row, sums_row) = (4 * panel.row, 4 * block.row, 4 * sums.row);
        // SAFETY: as required of the caller; there are whole steps of words and rows of the block, 32 rows of the panel
        // and of the sums, and 16 tokens per vector.
        unsafe {
            let (upper, lower) = (sums.at, sums.at.add(SIDE * sums.row));
            if sums.add {
                T::load::<0>(upper, sums_row);
                T::load::<2>(lower, sums_row);
            } else {
                T::zero::<0>();
                T::zero::<2>();
            }
            if vectors == 2 {
                if sums.add {
                    T::load::<1>(upper.add(SIDE), sums_row);
                    T::load::<3>(lower.add(SIDE), sums_row);
                } else {
                    T::zero::<1>();
                    T::zero::<3>();
                }
            }
            let (mut a, mut b) = (panel.at, block.at);
            for step in 0..depth.div_ceil(SIDE) {
                for row in ahead.first..ahead.end {
                    prefetch(ahead.at.wrapping_add(row * ahead.row + step * ahead.step));
                }
                T::load::<4>(a, panel_row);
                T::load_once::<6>(b, block_row);
                if vectors == 2 {
                    T::load_once::<7>(b.add(SIDE), block_row);
                    T::dot::<0, 4, 6>();
                    T::load::<5>(a.add(SIDE * panel.row), panel_row);
                    T::dot::<1, 4, 7>();
                    T::dot::<2, 5, 6>();
                    T::dot::<3, 5, 7>();
                } else {
                    T::load::<5>(a.add(SIDE * panel.row), panel_row);
                    T::dot::<0, 4, 6>();
                    T::dot::<2, 5, 6>();
                }
                for line in 0..ahead.lines {
                    prefetch_into_l2(ahead.block.wrapping_add((step * ahead.lines + line) * 64));
                }
                if let Some(filling) = &mut filling {
                    filling.step();
                }
                a = a.add(SIDE);
                b = b.wrapping_add(SIDE * block.row);
            }
            T::store::<0>(upper, sums_row);
            T::store::<2>(lower, sums_row);
            if vectors == 2 {
                T::store::<1>(upper.add(SIDE), sums_row);
                T::store::<3>(lower.add(SIDE), sums_row);
            }
        }
    }
}

impl<T: Tiles> Across for Tiled<T> {
    #[inline(always)]
    unsafe fn decode_across(format: Format, row: &[u8], next: Option<&[u8]>, words: &mut [f32]) {
        // SAFETY: as required of the caller.
        unsafe { decode_rows(format, row, next, words) };
    }
}

#[cfg(test)]
pub(in crate::cpu) mod tests {
    use super::*;
    use crate::cpu::isa::{Isa, cpu_isa};
    use std::cell::RefCell;

    /// Tiles in memory: what the architecture's manual says of the instructions.
    pub(in crate::cpu) struct Modelled;

    thread_local! {
        static TILES: RefCell<Option<[[[u32; SIDE]; SIDE]; 8]>> = const { RefCell::new(None) };
    }

    fn with<R>(call: impl FnOnce(&mut [[[u32; SIDE]; SIDE]; 8]) -> R) -> R {
        TILES.with_borrow_mut(|tiles| call(tiles.as_mut().expect("tiles are configured")))
    }

    /// Zero instead of what is too small.
    fn flushed(value: f32) -> f32 {
        if value.is_subnormal() { 0.0f32.copysign(value) } else { value }
    }

    // SAFETY (for every block below): the rows are there, as `Tiles` demands.
    #[allow(clippy::undocumented_unsafe_blocks, reason = "said once, above")]
    impl Tiles for Modelled {
        unsafe fn configure() {
            TILES.set(Some([[[0; SIDE]; SIDE]; 8]));
        }

        unsafe fn release() {
            TILES.set(None);
        }

        unsafe fn zero<const C: u8>() {
            with(|tiles| tiles[C as usize] = [[0; SIDE]; SIDE]);
        }

        unsafe fn load<const I: u8>(at: *const f32, row: usize) {
            let from = |m: usize| unsafe { at.byte_add(m * row).cast::<[u32; SIDE]>().read_unaligned() };
            with(|tiles| tiles[I as usize] = std::array::from_fn(from));
        }

        unsafe fn load_once<const I: u8>(at: *const f32, row: usize) {
            unsafe { Self::load::<I>(at, row) };
        }

        unsafe fn store<const C: u8>(at: *mut f32, row: usize) {
            with(|tiles| {
                for (m, words) in tiles[C as usize].iter().enumerate() {
                    unsafe { at.byte_add(m * row).cast::<[u32; SIDE]>().write_unaligned(*words) };
                }
            });
        }

        unsafe fn dot<const C: u8, const A: u8, const B: u8>() {
            let half =
                |word: u32, upper: bool| flushed(f32::from_bits(if upper { word & 0xffff_0000 } else { word << 16 }));
            with(|tiles| {
                let (a, b) = (tiles[A as usize], tiles[B as usize]);
                for (m, sums) in tiles[C as usize].iter_mut().enumerate() {
                    for (n, sum) in sums.iter_mut().enumerate() {
                        let mut parts = [0f32; 2];
                        for (part, upper) in parts.iter_mut().zip([false, true]) {
                            for (k, b) in b.iter().enumerate() {
                                *part = flushed(half(a[m][k], upper).mul_add(half(b[n], upper), *part));
                            }
                        }
                        *sum = flushed(flushed(f32::from_bits(*sum)) + flushed(parts[0] + parts[1])).to_bits();
                    }
                }
            });
        }
    }

    /// Two panels' worth of steps with one set of tiles: `[32, 32]` sums, twice.
    fn products<T: Tiles>(panel: &[f32], block: &[f32], depth: usize, vectors: usize) -> Vec<f32> {
        let mut sums = vec![0.5f32; 32 * 32];
        let left = Left { at: panel.as_ptr(), row: 48, step: 1 };
        let right = Right { at: block.as_ptr(), row: 32 };
        let ahead = Ahead { at: panel.as_ptr().cast(), row: 64, step: 64, first: 0, end: 3, ..Ahead::NOTHING };
        // SAFETY: the operands have as many rows and words as the units need, and the caller has the instructions.
        unsafe {
            Tiled::<T>::begin();
            for add in [true, false, true] {
                let sums = Sums { at: sums.as_mut_ptr(), row: 32, add };
                Tiled::<T>::multiply(left, 32, right, depth, vectors, sums, ahead);
            }
            Tiled::<T>::end();
        }
        sums
    }

    fn words(len: usize, seed: u32, extreme: bool) -> Vec<f32> {
        let specials = [0x3f80, 0xbf80, 0x7f7f, 0xff7f, 0x0001, 0x8040, 0x0080, 0x7f80, 0xffc1, 0];
        let mut state = seed;
        let mut half = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let ordinary = (0x3c00 | (state >> 16 & 0x83ff)) as u16;
            if extreme && state >> 24 < 12 { specials[(state >> 8) as usize % specials.len()] } else { ordinary }
        };
        (0..len).map(|_| f32::from_bits(u32::from(half()) | u32::from(half()) << 16)).collect()
    }

    #[test]
    fn modelled_tiles_multiply_pairs() {
        let (panel, block) = (words(32 * 48, 1, false), words(48 * 32, 2, false));
        let value = |word: f32, upper: bool| {
            let bits = word.to_bits();
            f64::from(f32::from_bits(if upper { bits & 0xffff_0000 } else { bits << 16 }))
        };
        for (depth, vectors) in [(16, 1), (32, 2), (48, 2), (40, 1)] {
            let found = products::<Modelled>(&panel, &block, depth, vectors);
            for (m, n) in (0..32).flat_map(|m| (0..16 * vectors).map(move |n| (m, n))) {
                let halves = |k: usize| {
                    [false, true].map(|upper| value(panel[m * 48 + k], upper) * value(block[k * 32 + n], upper))
                };
                let once: f64 = (0..depth.next_multiple_of(16)).flat_map(halves).sum();
                let error = (f64::from(found[m * 32 + n]) - 2.0 * once).abs();
                assert!(error < 1e-4, "{depth} {vectors} at {m} {n}: {error}");
            }
            assert!(vectors == 2 || found[16] == 0.5, "the second vector was not asked for");
        }
    }

    /// The instructions are what they are modelled as, where the CPU has them.
    #[test]
    fn the_processors_tiles_are_like_the_model() {
        if cpu_isa() < Isa::Amx {
            return println!("skipped: this CPU has no tiles");
        }
        // sums of magnitudes: what the order of additions inside an instruction, which is the CPU's own, may move
        let magnitudes = |words: &[f32]| -> Vec<f32> {
            words.iter().map(|word| f32::from_bits(word.to_bits() & 0x7fff_7fff)).collect()
        };
        for (seed, extreme) in (0..40).map(|seed| (seed, seed % 2 == 1)) {
            let (panel, block) = (words(32 * 48, seed, extreme), words(48 * 32, seed + 100, extreme));
            for (depth, vectors) in [(16, 1), (32, 2), (48, 2)] {
                let found = products::<Hardware>(&panel, &block, depth, vectors);
                let expected = products::<Modelled>(&panel, &block, depth, vectors);
                let sizes = products::<Modelled>(&magnitudes(&panel), &magnitudes(&block), depth, vectors);
                for (i, ((found, expected), size)) in found.iter().zip(&expected).zip(&sizes).enumerate() {
                    // where magnitudes overflow, so may the sums, or not, as they are ordered
                    let near = !size.is_finite() || (found - expected).abs() <= 1e-5 * size;
                    assert!(near, "{seed} {depth} at {i}: {found} {expected}");
                }
            }
        }
    }

    /// What a thread has told its tiles to do.
    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    pub(in crate::cpu) struct Counts {
        pub(in crate::cpu) dots: usize,
        pub(in crate::cpu) loads: usize,
        pub(in crate::cpu) stores: usize,
        pub(in crate::cpu) zeros: usize,
    }

    thread_local! {
        static COUNTS: std::cell::Cell<Counts> = const { std::cell::Cell::new(Counts { dots: 0, loads: 0, stores: 0, zeros: 0 }) };
    }

    fn count(change: impl FnOnce(&mut Counts)) {
        let mut counts = COUNTS.get();
        change(&mut counts);
        COUNTS.set(counts);
    }

    /// What this thread has counted since its tiles were configured.
    pub(in crate::cpu) fn counts() -> Counts {
        COUNTS.get()
    }

    /// Tiles that count.
    pub(in crate::cpu) struct Counted;

    impl Tiles for Counted {
        unsafe fn configure() {
            COUNTS.set(Counts::default());
        }
        unsafe fn release() {}
        unsafe fn zero<const C: u8>() {
            count(|counts| counts.zeros += 1);
        }
        unsafe fn load<const I: u8>(_at: *const f32, _row: usize) {
            count(|counts| counts.loads += 1);
        }
        unsafe fn load_once<const I: u8>(_at: *const f32, _row: usize) {
            count(|counts| counts.loads += 1);
        }
        unsafe fn store<const C: u8>(_at: *mut f32, _row: usize) {
            count(|counts| counts.stores += 1);
        }
        unsafe fn dot<const C: u8, const A: u8, const B: u8>() {
            count(|counts| counts.dots += 1);
        }
    }

    /// The tile instructions of 256 rows of a product with 512 tokens, as docs/performance.md has them: one load for each
    /// multiplication, and sums that are loaded and stored once for 512 columns.
    #[test]
    fn tile_instructions_of_a_product_are_counted() {
        use crate::cpu::buffer::Buffer;
        use crate::cpu::gemm::panel::{self, Scratch, TOKENS, Work};
        use crate::cpu::output::Output;
        use crate::cpu::product::Product;
        use crate::cpu::shape::Shape;

        if cpu_isa() < Isa::Avx512Bf16 {
            return println!("skipped: this CPU cannot pack pairs");
        }
        for (format, cols) in [(Format::Bf16, 2048), (Format::Q8_0, 2048), (Format::Q4K, 2048), (Format::Bf16, 1152)] {
            let (tokens, rows) = (TOKENS, 256);
            let row_bytes = format.row_bytes(cols).unwrap();
            let weight = vec![0u8; rows * row_bytes];
            let packed = [Buffer::<f32>::zeroed(tokens * cols / 2)];
            let mut out = vec![0f32; tokens * rows];
            let shape = Shape { format, tokens, rows, cols, row_bytes };
            let product = Product { weight: &weight, shape, out: Output(out.as_mut_ptr()) };
            let work = Work { packed: &packed, product };
            // SAFETY: the CPU has what packs and decodes, and the tiles need nothing.
            unsafe { panel::stretch::<Tiled<Counted>>(&work, 0..rows, &mut Scratch::new()) };
            let (tiles, blocks) = (tokens / SIDE * rows / SIDE, cols.div_ceil(512));
            let dots = tiles * cols / 32;
            let expected = Counts { dots, loads: dots + tiles * (blocks - 1), stores: tiles * blocks, zeros: tiles };
            assert_eq!(counts(), expected, "{format} {cols}");
        }
    }
}
