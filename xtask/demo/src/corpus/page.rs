//! A story on its way: its text, and the words that fill its blanks.

use crate::random::Random;

/// A story being written: the text so far and the words that fill the blanks.
pub(super) struct Page {
    words: Vec<(String, String)>,
    pub(super) text: String,
}

impl Page {
    pub(super) fn new() -> Self {
        Self { words: Vec::new(), text: String::new() }
    }

    /// From now on `{key}` in a sentence means `word`.
    pub(super) fn set(&mut self, key: &str, word: &str) {
        self.words.retain(|(known, _)| known != key);
        self.words.push((key.to_owned(), word.to_owned()));
    }

    /// Adds a sentence, its blanks filled.
    ///
    /// # Panics
    ///
    /// When a blank has no word: a mistake in the grammar, which the test over all plots would meet.
    pub(super) fn say(&mut self, sentence: &str) {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        let mut rest = sentence;
        while let Some((before, after)) = rest.split_once('{') {
            let (key, tail) = after.split_once('}').expect("every blank of the grammar is closed");
            let word = self.words.iter().find(|(known, _)| known == key);
            let (_, word) = word.unwrap_or_else(|| panic!("the grammar has no word for {{{key}}}"));
            self.text.push_str(before);
            self.text.push_str(word);
            rest = tail;
        }
        self.text.push_str(rest);
    }

    /// Adds one of `sentences`.
    pub(super) fn say_one(&mut self, random: &mut Random, sentences: &[&str]) {
        self.say(random.pick(sentences));
    }
}

/// `words` with "a" or "an" in front.
pub(super) fn with_article(words: &str) -> String {
    let article = if words.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {words}")
}

/// `word` with a capital first letter.
pub(super) fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
