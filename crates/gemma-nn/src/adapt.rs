//! Sources of parameters that ask another source: one adaptor for all that change a question or an answer.

use std::borrow::Cow;

use crate::{ComputePrecision, LoraFactors, Source, Weight};
use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use gemma_kernels::CachePrecision;

/// A change to what a [`Source`] is asked, or to what it answers. Every method hands on by default; [`Adapted`] is the one
/// place where a source is delegated to.
pub trait Adapt {
    /// The name by which the source is asked for the parameter (or the projection) `name`.
    fn rename<'n>(&self, name: &'n str) -> Cow<'n, str> {
        Cow::Borrowed(name)
    }

    /// The device on which parameters are made.
    fn device(&self, source: &dyn Source) -> Device {
        source.device()
    }

    /// See [`Source::matrix`].
    fn matrix(&mut self, source: &mut dyn Source, name: &str, rows: usize, cols: usize) -> Weight {
        source.matrix(name, rows, cols)
    }

    /// See [`Source::vector`].
    fn vector(&mut self, source: &mut dyn Source, name: &str, len: usize) -> Param<Tensor<1>> {
        source.vector(name, len)
    }

    /// See [`Source::array`].
    fn array(&mut self, source: &mut dyn Source, name: &str, shape: &[usize]) -> TensorData {
        source.array(name, shape)
    }

    /// See [`Source::tensor`].
    fn tensor(&mut self, source: &mut dyn Source, name: &str, shape: &[usize]) -> Param<Tensor<1>> {
        source.tensor(name, shape)
    }

    /// See [`Source::lora`].
    fn lora(&mut self, source: &mut dyn Source, name: &str, inputs: usize, outputs: usize) -> Vec<LoraFactors> {
        source.lora(name, inputs, outputs)
    }

    /// See [`Source::cache_precision`].
    fn cache_precision(&self, source: &dyn Source) -> CachePrecision {
        source.cache_precision()
    }
}

/// A source that asks another one by way of a change.
pub struct Adapted<'a, A> {
    source: &'a mut dyn Source,
    change: A,
}

impl<'a, A: Adapt> Adapted<'a, A> {
    /// `source`, changed.
    pub fn with(source: &'a mut dyn Source, change: A) -> Self {
        Self { source, change }
    }

    /// The change, with what it has written down.
    pub fn into_change(self) -> A {
        self.change
    }
}

impl<A: Adapt> Source for Adapted<'_, A> {
    fn device(&self) -> Device {
        self.change.device(self.source)
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Weight {
        let name = self.change.rename(name);
        self.change.matrix(self.source, &name, rows, cols)
    }

    fn vector(&mut self, name: &str, len: usize) -> Param<Tensor<1>> {
        let name = self.change.rename(name);
        self.change.vector(self.source, &name, len)
    }

    fn array(&mut self, name: &str, shape: &[usize]) -> TensorData {
        let name = self.change.rename(name);
        self.change.array(self.source, &name, shape)
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) -> Param<Tensor<1>> {
        let name = self.change.rename(name);
        self.change.tensor(self.source, &name, shape)
    }

    fn lora(&mut self, name: &str, inputs: usize, outputs: usize) -> Vec<LoraFactors> {
        let name = self.change.rename(name);
        self.change.lora(self.source, &name, inputs, outputs)
    }

    fn cache_precision(&self) -> CachePrecision {
        self.change.cache_precision(self.source)
    }
}

/// A source whose parameters are trainable: what another one answers, unpacked to f32 on an autodiff device.
pub type Trainable<'a> = Adapted<'a, Unpack>;

/// The change that makes a source [`Trainable`].
#[derive(Debug)]
pub struct Unpack;

impl<'a> Trainable<'a> {
    /// Unpacks what `source` has.
    pub fn new(source: &'a mut dyn Source) -> Self {
        Self::with(source, Unpack)
    }
}

impl Unpack {
    fn vector_of(&self, source: &dyn Source, values: Tensor<1>) -> Param<Tensor<1>> {
        Param::from_tensor(Tensor::from_data(values.without_autodiff().into_data(), &self.device(source)))
    }
}

impl Adapt for Unpack {
    fn device(&self, source: &dyn Source) -> Device {
        source.device().autodiff()
    }

    fn matrix(&mut self, source: &mut dyn Source, name: &str, rows: usize, cols: usize) -> Weight {
        let values = source.matrix(name, rows, cols).values();
        Weight::Dense(Param::from_tensor(Tensor::from_data(values.into_data(), &self.device(source))))
    }

    fn vector(&mut self, source: &mut dyn Source, name: &str, len: usize) -> Param<Tensor<1>> {
        let values = source.vector(name, len).val();
        self.vector_of(source, values)
    }

    fn tensor(&mut self, source: &mut dyn Source, name: &str, shape: &[usize]) -> Param<Tensor<1>> {
        let values = source.tensor(name, shape).val();
        self.vector_of(source, values)
    }
}

/// A source whose layers compute in another precision than the default.
pub type WithPrecision<'a> = Adapted<'a, ComputePrecision>;

impl<'a> WithPrecision<'a> {
    /// Whatever `source` has, computed in this precision.
    pub fn new(source: &'a mut dyn Source, precision: ComputePrecision) -> Self {
        Self::with(source, precision)
    }
}

impl Adapt for ComputePrecision {
    fn matrix(&mut self, source: &mut dyn Source, name: &str, rows: usize, cols: usize) -> Weight {
        match source.matrix(name, rows, cols) {
            Weight::Packed(packed) => {
                Weight::Packed(packed.with_activations(self.activations).with_batch_invariance(self.batch_invariant))
            }
            dense @ Weight::Dense(_) => dense,
        }
    }

    fn lora(&mut self, source: &mut dyn Source, name: &str, inputs: usize, outputs: usize) -> Vec<LoraFactors> {
        let factors = source.lora(name, inputs, outputs).into_iter();
        factors.map(|factors| factors.with_batch_invariance(self.batch_invariant)).collect()
    }

    fn cache_precision(&self, _source: &dyn Source) -> CachePrecision {
        self.cache
    }
}

/// Finds the factors of a projection: its name (that of its weight, without `.weight`), its inputs and its outputs.
pub type FindFactors<'a> = dyn FnMut(&str, usize, usize) -> Vec<LoraFactors> + 'a;

/// A source with LoRA factors for some projections.
pub struct WithLora<'f> {
    find: Box<FindFactors<'f>>,
}

impl<'f> WithLora<'f> {
    /// Adds what `find` finds.
    pub fn new(find: impl FnMut(&str, usize, usize) -> Vec<LoraFactors> + 'f) -> Self {
        Self { find: Box::new(find) }
    }
}

impl Adapt for WithLora<'_> {
    fn lora(&mut self, source: &mut dyn Source, name: &str, inputs: usize, outputs: usize) -> Vec<LoraFactors> {
        let mut factors = source.lora(name, inputs, outputs);
        factors.extend((self.find)(name, inputs, outputs));
        factors
    }
}
