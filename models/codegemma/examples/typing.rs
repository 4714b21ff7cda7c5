//! Measures what an editor would notice: how soon the first token comes while somebody types, and what speculative decoding saves.
//!
//! ```text
//! cargo run --release -p codegemma --example typing
//! cargo run --release -p codegemma --example typing -- google/codegemma-2b src/main.py
//! ```

use codegemma::{CodeGemma, Infill, InfillOptions, Order};
use gemma::GenerateOptions;

/// A program of the demo's world.
const PROGRAM: &str = include_str!("typing.py");

fn main() -> anyhow::Result<()> {
    run(std::env::args().nth(1), std::env::args().nth(2))
}

/// `model`: a folder or a hub id; without one, the demo. `file`: a program, in whose middle somebody types.
pub fn run(model: Option<String>, file: Option<String>) -> anyhow::Result<()> {
    let device = codegemma::default_device()?;
    let model = match model {
        Some(model) => CodeGemma::load(&model, &device)?,
        None => codegemma::demo(&device)?,
    };
    let program = file.map_or(Ok(PROGRAM.to_owned()), std::fs::read_to_string)?;
    for order in [Order::Psm, Order::Spm] {
        first_token(&model, &program, order)?;
    }
    drafts(&model, &program)
}

/// The time to the first token after each of sixty keystrokes, with what was read before and without.
fn first_token(model: &CodeGemma, program: &str, order: Order) -> anyhow::Result<()> {
    let options = InfillOptions { order, generate: GenerateOptions::greedy(1), ..InfillOptions::default() };
    let (mut session, mut anew, mut typed, mut new, mut all) = (model.session(), 0.0, 0.0, 0, 0);
    let middle = program.floor_char_boundary(program.len() / 2);
    let keys: Vec<usize> = program[middle..].char_indices().map(|(at, _)| middle + at).take(60).collect();
    for &at in &keys {
        let hole = Infill::new(&program[..at], &program[middle..]);
        anew += model.infill(&hole, &options)?.timings.prompt_seconds;
        let filled = session.infill(&hole, &options)?;
        typed += filled.timings.prompt_seconds;
        (new, all) = (new + filled.prompt_tokens - filled.reused_tokens, all + filled.prompt_tokens);
    }
    let mean = |seconds: f64| 1e3 * seconds / keys.len() as f64;
    println!(
        "{order:?}: the first token comes after {:.2} ms, in a session after {:.2} ms: {new} of {all} tokens are new",
        mean(anew),
        mean(typed)
    );
    Ok(())
}

/// Fills every line of the program, with draft tokens and without.
fn drafts(model: &CodeGemma, program: &str) -> anyhow::Result<()> {
    let mut rates = [0.0, 0.0];
    let mut last = (0, 0, 0);
    for (lookup, rate) in [false, true].into_iter().zip(&mut rates) {
        let options = InfillOptions { lookup, ..InfillOptions::default() };
        let (mut tokens, mut seconds, mut at) = (0, 0.0, 0);
        last = (0, 0, 0);
        for line in program.split_inclusive('\n') {
            // the line is missing, and all that follows it
            let timings = model.infill(&Infill::new(&program[..at], ""), &options)?.timings;
            tokens += timings.decode_steps;
            seconds += timings.decode_seconds;
            last.0 += timings.draft_tokens;
            last.1 += timings.accepted_tokens;
            last.2 += timings.decode_steps;
            at += line.len();
        }
        *rate = tokens as f64 / seconds;
    }
    let (drafted, accepted, tokens) = last;
    println!(
        "{:.0} tokens/s without draft tokens, {:.0} with: {accepted} of {drafted} accepted, of {tokens} tokens",
        rates[0], rates[1]
    );
    Ok(())
}
