//! A chat that streams with a stop text, saves its KV cache and continues from it: with the crate `gemma` alone.

use gemma::{
    EncodeOptions, GenerateOptions, Generation, LoadOptions, Precision, TextStream, Turn, default_device, demo_with,
    load_state, save_state,
};

fn main() -> Result<(), gemma::Error> {
    let options = LoadOptions { precision: Some(Precision::Q8_0), ..LoadOptions::default() };
    let model = demo_with(&options, &default_device()?)?;

    let sampling = GenerateOptions { stop: vec!["\n".to_owned()], ..GenerateOptions::greedy(32) };
    let mut stream = model.stream_chat(&[Turn::user("What is 7 plus 5?")], &sampling)?;
    let mut answer = String::new();
    for piece in &mut stream {
        let piece = piece?;
        print!("{piece}");
        answer += &piece;
    }
    println!();
    assert!(answer.contains("12"), "the demo knows small sums: {answer:?}");

    let file = std::env::temp_dir().join(format!("outside-gemma-{}.state", std::process::id()));
    save_state(model.network(), &stream.into_sequence(), &file)?;
    let sequence = load_state(model.network(), &file)?;
    let tokenizer = model.tokenizer()?;
    let more = tokenizer.encode_with("\n", EncodeOptions { bos: false, specials: false });
    let generation =
        Generation::follow(model.network(), sequence, &more, &GenerateOptions::greedy(4), model.stop_tokens())?;
    let continued = TextStream::new(generation, tokenizer.stream()).finish()?;
    println!("{} more tokens, {:?}", continued.tokens.len(), continued.finish_reason);
    std::fs::remove_file(&file).ok();
    Ok(())
}
