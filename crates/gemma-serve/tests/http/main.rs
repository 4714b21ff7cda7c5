//! The HTTP protocols against a fake model: what clients send, what they get, and what they are refused.

mod batch;
mod document;
mod fake;
mod limits;
mod ollama;
mod openai;
mod server;
mod tasks;
mod wire;
