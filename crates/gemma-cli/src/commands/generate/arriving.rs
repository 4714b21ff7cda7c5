//! A text on standard input that is prefilled as it arrives, by a model whose state does not grow with the text: neither the
//! text nor its tokens are held.

use std::{
    io::{self, Read},
    path::Path,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use gemma_generate::Sequence;
use gemma_model::{Model, Network};
use gemma_tokenizer::EncodeOptions;

use super::{Generate, Given};
use crate::{interrupt::Watch, progress, text};

/// Bytes that are read at a time.
const BLOCK: usize = 64 << 10;
/// Most bytes without a line break: a text is cut behind line breaks, where no token reaches over.
const LONGEST_LINE: usize = 16 << 20;

/// What was prefilled before the rest of the prompt.
#[derive(Clone, Copy, Default)]
pub(super) struct Prefilled {
    pub(super) tokens: usize,
    pub(super) seconds: f64,
}

/// Whether the prompt is plain text on standard input, of which nothing needs the whole.
pub(super) fn is_possible(args: &Generate) -> bool {
    let (source, sampling) = (&args.source, &args.sampling);
    let from_input = source.prompt.as_deref() == Some("-") || source.prompt_file.as_deref() == Some(Path::new("-"));
    // these penalties count the tokens of the prompt
    let is_free = sampling.repetition_penalty == 1.0 && sampling.penalties.dry_multiplier == 0.0;
    from_input && is_free && !args.chat && !args.echo && args.image.is_empty()
}

/// Prefills all but the end of the text, which is returned.
pub(super) fn prefill<N: Network>(
    args: &Generate,
    model: &Model<N>,
    mut sequence: Sequence<N::Cache>,
    watch: &Watch,
) -> Result<(Given, Sequence<N::Cache>, Prefilled)> {
    let (tokenizer, mut input) = (model.tokenizer()?, io::stdin().lock());
    let chunk = args.sampling.options().prefill_chunk;
    let (mut held, mut before) = (Vec::new(), Prefilled::default());
    let is_new = sequence.is_empty();
    let bar = progress::tokens("prefill", 0);
    while !watch.pressed() {
        let count = input.by_ref().take(BLOCK as u64).read_to_end(&mut held).context("cannot read standard input")?;
        let Some(end) = last_line(&held) else {
            if count == 0 {
                break;
            }
            if held.len() > LONGEST_LINE {
                bail!("standard input has more than {} MB without a line break", LONGEST_LINE >> 20);
            }
            continue;
        };
        if count == 0 {
            break;
        }
        let begin = Instant::now();
        let bos = is_new && before.tokens == 0;
        let options = EncodeOptions { bos, specials: args.source.specials };
        let tokens = tokenizer.encode_with(utf8(&held[..end])?, options);
        held.drain(..end);
        sequence.push(&tokens);
        sequence.prefill(model.network(), chunk, || !watch.pressed());
        sequence.drop_tokens();
        before.tokens += tokens.len();
        before.seconds += begin.elapsed().as_secs_f64();
        bar.set_length(before.tokens as u64);
        bar.set_position(before.tokens as u64);
    }
    bar.finish_and_clear();
    let rest = utf8(&held)?.to_owned();
    if rest.is_empty() && before.tokens == 0 && args.load_state.is_none() {
        bail!("the prompt is empty; give some text to continue");
    }
    Ok((Given::Text(rest), sequence, before))
}

/// Where the last line begins that has something on it, if that is not the first: behind line breaks, before no other.
fn last_line(text: &[u8]) -> Option<usize> {
    (1..text.len()).rev().find(|&at| text[at - 1] == b'\n' && text[at] != b'\n')
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes)
        .map_err(|error| anyhow::anyhow!(text::not_utf8(error)))
        .context("cannot use standard input")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_behind_line_breaks_that_belong_together() {
        for (text, end) in
            [("", None), ("abc", None), ("a\n", None), ("a\nb", Some(2)), ("a\n\nb\n\n", Some(3)), ("\nb", Some(1))]
        {
            assert_eq!(last_line(text.as_bytes()), end, "{text:?}");
        }
    }
}
