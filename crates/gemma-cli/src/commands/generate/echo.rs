//! The prompt in front of its continuation.

use std::io::{self, IsTerminal};

use super::{Generate, Given};

/// Most characters of a prompt that are shown on a terminal, where all of it was not asked for.
const LONGEST_LEAD: usize = 400;

/// The prompt as it is printed in front of its continuation, so that the text begins where a sentence does.
pub(super) fn lead(args: &Generate, given: &Given) -> Option<String> {
    let Given::Text(text) = given else { return None };
    // what is said about an image is an answer
    let answer = args.chat || !args.image.is_empty();
    let wanted = args.echo || !(args.no_echo || args.json || answer) && io::stdout().is_terminal();
    wanted.then(|| if args.echo { text.clone() } else { end_of(text) })
}

/// The last characters of a text, from a word on.
fn end_of(text: &str) -> String {
    let count = text.chars().count();
    let Some((at, _)) = count.checked_sub(LONGEST_LEAD + 1).and_then(|skipped| text.char_indices().nth(skipped)) else {
        return text.to_owned();
    };
    let end = &text[at..];
    let word = end.find(char::is_whitespace).map_or(end, |space| end[space..].trim_start());
    format!("[...] {}", if word.is_empty() { end } else { word })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_prompt_is_shown_by_its_end() {
        assert_eq!(end_of("Once upon a time"), "Once upon a time");
        let long = "élan ".repeat(200) + "end";
        let shown = end_of(&long);
        assert!(shown.starts_with("[...] élan ") && shown.ends_with("élan end"), "{shown}");
        assert!(shown.chars().count() <= LONGEST_LEAD + 8, "{shown}");
        assert_eq!(end_of(&"x".repeat(1000)).len(), LONGEST_LEAD + 7);
    }
}
