//! Source code as lessons in filling the middle: what a model that fills holes is trained on.
//!
//! A part of the files is learned whole, the others with a hole cut in them, either order of the parts equally often
//! (CodeGemma Team 2024, section 3: a rate of 80 %; Bavarian et al. 2022, arXiv:2207.14255).

use crate::fim::text_tokens;
use crate::{Error, Infill, Order, fim_tokens};
use gemma_tokenizer::{TokenId, Tokenizer};

/// Tokens to learn from, and from which on they are learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lesson {
    /// The whole sequence, beginning with `<bos>`.
    pub tokens: Vec<TokenId>,
    /// How many tokens at the beginning are only read.
    pub prompt_len: usize,
}

/// A hole and what stood there, as a lesson of at most about `budget` tokens: the prompt that asks for the hole, the
/// middle, and the file separator that ends it.
///
/// # Errors
/// As [`Infill::prompt`].
pub fn hole_lesson(
    infill: &Infill,
    middle: &str,
    tokenizer: &Tokenizer,
    order: Order,
    budget: usize,
) -> Result<Lesson, Error> {
    let middle = text_tokens(tokenizer, middle);
    let prompt = infill.prompt(tokenizer, order, budget.saturating_sub(middle.len() + 1))?;
    let prompt_len = prompt.tokens.len();
    let mut tokens = prompt.tokens;
    tokens.extend(middle);
    tokens.push(fim_tokens(tokenizer)?.file_separator);
    Ok(Lesson { tokens, prompt_len })
}

/// A file as a lesson: with a hole for a part `rate` of the draws, else as it is. `below` draws an integer below its
/// argument. The hole is a stretch of lines, the rest of a line, or a stretch of characters.
///
/// # Errors
/// As [`hole_lesson`].
pub fn code_lesson(
    text: &str,
    path: Option<&str>,
    tokenizer: &Tokenizer,
    rate: f64,
    budget: usize,
    below: &mut dyn FnMut(usize) -> usize,
) -> Result<Lesson, Error> {
    const PARTS: usize = 1 << 20;
    if text.is_empty() || below(PARTS) as f64 >= rate * PARTS as f64 {
        let mut tokens = tokenizer.encode(text);
        tokens.truncate(budget.saturating_sub(1));
        tokens.push(tokenizer.eos());
        return Ok(Lesson { tokens, prompt_len: 1 });
    }
    let (from, to) = hole(text, below);
    let mut infill = Infill::new(&text[..from], &text[to..]);
    infill.path = path.map(str::to_owned);
    let order = if below(2) == 0 { Order::Psm } else { Order::Spm };
    hole_lesson(&infill, &text[from..to], tokenizer, order, budget)
}

/// The most characters and lines of a hole.
const MOST_CHARACTERS: usize = 200;
const MOST_LINES: usize = 5;

/// From where to where a hole goes, in bytes at the borders of characters.
fn hole(text: &str, below: &mut dyn FnMut(usize) -> usize) -> (usize, usize) {
    let border = |at: usize| (at..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    let line_end = |at: usize| text[at..].find('\n').map_or(text.len(), |end| at + end);
    let from = border(below(text.len()));
    let begin = text[..from].rfind('\n').map_or(0, |at| at + 1);
    match below(3) {
        0 => {
            let mut to = line_end(begin);
            for _ in 0..below(MOST_LINES) {
                to = line_end((to + 1).min(text.len()));
            }
            (begin, to)
        }
        1 => (from, line_end(from)),
        _ => (from, border((from + 1 + below(MOST_CHARACTERS)).min(text.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(mut state: u64) -> impl FnMut(usize) -> usize {
        move |bound| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % bound
        }
    }

    #[test]
    fn holes_lie_between_characters_and_are_short() {
        let text = "fn größe() -> u32 {\n    let a = 1;\n    a + 2\n}\n";
        let mut below = draws(1);
        for _ in 0..1000 {
            let (from, to) = hole(text, &mut below);
            assert!(from <= to && text.is_char_boundary(from) && text.is_char_boundary(to), "{from} {to}");
        }
    }

    #[test]
    fn a_lesson_ends_with_what_stood_in_the_hole() {
        let tokenizer = crate::demo_tokenizer().expect("the demo's tokenizer");
        let text = "def add(a, b):\n    return a + b\n";
        let mut below = draws(2);
        let (mut whole, mut holes) = (0, 0);
        for _ in 0..200 {
            let lesson = code_lesson(text, None, &tokenizer, 0.5, 128, &mut below).expect("it fits");
            if lesson.prompt_len == 1 {
                whole += 1;
                assert_eq!(tokenizer.decode(&lesson.tokens), text);
            } else {
                holes += 1;
                let middle = tokenizer.decode(&lesson.tokens[lesson.prompt_len..]);
                assert!(text.contains(&middle), "{middle:?}");
                assert_eq!(lesson.tokens.last(), Some(&fim_tokens(&tokenizer).expect("it has them").file_separator));
            }
        }
        assert!(whole > 60 && holes > 60, "{whole} {holes}");
    }
}
