//! Products with a packed matrix, and look-ups of its rows.
//!
//! Two ways to multiply. With few tokens the time is that of reading the weights once, so each row is streamed from
//! memory ([`gemv`](super::gemv)). With many tokens arithmetic dominates: blocks of rows are decoded and multiplied in
//! register tiles ([`gemm`](super::gemm)).
//!
//! How finely a row is represented follows from its [`Phase`] alone. Which of the kernels of that precision computes it
//! may depend on how many rows there are, and they add in different orders, so that a row's last bits can depend on
//! its company; unless the product is to be batch-invariant: then the phase chooses the kernel, too. Weights in f32, which
//! somebody keeps for exactness and not for speed, are always multiplied in tiles, where every sum runs over the columns
//! in order.

#[cfg(target_arch = "x86_64")]
use crate::cpu::buffer::Buffer;
use crate::cpu::elementwise::{biased, geglu, gelu_of_biased};
#[cfg(target_arch = "x86_64")]
use crate::cpu::gemm::bf16::Terms;
use crate::cpu::gemm::f32 as gemm_f32;
use crate::cpu::gemv::prefetch::with_prefetch;
use crate::cpu::gemv::{float as gemv_float, int8 as gemv_int8};
use crate::cpu::isa::Isa;
use crate::cpu::output::Output;
use crate::cpu::product::{Product, in_stretches, joint};
use crate::cpu::shape::Shape;
use crate::cpu::written;
use crate::ops::linear::Arithmetic;
use crate::{ActivationPrecision, Format, Phase};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Up to this many tokens, rows are streamed; above, blocks of rows are decoded first.
const STREAMED_TOKENS: usize = 8;
/// The same where bytes are multiplied in pairs: a row is widened for each token, and in tiles for eight at once.
#[cfg(target_arch = "x86_64")]
const STREAMED_TOKENS_OF_PAIRS: usize = 4;
/// The same for rows of bf16 and f16, of which several are multiplied at once.
const STREAMED_TOKENS_OF_HALVES: usize = 16;
/// Bytes of weights that a thread streams before it looks for work again.
const STREAM_BYTES: usize = 1 << 18;

/// `out[t, r] = Σ_c x[t, c] w[r, c]` with `x` `[tokens, cols]` and `w` `[rows, cols]` in `format`, summed in f32. Every value of `out` is written.
///
/// # Panics
/// When a slice does not have the size of its shape.
pub(crate) fn linear(
    isa: Isa,
    arithmetic: Arithmetic,
    x: &[f32],
    weight: &[u8],
    format: Format,
    cols: usize,
    out: &mut [MaybeUninit<f32>],
) {
    let shape = shape(x.len() / cols, Matrix { weight, format }, cols);
    assert_eq!(x.len(), shape.tokens * cols, "activations");
    assert_eq!(out.len(), shape.tokens * shape.rows, "outputs");
    if !out.is_empty() {
        products(isa, arithmetic, x, &[Product { weight, shape, out: Output(out.as_mut_ptr().cast()) }]);
    }
}

/// The products that [`linear`] gives with each of several matrices, bit for bit. For those of one format that stand side by side, `x` is
/// packed or quantized once, and their rows are one parallel region.
///
/// # Panics
/// When a slice does not have the size of its shape.
pub(crate) fn linears(
    isa: Isa,
    arithmetic: Arithmetic,
    x: &[f32],
    cols: usize,
    matrices: &[Matrix<'_>],
) -> Vec<Vec<f32>> {
    let tokens = x.len() / cols;
    assert_eq!(x.len(), tokens * cols, "activations");
    let shapes = || matrices.iter().map(|matrix| shape(tokens, *matrix, cols));
    let mut values: Vec<Vec<f32>> = shapes().map(|shape| Vec::with_capacity(tokens * shape.rows)).collect();
    let all = matrices.iter().zip(shapes()).zip(&mut values);
    let all =
        all.map(|((Matrix { weight, .. }, shape), values)| Product { weight, shape, out: Output(values.as_mut_ptr()) });
    let all: Vec<Product<'_>> = all.filter(|product| tokens * product.shape.rows > 0).collect();
    for alike in all.chunk_by(|a, b| a.shape.format == b.shape.format) {
        products(isa, arithmetic, x, alike);
    }
    for (values, shape) in values.iter_mut().zip(shapes()) {
        // SAFETY: there is room for as many, and a product writes every value.
        unsafe { values.set_len(tokens * shape.rows) };
    }
    values
}

/// Packed rows in a format.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) weight: &'a [u8],
    pub(crate) format: Format,
}

/// The sizes of a product of so many tokens with a matrix.
fn shape(tokens: usize, Matrix { weight, format }: Matrix<'_>, cols: usize) -> Shape {
    let row_bytes = format.row_bytes(cols).expect("a packed weight has whole blocks");
    let rows = weight.len() / row_bytes;
    assert_eq!(weight.len(), rows * row_bytes, "weights");
    Shape { format, tokens, rows, cols, row_bytes }
}

