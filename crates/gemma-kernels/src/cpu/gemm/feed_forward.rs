//! The products of a feed-forward layer in bf16, in one call: the activations are packed once for the gate and its partner, and
//! what GELU makes of their sums is written as packed activations of the last product while the sums are in a cache. So
//! `[tokens, intermediate_size]` values are neither written nor read in f32; the bits are those of the operations one by one.

use crate::cpu::bf16::{interleave, of_word};
use crate::cpu::buffer::Buffer;
use crate::cpu::gemm::amx;
use crate::cpu::gemm::bf16::{Vectors, multiply_packed, pack, with_unit_of};
use crate::cpu::gemm::panel::{self, Scratch, in_panels};
use crate::cpu::gemm::scaled::{self, Scaled};
use crate::cpu::gemm::tile::block_width;
use crate::cpu::gemm::unit::Unit;
use crate::cpu::isa::{Isa, Pairs};
use crate::cpu::output::Output;
use crate::cpu::pool;
use crate::cpu::product::Product;
use crate::cpu::shape::Shape;
use crate::math;
use std::ops::Range;

/// The most panels of each matrix that a task multiplies: the sums of both stay in the L2 cache.
const TASK_PANELS: usize = 4;
/// Tokens of a packed block.
const WIDTH: usize = block_width::<Pairs>();

/// A matrix before GELU: its packed rows, and the bias of its products.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Before<'a> {
    pub(in crate::cpu) weight: &'a [u8],
    pub(in crate::cpu) bias: Option<&'a [f32]>,
}

/// What comes before the last product.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Layer<'a> {
    pub(in crate::cpu) gate: Before<'a>,
    /// What GELU's results are multiplied by, where the layer is gated; in the gate's format.
    pub(in crate::cpu) up: Option<Before<'a>>,
    /// The sizes of the gate's product, and of its partner's.
    pub(in crate::cpu) shape: Shape,
}

/// How activations are packed for a unit: what [`pack`] makes of them.
#[derive(Clone, Copy)]
struct Layout {
    /// Rows of a block of [`WIDTH`] tokens.
    rows: usize,
    /// So many words are followed by the sum of their values.
    part: Option<usize>,
}

/// The layout of so many words of a token.
fn layout<U: Unit>(words: usize) -> Layout {
    let sums = U::right(words) - words;
    Layout { rows: U::right(words.next_multiple_of(U::STEP)), part: (sums > 0).then(|| words / sums) }
}

impl Layout {
    /// The row of a word in its block.
    fn row(self, word: usize) -> usize {
        word + self.part.map_or(0, |part| word / part)
    }
}

/// `down` of `gelu(x Gᵀ + b) · (x Uᵀ + c)`, or of `gelu(x Gᵀ + b)` where there is no partner `U`; at
/// [`Isa::Avx512Bf16`] and above. `down` has as many columns as `G` has rows, an even number.
pub(in crate::cpu) fn multiply(isa: Isa, x: &[f32], layer: Layer<'_>, down: Product<'_>) {
    let shape = layer.shape;
    assert!(isa >= Isa::Avx512Bf16 && shape.cols.is_multiple_of(2), "pairs");
    assert!(down.shape.cols == shape.rows && shape.rows.is_multiple_of(2), "a column for each sum");
    // SAFETY: the ISA says that the CPU has the instructions.
    unsafe { with_unit_of!(isa, shape.format, multiply_with(isa, x, layer, down)) };
}

/// # Safety
/// The CPU must have the unit's instructions, and those of the unit of the last product.
unsafe fn multiply_with<U: Unit>(isa: Isa, x: &[f32], layer: Layer<'_>, down: Product<'_>) {
    let (words, format) = (layer.shape.rows / 2, down.shape.format);
    let layout = with_unit_of!(isa, format, layout(words));
    // SAFETY: as required of the caller.
    unsafe {
        let packed = [activations::<U>(&pack::<U>(isa, x, layer.shape), layer, layout)];
        with_unit_of!(isa, format, multiply_packed(&packed, &[down]));
    }
}

