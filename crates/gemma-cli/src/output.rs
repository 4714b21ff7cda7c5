//! Printing: results on standard output, everything else on standard error.
//!
//! A reader that goes away (`gemma models | head`) is no mistake: it comes back as [`Closed`], which ends the
//! program quietly.

use std::{
    borrow::Cow,
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use anyhow::Result;
use serde::Serialize;

/// Nobody reads standard output any more.
#[derive(Debug)]
pub(crate) struct Closed;

impl Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for Closed {}

/// Prints text as it is and lets it be seen at once.
pub(crate) fn piece(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let visible = if stdout.is_terminal() { harmless(text) } else { text.into() };
    written(stdout.write_all(visible.as_bytes()).and_then(|()| stdout.flush()))
}

/// Prints one line.
pub(crate) fn line(text: impl Display) -> Result<()> {
    piece(&format!("{text}\n"))
}

/// Prints one JSON object in one line.
pub(crate) fn json(object: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string(object)?;
    text.push('\n');
    written(io::stdout().write_all(text.as_bytes()))
}

/// Prints a whole file.
pub(crate) fn text(bytes: &[u8]) -> Result<()> {
    written(io::stdout().write_all(bytes))
}

/// Prints what went wrong.
pub(crate) fn complain(text: impl Display) {
    // There is nowhere left to say that standard error cannot be written.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints a remark beside the results, when a person is watching.
pub(crate) fn remark(text: impl Display) {
    if io::stderr().is_terminal() {
        complain(text);
    }
}

fn written(result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to standard output")),
        Ok(()) => Ok(()),
    }
}

/// What a terminal may be shown: a model can write any byte, escape sequences that move the cursor or rename the
/// window included, so control characters other than line breaks and tabs become a replacement character.
fn harmless(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(harmful) { text.replace(harmful, "\u{fffd}").into() } else { text.into() }
}

/// A token's piece on one line: line breaks, tabs and other control characters as their escapes.
pub(crate) fn visible(piece: &str) -> String {
    piece.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// An error and its causes in one line.
///
/// A cause is left out where the message above it tells it already.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    // a parser may quote the whole of what it read
    const MOST: usize = 1000;
    let mut text = String::new();
    for cause in error.chain() {
        let mut cause = cause.to_string();
        if let Some((at, _)) = cause.char_indices().nth(MOST) {
            cause.replace_range(at.., "...");
        }
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    // marks that turn the direction of writing make one name of a file look like another
    let turning = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let spelled = |c: char| if turning(c) { c.escape_default().to_string() } else { c.to_string() };
    harmless(&words.join(" ")).chars().map(spelled).collect()
}

/// Options as the libraries call them, and the flags that set them.
const FLAGS: [(&str, &str); 19] = [
    ("max_tokens is", "--max-tokens is"),
    ("temperature is", "--temperature is"),
    ("top_k is", "--top-k is"),
    ("top_p is", "--top-p is"),
    ("min_p is", "--min-p is"),
    ("repetition_penalty is", "--repetition-penalty is"),
    ("presence_penalty is", "--presence-penalty is"),
    ("frequency_penalty is", "--frequency-penalty is"),
    ("dry.multiplier is", "--dry-multiplier is"),
    ("dry.base is", "--dry-base is"),
    ("dry.allowed_length is", "--dry-allowed-length is"),
    ("mirostat.tau is", "--mirostat-tau is"),
    ("mirostat.eta is", "--mirostat-eta is"),
    ("logit_bias names", "--logit-bias names"),
    ("window is", "--context is"),
    ("overlap is", "--overlap is"),
    ("training option learning_rate is", "--learning-rate is"),
    ("training option weight_decay is", "--weight-decay is"),
    ("target_modules names", "--target names"),
];

/// A message in which options of the libraries are called as their flags are; names within a sentence or behind a file's
/// name stay.
pub(crate) fn with_flags(message: &str) -> String {
    let known = FLAGS.iter().find_map(|(option, flag)| Some(format!("{flag}{}", message.strip_prefix(option)?)));
    known.unwrap_or_else(|| message.to_owned())
}

/// A number of bytes as people read it: `5.01 GB` (1 GB is 10^9 bytes).
pub(crate) fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{:.0} kB", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} MB", count as f64 / 1e6),
        1_000_000_000..10_000_000_000 => format!("{:.2} GB", count as f64 / 1e9),
        _ => format!("{:.1} GB", count as f64 / 1e9),
    }
}

