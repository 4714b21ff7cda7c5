//! Layers that every Gemma family is built from.
mod segment;

pub use segment::{Segment, total_tokens};
