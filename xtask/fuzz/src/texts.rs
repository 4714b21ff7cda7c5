//! Targets that read texts of users: lines to train on, programs with a hole, tasks of a benchmark.

use std::sync::OnceLock;

use anyhow::{Context, Result};
use codegemma::benchmark::Task;
use codegemma::{Infill, LineEnding, Order};
use gemma_tokenizer::{ChatTemplate, Tokenizer};
use gemma_train::Example;
use gemma_train::data::{Examples, OnBadLine, Record, read_lines};

use crate::inputs::as_file;

/// A file of training data.
pub(crate) fn training(bytes: &[u8]) -> Result<()> {
    static TOKENIZER: OnceLock<Option<Tokenizer>> = OnceLock::new();
    let tokenizer = TOKENIZER.get_or_init(|| gemma::demo_tokenizer().ok()).as_ref().context("the demo opens")?;
    let examples = Examples { tokenizer, template: &ChatTemplate::builtin() };
    let take = |_, record: Record| -> std::result::Result<Vec<Example>, String> {
        Ok(match record {
            Record::Text(text) => vec![examples.text(&text)],
            Record::Completion { prompt, completion } => vec![examples.completion(&prompt, &completion)],
            Record::Messages(turns) => vec![examples.conversation(&turns)?],
            Record::Preference { prompt, chosen, rejected } => {
                vec![examples.completion(&prompt, &chosen), examples.completion(&prompt, &rejected)]
            }
            Record::Image { prefix, suffix, .. } => vec![examples.completion(&prefix, &suffix)],
            Record::Pair { query, positive, .. } => vec![examples.completion(&query, &positive)],
        })
    };
    as_file(".jsonl", bytes, |path| {
        drop(read_lines(path, OnBadLine::Skip, take));
        Ok(read_lines(path, OnBadLine::Stop, take).map(drop)?)
    })
}

/// A program with a hole at its first NUL byte, with other files after further ones; or a line of a benchmark.
pub(crate) fn infill(bytes: &[u8]) -> Result<()> {
    static TOKENIZER: OnceLock<Option<Tokenizer>> = OnceLock::new();
    let tokenizer = TOKENIZER.get_or_init(|| codegemma::demo_tokenizer().ok()).as_ref().context("the demo opens")?;
    if let Ok(task) = serde_json::from_slice::<Task>(bytes) {
        drop(task.infill().prompt(tokenizer, Order::Psm, 256));
        let _ = task.judge("    return x\n");
        drop(task.program("    return x\n"));
        return Ok(());
    }
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.split('\0');
    let (prefix, suffix) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let file = |text: &str| codegemma::File { path: "other.py".to_owned(), text: text.to_owned() };
    let infill = Infill { context: parts.take(8).map(file).collect(), ..Infill::new(prefix, suffix) };
    for (order, budget) in [(Order::Psm, 64), (Order::Spm, 4096)] {
        if let Ok(prompt) = infill.prompt(tokenizer, order, budget) {
            assert!(prompt.tokens.len() <= budget, "{} tokens of at most {budget}", prompt.tokens.len());
        }
    }
    drop(LineEnding::of(&text).apply(prefix));
    Ok(())
}