/// What GELU makes of the first products, packed for the last one.
///
/// # Safety
/// As [`multiply_with`]; `x` is packed for the unit.
unsafe fn activations<U: Unit>(x: &Buffer<f32>, layer: Layer<'_>, layout: Layout) -> Buffer<f32> {
    /// # Safety
    /// As [`each_word`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    unsafe fn task<U: Unit>(work: &Work<'_>, range: Range<usize>, scratch: &mut Scratch) {
        // SAFETY: as required of the caller.
        unsafe { each_word::<U>(work, range, scratch) };
    }
    let shape = layer.shape;
    let mut packed = Buffer::<f32>::zeroed(shape.tokens.div_ceil(WIDTH) * WIDTH * layout.rows);
    let out = Output(packed.as_mut_ptr());
    let work = Work { x: std::slice::from_ref(x), layer, layout, out };
    let product = Product { weight: layer.gate.weight, shape, out };
    in_panels(&[product], (U::PANEL, TASK_PANELS), |_, range| {
        // SAFETY: as required of the caller; each task has rows of its own.
        panel::with_own_scratch(|scratch| unsafe { task::<U>(&work, range, scratch) });
    });
    if let Some(part) = layout.part {
        pool::for_each(shape.tokens.div_ceil(WIDTH), |block| {
            // SAFETY: the block is there, and this task's.
            let block =
                unsafe { std::slice::from_raw_parts_mut(out.at(block * WIDTH * layout.rows), WIDTH * layout.rows) };
            for part in block.chunks_exact_mut((part + 1) * WIDTH) {
                add_up(part);
            }
        });
    }
    packed
}

/// Puts the sums of words' values into the last row, token by token.
fn add_up(part: &mut [f32]) {
    let (words, sums) = part.split_at_mut(part.len() - WIDTH);
    sums.fill(0.0);
    for words in words.chunks_exact(WIDTH) {
        for (sum, word) in sums.iter_mut().zip(words) {
            let [first, second] = of_word(*word);
            *sum += first + second;
        }
    }
}

/// The products before GELU, and where the words go.
struct Work<'a> {
    x: &'a [Buffer<f32>],
    layer: Layer<'a>,
    layout: Layout,
    out: Output,
}

/// The words of the rows `range`.
///
/// # Safety
/// As [`multiply_with`], and the rows, an even number of them from an even one on, are the calling task's.
#[inline(always)]
unsafe fn each_word<U: Unit>(work: &Work<'_>, range: Range<usize>, scratch: &mut Scratch) {
    let Work { x, layer: Layer { gate, up, shape }, layout, out } = *work;
    let begin = |weight: &[u8], row: usize| weight.as_ptr().wrapping_add(row * shape.row_bytes);
    let write = |gate_sums: *mut f32, up_sums: Option<*const f32>, row: usize, tokens: Range<usize>| {
        let len = tokens.len().next_multiple_of(16);
        for first in (0..range.len()).step_by(2) {
            let mut rows = [std::ptr::null(); 2];
            for (i, at) in rows.iter_mut().enumerate() {
                let (local, number) = ((first + i) * row, range.start + first + i);
                // SAFETY: the sums have these rows, as long as whole vectors.
                unsafe {
                    let values = std::slice::from_raw_parts_mut(gate_sums.add(local), len);
                    let partners = up_sums.map(|sums| std::slice::from_raw_parts(sums.add(local), len));
                    let bias = |of: Option<&[f32]>| of.map(|bias| bias[number]);
                    activate(values, bias(gate.bias), partners, up.and_then(|up| bias(up.bias)));
                    *at = values.as_ptr();
                }
            }
            let at = layout.row((range.start + first) / 2) * WIDTH;
            for token in (0..len).step_by(WIDTH) {
                // SAFETY: the block has the row, which is this task's.
                unsafe {
                    let to = out.at((tokens.start + token) * layout.rows + at);
                    interleave(rows[0].add(token), rows[1].add(token), WIDTH.min(len - token), to);
                }
            }
        }
    };
    // SAFETY: as required of the caller.
    unsafe {
        match up {
            None => {
                let weights = [(gate.weight, begin(gate.weight, range.end))];
                panel::each_sums::<U, 1>(x, shape, weights, range.clone(), scratch, |[gate], row, tokens| {
                    write(gate, None, row, tokens);
                });
            }
            Some(up) => {
                let weights =
                    [(gate.weight, begin(up.weight, range.start)), (up.weight, begin(gate.weight, range.end))];
                panel::each_sums::<U, 2>(x, shape, weights, range.clone(), scratch, |[gate, up], row, tokens| {
                    write(gate, Some(up), row, tokens);
                });
            }
        }
    }
}

