//! One binary for all end-to-end tests, so that the framework is linked once.

mod adapters;
mod allocations;
mod codegemma;
mod demo;
mod documents;
mod engine;
mod gemma3;
mod gguf;
mod gradients;
mod images;
mod launches;
mod newer;
mod paligemma;
mod paligemma_demo;
mod parity;
mod precision;
mod real;
mod recurrent;
mod request_adapters;
mod speculative;
mod state;
mod training;
