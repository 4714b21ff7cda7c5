//! What is asked: tasks as texts, and texts as tokens.
//!
//! A prompt is the image tokens of its images, `<bos>`, the text, and a line break that is a token of its own. (The
//! model was trained with the line break cut apart from the text; a text's own line breaks at its end would merge with
//! it, so they are dropped.)

use gemma_tokenizer::{EncodeOptions, TokenId, Tokenizer};

use crate::Error;
use crate::loc::{Item, items_of_text};

/// `caption {language}`.
pub fn caption(language: &str) -> String {
    format!("caption {language}")
}

/// `answer {language} {question}`.
pub fn answer(language: &str, question: &str) -> String {
    format!("answer {language} {question}")
}

/// `ocr`.
pub fn ocr() -> String {
    "ocr".to_owned()
}

/// `detect {thing} ; {thing}`.
pub fn detect<S: AsRef<str>>(things: &[S]) -> String {
    let things: Vec<&str> = things.iter().map(|thing| thing.as_ref().trim()).collect();
    format!("detect {}", things.join(" ; "))
}

/// `segment {thing}`.
pub fn segment(thing: &str) -> String {
    format!("segment {}", thing.trim())
}

/// The tokens of a prompt with `image_tokens` patches of images in front.
///
/// The names of location and segment tokens in the text become these tokens, since prompts may point at places; no
/// other control token does.
///
/// # Errors
/// When the vocabulary has no line break, or no number for `<loc0000>` where the text names it.
pub fn tokens(
    tokenizer: &Tokenizer,
    image_token: TokenId,
    image_tokens: usize,
    text: &str,
) -> Result<Vec<TokenId>, Error> {
    let newline = tokenizer.token("\n").ok_or(Error::MissingToken { piece: "line break" })?;
    let mut tokens = vec![image_token; image_tokens];
    tokens.push(tokenizer.bos());
    for item in items_of_text(text.trim_end_matches('\n')) {
        let named = |name: String, piece| tokenizer.token(&name).ok_or(Error::MissingToken { piece });
        match item {
            Item::Location(location, _) => tokens.push(named(format!("<loc{location:04}>"), "<loc0000> to <loc1023>")?),
            Item::Segment(code) => tokens.push(named(format!("<seg{code:03}>"), "<seg000> to <seg127>")?),
            Item::Text(text) => {
                tokens.extend(tokenizer.encode_with(&text, EncodeOptions { bos: false, specials: false }));
            }
        }
    }
    tokens.push(newline);
    Ok(tokens)
}

/// The tokens of a prompt and of the answer that is to be learned after it, `<eos>` at the end; and how many of them are
/// the prompt, which sees itself both ways.
///
/// # Errors
/// As [`tokens`].
pub fn answered(
    tokenizer: &Tokenizer,
    image_token: TokenId,
    image_tokens: usize,
    prompt: &str,
    answer: &str,
) -> Result<(Vec<TokenId>, usize), Error> {
    let mut all = tokens(tokenizer, image_token, image_tokens, prompt)?;
    let prefix_len = all.len();
    // an answer is a prompt without its frame: location names become tokens
    let framed = tokens(tokenizer, image_token, 0, answer)?;
    all.extend_from_slice(&framed[1..framed.len() - 1]);
    all.push(tokenizer.eos());
    Ok((all, prefix_len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_spelt_as_they_were_trained() {
        assert_eq!(caption("en"), "caption en");
        assert_eq!(answer("de", "Was ist das?"), "answer de Was ist das?");
        assert_eq!(detect(&["cat", " dog "]), "detect cat ; dog");
        assert_eq!(segment("cat "), "segment cat");
        assert_eq!(ocr(), "ocr");
    }

    #[test]
    fn image_tokens_then_bos_then_text_then_one_line_break() {
        let tokenizer = crate::demo_tokenizer().unwrap();
        let image = tokenizer.control().image.unwrap();
        let newline = tokenizer.token("\n").unwrap();
        let plain = tokens(&tokenizer, image, 3, "caption en").unwrap();
        assert_eq!(plain[..4], [image, image, image, tokenizer.bos()]);
        assert_eq!(plain.last(), Some(&newline));
        assert_eq!(plain.iter().filter(|token| **token == newline).count(), 1);
        assert_eq!(tokens(&tokenizer, image, 3, "caption en\n\n").unwrap(), plain, "a text's own end is dropped");
        assert_eq!(tokens(&tokenizer, image, 0, "").unwrap(), [tokenizer.bos(), newline]);
    }

    #[test]
    fn a_prompt_may_point_at_places_and_not_end_itself() {
        let tokenizer = crate::demo_tokenizer().unwrap();
        let image = tokenizer.control().image.unwrap();
        let pointing = tokens(&tokenizer, image, 0, "caption <loc0012> en").unwrap();
        assert!(pointing.contains(&tokenizer.token("<loc0012>").unwrap()));
        let ending = tokens(&tokenizer, image, 0, "caption <eos><image> en").unwrap();
        assert!(!ending.contains(&tokenizer.eos()) && !ending.contains(&image));
    }
}
