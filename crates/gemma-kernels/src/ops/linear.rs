//! Products with a packed matrix, and look-ups of its rows.

use crate::packed::stores_words;
use crate::traffic::{Way, note};
use crate::{ActivationPrecision, Format, PackedWeight, Phase, add_bias};
use burn::backend::{
    Backend, Dispatch, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, Int, Tensor, TensorData};

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arithmetic {
    /// How finely the CPU represents the activations.
    pub activations: ActivationPrecision,
    /// What the request is doing with the rows.
    pub phase: Phase,
    /// Whether a row's sums are added in an order that does not depend on how many rows there are; else only their
    /// precision does not.
    pub batch_invariant: bool,
}

/// A packed matrix, and the bias that is added to its products.
#[derive(Clone, Debug)]
pub struct PackedLinear<'a> {
    /// `[out, in]`.
    pub weight: &'a PackedWeight,
    /// `[out]`.
    pub bias: Option<Tensor<1>>,
}

impl<'a> From<&'a PackedWeight> for PackedLinear<'a> {
    fn from(weight: &'a PackedWeight) -> Self {
        Self { weight, bias: None }
    }
}

impl PackedLinear<'_> {
    /// # Panics
    /// When the bias does not have a value for every row of the matrix.
    pub(crate) fn assert_bias(&self) {
        let rows = self.weight.rows();
        assert!(self.bias.as_ref().is_none_or(|bias| bias.dims() == [rows]), "a bias for every row");
    }

    /// Whether the bias is recorded, so that its sum is an operation of its own.
    pub(crate) fn is_recorded(&self) -> bool {
        self.bias.as_ref().is_some_and(Tensor::is_autodiff)
    }
}

/// How a backend is to read the matrix of [`packed_linear`].
#[derive(Clone, Copy, Debug)]
pub struct LinearShape {
    /// Its format.
    pub format: Format,
    /// Whether there is a bias.
    pub has_bias: bool,
    /// Its columns.
    pub cols: usize,
    /// Of the product.
    pub arithmetic: Arithmetic,
}

/// How a backend is to read the matrices of [`packed_linears`].
#[derive(Clone, Copy, Debug)]
pub struct LinearsShape {
    /// Their formats; `None` where there are fewer.
    pub formats: [Option<Format>; 3],
    /// Which of them have biases.
    pub biases: [bool; 3],
    /// Columns of all.
    pub cols: usize,
    /// Of all products.
    pub arithmetic: Arithmetic,
}

/// How a backend is to read the matrices of a [`feed_forward`](crate::feed_forward) layer.
#[derive(Clone, Copy, Debug)]
pub struct LayerShape {
    /// The formats of the first matrix, of its partner where there is one, and of the last matrix.
    pub formats: (Format, Option<Format>, Format),
    /// Which of them have biases.
    pub biases: [bool; 3],
    /// `hidden_size`.
    pub cols: usize,
    /// Of all products.
    pub arithmetic: Arithmetic,
}

// The attribute names every backend of the list, ndarray included, which Burn 0.22 deprecates and this workspace promises.
#[allow(deprecated, reason = "ndarray is one of the backends this workspace promises")]
mod extension {
    use super::*;

