//! Reads a text of any length from standard input, with a cache that does not grow with it, and continues it.
//!
//! ```text
//! cargo run --release -p recurrentgemma --example long_context < library.txt
//! cargo run --release -p recurrentgemma --example long_context -- google/recurrentgemma-2b < library.txt
//! ```

use anyhow::Context;
use recurrentgemma::{
    Cache, CausalModel, EncodeOptions, GenerateOptions, Generation, RecurrentGemma, Sequence, TextStream,
    default_device,
};
use std::io::{Read, Write};

/// Bytes that are taken at a time.
const BLOCK: u64 = 1 << 16;
/// Tokens that the model reads at a time.
const CHUNK: usize = 512;

fn main() -> anyhow::Result<()> {
    run(std::env::args().nth(1), std::io::stdin().lock())?;
    Ok(())
}

/// `model`: a folder or a hub id; without one, the demo model that is part of the library. Returns the number of tokens
/// read, and the size of the cache in bytes.
pub fn run(model: Option<String>, mut input: impl Read) -> anyhow::Result<(usize, usize)> {
    let device = default_device()?;
    let model = match model {
        Some(model) => RecurrentGemma::load(&model, &device)?,
        None => recurrentgemma::demo(&device)?,
    };
    let (network, tokenizer) = (model.network(), model.tokenizer()?);

    let mut sequence = Sequence::new(network.new_cache());
    sequence.push(&[tokenizer.bos()]);
    let mut text = Vec::new();
    loop {
        let last = input.by_ref().take(BLOCK).read_to_end(&mut text)? == 0;
        let len = if last { text.len() } else { whole_words(&text) };
        let words = std::str::from_utf8(&text[..len]).context("the text is not UTF-8")?;
        sequence.push(&tokenizer.encode_with(words, EncodeOptions { bos: false, specials: false }));
        text.drain(..len);
        sequence.prefill(network, CHUNK, || true);
        // the cache holds the state; the tokens themselves are not needed any more
        sequence.drop_tokens();
        eprintln!("{} tokens, a cache of {} bytes", sequence.position(), sequence.cache().bytes_len());
        if last {
            break;
        }
    }
    let read = (sequence.len(), sequence.cache().bytes_len());

    let options = GenerateOptions { max_tokens: 100, temperature: 0.7, seed: Some(1), ..GenerateOptions::default() };
    let generation = Generation::follow(network, sequence, &[], &options, model.stop_tokens())?;
    for piece in TextStream::new(generation, tokenizer.stream()) {
        print!("{}", piece?);
        std::io::stdout().flush()?;
    }
    println!();
    Ok(read)
}

/// How much of `text` ends before a space that follows something else: no token reaches over that place. Where there is
/// no such place, all whole characters.
pub fn whole_words(text: &[u8]) -> usize {
    match text.windows(2).rposition(|pair| pair[0] != b' ' && pair[1] == b' ') {
        Some(place) => place + 1,
        None => match text.utf8_chunks().next().map_or(0, |chunk| chunk.valid().len()) {
            0 => text.len(),
            whole => whole,
        },
    }
}
