//! The HTTP protocols against a fake model: what clients send, what they get, and what they are refused.

mod adapters;
mod batch;
mod document;
mod fake;
mod limits;
mod models;
mod ollama;
mod openai;
mod sampling;
mod server;
mod tasks;
mod wire;
