//! Literal pieces and control tokens in a text: the longest one at the leftmost place.
//!
//! A byte trie. Gemma has some four hundred such pieces (PaliGemma fourteen hundred), almost all of which begin with
//! `<`, a newline, a tab or a space, so most bytes of a text are dismissed by one look at a table of first bytes.

use std::ops::Range;

use crate::TokenId;

/// Set of texts, each with its token.
#[derive(Debug)]
pub(crate) struct Literals {
    nodes: Vec<Node>,
    first_bytes: [bool; 256],
}

#[derive(Debug, Default)]
struct Node {
    next: Vec<(u8, u32)>,
    found: Option<Found>,
}

/// The token of a text, and whether it may only be taken where control tokens are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its number.
    pub(crate) id: TokenId,
    /// Is it a control token?
    pub(crate) control: bool,
}

impl Literals {
    /// An empty set.
    pub(crate) fn new() -> Self {
        Self { nodes: vec![Node::default()], first_bytes: [false; 256] }
    }

    /// Adds a text; the empty text is no text.
    pub(crate) fn insert(&mut self, text: &str, found: Found) {
        let Some(first) = text.bytes().next() else { return };
        self.first_bytes[first as usize] = true;
        let mut at = 0;
        for byte in text.bytes() {
            at = match self.child(at, byte) {
                Some(next) => next,
                None => {
                    let next = self.nodes.len();
                    self.nodes.push(Node::default());
                    self.nodes[at].next.push((byte, next as u32));
                    next
                }
            };
        }
        self.nodes[at].found = Some(found);
    }

    fn child(&self, node: usize, byte: u8) -> Option<usize> {
        self.nodes[node].next.iter().find(|(b, _)| *b == byte).map(|(_, next)| *next as usize)
    }

    /// The first place at or after `from` where an allowed text begins, and the longest allowed text there.
    ///
    /// `allows_control` is asked with the byte range of each control token met.
    pub(crate) fn next(
        &self,
        text: &str,
        from: usize,
        allows_control: impl Fn(Range<usize>) -> bool,
    ) -> Option<(Range<usize>, TokenId)> {
        let bytes = text.as_bytes();
        (from..bytes.len()).filter(|at| self.first_bytes[bytes[*at] as usize]).find_map(|start| {
            let mut longest = None;
            let mut node = 0;
            for (offset, byte) in bytes[start..].iter().enumerate() {
                let Some(next) = self.child(node, *byte) else { break };
                node = next;
                let range = start..start + offset + 1;
                if let Some(found) = self.nodes[node].found
                    && (!found.control || allows_control(range.clone()))
                {
                    longest = Some((range, found.id));
                }
            }
            longest
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> Literals {
        let mut literals = Literals::new();
        for (text, id, control) in [("\n", 1, false), ("\n\n", 2, false), ("<b>", 3, false), ("<bos>", 4, true)] {
            literals.insert(text, Found { id, control });
        }
        literals
    }

    #[test]
    fn the_longest_at_the_leftmost_place() {
        assert_eq!(set().next("a\n\n\n", 0, |_| true), Some((1..3, 2)));
        assert_eq!(set().next("a\n\n\n", 3, |_| true), Some((3..4, 1)));
        assert_eq!(set().next("<bos <b>", 0, |_| true), Some((5..8, 3)));
        assert_eq!(set().next("nothing", 0, |_| true), None);
        assert_eq!(set().next("", 0, |_| true), None);
    }

    #[test]
    fn control_tokens_only_where_allowed() {
        assert_eq!(set().next("<bos>\n", 0, |_| true), Some((0..5, 4)));
        assert_eq!(set().next("<bos>\n", 0, |_| false), Some((5..6, 1)));
        assert_eq!(set().next("<bos><bos>", 0, |range| range.start > 0), Some((5..10, 4)));
    }
}
