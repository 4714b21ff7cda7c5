//! The names of control tokens and of literal pieces, in any of the families.

use crate::TokenId;

/// Name of the token that every text begins with.
pub(crate) const BOS: &str = "<bos>";
/// Name of the token that ends a text.
pub(crate) const EOS: &str = "<eos>";
pub(crate) const PAD: &str = "<pad>";
/// Name of the token for what a vocabulary cannot express.
pub(crate) const UNK: &str = "<unk>";
/// Name of the token that opens a turn of a chat.
pub(crate) const START_OF_TURN: &str = "<start_of_turn>";
/// Name of the token that closes a turn of a chat.
pub(crate) const END_OF_TURN: &str = "<end_of_turn>";
/// Gemma 4's names for the two.
pub(crate) const TURNS: [&str; 2] = ["<|turn>", "<turn|>"];
pub(crate) const IMAGE: &str = "<image>";
/// Name of the token that a chat template writes for an image (Gemma 3).
pub(crate) const START_OF_IMAGE: &str = "<start_of_image>";
pub(crate) const END_OF_IMAGE: &str = "<end_of_image>";
/// Gemma 3's token for one row of an image's features.
pub(crate) const IMAGE_SOFT_TOKEN: &str = "<image_soft_token>";
/// CodeGemma's names, with the numbers at which plain Gemma files have `<unused60>` to `<unused63>`.
pub(crate) const FIM: [(TokenId, &str); 4] =
    [(67, "<|fim_prefix|>"), (68, "<|fim_middle|>"), (69, "<|fim_suffix|>"), (70, "<|file_separator|>")];

/// Control tokens that carry structure and no text: decoding leaves them out.
const HIDDEN: [&str; 12] = [
    PAD,
    EOS,
    BOS,
    UNK,
    START_OF_TURN,
    END_OF_TURN,
    TURNS[0],
    TURNS[1],
    IMAGE,
    START_OF_IMAGE,
    END_OF_IMAGE,
    IMAGE_SOFT_TOKEN,
];
/// Control tokens that decoding shows, as the reference implementations do.
const SHOWN: [&str; 5] = ["<mask>", "<2mass>", "[@BOS@]", "[toxicity=0]", "[multimodal]"];

/// The HTML tags of the vocabulary, each of which also has its closing tag.
const HTML: [&str; 24] = [
    "table",
    "caption",
    "thead",
    "tbody",
    "tfoot",
    "tr",
    "th",
    "td",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "blockquote",
    "strong",
    "em",
    "b",
    "i",
    "u",
    "s",
    "sub",
    "sup",
    "code",
];

/// Is this the name of a control token, in any of the families?
pub(crate) fn is_control_name(piece: &str) -> bool {
    is_hidden_name(piece)
        || SHOWN.contains(&piece)
        || numbered(piece, "<unused").is_some()
        || numbered(piece, "<loc").is_some_and(|digits| digits == 4)
        || numbered(piece, "<seg").is_some_and(|digits| digits == 3)
}

/// Is this the name of a control token that decoding leaves out?
pub(crate) fn is_hidden_name(piece: &str) -> bool {
    HIDDEN.contains(&piece) || FIM.iter().any(|(_, name)| *name == piece)
}

/// How many digits stand between `prefix` and a final `>`, if that is all there is.
pub(crate) fn numbered(piece: &str, prefix: &str) -> Option<usize> {
    let digits = piece.strip_prefix(prefix)?.strip_suffix('>')?;
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then_some(digits.len())
}

/// Is this a piece that Gemma matches literally before it merges anything: a run of one white-space character, or an
/// HTML tag?
pub(crate) fn is_literal_name(piece: &str) -> bool {
    let mut chars = piece.chars();
    let run = match chars.next() {
        Some('\n') => chars.all(|c| c == '\n'),
        Some(first @ ('\t' | '▁')) => piece.chars().count() > 1 && chars.all(|c| c == first),
        _ => false,
    };
    let tag = || piece.strip_prefix("</").or_else(|| piece.strip_prefix('<')).and_then(|rest| rest.strip_suffix('>'));
    run || tag().is_some_and(|name| HTML.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_names_are_told_from_ordinary_text() {
        for name in
            ["<bos>", "<unused0>", "<unused99>", "<loc0000>", "<loc1023>", "<seg127>", "<|fim_middle|>", "[@BOS@]"]
        {
            assert!(is_control_name(name), "{name}");
        }
        for text in ["<unused>", "<unusedx>", "<loc12>", "<loc00000>", "<seg0001>", "bos", "<b>", "<0x41>", "<unused1"]
        {
            assert!(!is_control_name(text), "{text}");
        }
    }

    #[test]
    fn literal_names_are_runs_and_tags() {
        for name in ["\n", "\n\n\n", "\t\t", "▁▁", "<table>", "</blockquote>", "<b>"] {
            assert!(is_literal_name(name), "{name:?}");
        }
        for text in ["", "\t", "▁", "▁a", "\n\t", "<div>", "<bos>", "table", "<>", "</>"] {
            assert!(!is_literal_name(text), "{text:?}");
        }
    }
}
