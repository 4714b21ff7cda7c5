//! `y = x Wᵀ` with packed `W`: `x` `[tokens, cols]`, `W` `[rows, cols]`, `y` `[tokens, rows]`.
//!
//! Reading the weight is the cost while there are few tokens, multiplying is the cost when there are many, so
//! there are two kernels. In [`vector`] several units share one row of the weight, reading it side by side, and use
//! each decoded value for up to four tokens. In [`tile`] a cube decodes a tile of the weight once and multiplies it
//! with a tile of tokens, both in shared memory. Both load 128 bits at a time where the shapes allow it, and neither
//! lets a sum depend on how it loads.

mod tile;
mod vector;

use super::dequantize::is_wide;
use super::{floats, is_empty, output, packed};
use crate::ops::linear::{Arithmetic, LayerShape, LinearsShape};
use crate::{Format, Phase};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Values or words of a load of 128 bits.
const QUAD: usize = 4;

/// The activations and the weight of a product, as the kernels read them.
struct Operands {
    /// `[tokens, cols]`, row-major.
    x: CubeTensor,
    /// `[rows, row_words]`, row-major.
    words: CubeTensor,
    /// `[rows]`, where it is added.
    bias: Option<CubeTensor>,
    format: Format,
    tokens: usize,
    rows: usize,
    row_words: usize,
    cols: usize,
}

impl Operands {
    /// Whether the weight is read 128 bits at a time.
    fn is_wide(&self) -> bool {
        is_wide(self.format, self.cols)
    }

    /// Values that one load of activations takes.
    fn x_load(&self) -> usize {
        if self.cols.is_multiple_of(QUAD) { QUAD } else { 1 }
    }

    /// Words that one load of the weight takes.
    fn word_load(&self) -> usize {
        if self.is_wide() { QUAD } else { 1 }
    }

    /// The bias, and whether there is one; without it something else that is not read.
    fn bias(&self) -> (CubeTensor, bool) {
        (self.bias.clone().unwrap_or_else(|| self.x.clone()), self.bias.is_some())
    }

    fn with_bias(self, bias: Option<CubeTensor>) -> Self {
        let bias = bias.map(floats);
        assert!(bias.iter().all(|bias| bias.meta.shape().dims::<1>() == [self.rows]), "a bias for every row");
        Self { bias, ..self }
    }
}

/// `x` times the transpose of the packed matrix in `words`, plus the bias `[rows]` where there is one, `[tokens, cols]` to
/// `[tokens, rows]`.
///
/// `words` is `[rows, row_words]` with each row of the format padded to a whole word.
///
/// # Panics
/// When shapes or types contradict each other.
pub(crate) fn packed_linear(
    x: CubeTensor,
    words: CubeTensor,
    bias: Option<CubeTensor>,
    format: Format,
    cols: usize,
    arithmetic: Arithmetic,
) -> CubeTensor {
    let operands = operands(x, words, format, cols).with_bias(bias);
    let y = output(&operands.x, [operands.tokens, operands.rows]);
    if is_empty(&y) {
        return y;
    }
    // in either kernel, a sum does not depend on the other tokens; f32, kept for exactness, is always multiplied in tiles
    let few = arithmetic.phase == Phase::Decode || !arithmetic.batch_invariant;
    if few && operands.tokens <= vector::FEW_TOKENS && format != Format::F32 {
        let plane = vector::plane_size(&operands.x);
        vector::launch(operands, &y, plane);
    } else {
        let depth = tile::depth(&operands);
        tile::launch(operands, &y, depth);
    }
    y
}

