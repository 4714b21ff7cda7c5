//! Serves requests of several threads by one engine: they share the forward passes, and each gets its own answer.
//!
//! ```text
//! cargo run --release -p gemma --example engine
//! cargo run --release -p gemma --example engine -- google/gemma-2-2b
//! ```

use gemma::{DecodeStream, Model};
use gemma::{EngineOptions, Event, Gemma, GenerateOptions, Request, TextDecoder, default_device};

fn main() -> anyhow::Result<()> {
    for answer in run(std::env::args().nth(1))? {
        println!("{answer}\n");
    }
    Ok(())
}

/// `model`: a folder or a hub id; without one, the demo model that is part of the library. Returns the texts.
pub fn run(model: Option<String>) -> anyhow::Result<Vec<String>> {
    let device = default_device()?;
    let gemma: Gemma = match model {
        Some(model) => Model::load(&model, &device)?,
        None => gemma::demo(&device)?,
    };
    // prompts that begin alike compute their common prefix once
    let engine = gemma.engine(EngineOptions { prefix_cache_bytes: 64 << 20, ..EngineOptions::default() })?;
    let tokenizer = gemma.shared_tokenizer()?;
    let stop_tokens = gemma.stop_tokens().to_vec();
    let clients = ["Once upon a time", "Once upon a time, a fox", "Long ago, a brave"].map(|prompt| {
        let (handle, tokenizer, stop_tokens) = (engine.handle(), tokenizer.clone(), stop_tokens.clone());
        std::thread::spawn(move || -> anyhow::Result<String> {
            let decoder = TextDecoder::new(DecodeStream::shared(tokenizer.clone()), &[]);
            let request = Request {
                stop_tokens,
                stop_rule: Some(Box::new(decoder)),
                ..Request::new(tokenizer.encode(prompt), GenerateOptions::greedy(40))
            };
            let mut text = prompt.to_owned();
            for event in handle.submit(request)? {
                match event {
                    Event::Token { text: piece, .. } | Event::Finished { text: piece, .. } => text += &piece,
                    Event::Failed { error, .. } => return Err(error.into()),
                    _ => {}
                }
            }
            Ok(text)
        })
    });
    clients.into_iter().map(|client| client.join().expect("a client does not panic")).collect()
}
