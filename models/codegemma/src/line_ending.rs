//! How lines of a file end. Models are trained on `\n`; files written on Windows have `\r\n`.

use crate::{File, Infill};
use std::borrow::Cow;

/// How lines of a file end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LineEnding {
    /// `\n`.
    #[default]
    Lf,
    /// `\r\n`.
    CrLf,
}

impl LineEnding {
    /// How most lines of a text end.
    pub fn of(text: &str) -> Self {
        let crlf = text.matches("\r\n").count();
        if 2 * crlf > text.matches('\n').count() { Self::CrLf } else { Self::Lf }
    }

    /// A text whose lines end in `\n`, with this ending instead.
    pub fn apply(self, text: &str) -> Cow<'_, str> {
        match self {
            Self::CrLf if text.contains('\n') => text.replace("\r\n", "\n").replace('\n', "\r\n").into(),
            _ => text.into(),
        }
    }
}

/// A text as models are trained on: lines end in `\n`, and no byte order mark stands in front.
fn plain(text: &str) -> String {
    text.strip_prefix('\u{FEFF}').unwrap_or(text).replace("\r\n", "\n")
}

impl Infill {
    /// The same hole in texts as models are trained on: lines end in `\n`, without a byte order mark.
    pub(crate) fn plain(&self) -> Infill {
        // a cursor between `\r` and `\n` stands before both
        let (prefix, between) = match (self.prefix.strip_suffix('\r'), self.suffix.starts_with('\n')) {
            (Some(prefix), true) => (prefix, true),
            _ => (&*self.prefix, false),
        };
        Infill {
            prefix: plain(prefix),
            suffix: if between { self.suffix.replace("\r\n", "\n") } else { plain(&self.suffix) },
            path: self.path.clone(),
            context: self
                .context
                .iter()
                .map(|file| File { path: file.path.clone(), text: plain(&file.text) })
                .collect(),
            language: self.language,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_told_and_given_back() {
        assert_eq!(LineEnding::of("a\r\nb\r\nc\n"), LineEnding::CrLf);
        assert_eq!(LineEnding::of("a\nb\nc\r\n"), LineEnding::Lf);
        assert_eq!(LineEnding::of(""), LineEnding::Lf);
        assert_eq!(LineEnding::CrLf.apply("a\n\nb"), "a\r\n\r\nb");
        assert_eq!(LineEnding::CrLf.apply("a\r\nb"), "a\r\nb");
        assert_eq!(LineEnding::Lf.apply("a\nb"), "a\nb");
    }

    #[test]
    fn a_hole_is_shown_without_carriage_returns_and_marks() {
        let mut windows = Infill::new("\u{FEFF}def f():\r\n\tx = ", "\r\n\treturn x\r\n");
        windows.context.push(File { path: "a.py".into(), text: "\u{FEFF}a\r\n".into() });
        let plain = windows.plain();
        assert_eq!((&*plain.prefix, &*plain.suffix), ("def f():\n\tx = ", "\n\treturn x\n"));
        assert_eq!(plain.context[0].text, "a\n");
        let between = Infill::new("a\r", "\nb").plain();
        assert_eq!((&*between.prefix, &*between.suffix), ("a", "\nb"));
    }
}