/// A number with its digits in groups of three: `2 506 172 416`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// The most characters of a cell of a table.
const CELL: usize = 1000;

/// At most [`CELL`] characters of a text.
fn cut(text: String) -> String {
    match text.char_indices().nth(CELL) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Rows of words in columns, the first row being the heading; columns of numbers lean right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this heading; `right` marks the columns that lean right.
    pub(crate) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned).to_vec()] }
    }

    /// Adds a row; missing cells stay empty, and what no screen holds is cut.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(cut).collect());
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows[0].len();
        let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
        let width = |column| self.rows.iter().map(|row| cell(row, column).chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let leans_right = |column: usize| {
            self.rows[1..].iter().all(|row| {
                let cell = cell(row, column);
                cell.is_empty() || cell == "-" || cell.starts_with(|c: char| c.is_ascii_digit())
            })
        };
        let right: Vec<bool> = (0..columns).map(leans_right).collect();
        for (index, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for column in 0..columns {
                let (text, width) = (cell(row, column), widths[column]);
                let padded = if right[column] { format!("{text:>width$}") } else { format!("{text:<width$}") };
                line.push_str(&padded);
                line.push_str("  ");
            }
            let end = if index + 1 < self.rows.len() { "\n" } else { "" };
            write!(f, "{}{end}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_in_decimal_units() {
        let shown: Vec<String> = [0, 999, 12_345, 5_012_344_832, 54_454_256_640].map(bytes).into();
        assert_eq!(shown, ["0 B", "999 B", "12 kB", "5.01 GB", "54.5 GB"]);
    }

    #[test]
    fn a_cell_that_no_screen_holds_is_cut() {
        let mut table = Table::new(["name", "bytes"]);
        table.row(["é".repeat(70_000), "1".to_owned()]);
        let shown = table.to_string();
        assert!(shown.contains("é...") && shown.chars().count() < 3_000, "{}", shown.len());
    }

    #[test]
    fn digits_come_in_threes() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(123), "123");
        assert_eq!(grouped(2_506_172_416), "2 506 172 416");
    }

    #[test]
    fn tables_align_numbers_to_the_right() {
        let mut table = Table::new(["name", "size"]);
        table.row(["a".into(), "10 B".into()]);
        table.row(["longer".into(), "9 B".into()]);
        table.row(["none".into(), "-".into()]);
        assert_eq!(table.to_string(), "name    size\na       10 B\nlonger   9 B\nnone       -");
    }

    #[test]
    fn an_error_is_one_line_and_says_nothing_twice() {
        let source = io::Error::other("disk on\nfire");
        let error = anyhow::Error::new(source).context("cannot read x: disk on\nfire").context("loading");
        assert_eq!(one_line(&error), "loading: cannot read x: disk on fire");
        let long = one_line(&anyhow::anyhow!("x".repeat(100_000)).context("reading"));
        assert_eq!(long.len(), "reading: ".len() + 1003, "{long}");
        let error = anyhow::anyhow!("\u{202e}gpj.exe\u{1b}[2J: no image");
        assert_eq!(one_line(&error), "\\u{202e}gpj.exe\u{fffd}[2J: no image");
    }

    #[test]
    fn options_are_called_as_their_flags_are() {
        assert_eq!(with_flags("top_p is 2; choose a number up to 1"), "--top-p is 2; choose a number up to 1");
        assert_eq!(with_flags("config.json: top_p is 2"), "config.json: top_p is 2");
    }

    #[test]
    fn escape_sequences_do_not_reach_a_terminal() {
        assert_eq!(harmless("a\u{1b}[2Jb\tc\n"), "a\u{fffd}[2Jb\tc\n");
        assert_eq!(harmless("plain ä\n"), "plain ä\n");
    }

    #[test]
    fn a_piece_stays_on_its_line() {
        assert_eq!(visible("a\n\t▁ä"), "a\\n\\t▁ä");
    }

    #[test]
    fn a_closed_pipe_is_told_from_other_failures() {
        let closed = written(Err(io::ErrorKind::BrokenPipe.into())).expect_err("closed");
        assert!(closed.is::<Closed>());
        let full = written(Err(io::ErrorKind::StorageFull.into())).expect_err("full");
        assert!(!full.is::<Closed>());
    }
}
