//! Where a middle ends: what a model writes may run on into the suffix, or into the next function.
//!
//! A model ends a middle with a control token, and nothing has to be cut then. Small models and tight limits are less
//! tidy: the text repeats the suffix that the program has anyway, or goes on after it. The rules here look at text alone.
//! They only ever cut at the end, and what they keep of a text does not change when more text follows, so a middle can
//! be shown while it is being written.

use crate::{Infill, Language};
use serde::{Deserialize, Serialize};

/// Fewest letters, digits and underscores that make a line worth recognizing: `}` or `);` is repeated rightly too often.
const TELLING: usize = 3;

/// How far a middle may reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InfillStop {
    /// Until the model ends it.
    #[default]
    Free,
    /// One line; line breaks before it do not count.
    Line,
    /// The block that the hole lies in: as long as lines are indented as far, or until its bracket is closed, as the
    /// language has it.
    Block,
}

/// The rules for one hole.
#[derive(Clone, Debug)]
pub(crate) struct StopRules {
    prefix: String,
    suffix: String,
    /// The beginning of the suffix, up to the end of its first telling line; empty when it has none that is complete.
    repeat: String,
    stop_rule: InfillStop,
    block: Block,
}

/// What ends a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    /// A line that is indented less than this.
    Indent(usize),
    /// The bracket that closes the innermost open one; whether the suffix has it.
    Bracket {
        in_suffix: bool,
    },
    Unknown,
}

impl StopRules {
    pub(crate) fn new(infill: &Infill, stop_rule: InfillStop) -> Self {
        let block = match infill.language() {
            Language::Indented => Block::Indent(least_indent(&infill.prefix)),
            Language::Bracketed => {
                let open = depths(&infill.prefix).0;
                let in_suffix = depths(&infill.suffix).1 > 0;
                if open > 0 { Block::Bracket { in_suffix } } else { Block::Unknown }
            }
            Language::Other => Block::Unknown,
        };
        Self {
            prefix: infill.prefix.clone(),
            repeat: first_telling(&infill.suffix).to_owned(),
            suffix: infill.suffix.clone(),
            stop_rule,
            block,
        }
    }

    /// Where the text ends by a rule, in bytes; `None` while it may go on.
    pub(crate) fn end(&self, text: &str) -> Option<usize> {
        let by_rule = match self.stop_rule {
            InfillStop::Free => None,
            InfillStop::Line => self.line_end(text),
            InfillStop::Block => self.block_end(text),
        };
        [self.repeat_start(text), by_rule].into_iter().flatten().min()
    }

    /// How much of a text that is not over can be shown already: no rule will cut into it, whatever follows.
    pub(crate) fn safe(&self, text: &str) -> usize {
        // white space at the end may belong to a line that is cut
        let settled = text.trim_end().len();
        let repeats = |at: &usize| self.suffix.starts_with(&text[*at..]);
        let repeating = text.char_indices().map(|(at, _)| at).find(repeats);
        settled.min(repeating.unwrap_or(text.len()))
    }

    /// How much of a text that is over is the middle: not what the suffix begins with.
    pub(crate) fn finish(&self, text: &str) -> usize {
        if let Some(end) = self.end(text) {
            return end;
        }
        let overlap = text.char_indices().map(|(at, _)| at).find(|at| {
            let repeated = &text[*at..];
            self.suffix.starts_with(repeated) && self.is_telling_overlap(&text[..*at], repeated)
        });
        overlap.unwrap_or(text.len())
    }

    /// Whether text that the suffix begins with was repeated by mistake. Words are; white space alone never, and
    /// brackets alone only where the program has one too many to close.
    fn is_telling_overlap(&self, middle: &str, repeated: &str) -> bool {
        if telling_characters(repeated) > 0 {
            // a single letter or digit is more likely meant
            return repeated.chars().count() > 1;
        }
        if !repeated.contains([')', ']', '}']) {
            return false;
        }
        let without = imbalance(&[&self.prefix, middle, &self.suffix]);
        let with = imbalance(&[&self.prefix, middle, repeated, &self.suffix]);
        without < with
    }

    /// Where the text begins to repeat the suffix up to its first telling line and goes on after it.
    fn repeat_start(&self, text: &str) -> Option<usize> {
        if self.repeat.is_empty() {
            return None;
        }
        // a repeated line must begin where a line begins, if that is where the suffix begins
        let at_line = self.prefix.is_empty() || self.prefix.ends_with('\n');
        let is_start = |at: usize| !at_line || at == 0 || text[..at].ends_with('\n');
        text.match_indices(&self.repeat).map(|(at, _)| at).find(|at| is_start(*at))
    }

