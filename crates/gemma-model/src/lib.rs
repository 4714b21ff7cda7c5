//! What every text model of the Gemma family has in front of its network: a tokenizer, a chat template, stop tokens,
//! loading, saving, and a conversation that remembers.
//!
//! A family brings a [`Network`]: its configuration, its layers, and what it calls its parameters. [`Model`] is the
//! front door around it, where everything that a user can get wrong is checked. `gemma::Gemma` is a
//! `Model<gemma::Decoder>`; the other families are the same door around other networks.
//!
//! | Module | What is in it |
//! |---|---|
//! | `network` | [`Network`]: what a family brings |
//! | `blocks` | [`BlockStack`]: a network in the parts that training takes one at a time |
//! | `model` | [`Model`]: open, generate, chat, save |
//! | `load_options` | [`LoadOptions`]: how a model is opened |
//! | `conversation` | [`Conversation`]: each turn reads only what is new |
//! | [`config_keys`] | which keys of `config.json` are read, needless, refused or unknown |
//! | [`fields`] | `config.json`: what its fields have in common |
//! | `convert` | a checkpoint in another type or container |
//! | `save` | parameters on their way to disk |
//! | `state` | the cache of a sequence, kept in a file |
//! | `weight_summary` | [`WeightSummary`]: parameters and bytes |
//! | `error` | [`Error`] |

mod blocks;
pub mod config_keys;
mod conversation;
mod convert;
mod draft_model;
mod error;
pub mod fields;
mod load_options;
mod model;
mod network;
mod save;
mod speculate;
mod state;
mod weight_summary;

pub use blocks::{BlockStack, Blocks, Encoder};
pub use conversation::{Answered, Attachments, Conversation, Reply, TextOnly};
pub use convert::{convert_to_folder, convert_to_gguf, random_checkpoint};
pub use error::{Error, StateFault, one_line};
pub use gemma_generate::TokenId;
pub use gemma_nn::{ActivationPrecision, CachePrecision, ComputePrecision, Saver, Segment, Weight};
pub use load_options::{LoadOptions, OnLoad};
pub use model::{Model, own_chat_template, read_chat_template, read_tokenizer};
pub use network::{Network, config_file};
pub use speculate::Speculate;
pub use state::{fingerprint, fingerprint_of, is_state, load_state, save_state};
pub use weight_summary::WeightSummary;
