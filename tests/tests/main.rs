//! One binary for all end-to-end tests, so that the framework is linked once.

mod demo;
mod documents;
mod gguf;
mod gradients;
mod parity;
mod precision;