    /// Where the first line that is not blank ends; with its line break when the suffix does not bring one.
    fn line_end(&self, text: &str) -> Option<usize> {
        let blank = text.len() - text.trim_start_matches(['\n', '\r']).len();
        let end = blank + text[blank..].find('\n')?;
        let suffix_breaks = self.suffix.is_empty() || self.suffix.starts_with(['\n', '\r']);
        let before = end - usize::from(text[..end].ends_with('\r'));
        Some(if suffix_breaks { before } else { end + 1 })
    }

    fn block_end(&self, text: &str) -> Option<usize> {
        match self.block {
            Block::Unknown => None,
            Block::Indent(least) => {
                let mut at = text.find('\n')? + 1;
                loop {
                    let line = text[at..].split_inclusive('\n').next()?;
                    let content = line.trim_start();
                    if !content.is_empty() && indent(line) < least {
                        // the line breaks before it belong to what follows, but for one that ends the last line
                        let kept = text[..at].trim_end().len();
                        let suffix_breaks = self.suffix.is_empty() || self.suffix.starts_with(['\n', '\r']);
                        let line_break = text[kept..].find('\n').map_or(0, |found| found + 1);
                        return Some(if suffix_breaks { kept } else { kept + line_break });
                    }
                    at += line.len();
                }
            }
            Block::Bracket { in_suffix } => {
                let mut depth = 0_usize;
                for (at, bracket) in brackets(text) {
                    if is_open(bracket) {
                        depth += 1;
                    } else if depth > 0 {
                        depth -= 1;
                    } else {
                        let suffix_breaks = self.suffix.starts_with(['\n', '\r']);
                        let before = &text[..at];
                        let kept = if suffix_breaks { before.trim_end() } else { before.trim_end_matches([' ', '\t']) };
                        return Some(if in_suffix { kept.len() } else { at + 1 });
                    }
                }
                None
            }
        }
    }
}

/// The beginning of a text up to the line break of its first telling line.
fn first_telling(text: &str) -> &str {
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        end += line.len();
        if telling_characters(line) >= TELLING {
            return if line.ends_with('\n') { &text[..end] } else { "" };
        }
    }
    ""
}

fn telling_characters(text: &str) -> usize {
    text.chars().filter(|c| c.is_alphanumeric() || *c == '_').count()
}

/// White space at the beginning of a line, in characters.
fn indent(line: &str) -> usize {
    line.chars().take_while(|c| matches!(c, ' ' | '\t')).count()
}

/// How far lines after the hole are indented at least to belong to its block: as far as the line of the hole, and further
/// when that line opens a block.
fn least_indent(prefix: &str) -> usize {
    let line = prefix.rsplit('\n').next().unwrap_or_default();
    let opener = prefix.trim_end();
    if line.trim().is_empty() && opener.ends_with(':') && indent(line) <= indent(last_line(opener)) {
        return indent(last_line(opener)) + 1;
    }
    indent(line) + usize::from(line.trim_end().ends_with(':'))
}

fn last_line(text: &str) -> &str {
    text.rsplit('\n').next().unwrap_or_default()
}

/// The brackets of a text and where they are; those inside quotes on one line are left out.
fn brackets(text: &str) -> impl Iterator<Item = (usize, char)> {
    let mut quote = None;
    let mut escaped = false;
    text.char_indices().filter(move |(_, c)| {
        let within = quote.is_some();
        match c {
            '\n' => quote = None,
            '\\' if within && !escaped => {
                escaped = true;
                return false;
            }
            '"' | '\'' | '`' if !escaped => {
                quote = match quote {
                    Some(open) if open == *c => None,
                    Some(open) => Some(open),
                    None => Some(*c),
                }
            }
            _ => {}
        }
        escaped = false;
        !within && matches!(c, '(' | '[' | '{' | ')' | ']' | '}')
    })
}

fn is_open(bracket: char) -> bool {
    matches!(bracket, '(' | '[' | '{')
}

/// How many brackets of a text stay open, and how many close what was opened before it.
fn depths(text: &str) -> (usize, usize) {
    brackets(text).fold((0, 0), |(open, closed), (_, bracket)| match (is_open(bracket), open) {
        (true, _) => (open + 1, closed),
        (false, 0) => (0, closed + 1),
        (false, _) => (open - 1, closed),
    })
}

/// How many brackets have no partner.
fn imbalance(parts: &[&str]) -> usize {
    let (open, closed) = depths(&parts.concat());
    open + closed
}

#[cfg(test)]
mod tests;
