//! What a request says of the adapters beside a model's weights.

/// An adapter that a request chose, and how much of it.
///
/// A model can hold the factors of several adapters beside its weights. They are numbered from 0 on, in the order in which
/// the model was given them, and count for the requests that choose them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdapterChoice {
    /// The number of the adapter.
    pub adapter: usize,
    /// How much of its effect: 1 is all of it.
    pub strength: f32,
}
