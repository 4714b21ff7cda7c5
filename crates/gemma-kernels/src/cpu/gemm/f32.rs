//! Products of many tokens in f32.

use crate::Format;
use crate::cpu::dequantize::decode;
use crate::cpu::gemm::panel::{Scratch, Work, pack, stretch, with_scratch};
use crate::cpu::gemm::tile::{self, Ahead, Left, Right, Sums};
use crate::cpu::gemm::unit::{Across, Unit};
use crate::cpu::isa::{Isa, Lanes, with_isa};
use crate::cpu::product::{Product, joint};
use crate::cpu::shape::Shape;
use std::marker::PhantomData;
use std::ops::Range;

/// Words that are values.
pub(in crate::cpu) struct Values<L>(PhantomData<L>);

impl<L: Lanes> Unit for Values<L> {
    type Lanes = L;
    const EACH: usize = 1;
    const PANEL: usize = 12;
    const STEP: usize = 1;

    #[inline(always)]
    unsafe fn decode(format: Format, bytes: &[u8], words: &mut [f32]) {
        // SAFETY: as required of the caller.
        unsafe { decode::<L>(format, bytes, words) };
    }

    #[inline(always)]
    unsafe fn multiply(panel: Left, rows: usize, block: Right, depth: usize, vectors: usize, sums: Sums, ahead: Ahead) {
        // SAFETY: as required of the caller.
        unsafe { tile::multiply::<L>(panel, rows, block, depth, vectors, sums, ahead) };
    }
}

impl<L: Lanes> Across for Values<L> {
    #[inline(always)]
    unsafe fn decode_across(format: Format, row: &[u8], _next: Option<&[u8]>, words: &mut [f32]) {
        // SAFETY: as required of the caller.
        unsafe { decode::<L>(format, row, words) };
    }
}

/// Products of `x` with matrices; see [`linear`](crate::cpu::linear()).
pub(in crate::cpu) fn multiply(isa: Isa, x: &[f32], products: &[Product<'_>]) {
    #[inline(always)]
    unsafe fn kernel<L: Lanes>(work: &Work<'_>, range: Range<usize>, scratch: &mut Scratch) {
        // SAFETY: the lanes' instructions are available where this is expanded.
        unsafe { stretch::<Values<L>>(work, range, scratch) };
    }
    let Shape { tokens, cols, .. } = joint(products);
    let packed =
        [pack(isa, tokens, cols, 1, |tokens, columns, _| (x[tokens.start * cols + columns.start..].as_ptr(), cols))];
    with_scratch(products, 12, |product, range, scratch| {
        let work = &Work { packed: &packed, product };
        with_isa!(isa, kernel(work: &Work<'_>, range: Range<usize>, scratch: &mut Scratch));
    });
}
