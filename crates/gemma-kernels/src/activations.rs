//! How finely activations are represented inside a product on the processor.

/// The representation of the activations in products with packed weights on the processor. Weights are never
/// rounded, and sums over a row are f32, in each of them; graphics processors always compute with f32.
///
/// The errors are relative to the root mean square of the product, for random values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activations {
    /// f32 throughout: error below 1e-6.
    Exact,
    /// With quantized weights, 16-bit whole numbers that share a scale per 32 values, or f32 where that is as fast:
    /// error below 3e-5. f32 with all other weights.
    #[default]
    Fine,
    /// With quantized weights, 8-bit whole numbers that share a scale per 32 values, where the processor gains from
    /// it: error below 1e-2. With bf16 weights and many rows, bf16 where the processor multiplies it faster than
    /// f32: error below 1e-2. f32 with all other weights.
    Coarse,
}
