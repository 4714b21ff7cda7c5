//! `gemma tokenize`: how a text is cut.

use anyhow::Result;
use gemma_tokenizer::{EncodeOptions, TokenId};
use serde::Serialize;

use crate::{args, commands::Ending, output, session, text};

#[derive(Serialize)]
struct Tokenized<'a> {
    tokens: &'a [TokenId],
    pieces: Vec<&'a str>,
}

pub(crate) fn run(args: &args::Tokenize) -> Result<Ending> {
    let text = text::given(args.text.as_deref(), args.prompt_file.as_deref())?;
    let tokenizer = session::tokenizer(args.model.as_deref(), args.family, args.offline)?;
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
