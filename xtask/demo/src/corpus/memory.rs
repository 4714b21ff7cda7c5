//! A word to remember while other things are talked about: what a model without a long memory cannot do.

use super::chat::{MIX, training_question};
use super::question::Kind;
use crate::random::Random;
use gemma_tokenizer::Turn;

/// What may have to be remembered. None of them occurs elsewhere in the corpus.
pub const WORDS: [&str; 16] = [
    "anchor", "bridge", "candle", "drum", "feather", "hammer", "island", "kettle", "lantern", "marble", "needle",
    "orange", "pencil", "ribbon", "ticket", "violin",
];

/// A conversation that begins with a word and ends with the question for it.
#[derive(Clone, Debug)]
pub struct Memory {
    /// The conversation, up to and including the question.
    pub turns: Vec<Turn>,
    /// The word.
    pub word: &'static str,
}

impl Memory {
    /// A conversation with other questions in between until `enough` is true of the turns that were put there.
    pub fn draw(random: &mut Random, mut enough: impl FnMut(&[Turn]) -> bool) -> Self {
        let word = random.pick(&WORDS);
        let mut turns = vec![Turn::user(format!("Remember the word {word}.")), Turn::model("I will remember it.")];
        while !enough(&turns[2..]) {
            let question = training_question(random, &MIX);
            // a story would end the conversation
            if question.kind != Kind::Story {
                turns.extend(question.dialogue());
            }
        }
        turns.push(Turn::user("Which word should you remember?"));
        Self { turns, word }
    }

    /// The right answer.
    pub fn answer(&self) -> String {
        format!("The word is {}.", self.word)
    }

    /// The conversation with the right answer, to learn from.
    pub fn dialogue(mut self) -> Vec<Turn> {
        let answer = self.answer();
        self.turns.push(Turn::model(answer));
        self.turns
    }
}

/// Conversations to learn from, without end: every second one is short, the longest have some 25 questions in
/// between.
pub fn memory_text(seed: u64) -> impl Iterator<Item = Vec<Turn>> {
    let mut random = Random::new(seed ^ 0x0000_3e3e_3e61_0bea);
    std::iter::repeat_with(move || {
        let most = [3, 3, 10, 26][random.below(4)];
        let questions = random.below(most);
        Memory::draw(&mut random, |between| between.len() >= 2 * questions).dialogue()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gemma_tokenizer::Role;

    #[test]
    fn the_word_is_said_once_before_it_is_asked_for() {
        for turns in memory_text(1).take(500) {
            let (last, before) = turns.split_last().unwrap();
            let word = WORDS.iter().find(|word| last.text.contains(**word)).unwrap();
            assert_eq!(before.iter().filter(|turn| turn.text.contains(word)).count(), 1);
            assert!(before[0].text.contains(word));
            for (place, turn) in turns.iter().enumerate() {
                assert_eq!(turn.role == Role::User, place % 2 == 0);
            }
        }
    }

    #[test]
    fn short_and_long_conversations_occur() {
        let lengths: Vec<usize> = memory_text(2).take(500).map(|turns| turns.len()).collect();
        assert!(lengths.iter().any(|len| *len == 4) && lengths.iter().any(|len| *len > 45));
    }
}