/// The products of `x` with several matrices of one format: the activations are packed or quantized once.
fn products(isa: Isa, arithmetic: Arithmetic, x: &[f32], products: &[Product<'_>]) {
    let shape = joint(products);
    let activations = arithmetic.activations;
    match kernel(isa, arithmetic, shape) {
        Kernel::GemmF32 => gemm_f32::multiply(isa, x, products),
        #[cfg(target_arch = "x86_64")]
        Kernel::GemmBf16(terms) => crate::cpu::gemm::bf16::multiply(isa, terms, x, products),
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        Kernel::GemmInt8 => {
            let finely = activations == ActivationPrecision::Int16OrBf16;
            crate::cpu::gemm::int8::multiply(isa, x, products, finely);
        }
        Kernel::GemvF32 => gemv_f32(isa, arithmetic, x, products),
        #[cfg(target_arch = "x86_64")]
        Kernel::GemvBf16 => {
            let mut words = Buffer::<f32>::zeroed(x.len() / 2);
            // SAFETY: the ISA says that the CPU has the instructions.
            unsafe { crate::cpu::bf16::pair(x, &mut words) };
            if shape.tokens > STREAMED_TOKENS && !arithmetic.batch_invariant {
                streams(products, |Product { weight, shape, out }, range| {
                    gemv_float::multiply_pairs(&words, weight, shape, range, out);
                });
            } else {
                // few rows wait for the memory, and the kernel of f32 streams best
                let rounded: Vec<f32> = words.iter().copied().flat_map(crate::cpu::bf16::of_word).collect();
                gemv_f32(isa, arithmetic, &rounded, products);
            }
        }
        Kernel::GemvInt => {
            let x = gemv_int8::prepare(isa, x, shape, activations);
            with_prefetch(shape, || {
                streams(products, |Product { weight, shape, out }, range| {
                    gemv_int8::multiply(isa, &x, weight, shape, range, out);
                });
            });
        }
    }
}

/// Rows streamed, activations in f32.
fn gemv_f32(isa: Isa, arithmetic: Arithmetic, x: &[f32], products: &[Product<'_>]) {
    with_prefetch(joint(products), || {
        streams(products, |Product { weight, shape, out }, range| {
            gemv_float::multiply(isa, x, weight, shape, arithmetic.batch_invariant, range, out);
        });
    });
}

/// The feed-forward layer: `down` of `gelu(x Gᵀ + b) · (x Uᵀ + c)`, or of `gelu(x Gᵀ + b)` where there is no partner `U`.
#[derive(Clone, Copy)]
pub(crate) struct FeedForward<'a> {
    /// `G`, and `U` where there is one: `[intermediate_size, cols]`.
    pub(crate) gate: Matrix<'a>,
    pub(crate) up: Option<Matrix<'a>>,
    /// `b` and `c`, `[intermediate_size]`.
    pub(crate) biases: [Option<&'a [f32]>; 2],
    /// `[rows, intermediate_size]`.
    pub(crate) down: Matrix<'a>,
}

/// A [`FeedForward`] layer of `x` `[tokens, cols]`, every value of whose result `[tokens, rows]` is written. The bits are those of the
/// operations one by one.
///
/// # Panics
/// When a slice does not have the size of its shape.
pub(crate) fn feed_forward(
    isa: Isa,
    arithmetic: Arithmetic,
    x: &[f32],
    cols: usize,
    layer: FeedForward<'_>,
    out: &mut [MaybeUninit<f32>],
) {
    let FeedForward { gate, up, biases, down } = layer;
    let tokens = x.len() / cols;
    let before = shape(tokens, gate, cols);
    let after = shape(tokens, down, before.rows);
    assert_eq!(out.len(), tokens * after.rows, "outputs");
    assert!(up.is_none_or(|up| shape(tokens, up, cols).rows == before.rows), "a partner for each gate");
    assert!(biases.iter().flatten().all(|bias| bias.len() == before.rows), "a bias for each row");
    if out.is_empty() {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    {
        use crate::cpu::gemm::feed_forward::{Before, Layer, multiply};
        let in_pairs = [before, after].iter().all(|s| kernel(isa, arithmetic, *s) == Kernel::GemmBf16(Terms::One));
        if in_pairs && up.is_none_or(|up| up.format == gate.format) {
            let gate = Before { weight: gate.weight, bias: biases[0] };
            let up = up.map(|up| Before { weight: up.weight, bias: biases[1] });
            let out = Output(out.as_mut_ptr().cast());
            let down = Product { weight: down.weight, shape: after, out };
            return multiply(isa, x, Layer { gate, up, shape: before }, down);
        }
    }
    // SAFETY: what follows is a product or one pass, and those write every value.
    let of = |write: &dyn Fn(&mut [MaybeUninit<f32>])| unsafe { written(tokens * before.rows, write) };
    let hidden = match up {
        Some(up) => {
            let mut both = linears(isa, arithmetic, x, cols, &[gate, up]).into_iter().zip(biases);
            let mut next = || both.next().map(|(values, bias)| biased(isa, values, bias)).expect("two of them");
            let (gate, up) = (next(), next());
            of(&|out| geglu(isa, &gate, &up, out))
        }
        None => {
            let gate = of(&|out| linear(isa, arithmetic, x, gate.weight, gate.format, cols, out));
            let nothing = vec![0.0; before.rows];
            of(&|out| gelu_of_biased(isa, &gate, biases[0].unwrap_or(&nothing), out))
        }
    };
    linear(isa, arithmetic, &hidden, down.weight, down.format, before.rows, out);
}

/// The ways to multiply.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kernel {
    /// Rows streamed, activations in f32.
    GemvF32,
    /// Rows streamed, activations as integers of 8 or 16 bits.
    GemvInt,
    /// Rows streamed, activations in bf16.
    #[cfg(target_arch = "x86_64")]
    GemvBf16,
    /// Tiles of f32.
    GemmF32,
    /// Tiles of bf16.
    #[cfg(target_arch = "x86_64")]
    GemmBf16(Terms),
    /// Tiles of integers, 8 or 16 bits.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    GemmInt8,
}

fn kernel(isa: Isa, arithmetic: Arithmetic, shape: Shape) -> Kernel {
    let Arithmetic { activations, phase, batch_invariant } = arithmetic;
    let Shape { format, tokens, .. } = shape;
    let exact = activations == ActivationPrecision::F32;
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    let int8 = crate::cpu::gemm::int8::has(isa, format, activations);
    let streamed = match format {
        Format::F32 => 0,
        Format::Bf16 | Format::F16 => STREAMED_TOKENS_OF_HALVES,
        #[cfg(target_arch = "x86_64")]
        _ if int8 && matches!(isa, Isa::Avx2 | Isa::Avx512) => STREAMED_TOKENS_OF_PAIRS,
        _ => STREAMED_TOKENS,
    };
    if phase == Phase::Prefill && !exact {
        #[cfg(target_arch = "x86_64")]
        if shape.cols.is_multiple_of(2) && crate::cpu::gemm::bf16::pays(isa) && activations.round_prompts(format) {
            // prompts in 8 bits stay in 8 bits, but for tiles, which multiply bf16 faster than vectors multiply bytes
            let coarse = int8 && activations == ActivationPrecision::Int8 && isa < Isa::Amx;
            if !coarse {
                return Kernel::GemmBf16(Terms::One);
            }
        }
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if int8 {
            return Kernel::GemmInt8;
        }
    }
    #[cfg(target_arch = "x86_64")]
    if phase == Phase::Decode && activations == ActivationPrecision::Int8 && format == Format::Bf16 {
        let pairs = shape.cols.is_multiple_of(32) && crate::cpu::gemm::bf16::pays(isa);
        match tokens <= streamed || batch_invariant {
            _ if !pairs => {}
            true => return Kernel::GemvBf16,
            false => return Kernel::GemmBf16(Terms::One),
        }
    }
    #[cfg(target_arch = "x86_64")]
    if phase == Phase::Prefill
        && exact
        && shape.cols.is_multiple_of(2)
        && crate::cpu::gemm::bf16::pays_twice(isa, format)
    {
        return Kernel::GemmBf16(Terms::Two);
    }
    let few = if batch_invariant { phase == Phase::Decode && streamed > 0 } else { tokens <= streamed };
    if few {
        // a prompt of these formats is multiplied in f32
        let integers = phase == Phase::Decode && !exact && gemv_int8::has(isa, format);
        return if integers { Kernel::GemvInt } else { Kernel::GemvF32 };
    }
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if int8 {
        return Kernel::GemmInt8;
    }
    Kernel::GemmF32
}

/// Calls `multiply` with all rows, in stretches that threads stream.
fn streams<'a>(products: &[Product<'a>], multiply: impl Fn(Product<'a>, Range<usize>) + Sync) {
    let shape = joint(products);
    let stretch = STREAM_BYTES.div_ceil(shape.row_bytes).next_multiple_of(gemv_float::together(shape));
    in_stretches(products, stretch, multiply);
}

/// The rows `ids` of a packed matrix as f32, `[ids, cols]`.
///
/// # Panics
/// When an id is not a row of the matrix, or `out` does not have the size of the result.
pub(crate) fn rows(
    weight: &[u8],
    ids: impl ExactSizeIterator<Item = usize>,
    format: Format,
    cols: usize,
    out: &mut [f32],
) {
    let row_bytes = format.row_bytes(cols).expect("a packed weight has whole blocks");
    assert_eq!(out.len(), ids.len() * cols, "outputs");
    for (id, values) in ids.zip(out.chunks_exact_mut(cols)) {
        format.decode_row(&weight[id * row_bytes..(id + 1) * row_bytes], values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{all_formats, encoded, noise, places, quantize};

    fn product(
        isa: Isa,
        activations: ActivationPrecision,
        x: &[f32],
        weight: &[u8],
        format: Format,
        cols: usize,
    ) -> Vec<f32> {
        let rows = weight.len() / format.row_bytes(cols).unwrap();
        let mut out = vec![f32::NAN; x.len() / cols * rows];
        let phase = Phase::of_len(x.len() / cols);
        let arithmetic = Arithmetic { activations, phase, batch_invariant: false };
        linear(isa, arithmetic, x, weight, format, cols, places(&mut out));
        out
    }

    /// In f64, over the decoded weights.
    fn loops(x: &[f32], decoded: &[f32], cols: usize) -> Vec<f64> {
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        x.chunks(cols).flat_map(|x| decoded.chunks(cols).map(move |w| dot(x, w))).collect()
    }

    const SHAPES: [(usize, usize); 10] =
        [(1, 32), (7, 96), (33, 160), (70, 2080), (5, 1), (3, 17), (40, 67), (131, 288), (12, 512), (7, 768)];

    /// Every instruction set, format and path against an f64 loop over the decoded weights.
    #[test]
    fn products_equal_a_plain_loop() {
        for format in Format::ALL {
            for (rows, cols) in SHAPES.into_iter().filter(|(_, cols)| format.row_bytes(*cols).is_some()) {
                let (weight, decoded) = encoded(format, rows, cols);
                for tokens in [1, 2, 3, 6, 7, 8, 9, 13, 16, 17, 33, 40] {
                    let x = noise(tokens * cols, 2);
                    let exact = loops(&x, &decoded, cols);
                    for isa in Isa::available() {
                        let found = product(isa, ActivationPrecision::F32, &x, &weight, format, cols);
                        // what two bf16 leave of an activation
                        let left = if isa >= Isa::Amx && format == Format::Bf16 { 2e-6 } else { 0.0 };
                        for (i, (found, exact)) in found.iter().zip(&exact).enumerate() {
                            let error = (f64::from(*found) - exact).abs();
                            assert!(
                                error < (2e-6 + left) * (cols as f64).sqrt() + 1e-5,
                                "{isa:?} {format} {tokens}x{cols}x{rows} at {i}: {error}"
                            );
                        }
                    }
                }
            }
        }
    }

    /// Products with several matrices at once have the bits of each alone: formats that are alike and not, matrices without
    /// rows, no tokens.
    #[test]
    fn several_matrices_are_multiplied_as_each_alone() {
        let formats = [Format::F32, Format::Bf16, Format::F16, Format::Q8_0, Format::Q4_0, Format::Q4K, Format::Q6K];
        let cols = 256;
        for (format, other) in formats.into_iter().flat_map(|format| formats.map(|other| (format, other))) {
            for (tokens, rows) in [(1, [70, 33, 5]), (3, [5, 1, 64]), (12, [7, 0, 9]), (40, [33, 7, 7]), (0, [2, 3, 4])]
            {
                let weights: [Vec<u8>; 3] = std::array::from_fn(|i| {
                    let format = if i == 2 { other } else { format };
                    let (first, bytes) = (i, format.row_bytes(cols).unwrap());
                    encoded(format, rows[i] + first, cols).0.split_off(first * bytes)
                });
                let matrices: [Matrix<'_>; 3] = std::array::from_fn(|i| Matrix {
                    weight: &weights[i],
                    format: if i == 2 { other } else { format },
                });
                let x = noise(tokens * cols, 2);
                let precisions =
                    [ActivationPrecision::F32, ActivationPrecision::Int16OrBf16, ActivationPrecision::Int8];
                for (isa, activations) in Isa::available().into_iter().flat_map(|isa| precisions.map(|a| (isa, a))) {
                    for (phase, batch_invariant) in
                        [Phase::Decode, Phase::Prefill].into_iter().flat_map(|phase| [(phase, false), (phase, true)])
                    {
                        let arithmetic = Arithmetic { activations, phase, batch_invariant };
                        let alone = matrices.map(|Matrix { weight, format }| {
                            let rows = weight.len() / format.row_bytes(cols).unwrap();
                            let mut out = vec![f32::NAN; tokens * rows];
                            linear(isa, arithmetic, &x, weight, format, cols, places(&mut out));
                            out
                        });
                        let found = linears(isa, arithmetic, &x, cols, &matrices);
                        assert!(found == alone, "{isa} {arithmetic:?} {format} {other} {tokens} {rows:?}");
                    }
                }
            }
        }
    }

    /// A feed-forward layer has the bits of its operations one by one, whatever computes it, with and without a partner and
    /// biases, for lengths beyond one pass over the sums.
    #[test]
    fn a_feed_forward_layer_is_its_operations_one_by_one() {
        let shapes = [(9, 64, 66, 10), (33, 256, 768, 40), (70, 512, 256, 33), (530, 32, 288, 5), (2, 256, 256, 7)];
        let formats = [Format::F32, Format::Bf16, Format::Q8_0, Format::Q4_0, Format::Q4K, Format::Q6K];
        let pairs = formats.into_iter().flat_map(|first| formats.map(|second| (first, second)));
        for ((format, last), (tokens, cols, size, rows)) in pairs.flat_map(|pair| shapes.map(|shape| (pair, shape))) {
            if format.row_bytes(cols).is_none() || last.row_bytes(size).is_none() {
                continue;
            }
            let matrix = |format, rows: usize, cols: usize, seed| {
                let mut bytes = vec![0; rows * Format::row_bytes(format, cols).unwrap()];
                let values = noise(rows * cols, seed);
                let each = values.chunks(cols).zip(bytes.chunks_mut(Format::row_bytes(format, cols).unwrap()));
                each.for_each(|(values, bytes)| format.encode_row(values, bytes));
                bytes
            };
            let (gate, up) = (matrix(format, size, cols, 3), matrix(format, size, cols, 4));
            let down = matrix(last, rows, size, 5);
            let (x, biases) = (noise(tokens * cols, 6), [noise(size, 7), noise(size, 8)]);
            let precisions = [ActivationPrecision::F32, ActivationPrecision::Int16OrBf16, ActivationPrecision::Int8];
            for (isa, activations) in Isa::available().into_iter().flat_map(|isa| precisions.map(|a| (isa, a))) {
                let arithmetic = Arithmetic { activations, phase: Phase::Prefill, batch_invariant: false };
                let run = |weight: &[u8], format, x: &[f32], cols| {
                    let mut out = vec![f32::NAN; tokens * (weight.len() / Format::row_bytes(format, cols).unwrap())];
                    linear(isa, arithmetic, x, weight, format, cols, places(&mut out));
                    out
                };
                let plus = |values: Vec<f32>, bias: Option<&[f32]>| match bias {
                    None => values,
                    Some(bias) => values.iter().zip(bias.iter().cycle()).map(|(value, bias)| value + bias).collect(),
                };
                for (is_gated, is_biased) in [(true, false), (true, true), (false, true), (false, false)] {
                    let biases = biases.each_ref().map(|bias| is_biased.then_some(&bias[..]));
                    let gates = plus(run(&gate, format, &x, cols), biases[0]);
                    let mut hidden: Vec<f32> = gates.iter().map(|value| crate::math::gelu(*value)).collect();
                    if is_gated {
                        let partners = plus(run(&up, format, &x, cols), biases[1]);
                        hidden.iter_mut().zip(partners).for_each(|(value, partner)| *value *= partner);
                    }
                    let expected = run(&down, last, &hidden, size);
                    let layer = FeedForward {
                        gate: Matrix { weight: &gate, format },
                        up: is_gated.then_some(Matrix { weight: &up, format }),
                        biases,
                        down: Matrix { weight: &down, format: last },
                    };
                    let mut found = vec![f32::NAN; tokens * rows];
                    feed_forward(isa, arithmetic, &x, cols, layer, places(&mut found));
                    let context =
                        format!("{isa} {activations:?} {format} {last} {tokens} {cols} {size} {is_gated} {is_biased}");
                    assert!(found == expected, "{context}");
                }
            }
        }
    }

    /// Rows that are multiplied together have the bits that each has alone.
    #[test]
    fn a_row_is_the_same_beside_any_other() {
        for format in all_formats() {
            let (rows, cols) = (21, 768);
            let (weight, _) = encoded(format, rows, cols);
            let x = noise(cols, 2);
            for activations in [ActivationPrecision::Int16OrBf16, ActivationPrecision::Int8] {
                for isa in Isa::available() {
                    let together = product(isa, activations, &x, &weight, format, cols);
                    let row = |bytes: &[u8]| product(isa, activations, &x, bytes, format, cols)[0];
                    let alone: Vec<f32> = weight.chunks(weight.len() / rows).map(row).collect();
                    assert_eq!(together, alone, "{isa} {format} {activations:?}");
                }
            }
        }
    }

    /// Products in integers are exact but for the last f32 sums: each instruction set against an f64 loop over the
    /// quantized activations.
    #[test]
    fn integers_are_multiplied_exactly() {
        let best = *Isa::available().last().unwrap();
        for format in all_formats().filter(|format| gemv_int8::has(best, *format)) {
            for (rows, cols) in SHAPES.into_iter().filter(|(_, cols)| format.row_bytes(*cols).is_some()) {
                let (weight, decoded) = encoded(format, rows, cols);
                // sums of more than 512 tokens are not collected at once
                let most = if cols == 768 { 530 } else { 64 };
                let tokens = (1..=STREAMED_TOKENS).chain([9, 16, 17, 33, 40, most]);
                for (tokens, activations) in tokens.flat_map(|tokens| {
                    [(tokens, ActivationPrecision::Int16OrBf16), (tokens, ActivationPrecision::Int8)]
                }) {
                    let x = noise(tokens * cols, 2);
                    // the bounds are for values from -1 to 1, whose rms is the root of a third
                    let squares = decoded.iter().map(|value| value * value).sum::<f32>();
                    let size = f64::from((3.0 * squares / decoded.len() as f32).sqrt().max(1.0));
                    for isa in Isa::available() {
                        let phase = Phase::of_len(tokens);
                        let arithmetic = Arithmetic { activations, phase, batch_invariant: false };
                        let kernel = kernel(isa, arithmetic, Shape { format, tokens, rows, cols, row_bytes: 0 });
                        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
                        let in_integers = matches!(kernel, Kernel::GemvInt | Kernel::GemmInt8);
                        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
                        let in_integers = kernel == Kernel::GemvInt;
                        if !in_integers {
                            continue;
                        }
                        // AVX2 multiplies levels in 16 bits
                        let levels = format == Format::Iq4Xs && matches!(isa, Isa::Avx2 | Isa::Avx512);
                        let coarse = activations == ActivationPrecision::Int8 && isa.multiplies_bytes() && !levels;
                        let limit = if coarse { quantize::COARSE } else { quantize::FINE };
                        let seen = |block: &[f32; 32]| {
                            let (scale, values) = quantize::quantize(block, limit);
                            values.map(|value| value as f32 * scale)
                        };
                        let x_seen: Vec<f32> = x.as_chunks().0.iter().flat_map(seen).collect();
                        let exact = loops(&x_seen, &decoded, cols);
                        let found = product(isa, activations, &x, &weight, format, cols);
                        for (i, (found, exact)) in found.iter().zip(&exact).enumerate() {
                            let error = (f64::from(*found) - exact).abs();
                            assert!(
                                error < (2e-6 * (cols as f64).sqrt() + 1e-5) * size,
                                "{isa:?} {format} {activations:?} {tokens}x{cols}x{rows} at {i}: {error}"
                            );
                        }
                    }
                }
            }
        }
    }

    /// The errors that [`ActivationPrecision`] and docs/numerics.md name, by the kernel that multiplies.
    #[test]
    fn activations_are_as_exact_as_they_promise() {
        let bound = |isa: Isa, arithmetic: Arithmetic, shape: Shape| match kernel(isa, arithmetic, shape) {
            Kernel::GemvF32 | Kernel::GemmF32 => 1e-6,
            Kernel::GemvInt if arithmetic.activations == ActivationPrecision::Int8 => 1e-2,
            Kernel::GemvInt => 3e-5,
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Kernel::GemmInt8 if arithmetic.activations == ActivationPrecision::Int8 => 1e-2,
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Kernel::GemmInt8 => 3e-5,
            #[cfg(target_arch = "x86_64")]
            Kernel::GemmBf16(Terms::Two) => 4e-6,
            // bf16 for the activations alone
            #[cfg(target_arch = "x86_64")]
            Kernel::GemmBf16(Terms::One)
                if isa < Isa::Amx && crate::cpu::gemm::scaled::parts(shape.format).is_some() =>
            {
                2e-3
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::GemmBf16(Terms::One) | Kernel::GemvBf16 => 4e-3,
        };
        let (rows, cols) = (64, 2048);
        for format in all_formats() {
            let (weight, decoded) = encoded(format, rows, cols);
            let cases = [(1, Phase::Decode), (8, Phase::Decode), (32, Phase::Decode), (32, Phase::Prefill)];
            for (tokens, phase) in cases {
                let x = noise(tokens * cols, 2);
                let exact = loops(&x, &decoded, cols);
                let shape = shape(tokens, Matrix { weight: &weight, format }, cols);
                let precisions =
                    [ActivationPrecision::F32, ActivationPrecision::Int16OrBf16, ActivationPrecision::Int8];
                for (isa, activations) in Isa::available().into_iter().flat_map(|isa| precisions.map(|a| (isa, a))) {
                    let arithmetic = Arithmetic { activations, phase, batch_invariant: false };
                    let mut found = vec![f32::NAN; tokens * rows];
                    linear(isa, arithmetic, &x, &weight, format, cols, places(&mut found));
                    let wrong = found.iter().zip(&exact).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>();
                    let error = (wrong / exact.iter().map(|value| value * value).sum::<f64>()).sqrt();
                    let bound = bound(isa, arithmetic, shape);
                    assert!(error < bound, "{isa:?} {format} {tokens} {arithmetic:?}: {error}, not {bound}");
                }
            }
        }
    }

    /// Which kernels multiply prompts with quantized weights, for instruction sets that need not be there.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[test]
    fn prompts_are_multiplied_by_the_fastest_kernels() {
        let of = |isa, format| {
            [ActivationPrecision::Int16OrBf16, ActivationPrecision::Int8].map(|activations| {
                let arithmetic = Arithmetic { activations, phase: Phase::Prefill, batch_invariant: false };
                kernel(isa, arithmetic, Shape { format, tokens: 64, rows: 64, cols: 256, row_bytes: 0 })
            })
        };
        for format in all_formats().filter(|format| gemv_int8::has(Isa::Amx, *format)) {
            assert_eq!(of(Isa::Portable, format), [Kernel::GemmF32; 2], "{format}");
            #[cfg(target_arch = "aarch64")]
            let (without, with) = ([Isa::Neon].as_slice(), [Isa::NeonDot].as_slice());
            #[cfg(target_arch = "x86_64")]
            let (without, with) = ([Isa::Avx2, Isa::Avx512].as_slice(), [Isa::AvxVnni, Isa::Avx512Vnni].as_slice());
            for isa in with {
                assert_eq!(of(*isa, format), [Kernel::GemmInt8; 2], "{isa} {format}");
            }
            // pairs of unsigned bytes with signed ones overflow 16 bits
            let too_large = matches!(format, Format::Q8_0 | Format::Iq4Nl | Format::Iq4Xs);
            let of_pairs = if too_large || cfg!(target_arch = "aarch64") { Kernel::GemmF32 } else { Kernel::GemmInt8 };
            for isa in without {
                assert_eq!(of(*isa, format), [Kernel::GemmF32, of_pairs], "{isa} {format}");
            }
            #[cfg(target_arch = "x86_64")]
            assert_eq!(of(Isa::Amx, format), [Kernel::GemmBf16(Terms::One); 2], "{format}");
        }
    }

    /// Which kernels multiply decoded rows with quantized weights, for instruction sets that need not be there.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[test]
    fn decoded_rows_are_multiplied_as_integers() {
        #[cfg(target_arch = "x86_64")]
        let isas = [Isa::Portable, Isa::Avx2, Isa::AvxVnni, Isa::Avx512, Isa::Avx512Vnni, Isa::Avx512Bf16, Isa::Amx];
        #[cfg(target_arch = "aarch64")]
        let isas = [Isa::Portable, Isa::Neon, Isa::NeonDot];
        let precisions = [ActivationPrecision::Int16OrBf16, ActivationPrecision::Int8];
        for (isa, activations) in isas.into_iter().flat_map(|isa| precisions.map(|a| (isa, a))) {
            for format in all_formats().filter(|format| gemv_int8::has(isa, *format)) {
                let of = |tokens, batch_invariant| {
                    let arithmetic = Arithmetic { activations, phase: Phase::Decode, batch_invariant };
                    kernel(isa, arithmetic, Shape { format, tokens, rows: 64, cols: 256, row_bytes: 0 })
                };
                let tiles = crate::cpu::gemm::int8::has(isa, format, activations);
                let many = if tiles { Kernel::GemmInt8 } else { Kernel::GemmF32 };
                #[cfg(target_arch = "x86_64")]
                let few = if tiles && matches!(isa, Isa::Avx2 | Isa::Avx512) { 4 } else { 8 };
                #[cfg(target_arch = "aarch64")]
                let few = 8;
                for tokens in [1, 4, 5, 8, 9, 16] {
                    let expected = if tokens <= few { Kernel::GemvInt } else { many };
                    assert_eq!(of(tokens, false), expected, "{isa} {format} {activations:?} {tokens}");
                    assert_eq!(of(tokens, true), Kernel::GemvInt, "{isa} {format} {activations:?} {tokens}");
                }
            }
        }
    }

    /// The largest numbers that blocks can hold, with activations that are all as large: sums of 16 bits are not cut off, and those of
    /// 32 bits do not wrap around.
    #[test]
    fn the_largest_numbers_are_multiplied_exactly() {
        let (rows, cols) = (7, 512);
        for format in all_formats() {
            // where the f16 scales of a block lie, or an exponent
            let scales = match format {
                Format::Mxfp4 => 0..1,
                Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => 0..4,
                Format::Q2K => 80..84,
                Format::Q3K => 108..110,
                Format::Q6K => 208..210,
                Format::Q8_0 | Format::Q4_0 | Format::Q5_0 | Format::Iq4Nl | Format::Iq4Xs => 0..2,
                Format::Iq3Xxs | Format::Iq3S | Format::Iq2Xxs | Format::Iq2Xs | Format::Iq2S => 0..2,
                _ => continue,
            };
            for quants in [0xff, 0x7f, 0x00] {
                let (mut weight, _) = encoded(format, rows, cols);
                for block in weight.chunks_exact_mut(format.block_bytes()) {
                    let kept = block[scales.clone()].to_vec();
                    block.fill(quants);
                    block[scales.clone()].copy_from_slice(&kept);
                }
                let mut decoded = vec![0.0; rows * cols];
                let row_bytes = format.row_bytes(cols).unwrap();
                let each = weight.chunks_exact(row_bytes).zip(decoded.chunks_exact_mut(cols));
                each.for_each(|(bytes, values)| format.decode_row(bytes, values));
                for (tokens, value) in [1, 5, 9, 20].into_iter().flat_map(|tokens| [(tokens, 1.0), (tokens, -1.0)]) {
                    let x = vec![value; tokens * cols];
                    let exact = loops(&x, &decoded, cols);
                    // what is left of large terms with either sign
                    let size = decoded.chunks(cols).map(|row| row.iter().map(|w| w.abs()).sum::<f32>());
                    let size: Vec<f64> = size.map(f64::from).collect();
                    for isa in Isa::available() {
                        for phase in [Phase::Decode, Phase::Prefill] {
                            let arithmetic =
                                Arithmetic { activations: ActivationPrecision::Int8, phase, batch_invariant: false };
                            let mut found = vec![f32::NAN; tokens * rows];
                            linear(isa, arithmetic, &x, &weight, format, cols, places(&mut found));
                            // ones are exact in 8 bits, and so are the sums of a block, but f32 sums of its lanes lose what numbers
                            // that are moved up by 128 have in common; weights in bf16 are rounded
                            #[cfg(target_arch = "x86_64")]
                            let shape = shape(tokens, Matrix { weight: &weight, format }, cols);
                            #[cfg(target_arch = "x86_64")]
                            let in_bf16 = matches!(kernel(isa, arithmetic, shape), Kernel::GemmBf16(_));
                            #[cfg(not(target_arch = "x86_64"))]
                            let in_bf16 = false;
                            let bound = if in_bf16 { 4e-3 } else { 2e-5 };
                            for (i, (found, exact)) in found.iter().zip(&exact).enumerate() {
                                let error = (f64::from(*found) - exact).abs();
                                let context = format!("{isa} {format} {quants} {tokens} {phase:?}");
                                assert!(error <= bound * size[i % rows], "{context}: {found}, not {exact}");
                            }
                        }
                    }
                }
            }
        }
    }

    /// Where activations are coarse, decoded rows are products of bf16 with bf16, whatever their number.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn decoded_rows_are_rounded_to_bf16_where_they_are_to_be_coarse() {
        use half::bf16;
        for (isa, (rows, cols)) in Isa::available()
            .into_iter()
            .filter(|isa| crate::cpu::gemm::bf16::pays(*isa))
            .flat_map(|isa| [(1, 32), (7, 96), (13, 4128), (30, 10304)].map(|shape| (isa, shape)))
        {
            let (weight, decoded) = encoded(Format::Bf16, rows, cols);
            let x = noise(70 * cols, 2);
            let rounded: Vec<f32> = x.iter().map(|value| bf16::from_f32(*value).to_f32()).collect();
            let exact = loops(&rounded, &decoded, cols);
            let of = |tokens: usize, batch_invariant: bool| {
                let mut out = vec![f32::NAN; tokens * rows];
                let activations = ActivationPrecision::Int8;
                let arithmetic = Arithmetic { activations, phase: Phase::Decode, batch_invariant };
                linear(isa, arithmetic, &x[..tokens * cols], &weight, Format::Bf16, cols, places(&mut out));
                out
            };
            let all = of(70, true);
            for tokens in [1, 2, 3, 4, 7, 16, 17, 70] {
                for (i, (found, exact)) in of(tokens, false).iter().zip(&exact).enumerate() {
                    let error = (f64::from(*found) - exact).abs();
                    assert!(
                        error < 2e-6 * (cols as f64).sqrt() + 1e-5,
                        "{isa:?} {tokens}x{cols}x{rows} at {i}: {error}"
                    );
                }
                assert!(of(tokens, true)[..] == all[..tokens * rows], "{isa:?} {tokens}x{cols}x{rows}");
            }
        }
    }

    /// Where an activation is infinite or not a number, every sum with it says so; other tokens are untouched.
    #[test]
    fn what_is_not_finite_is_not_hidden() {
        for format in all_formats() {
            let (weight, _) = encoded(format, 3, 256);
            let precisions = [ActivationPrecision::Int16OrBf16, ActivationPrecision::Int8];
            for (bad, tokens) in [f32::NAN, f32::INFINITY].into_iter().flat_map(|bad| [(bad, 2), (bad, 20)]) {
                let mut x = noise(tokens * 256, 3);
                x[256 + 40] = bad;
                for (isa, activations) in Isa::available().into_iter().flat_map(|isa| precisions.map(|a| (isa, a))) {
                    let found = product(isa, activations, &x, &weight, format, 256);
                    for (t, sums) in found.chunks(3).enumerate() {
                        assert_eq!(sums.iter().all(|sum| !sum.is_finite()), t == 1, "{isa:?} {format} {sums:?}");
                        assert_eq!(sums.iter().all(|sum| sum.is_finite()), t != 1, "{isa:?} {format} {sums:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn extreme_values_survive() {
        let x = [1.0f32, 1.0, 1.0, 1.0];
        let mut weight = [0; 16];
        Format::F32.encode_row(&[f32::MAX, -f32::MAX, f32::MIN_POSITIVE, -0.0], &mut weight);
        for isa in Isa::available() {
            let mut out = [0.0];
            let activations = ActivationPrecision::Int16OrBf16;
            let arithmetic = Arithmetic { activations, phase: Phase::Decode, batch_invariant: false };
            linear(isa, arithmetic, &x, &weight, Format::F32, 4, places(&mut out));
            assert!(out[0].is_finite(), "{isa:?}: {}", out[0]);
        }
    }

    /// A batch-invariant product gives a row the same bits in any company, and else the same precision.
    #[test]
    fn company_changes_no_bit_where_it_must_not() {
        for format in all_formats() {
            let (rows, cols) = (37, 512);
            let (weight, _) = encoded(format, rows, cols);
            let x = noise(40 * cols, 2);
            for (isa, activations, phase) in Isa::available().into_iter().flat_map(|isa| {
                let finenesses =
                    [ActivationPrecision::F32, ActivationPrecision::Int16OrBf16, ActivationPrecision::Int8];
                finenesses.into_iter().flat_map(move |a| [Phase::Decode, Phase::Prefill].map(|phase| (isa, a, phase)))
            }) {
                let of = |first: usize, tokens: usize, batch_invariant: bool| {
                    let x = &x[first * cols..(first + tokens) * cols];
                    let mut out = vec![f32::NAN; tokens * rows];
                    let arithmetic = Arithmetic { activations, phase, batch_invariant };
                    linear(isa, arithmetic, x, &weight, format, cols, places(&mut out));
                    out
                };
                let context = format!("{isa:?} {format} {activations:?} {phase:?}");
                let whole = of(0, 40, true);
                for (first, tokens) in [(0, 1), (7, 2), (9, 3), (3, 4), (20, 5), (1, 17), (6, 33)] {
                    let found = of(first, tokens, true);
                    assert!(found == whole[first * rows..][..found.len()], "{context}: {tokens} from {first}");
                    // a decoded row is never rounded to bf16
                    let free = of(first, tokens, false);
                    let error = free.iter().zip(&found).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
                    let size = found.iter().map(|value| value * value).sum::<f32>();
                    let bound = if activations == ActivationPrecision::Int8 { 1e-2 } else { 3e-5 };
                    assert!((error / size).sqrt() < bound, "{context}: {tokens} from {first}");
                }
            }
        }
    }
}
