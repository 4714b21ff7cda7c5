//! Training for the Gemma family: the loss, packed batches, and the optimizer loop.
//!
//! A training batch is what every other call is: token ids on one flat axis, cut into segments. There is no padding,
//! so a batch of short and long texts costs what its tokens cost, and no mask is needed beyond which tokens are to
//! be learned.

mod error;
mod example;
mod loss;
mod train;

pub use error::Error;
pub use example::Example;
pub use loss::cross_entropy;
pub use train::{Step, TrainOptions, text_loss, train, train_with};
