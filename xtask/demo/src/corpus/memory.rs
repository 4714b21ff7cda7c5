//! A word to be remembered while something else is read: what a window of a few tokens cannot do.

use super::stories::{Hero, story};
use crate::random::Random;
use gemma_tokenizer::Turn;

/// The words that are to be remembered. No story has one of them.
pub const WORDS: [&str; 16] = [
    "violet", "granite", "pepper", "trumpet", "velvet", "anchor", "marble", "ginger", "candle", "saddle", "copper",
    "lantern", "mustard", "pillow", "thunder", "walnut",
];

/// A task: a word, then other text, then the question which word it was.
#[derive(Clone, Debug)]
pub struct Recall {
    /// The word.
    pub word: &'static str,
    /// What is said: everything, the question included.
    pub text: String,
}

impl Recall {
    /// A task with at least `between` words of stories (or none) between the word and the question.
    pub fn draw(random: &mut Random, between: usize) -> Self {
        let word = random.pick(&WORDS);
        let mut filler = String::new();
        let mut words = 0;
        while words < between {
            let hero = Hero::draw(random);
            for sentence in story(&hero, random).split_inclusive(['.', '!', '?']) {
                if words < between {
                    words += sentence.split_whitespace().count();
                    filler.push(' ');
                    filler.push_str(sentence.trim());
                }
            }
        }
        Self { word, text: format!("Remember the word {word}.{filler} What was the word?") }
    }

    /// The task and its answer as a conversation.
    pub fn turns(&self) -> Vec<Turn> {
        vec![Turn::user(&self.text), Turn::model(self.word)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_as_long_as_asked_for_and_says_its_word_once() {
        let mut random = Random::new(5);
        for between in [0, 1, 40, 700] {
            let recall = Recall::draw(&mut random, between);
            let words = recall.text.split_whitespace().count() - 8;
            assert!(words >= between && words < between + 40, "{words} for {between}");
            assert_eq!(recall.text.matches(recall.word).count(), 1, "{}", recall.text);
            assert!(recall.text.ends_with("What was the word?"));
        }
    }

    #[test]
    fn no_story_has_one_of_the_words() {
        let mut random = Random::new(6);
        for _ in 0..2_000 {
            let hero = Hero::draw(&mut random);
            let text = story(&hero, &mut random);
            let found = WORDS.iter().find(|word| text.contains(*word));
            assert_eq!(found, None, "{text}");
        }
    }
}
