//! What of a program fits into a prompt: whole lines, the nearest first.
//!
//! Prefix and suffix share the room three to one; what one of them does not need goes to the other, and what both leave
//! goes to the other files. Shares move in steps of an eighth of the room, and a prefix that is too long begins at every
//! sixteenth line of the file, so that both stay where they are from one keystroke to the next: a prompt that begins
//! like the last one need not be read again.

use crate::Error;
use crate::fim::{File, Infill, text_tokens};
use gemma_tokenizer::Tokenizer;
use serde::Serialize;

/// Smallest budget in tokens for which a prompt is made.
const LEAST_BUDGET: usize = 32;
/// Steps in which shares move, in parts of the room.
const STEPS: usize = 8;
/// A prefix that is cut begins at a line whose number is a multiple of the first of these that leaves half of its share.
const STRIDES: [usize; 3] = [16, 4, 1];
/// `<bos>` and the three tokens of the infilling prompt.
const FRAME: usize = 4;
/// More bytes than any piece of a vocabulary has: so many bytes per token of a share are looked at.
const LONGEST_PIECE: usize = 96;

/// What was left out of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Truncation {
    /// Lines at the beginning of the prefix. A line that was cut inside, for want of room, counts.
    pub prefix_lines: usize,
    /// Lines at the end of the suffix. A line that was cut inside counts.
    pub suffix_lines: usize,
    /// Files of which nothing is left.
    pub files: usize,
    /// Lines at the ends of the files that are left.
    pub file_lines: usize,
}

impl Truncation {
    /// Whether everything fitted.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The parts of a prompt after the cut.
pub(crate) struct Chosen<'a> {
    pub(crate) files: Vec<File>,
    pub(crate) path: Option<&'a str>,
    pub(crate) prefix: &'a str,
    pub(crate) suffix: &'a str,
    pub(crate) left_out: Truncation,
}

/// Chooses what fits into `budget` tokens.
pub(crate) fn choose<'a>(infill: &'a Infill, tokenizer: &Tokenizer, budget: usize) -> Result<Chosen<'a>, Error> {
    if budget < LEAST_BUDGET {
        return Err(Error::Budget { budget, least: LEAST_BUDGET });
    }
    // The name of the file matters only beside other files, and may not crowd out the program.
    let path = infill.path.as_deref().filter(|path| !infill.context.is_empty() && path.len() <= budget);
    let path_tokens = path.map_or(0, |path| text_tokens(tokenizer, path).len() + 1);
    let (path, path_tokens) = if path_tokens <= budget / 4 { (path, path_tokens) } else { (None, 0) };
    let room = budget - FRAME - path_tokens;

    let step = (room / STEPS).max(1);
    let before = Lines::before_hole(&infill.prefix, tokenizer, room);
    let after = Lines::after_hole(&infill.suffix, tokenizer, room);
    let favoured = room - room / 4;
    // what the suffix leaves of its quarter goes to the prefix, and the other way round
    let for_prefix = favoured.max(room.saturating_sub(stepped(after.total, step)));
    let for_suffix = (room / 4).max(room.saturating_sub(stepped(before.total, step)));
    let (prefix, prefix_tokens, prefix_lines) = before.keep(for_prefix, &STRIDES);
    let (suffix, suffix_tokens, suffix_lines) = after.keep(for_suffix.min(room.saturating_sub(prefix_tokens)), &[1]);
    let mut left_out = Truncation { prefix_lines, suffix_lines, ..Truncation::default() };

    let mut rest = room.saturating_sub(stepped(prefix_tokens + suffix_tokens, step));
    let mut files = Vec::new();
    for file in infill.context.iter().rev() {
        match shorten(file, tokenizer, rest) {
            Some((kept, tokens, lines)) => {
                rest -= tokens;
                left_out.file_lines += lines;
                files.push(kept);
            }
            None => left_out.files += 1,
        }
    }
    files.reverse();
    let path = path.filter(|_| !files.is_empty());
    Ok(Chosen { files, path, prefix, suffix, left_out })
}

/// `tokens` rounded up to whole steps.
fn stepped(tokens: usize, step: usize) -> usize {
    tokens.div_ceil(step) * step
}