    /// What a backend must be able to do for products. The functions of the same names are the way to call it.
    #[backend_extension(NdArray: cfg(feature = "ndarray"), Flex: cfg(feature = "flex"), Cube: cfg(feature = "wgpu"))]
    pub trait LinearOps: Backend {
        /// See [`packed_linear_in`]. A bias that there is not is ignored.
        fn packed_linear(
            x: FloatTensor<Self>,
            weight: IntTensor<Self>,
            bias: FloatTensor<Self>,
            shape: LinearShape,
        ) -> FloatTensor<Self>;
        /// See [`packed_linears`]; on a GPU of few tokens and of matrices of one format. The product with a matrix that has no format has no columns,
        /// and biases that there are not are ignored.
        #[allow(clippy::too_many_arguments, reason = "three matrices with a bias each")]
        fn packed_linears(
            x: FloatTensor<Self>,
            first: IntTensor<Self>,
            second: IntTensor<Self>,
            third: IntTensor<Self>,
            first_bias: FloatTensor<Self>,
            second_bias: FloatTensor<Self>,
            third_bias: FloatTensor<Self>,
            shape: LinearsShape,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
        /// See [`feed_forward`](crate::feed_forward); on a GPU of few tokens, and of first matrices of one format. What the layer has no partner or biases for is ignored.
        #[allow(clippy::too_many_arguments, reason = "three matrices with a bias each")]
        fn feed_forward(
            x: FloatTensor<Self>,
            gate: IntTensor<Self>,
            up: IntTensor<Self>,
            down: IntTensor<Self>,
            gate_bias: FloatTensor<Self>,
            up_bias: FloatTensor<Self>,
            down_bias: FloatTensor<Self>,
            layer: LayerShape,
        ) -> FloatTensor<Self>;
        /// See [`packed_rows`].
        fn packed_rows(
            weight: IntTensor<Self>,
            rows: IntTensor<Self>,
            format: Format,
            cols: usize,
        ) -> FloatTensor<Self>;
    }
}

pub use extension::LinearOps;

/// `y = x Wᵀ`: `[tokens, cols]` to `[tokens, rows]`, f32, accumulated in f32, where all tokens are one request's: in the
/// [phase](Phase::of_len) that so many tokens suggest. See [`packed_linear_in`].
///
/// # Panics
/// When the shapes do not match.
pub fn packed_linear(x: Tensor<2>, weight: &PackedWeight) -> Tensor<2> {
    let tokens = x.dims()[0];
    packed_linear_in(x, weight, &[(tokens, Phase::of_len(tokens))])
}

/// `y = x Wᵀ`, or `y = x Wᵀ + b` where there is a bias: `[tokens, cols]` to `[tokens, rows]`, f32, accumulated in f32. `phases` says of
/// the tokens, so many at a time, what their requests are doing; each gets the arithmetic of its phase, whatever the others are. On the
/// CPU, the weight's [`activations`](PackedWeight::activations) say how finely `x` is represented in the product.
///
/// On an autodiff device the product is differentiable with respect to `x` and the bias; the weight is a constant.
///
/// # Panics
/// When the shapes do not match, or the phases are not those of all tokens.
pub fn packed_linear_in<'a>(x: Tensor<2>, linear: impl Into<PackedLinear<'a>>, phases: &[(usize, Phase)]) -> Tensor<2> {
    let linear = linear.into();
    linear.assert_bias();
    let (is_recorded, PackedLinear { weight, bias }) = (linear.is_recorded(), linear);
    let [tokens, cols] = x.dims();
    assert_eq!(cols, weight.cols(), "a product of {cols} inputs with a matrix of {} columns", weight.cols());
    assert_eq!(phases.iter().map(|(rows, _)| rows).sum::<usize>(), tokens, "a phase for every token");
    if let Some(bias) = &bias {
        // a shard's product has no whole bias
        if x.is_autodiff() || is_recorded || weight.shards().len() > 1 {
            return add_bias(packed_linear_in(x, weight, phases), bias.clone());
        }
    }
    if x.is_autodiff() {
        return crate::packed_linear_rows(x, weight, 0..weight.rows());
    }
    let mut first = 0;
    let mut products = Vec::new();
    for run in phases.chunk_by(|a, b| a.1 == b.1) {
        let rows: usize = run.iter().map(|(rows, _)| rows).sum();
        let part = if rows == tokens { x.clone() } else { x.clone().narrow(0, first, rows) };
        first += rows;
        products.push(in_one_phase(part, weight, bias.as_ref(), run[0].1));
    }
    if products.len() == 1 { products.remove(0) } else { Tensor::cat(products, 0) }
}

