//! What can be wrong with a training before it starts.

/// Why a training cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option outside its range.
    #[error("training option {name} is {value}; it must be {expected}")]
    Option {
        /// The option.
        name: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A batch with nothing to predict.
    #[error("the batch of step {step} has no token to learn; every example needs at least two tokens")]
    EmptyBatch {
        /// The step, from 0.
        step: usize,
    },
}
