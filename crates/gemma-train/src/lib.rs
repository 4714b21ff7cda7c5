//! Training for the Gemma family: LoRA beside frozen weights of any format, and whole models, from lines of JSON to a file
//! that other programs load.
//!
//! A training batch is what every other call is: token ids on one flat axis, cut into segments. There is no padding,
//! so a batch of short and long texts costs what its tokens cost, and no mask is needed beyond which tokens are to
//! be learned.
//!
//! | Module | What is in it |
//! |---|---|
//! | `trainer` | [`Trainer`]: a step, block by block; gradients by name |
//! | `text` | the loss of texts |
//! | `head` | [`head_loss`]: the loss over a large vocabulary, in chunks |
//! | `adamw`, `options` | the optimizer, and the settings of a training |
//! | `lora` | opening a checkpoint with factors that are trained |
//! | `dpo` | learning from preferences |
//! | `contrastive` | learning which texts belong together, for models that embed texts |
//! | `parallel`, `mpi_rank` | a training in several processes; with the feature `mpi`, on several machines |
//! | `data`, `example` | lines of JSON, and what is learned of them |
//! | `run`, `state` | a whole training: order, checkpoints, going on where it stopped |
//! | `metric`, `curve`, `events` | its numbers: as lines of JSON, drawn, and for TensorBoard |
//! | `train` | a loop for models that are trained from random weights on several threads |

mod adamw;
mod contrastive;
mod curve;
pub mod data;
mod dpo;
mod error;
mod events;
mod example;
mod gradients;
mod head;
mod lora;
mod loss;
mod metric;
#[cfg(feature = "mpi")]
mod mpi_rank;
mod options;
mod parallel;
mod random;
pub mod run;
mod state;
mod text;
mod train;
mod trainer;

pub use adamw::{AdamW, AdamWOptions};
pub use contrastive::{Pair, Ranking};
pub use curve::plot;
pub use dpo::Preference;
pub use error::Error;
pub use example::Example;
pub use gradients::{BatchGradients, NamedValues, Values};
pub use head::{HeadLoss, head_loss};
pub use lora::{
    TARGETS, check_adapter, factors, open_whole, open_with_factors, open_with_new_factors, with_new_factors,
};
pub use loss::cross_entropy;
pub use metric::{Evaluation, Metric};
#[cfg(feature = "mpi")]
pub use mpi_rank::MpiRank;
pub use options::{Schedule, TrainingOptions};
pub use parallel::{Alone, Communicator, ThreadRank};
pub use state::STEPS_SETTING;
pub use text::{Answer, answers, log_probs};
pub use train::{Step, TrainOptions, text_loss, train, train_with};
pub use trainer::{StepReport, Trainer};