/// What [`packed_linear_in`] gives with each of up to three matrices, bit for bit: queries, keys and values, for example.
///
/// Where the matrices are alike in [`activations`](PackedWeight::activations) and batch invariance and all tokens are in one phase, they are
/// one operation. On a CPU it packs or quantizes `x` once, and the threads meet once; on a GPU it is one launch, for up to four tokens and
/// matrices of one format that are in one piece.
///
/// # Panics
/// When the shapes do not match, or the phases are not those of all tokens.
pub fn packed_linears<'a, L: Into<PackedLinear<'a>>, const N: usize>(
    x: Tensor<2>,
    linears: [L; N],
    phases: &[(usize, Phase)],
) -> [Tensor<2>; N] {
    const { assert!(N >= 2 && N <= 3, "two or three matrices") };
    let linears = linears.map(Into::into);
    let weights = linears.each_ref().map(|linear| linear.weight);
    let [tokens, cols] = x.dims();
    let phase = phases.first().map(|(_, phase)| *phase).filter(|first| phases.iter().all(|(_, phase)| phase == first));
    let phase = phase.filter(|_| !linears.iter().any(PackedLinear::is_recorded));
    let Some(arithmetic) = phase.and_then(|phase| arithmetic_of_all(&x, &weights, &weights, phase)) else {
        return linears.map(|linear| packed_linear_in(x.clone(), linear, phases));
    };
    assert!(weights.iter().all(|weight| weight.cols() == cols), "a product of {cols} inputs with as many columns");
    assert_eq!(phases.iter().map(|(rows, _)| rows).sum::<usize>(), tokens, "a phase for every token");
    linears.iter().for_each(PackedLinear::assert_bias);
    let formats = std::array::from_fn(|i| weights.get(i).map(|weight| weight.format()));
    let biases = std::array::from_fn(|i| linears.get(i).is_some_and(|linear| linear.bias.is_some()));
    let mut operands = linears.into_iter().map(|linear| operand(linear.bias, &x));
    let [first_bias, second_bias, third_bias] =
        std::array::from_fn(|_| operands.next().unwrap_or_else(|| operand(None, &x)));
    let [first, second, third] = std::array::from_fn(|i| weights.get(i).unwrap_or(&weights[0]).shards()[0].clone());
    let (first, second, third) = <Dispatch as LinearOps>::packed_linears(
        x.into_dispatch(),
        first.into_dispatch(),
        second.into_dispatch(),
        third.into_dispatch(),
        first_bias,
        second_bias,
        third_bias,
        LinearsShape { formats, biases, cols, arithmetic },
    );
    let mut products = [first, second, third].map(Tensor::from_dispatch).into_iter();
    std::array::from_fn(|_| products.next().expect("one for each matrix"))
}

/// A bias as a backend's operand; where there is none, `x`, which is not read there.
pub(crate) fn operand(bias: Option<Tensor<1>>, x: &Tensor<2>) -> FloatTensor<Dispatch> {
    bias.map_or_else(|| x.clone().into_dispatch(), Tensor::into_dispatch)
}

/// How an operation computes its products with the matrices `all`, the `first` of which are multiplied with `x`; `None` where it is not one
/// operation, but its products one by one.
pub(crate) fn arithmetic_of_all(
    x: &Tensor<2>,
    all: &[&PackedWeight],
    first: &[&PackedWeight],
    phase: Phase,
) -> Option<Arithmetic> {
    let shared = arithmetic(all[0], phase);
    let alike = all.iter().all(|weight| arithmetic(weight, phase) == shared);
    let computed = !x.is_autodiff() && (!stores_words(&x.device()) || in_one_launch(x.dims()[0], all, first, shared));
    (alike && computed).then_some(shared)
}

