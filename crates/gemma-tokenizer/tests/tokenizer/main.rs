//! The tokenizer from outside: with a small vocabulary made in memory, and with the real ones where they are at hand.

// The helpers of tests are tests, too: a failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

mod chat;
mod encoding;
mod families;
mod hostile;
mod reference;
mod support;
mod templates;
