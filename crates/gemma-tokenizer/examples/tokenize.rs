//! Shows how a text is cut into tokens.
//!
//! ```text
//! cargo run --release -p gemma-tokenizer --example tokenize -- path/to/tokenizer.json "Why is the sky blue?"
//! ```
//!
//! A `tokenizer.model` works as well. With `--chat` in front of the text it becomes a user's turn of a conversation.

use std::env;
use std::error::Error;
use std::fs;

use gemma_tokenizer::{ChatTemplate, Family, Tokenizer, Turn};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (path, chat, text) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [path, "--chat", text] => (path, true, text),
        [path, text] => (path, false, text),
        _ => return Err("give a tokenizer.json or tokenizer.model and a text".into()),
    };
    let file = fs::read(path)?;
    let tokenizer = if path.ends_with(".json") {
        Tokenizer::from_json(&file, Family::Gemma)?
    } else {
        Tokenizer::from_sentencepiece(&file, Family::Gemma)?
    };
    let tokens = match chat {
        true => tokenizer.chat(&ChatTemplate::builtin(), &[Turn::user(text)], true)?,
        false => tokenizer.encode(text),
    };
    for token in &tokens {
        println!("{token:>6}  {}", tokenizer.piece(*token).unwrap_or("?").escape_debug());
    }
    println!("{} tokens; decoded: {:?}", tokens.len(), tokenizer.decode(&tokens));
    Ok(())
}