/// Whether a GPU multiplies so many tokens with the `first` matrices in one launch: few tokens, whose products stream the rows, and
/// matrices of one format. All are bound in one piece.
fn in_one_launch(tokens: usize, all: &[&PackedWeight], first: &[&PackedWeight], arithmetic: Arithmetic) -> bool {
    let format = first[0].format();
    // as the kernels for one matrix are chosen
    let streamed = tokens <= FEW_TOKENS && format != Format::F32;
    let streamed = streamed && (arithmetic.phase == Phase::Decode || !arithmetic.batch_invariant);
    streamed
        && first.iter().all(|weight| weight.format() == format)
        && all.iter().all(|weight| weight.shards().len() == 1)
}

/// How products with a matrix are computed in a phase.
fn arithmetic(weight: &PackedWeight, phase: Phase) -> Arithmetic {
    Arithmetic { activations: weight.activations(), phase, batch_invariant: weight.is_batch_invariant() }
}

/// Rows of a GPU's kernel for few tokens, in which a sum does not depend on how many there are.
const FEW_TOKENS: usize = 4;

fn in_one_phase(x: Tensor<2>, weight: &PackedWeight, bias: Option<&Tensor<1>>, phase: Phase) -> Tensor<2> {
    let arithmetic = arithmetic(weight, phase);
    let tokens = x.dims()[0];
    if arithmetic.batch_invariant && phase == Phase::Decode && tokens > FEW_TOKENS && stores_words(&x.device()) {
        let few = |first: usize| x.clone().narrow(0, first, FEW_TOKENS.min(tokens - first));
        return Tensor::cat(
            (0..tokens).step_by(FEW_TOKENS).map(|first| in_one_phase(few(first), weight, bias, phase)).collect(),
            0,
        );
    }
    let shape = LinearShape { format: weight.format(), has_bias: bias.is_some(), cols: weight.cols(), arithmetic };
    let one = |shard: &Tensor<2, Int>| {
        let (bias, shard) = (operand(bias.cloned(), &x), shard.clone().into_dispatch());
        Tensor::from_dispatch(<Dispatch as LinearOps>::packed_linear(x.clone().into_dispatch(), shard, bias, shape))
    };
    match weight.shards() {
        [shard] => one(shard),
        shards => Tensor::cat(shards.iter().map(one).collect(), 1),
    }
}

impl PackedWeight {
    /// The matrix as f32 values on its device, `[rows, cols]`. Large; for differentiation, merging and tests.
    pub fn dequantize(&self) -> Tensor<2> {
        let rows: Vec<u32> = (0..self.rows() as u32).collect();
        packed_rows(self, &rows)
    }
}

/// Rows of a packed matrix as f32 values: `[rows.len(), cols]`. An embedding look-up.
///
/// # Panics
/// When an id is not a row of the matrix.
pub fn packed_rows(weight: &PackedWeight, rows: &[u32]) -> Tensor<2> {
    let count = weight.rows();
    assert!(rows.iter().all(|row| (*row as usize) < count), "a row id is outside the matrix of {count} rows");
    let device = weight.device();
    let gather = |shard: &Tensor<2, Int>, ids: Vec<i32>| {
        let len = ids.len();
        note(Way::Up, 4 * len);
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [len]), (&device, DType::I32));
        Tensor::<2>::from_dispatch(<Dispatch as LinearOps>::packed_rows(
            shard.clone().into_dispatch(),
            ids.into_dispatch(),
            weight.format(),
            weight.cols(),
        ))
    };
    if let [shard] = weight.shards() {
        return gather(shard, rows.iter().map(|row| *row as i32).collect());
    }
    // runs of ids that lie in one shard are gathered together, in order
    let shard_of = |row: u32| row as usize / weight.rows_per_shard();
    let parts = rows
        .chunk_by(|a, b| shard_of(*a) == shard_of(*b))
        .map(|run| {
            let shard = shard_of(run[0]);
            let first = (shard * weight.rows_per_shard()) as u32;
            gather(&weight.shards()[shard], run.iter().map(|row| (row - first) as i32).collect())
        })
        .collect();
    Tensor::cat(parts, 0)
}
