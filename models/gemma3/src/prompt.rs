//! What is asked about an image, in words: the tasks that PaliGemma knows by names of its own.

/// Asks for a description in a sentence of a language (`en`, `de`, ...).
pub fn caption(language: &str) -> String {
    answer(language, "Describe the image in one sentence.")
}

/// Asks a question that is to be answered in a language; English is taken for granted.
pub fn answer(language: &str, question: &str) -> String {
    match language {
        "en" => question.to_owned(),
        code => format!("{question} Answer in the language with the code \"{code}\"."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_language_than_english_is_asked_for() {
        assert_eq!(caption("en"), "Describe the image in one sentence.");
        assert_eq!(answer("de", "What is it?"), "What is it? Answer in the language with the code \"de\".");
    }
}