/// `gelu(value + bias) · (partner + its bias)` in place of each value. Nothing is added where there is no bias: a sum with zero
/// could have another sign.
#[inline(always)]
fn activate(values: &mut [f32], bias: Option<f32>, partners: Option<&[f32]>, partners_bias: Option<f32>) {
    if let Some(bias) = bias {
        values.iter_mut().for_each(|value| *value += bias);
    }
    match (partners, partners_bias) {
        (None, _) => values.iter_mut().for_each(|value| *value = math::gelu(*value)),
        (Some(partners), None) => {
            values.iter_mut().zip(partners).for_each(|(value, partner)| *value = math::gelu(*value) * partner);
        }
        (Some(partners), Some(bias)) => {
            values.iter_mut().zip(partners).for_each(|(value, partner)| *value = math::gelu(*value) * (partner + bias));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;
    use crate::cpu::gemm::bf16::{self, Terms};
    use crate::cpu::{encoded, noise};

    type ModelledTiles = amx::Tiled<amx::tests::Modelled>;

    /// In Intel's tiles, modelled where the CPU has none, a layer has the bits of its products one by one as well; those of the CPU's own units
    /// are compared in [`linear`](crate::cpu::linear).
    #[test]
    fn a_layer_in_modelled_tiles_is_its_products_one_by_one() {
        let formats = [(Format::Bf16, Format::Bf16), (Format::Q8_0, Format::Q4K), (Format::Q4_0, Format::Q8_0)];
        let sizes = [(9, 64, 256, 10), (33, 96, 512, 40), (70, 32, 768, 33), (530, 32, 256, 5)];
        let layers = formats.into_iter().flat_map(|formats| sizes.map(|sizes| (formats, sizes)));
        for (isa, ((format, last), (tokens, cols, size, rows))) in Isa::available()
            .into_iter()
            .filter(|isa| *isa >= Isa::Avx512Bf16)
            .flat_map(|isa| layers.clone().map(move |layer| (isa, layer)))
        {
            let shape_of = |format: Format, rows, cols| Shape {
                format,
                tokens,
                rows,
                cols,
                row_bytes: format.row_bytes(cols).unwrap(),
            };
            let (before, after) = (shape_of(format, size, cols), shape_of(last, rows, size));
            let gates = encoded(format, size + 1, cols).0;
            let (gate, up) = (&gates[..size * before.row_bytes], &gates[before.row_bytes..]);
            let (down, _) = encoded(last, rows, size);
            let (x, biases) = (noise(tokens * cols, 2), [noise(size, 3), noise(size, 4)]);
            let product = |x: &[f32], weight: &[u8], shape: Shape| {
                let mut out = vec![f32::NAN; tokens * shape.rows];
                let product = Product { weight, shape, out: Output(out.as_mut_ptr()) };
                // SAFETY: the ISA says that the CPU has what packs and decodes, and the tiles need nothing.
                unsafe { bf16::multiply_with::<ModelledTiles>(isa, Terms::One, x, &[product]) };
                out
            };
            let biased = |weight: &[u8], bias: &[f32]| -> Vec<f32> {
                product(&x, weight, before).iter().zip(bias.iter().cycle()).map(|(y, bias)| y + bias).collect()
            };
            for is_gated in [false, true] {
                let mut hidden = biased(gate, &biases[0]);
                hidden.iter_mut().for_each(|value| *value = math::gelu(*value));
                if is_gated {
                    hidden.iter_mut().zip(biased(up, &biases[1])).for_each(|(value, partner)| *value *= partner);
                }
                let expected = product(&hidden, &down, after);
                let [gate, up] =
                    [(gate, &biases[0]), (up, &biases[1])].map(|(weight, bias)| Before { weight, bias: Some(bias) });
                let layer = Layer { gate, up: is_gated.then_some(up), shape: before };
                let mut found = vec![f32::NAN; tokens * rows];
                let down = Product { weight: &down, shape: after, out: Output(found.as_mut_ptr()) };
                // SAFETY: as above.
                unsafe {
                    let layout = layout::<ModelledTiles>(size / 2);
                    let x = pack::<ModelledTiles>(isa, &x, before);
                    multiply_packed::<ModelledTiles>(&[activations::<ModelledTiles>(&x, layer, layout)], &[down]);
                }
                assert!(found == expected, "{isa} {format} {last} {tokens} {cols} {size} {is_gated}");
            }
        }
    }
}
