//! Text without an end whose state has one size, and a fork of it: with the crate `recurrentgemma` alone.

use recurrentgemma::{
    Cache, GenerateOptions, Generation, TextStream, default_device, demo,
};

fn main() -> Result<(), recurrentgemma::Error> {
    let model = demo(&default_device()?)?;
    let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(64) };
    let mut stream = model.stream("Once upon a time", &options)?;
    for piece in &mut stream {
        print!("{}", piece?);
    }
    let sequence = stream.into_sequence();
    let bytes = sequence.cache().bytes_len();

    let fork = sequence.clone();
    let generation = Generation::follow(model.network(), fork, &[], &options, model.stop_tokens())?;
    let mut stream = TextStream::new(generation, model.tokenizer()?.stream());
    for piece in &mut stream {
        print!("{}", piece?);
    }
    let longer = stream.into_sequence();
    println!("\n\n{} and {} tokens in {bytes} and {} bytes", sequence.len(), longer.len(), longer.cache().bytes_len());
    assert_eq!(longer.cache().bytes_len(), bytes, "the state does not grow");
    Ok(())
}
