//! Text from outside, fit for a message of one line.

use std::fmt::{self, Display};

/// How many names of each list an error shows.
const SHOWN_NAMES: usize = 8;
/// How many characters of a name from a file an error shows.
const SHOWN_CHARACTERS: usize = 120;

/// A name from outside: one line, bounded, without control characters.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut characters = self.0.chars();
        for character in characters.by_ref().take(SHOWN_CHARACTERS) {
            if character.is_control() {
                write!(f, "{}", character.escape_default())?;
            } else {
                write!(f, "{character}")?;
            }
        }
        if characters.next().is_some() { f.write_str("...") } else { Ok(()) }
    }
}

/// The text of a cause, cut like a name; parsers quote what they read.
pub(super) struct OneLine<'a, T>(pub(super) &'a T);

impl<T: Display> Display for OneLine<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        for character in text.chars().take(4 * SHOWN_CHARACTERS) {
            if character.is_control() { f.write_str(" ")? } else { write!(f, "{character}")? }
        }
        Ok(())
    }
}

/// `a, b, c and 5 more`.
pub(super) struct Listed<'a>(pub(super) &'a [String]);

impl Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().take(SHOWN_NAMES).enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{}", Shown(name))?;
        }
        match self.0.len().saturating_sub(SHOWN_NAMES) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// `2 missing (a, b), 1 unexpected (c)`; empty lists are left out.
pub(super) struct Lists<'a>(pub(super) &'a [(&'a str, &'a Vec<String>)]);

impl Display for Lists<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (what, names) in self.0.iter().filter(|(_, names)| !names.is_empty()) {
            write!(f, "{separator}{} {what} ({})", names.len(), Listed(names))?;
            separator = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_stays_one_bounded_line() {
        let name = format!("evil\nname\u{1b}[31m{}", "x".repeat(10_000));
        let shown = Shown(&name).to_string();
        assert!(shown.starts_with("evil\\nname\\u{1b}[31mxxx"), "{shown}");
        assert!(!shown.contains('\n') && shown.len() < 200);
    }
}
