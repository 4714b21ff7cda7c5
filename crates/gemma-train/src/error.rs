//! What can be wrong with a training.

use std::path::PathBuf;

/// Why a training cannot run, or cannot go on.
#[derive(thiserror::Error)]
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
    /// A loss or a gradient that is no number.
    #[error("the loss or its gradient is not a finite number in step {step}; use a smaller learning rate")]
    NotFinite {
        /// The step, from 0.
        step: usize,
    },
    /// Another process of the training is gone.
    #[error("another process of the training is gone ({reason}); start all of them again with --resume")]
    RankLost {
        /// What was noticed.
        reason: String,
    },
    /// The processes of a training are not at the same step of the same training.
    #[error(
        "the processes of the training differ in data, settings or steps; give all the same command, and an OUT that all can read"
    )]
    Disagreement,
    /// This process was asked to end while it waited for the others.
    #[error("the training was asked to end; go on with --resume")]
    Interrupted,
    /// A model without trainable parameters.
    #[error("the model has nothing to train; open it for training, or with an adapter")]
    NothingToTrain,
    /// A file that cannot be read.
    #[error("{}: cannot be read ({cause}); check that it exists and that you may read it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// A line of a data file that cannot be used.
    #[error("{}: line {line}: {reason}; correct the line, or leave such lines out (--skip-bad-lines)", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// An image of the data that cannot be used.
    #[error("{}: {item}: {reason}; correct it, or leave it out", path.display())]
    Item {
        /// The file that names it.
        path: PathBuf,
        /// Where it stands there.
        item: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A data file without a usable line.
    #[error("{}: no line can be learned from", path.display())]
    NoExamples {
        /// The file.
        path: PathBuf,
    },
    /// A checkpoint of a training that cannot be resumed from.
    #[error("{}: cannot be resumed from: {reason}; begin anew in another folder", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// What the files said.
    #[error(transparent)]
    Weights(#[from] gemma_weights::Error),
    /// What the model said.
    #[error(transparent)]
    Model(#[from] gemma_model::Error),
}

/// The sentence, which is what a `main` prints that returns the error.
impl std::fmt::Debug for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}
