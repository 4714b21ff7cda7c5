//! `gemma logits`: the numbers themselves, for comparing and for tools.

use anyhow::Result;
use gemma_generate::{Segment, TokenId};
use gemma_model::Network;

use crate::{
    args,
    commands::Ending,
    interrupt,
    logits_file::LogitsFile,
    new_file::NewFile,
    progress,
    session::{self, with_network},
    tokens_file::TokenRows,
};

/// Rows of logits to compute at a time: 64 take 66 MB with 256 000 columns.
const HEAD_ROWS: usize = 64;

pub(crate) fn run(args: &args::Logits) -> Result<Ending> {
    let ids = TokenRows::read(&args.tokens_file)?;
    let file = NewFile::open(&args.out)?;
    let found = session::find(&args.model)?;
    with_network!(found.kind()?, N => read(args, &ids, file, &found.open_network::<N>()?.model))
}

fn read<N: Network>(args: &args::Logits, ids: &TokenRows, file: NewFile, decoder: &N) -> Result<Ending> {
    for row in ids.rows() {
        session::check_tokens(decoder, row)?;
    }
    let lengths: Vec<usize> = ids.rows().iter().map(Vec::len).collect();
    let batch = matches!(ids, TokenRows::Batch(_));
    let file = LogitsFile::begin(file, &lengths, batch, decoder.vocab())?;
    let chunk = args.chunk.map_or(usize::MAX, |chunk| chunk.get());
    write(decoder, ids.rows(), chunk, file)
}

/// Reads up to `chunk` tokens of each row at a time, what came before being in the cache, and writes what follows.
fn write<N: Network>(decoder: &N, rows: &[Vec<TokenId>], chunk: usize, mut file: LogitsFile) -> Result<Ending> {
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    let bar = progress::tokens("reading", rows.iter().map(Vec::len).sum());
    let watch = interrupt::watch();
    let mut memories: Vec<_> = rows.iter().map(|_| decoder.new_memory()).collect();
    for start in (0..longest).step_by(chunk) {
        let (mut tokens, mut segments, mut unread, mut lent) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for ((index, row), memory) in rows.iter().enumerate().zip(&mut memories) {
            let end = row.len().min(start.saturating_add(chunk));
            if start < end {
                tokens.extend_from_slice(&row[start..end]);
                segments.push(Segment::causal(start, end - start));
                unread.push(index);
                lent.push(memory);
            }
        }
        let hidden = decoder.read_hidden(&tokens, &segments, &mut lent);
        let mut first = 0;
        for (&row, segment) in unread.iter().zip(&segments) {
            for begin in (0..segment.len).step_by(HEAD_ROWS) {
                if watch.pressed() {
                    return Ok(Ending::Interrupted);
                }
                let count = HEAD_ROWS.min(segment.len - begin);
                let logits = decoder.logits(hidden.clone().narrow(0, first + begin, count));
                file.put(row, start + begin, &session::values(logits))?;
                bar.inc(count as u64);
            }
            first += segment.len;
        }
    }
    bar.finish_and_clear();
    file.finish()?;
    Ok(Ending::Done)
}
