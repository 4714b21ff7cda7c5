//! `gemma tokenize`: how a text is cut.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use gemma_auto::Family;
use gemma_tokenizer::{DecodeOptions, EncodeOptions, TokenId, Tokenizer};
use serde::Serialize;

use crate::{args, interrupt::Ending, output, session, text};

/// Show the tokens of a text.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma tokenize \"Hello, world\"
  gemma tokenize --model google/gemma-2-2b --json --no-bos \"Hello, world\"
  gemma tokenize --specials \"<start_of_turn>user\"
  gemma tokenize --model DIR --json -f story.txt > ids.json
  gemma tokenize --ids \"2 4521 235269\"                  the way back: ids to the text they stand for
  gemma tokenize -- --text                             a text that begins with two hyphens

--json prints {\"tokens\": [ids], \"pieces\": [texts]}. --model may also name a tokenizer.json or tokenizer.model.")]
pub(crate) struct Tokenize {
    /// The text; `-` reads standard input.
    #[arg(required_unless_present = "prompt_file", conflicts_with = "prompt_file", allow_hyphen_values = true, value_parser = args::prompt)]
    pub(crate) text: Option<String>,

    /// Read the text from this file; `-` is standard input.
    #[arg(short = 'f', long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,

    /// The text is token ids, between spaces or commas or as a JSON array: print the text that they stand for.
    #[arg(long, conflicts_with_all = ["no_bos", "specials"])]
    pub(crate) ids: bool,

    /// Leave out the beginning-of-sequence token.
    #[arg(long)]
    pub(crate) no_bos: bool,

    /// Let texts such as <start_of_turn> become the control tokens they name.
    #[arg(long)]
    pub(crate) specials: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    /// Whose control tokens these are: gemma, codegemma, paligemma or recurrentgemma.
    ///
    /// Without it, config.json or the name tells. It matters only for tokenizer files that leave the names out.
    #[arg(long, value_name = "FAMILY")]
    pub(crate) family: Option<Family>,

    /// A folder with a tokenizer, a GGUF file, or a hub id; the demo's tokenizer without it.
    #[arg(short, long, value_name = "FOLDER|FILE|ID")]
    pub(crate) model: Option<String>,

    /// Use only files that are on this machine already; the same as HF_HUB_OFFLINE=1.
    #[arg(long)]
    pub(crate) offline: bool,
}

#[derive(Serialize)]
struct Tokenized<'a> {
    tokens: &'a [TokenId],
    pieces: Vec<&'a str>,
}

/// Prints the text of token ids.
fn detokenize(ids: &str, tokenizer: &Tokenizer, json: bool) -> Result<Ending> {
    let words = ids.split([' ', ',', '\n', '\r', '\t', '[', ']']).filter(|word| !word.is_empty());
    let tokens: Vec<TokenId> = words
        .map(|word| match word.parse::<TokenId>() {
            Ok(id) if (id as usize) < tokenizer.vocab_len() => Ok(id),
            Ok(id) => bail!("token {id} is not in the vocabulary of {}", tokenizer.vocab_len()),
            Err(_) => bail!("{word:?} is no token id; give numbers between spaces or commas"),
        })
        .collect::<Result<_>>()?;
    let text = tokenizer.decode_with(&tokens, DecodeOptions { specials: true });
    if json {
        output::json(&serde_json::json!({ "tokens": tokens, "text": text }))?;
    } else {
        output::line(text)?;
    }
    Ok(Ending::Done)
}

pub(crate) fn run(args: &Tokenize) -> Result<Ending> {
    if let Some(text) = args.text.as_deref().filter(|text| !args.ids && Path::new(text).is_file()) {
        // a word may well be the name of a file, so it is cut as it was typed
        output::complain(format_args!("note: {text} is also a file; `gemma tokenize -f {text}` shows its tokens"));
    }
    let text = text::given(args.text.as_deref(), args.prompt_file.as_deref())?;
    let tokenizer = session::tokenizer(args.model.as_deref(), args.family, args.offline)?;
    if args.ids {
        return detokenize(&text, &tokenizer, args.json);
    }
    let tokens = tokenizer.encode_with(&text, EncodeOptions { bos: !args.no_bos, specials: args.specials });
    // An id without a piece cannot come out of the tokenizer that made it.
    let pieces: Vec<&str> = tokens.iter().map(|id| tokenizer.piece(*id).unwrap_or_default()).collect();
    if args.json {
        output::json(&Tokenized { tokens: &tokens, pieces })?;
    } else {
        for (id, piece) in tokens.iter().zip(pieces) {
            output::line(format_args!("{id:>7}  {}", output::visible(piece)))?;
        }
        output::remark(format_args!("{} tokens", tokens.len()));
    }
    Ok(Ending::Done)
}
