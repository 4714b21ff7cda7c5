//! Text that remembers who wrote it: the template, or a message.
//!
//! Every string of a rendering carries the ranges that came from a message. Joining, cutting, trimming, and changing
//! characters keep them, so that the finished prompt says exactly which of its characters may spell a control token.

use std::ops::Range;
use std::rc::Rc;

use super::budget::{Budget, Fault};

/// A string, and the byte ranges of it that came from messages.
#[derive(Clone, Debug)]
pub(super) struct Text {
    text: Rc<str>,
    origin: Origin,
}

#[derive(Clone, Debug)]
enum Origin {
    Template,
    Message,
    /// Sorted, not empty, not touching.
    Mixed(Rc<[Range<usize>]>),
}

impl Text {
    /// A text of the template.
    pub(super) fn template(text: &str) -> Self {
        Self { text: text.into(), origin: Origin::Template }
    }

    /// A text of a message.
    pub(super) fn message(text: &str) -> Self {
        Self { text: text.into(), origin: Origin::Message }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// The stretches of one origin in order, with whether each came from a message.
    pub(super) fn segments(&self) -> Vec<(&str, bool)> {
        self.segments_in(0..self.text.len())
    }

    /// The same for a byte range of the text.
    fn segments_in(&self, range: Range<usize>) -> Vec<(&str, bool)> {
        let ranges = match &self.origin {
            _ if range.is_empty() => return Vec::new(),
            Origin::Template => return vec![(&self.text[range], false)],
            Origin::Message => return vec![(&self.text[range], true)],
            Origin::Mixed(ranges) => ranges,
        };
        let mut segments = Vec::new();
        let mut at = range.start;
        let first = ranges.partition_point(|message| message.end <= range.start);
        for message in &ranges[first..] {
            let (start, end) = (message.start.max(at), message.end.min(range.end));
            if start >= range.end {
                break;
            }
            if at < start {
                segments.push((&self.text[at..start], false));
            }
            segments.push((&self.text[start..end], true));
            at = end;
        }
        if at < range.end {
            segments.push((&self.text[at..range.end], false));
        }
        segments
    }

    /// A part of the text.
    pub(super) fn slice(&self, range: Range<usize>, budget: &Budget) -> Result<Text, Fault> {
        if range == (0..self.text.len()) {
            return Ok(self.clone());
        }
        let mut builder = Builder::default();
        builder.push_part(self, range, budget)?;
        Ok(builder.finish())
    }

    /// The part that `part` is, which must be a slice of this text's own string.
    pub(super) fn part(&self, part: &str, budget: &Budget) -> Result<Text, Fault> {
        let start = part.as_ptr() as usize - self.text.as_ptr() as usize;
        self.slice(start..start + part.len(), budget)
    }

    /// The text with every stretch changed by `change`.
    pub(super) fn map(&self, budget: &Budget, mut change: impl FnMut(&str) -> String) -> Result<Text, Fault> {
        let mut builder = Builder::default();
        for (segment, message) in self.segments() {
            builder.push(&change(segment), message, budget)?;
        }
        Ok(builder.finish())
    }

    /// Its characters, each as a text of its own.
    pub(super) fn characters(&self, budget: &Budget) -> Result<Vec<Text>, Fault> {
        budget.spend(self.text.len() as u64)?;
        budget.allocate(self.text.len() * 48)?;
        let each = |(segment, message): (&str, bool)| {
            let origin = if message { Origin::Message } else { Origin::Template };
            segment
                .chars()
                .map(|c| Text { text: c.encode_utf8(&mut [0; 4]).into(), origin: origin.clone() })
                .collect::<Vec<_>>()
        };
        Ok(self.segments().into_iter().flat_map(each).collect())
    }
}

/// A text in the making.
#[derive(Debug, Default)]
pub(super) struct Builder {
    text: String,
    messages: Vec<Range<usize>>,
}

impl Builder {
    /// Appends a text of one origin.
    pub(super) fn push(&mut self, text: &str, message: bool, budget: &Budget) -> Result<(), Fault> {
        budget.spend(1)?;
        budget.allocate(text.len())?;
        let start = self.text.len();
        self.text.push_str(text);
        if message && !text.is_empty() {
            match self.messages.last_mut() {
                Some(last) if last.end == start => last.end = self.text.len(),
                _ => self.messages.push(start..self.text.len()),
            }
        }
        Ok(())
    }

    /// Appends text of the template.
    pub(super) fn push_template(&mut self, text: &str, budget: &Budget) -> Result<(), Fault> {
        self.push(text, false, budget)
    }

    /// Appends a text with its origins.
    pub(super) fn push_text(&mut self, text: &Text, budget: &Budget) -> Result<(), Fault> {
        self.push_part(text, 0..text.text.len(), budget)
    }

    /// Appends a byte range of a text with its origins.
    pub(super) fn push_part(&mut self, text: &Text, range: Range<usize>, budget: &Budget) -> Result<(), Fault> {
        for (segment, message) in text.segments_in(range) {
            self.push(segment, message, budget)?;
        }
        Ok(())
    }

    /// The finished text.
    pub(super) fn finish(self) -> Text {
        let origin = match &self.messages[..] {
            [] => Origin::Template,
            [whole] if *whole == (0..self.text.len()) => Origin::Message,
            _ => Origin::Mixed(self.messages.into()),
        };
        Text { text: self.text.into(), origin }
    }
}
