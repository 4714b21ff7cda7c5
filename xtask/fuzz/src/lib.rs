//! What is fuzzed: one function for each parser of files, messages and programs that strangers write.
//!
//! A target takes bytes and returns; a panic, a hang, or a memory far beyond the input's size is a fault. `mutate` makes
//! inputs from seeds, the same ones for the same numbers, so that an index is all that is needed to see a fault again.
//! The cargo-fuzz targets in `fuzz/` call the same functions.

mod folders;
mod inputs;
mod mutate;
mod requests;
mod targets;
mod texts;
mod words;

pub use inputs::seeds;
pub use mutate::{Mutator, Random};
pub use targets::{TARGETS, Target, run};