/// The first lines of a file that fit into `room` tokens: the file, its tokens, the lines left out. `None` when not
/// even its first line fits.
fn shorten(file: &File, tokenizer: &Tokenizer, room: usize) -> Option<(File, usize, usize)> {
    // a separator, and the line break after the path
    let head = text_tokens(tokenizer, file.path.get(..file.path.len().min(room * LONGEST_PIECE))?).len() + 2;
    let lines = Lines::after_hole(&file.text, tokenizer, room.checked_sub(head)?);
    let (text, tokens, left_out) = lines.keep_whole(room - head, 1);
    if text.is_empty() && !file.text.is_empty() {
        return None;
    }
    Some((File { path: file.path.clone(), text: text.to_owned() }, head + tokens, left_out))
}

/// The lines on one side of the hole, the nearest first, as far as they can matter.
struct Lines<'a> {
    text: &'a str,
    before_hole: bool,
    /// Tokens and bytes of each line looked at.
    sizes: Vec<(usize, usize)>,
    /// Tokens of all lines looked at: of all there are, unless that is more than the room.
    total: usize,
}

impl<'a> Lines<'a> {
    /// Lines that end at the hole.
    fn before_hole(text: &'a str, tokenizer: &Tokenizer, room: usize) -> Self {
        Self::look(text, true, text.split_inclusive('\n').rev(), tokenizer, room)
    }

    /// Lines that begin at the hole.
    fn after_hole(text: &'a str, tokenizer: &Tokenizer, room: usize) -> Self {
        Self::look(text, false, text.split_inclusive('\n'), tokenizer, room)
    }

    fn look(
        text: &'a str,
        before_hole: bool,
        lines: impl Iterator<Item = &'a str>,
        tokenizer: &Tokenizer,
        room: usize,
    ) -> Self {
        let (mut sizes, mut total) = (Vec::new(), 0);
        for line in lines {
            // A line of a megabyte is not encoded to learn that it is too long.
            let tokens =
                if line.len() > (room + 1) * LONGEST_PIECE { room + 1 } else { text_tokens(tokenizer, line).len() };
            sizes.push((tokens, line.len()));
            total += tokens;
            if total > room {
                break;
            }
        }
        Self { text, before_hole, sizes, total }
    }

    /// The text that fits into `room`, its tokens, and how many lines were left out: whole lines, of which a multiple of
    /// one of `strides` is left out. When not even the nearest line fits, its nearest characters are kept.
    fn keep(&self, room: usize, strides: &[usize]) -> (&'a str, usize, usize) {
        if self.total <= room {
            return (self.text, self.total, 0);
        }
        for &stride in strides {
            let kept = self.keep_whole(room, stride);
            if kept.1 >= room / 2 {
                return kept;
            }
        }
        let kept = self.keep_whole(room, 1);
        if !kept.0.is_empty() {
            return kept;
        }
        let characters = self.nearest_bytes(room);
        (characters, characters.len(), kept.2)
    }

    /// The whole lines that fit into `room`, their tokens, and how many were left out, a multiple of `stride`.
    fn keep_whole(&self, room: usize, stride: usize) -> (&'a str, usize, usize) {
        let mut end = 0;
        let fitting = self.sizes.iter().take_while(|(tokens, _)| {
            end += tokens;
            end <= room
        });
        let fitting = fitting.count();
        let all = self.text.split_inclusive('\n').count();
        let left_out = (all - fitting).next_multiple_of(stride).min(all);
        let kept = &self.sizes[..all - left_out];
        let bytes = kept.iter().map(|(_, bytes)| bytes).sum();
        (self.nearest_bytes(bytes), kept.iter().map(|(tokens, _)| tokens).sum(), left_out)
    }

    /// At most so many bytes next to the hole: a token stands for at least one.
    fn nearest_bytes(&self, bytes: usize) -> &'a str {
        let text = self.text;
        if self.before_hole {
            &text[text.ceil_char_boundary(text.len().saturating_sub(bytes))..]
        } else {
            &text[..text.floor_char_boundary(bytes)]
        }
    }
}
