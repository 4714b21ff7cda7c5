//! The examples run to their end on the demo model.

#[path = "../examples/batch.rs"]
mod batch;
#[path = "../examples/chat.rs"]
mod chat;
#[path = "../examples/generate.rs"]
mod generate;