/// [`packed_linear`] of up to [`FEW_TOKENS`](vector::FEW_TOKENS) tokens with two or three matrices of one format, in one launch; what a
/// third would give has no columns where there are two.
///
/// # Panics
/// When shapes, types or formats contradict each other.
pub(crate) fn packed_linears(
    x: CubeTensor,
    words: [CubeTensor; 3],
    of_rows: [CubeTensor; 3],
    shape: LinearsShape,
) -> [CubeTensor; 3] {
    let LinearsShape { formats, biases, cols, arithmetic } = shape;
    assert!(formats.iter().flatten().all(|format| Some(*format) == formats[0]), "matrices of one format");
    let x = floats(x);
    let mut of_rows = of_rows.into_iter().zip(biases).map(|(bias, is_biased)| is_biased.then_some(bias));
    let biases: [Option<CubeTensor>; 3] = std::array::from_fn(|_| of_rows.next().flatten());
    if x.client.properties().hardware.max_bindings < vector::SEVERAL_BUFFERS {
        let mut each = formats.into_iter().zip(biases);
        return words.map(|words| match each.next() {
            Some((Some(format), bias)) => packed_linear(x.clone(), words, bias, format, cols, arithmetic),
            _ => output(&x, [x.meta.shape().dims::<2>()[0], 0]),
        });
    }
    let several = words.into_iter().zip(formats).zip(biases);
    let several =
        several.map_while(|((words, format), bias)| Some(operands(x.clone(), words, format?, cols).with_bias(bias)));
    let several: Vec<Operands> = several.collect();
    let rows = |i: usize| several.get(i).map_or(0, |operands| operands.rows);
    let tokens = x.meta.shape().dims::<2>()[0];
    let y = [0, 1, 2].map(|i| output(&x, [tokens, rows(i)]));
    if tokens > 0 {
        let plane = vector::plane_size(&x);
        vector::launch_several(&x, several.into_iter().zip(&y).collect(), plane);
    }
    y
}

/// A [`feed_forward`](crate::feed_forward) layer of up to [`FEW_TOKENS`](vector::FEW_TOKENS) tokens in two launches: its first two matrices,
/// which have one format, with GELU, and its last.
///
/// # Panics
/// When shapes, types or formats contradict each other.
pub(crate) fn feed_forward(
    x: CubeTensor,
    [gate, up, down]: [CubeTensor; 3],
    [gate_bias, up_bias, down_bias]: [CubeTensor; 3],
    layer: LayerShape,
) -> CubeTensor {
    let LayerShape { formats: (first, partner, last), biases, cols, arithmetic } = layer;
    assert_eq!(partner, Some(first), "matrices of one format");
    let operands = operands(x, gate, first, cols);
    let (up, shape) = packed(up, first, cols);
    assert_eq!(shape, [operands.rows, operands.row_words], "a partner for every row");
    let hidden = output(&operands.x, [operands.tokens, operands.rows]);
    let rows = operands.rows;
    let operands = operands.with_bias(biases[0].then_some(gate_bias));
    let up_bias = biases[1].then(|| floats(up_bias));
    assert!(up_bias.iter().all(|bias| bias.meta.shape().dims::<1>() == [rows]), "a bias for every row");
    if !is_empty(&hidden) {
        let plane = vector::plane_size(&operands.x);
        vector::launch_gated(operands, (up, up_bias), &hidden, plane);
    }
    packed_linear(hidden, down, biases[2].then_some(down_bias), last, rows, arithmetic)
}

fn operands(x: CubeTensor, words: CubeTensor, format: Format, cols: usize) -> Operands {
    let (x, (words, [rows, row_words])) = (floats(x), packed(words, format, cols));
    let [tokens, width] = x.meta.shape().dims::<2>();
    assert_eq!(width, cols, "the activations have the width of the weight's rows");
    Operands { x, words, bias: None, format, tokens, rows, row_words, cols }
}

/// Four neighbouring activations, the first of them in column `at` of the row that begins at value `row`; columns from
/// `cols` on give zero unless the row consists of whole groups.
#[cube]
fn quad<N: Size>(
    x: &[Vector<f32, N>],
    row: usize,
    at: usize,
    cols: usize,
    #[comptime] load: usize,
    #[comptime] whole: bool,
) -> Vector<f32, Const<4>> {
    let mut quad = Vector::<f32, Const<4>>::new(0.0f32);
    if comptime!(load == QUAD) {
        if whole || at < cols {
            quad = Vector::<f32, Const<4>>::cast_from(x[(row + at) / QUAD]);
        }
    } else {
        #[unroll]
        for i in 0..QUAD {
            if whole || at + i < cols {
                quad.insert(i, x[row + at + i].extract(0usize));
            }
        }
    }
    quad
}

#[cfg(test)]
mod tests;
