//! How finely activations are represented inside a product on the CPU.

use crate::Format;

/// The representation of the activations in products with packed weights on the CPU. Sums over a row are f32 in
/// each of them; GPUs always compute with f32, and so do products with f32 weights.
///
/// The errors are relative to the root mean square of the product, for random values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ActivationPrecision {
    /// f32 throughout: error below 1e-6.
    F32,
    /// Decode: with quantized weights 16-bit integers that share a scale per 32 values, or f32 where there are no kernels for these, error
    /// below 3e-5; with all other weights f32. Prompts, and gradients that pass through frozen weights: bf16, where the CPU
    /// multiplies that faster than f32; else, in prompts, 16-bit integers where it multiplies bytes four at a time. With bf16,
    /// weights that are not bf16 are rounded to it as well, error below 4e-3, but in a prompt for blocks of small integers with
    /// AVX-512, error below 2e-3.
    #[default]
    Int16OrBf16,
    /// As `Int16OrBf16`, but with quantized weights 8-bit integers that share a scale per 32 values, and with bf16 weights
    /// bf16 in decode as well, where the CPU gains from it: error below 1e-2. Prompts on AMX are bf16.
    Int8,
}

impl ActivationPrecision {
    /// Whether a prompt may be multiplied in bf16 with weights of this format. f32 weights are kept for exactness, and
    /// f16 has eight times the precision of bf16, which is not given away by default.
    pub(crate) fn round_prompts(self, format: Format) -> bool {
        match format {
            Format::F32 => false,
            Format::F16 => self == ActivationPrecision::Int8,
            _ => self != ActivationPrecision::F32,
        }
    }
}
