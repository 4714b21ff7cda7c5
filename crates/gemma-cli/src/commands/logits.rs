//! `gemma logits`: the numbers themselves, for comparing and for tools.

use anyhow::Result;
use gemma_generate::CausalModel;
use gemma_nn::Segment;

use crate::{
    args, commands::Ending, interrupt, logits_file::LogitsFile, new_file::NewFile, progress, session,
    tokens_file::TokenRows,
};

pub(crate) fn run(args: &args::Logits) -> Result<Ending> {
    let ids = TokenRows::read(&args.tokens_file)?;
    let file = NewFile::open(&args.out)?;
    let decoder = &session::open_decoder(&args.model)?.model;
    for row in ids.rows() {
        session::check_tokens(decoder, row)?;
    }
    let lengths: Vec<usize> = ids.rows().iter().map(Vec::len).collect();
    let batch = matches!(ids, TokenRows::Batch(_));
    let file = LogitsFile::begin(file, &lengths, batch, decoder.vocab())?;
    match args.chunk {
        None => at_once(decoder, ids.rows(), file),
        Some(chunk) => in_chunks(decoder, ids.rows(), chunk.get(), file),
    }
}

/// Reads every row whole, keeping nothing.
fn at_once(decoder: &impl CausalModel, rows: &[Vec<u32>], mut file: LogitsFile) -> Result<Ending> {
    let segments: Vec<Segment> = rows.iter().map(|row| Segment::causal(0, row.len())).collect();
    let logits = session::values(decoder.score(&rows.concat(), &segments));
    let mut begin = 0;
    for (index, row) in rows.iter().enumerate() {
        let end = begin + row.len() * decoder.vocab();
        file.put(index, 0, &logits[begin..end])?;
        begin = end;
    }
    file.finish()?;
    Ok(Ending::Done)
}

/// Reads up to `chunk` tokens of each row at a time, what came before being in the cache.
fn in_chunks(decoder: &impl CausalModel, rows: &[Vec<u32>], chunk: usize, mut file: LogitsFile) -> Result<Ending> {
    let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
    let bar = progress::tokens("reading", rows.iter().map(Vec::len).sum());
    let watch = interrupt::watch();
    let mut memories: Vec<_> = rows.iter().map(|_| decoder.new_memory()).collect();
    for start in (0..longest).step_by(chunk) {
        if watch.pressed() {
            return Ok(Ending::Interrupted);
        }
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
        let logits = session::values(decoder.read_all(&tokens, &segments, &mut lent));
        let mut begin = 0;
        for (&row, segment) in unread.iter().zip(&segments) {
            let end = begin + segment.len * decoder.vocab();
            file.put(row, segment.start, &logits[begin..end])?;
            begin = end;
        }
        bar.inc(tokens.len() as u64);
    }
    bar.finish_and_clear();
    file.finish()?;
    Ok(Ending::Done)
}
