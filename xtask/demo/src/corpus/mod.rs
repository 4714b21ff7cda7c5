//! The text that the demo models learn: endless, deterministic streams of stories and conversations, and of code.
//!
//! [`training_text`] gives stories and conversations, [`held_out_questions`] the questions that never occur in it;
//! [`training_code`](holes::training_code) gives programs, [`held_out_functions`](code::held_out_functions) those that
//! never occur in it. All follow from a seed alone.

mod arithmetic;
mod chat;
pub mod code;
pub mod holes;
mod knowledge;
mod memory;
mod page;
mod plots;
mod question;
mod stories;

pub use chat::held_out_questions;
pub use memory::{Recall, WORDS};
pub use question::{Kind, Question, is_held_out};
pub use stories::{Hero, story};

use crate::random::Random;
use gemma_tokenizer::{Role, Turn};

/// How many of 100 documents are stories. A story is longer than the average conversation, so that this is a little
/// more than half of the tokens.
const STORY_SHARE: usize = 45;

/// One unit of training text: what stands between a `<bos>` and the end.
#[derive(Clone, Debug)]
pub enum Document {
    /// Plain text, to be tokenized as `<bos>` text `<eos>`.
    Story(String),
    /// A conversation of one to three unrelated questions and their answers, to be tokenized with the chat
    /// template.
    Chat(Vec<Turn>),
}

impl Document {
    /// Its texts, for a vocabulary to be learned from: a story, or who speaks and what they say.
    pub fn into_texts(self) -> Vec<String> {
        match self {
            Self::Story(text) => vec![text],
            Self::Chat(turns) => turns
                .into_iter()
                .flat_map(|turn| {
                    let speaker = if turn.role == Role::User { "user" } else { "model" };
                    [speaker.to_owned(), turn.text]
                })
                .collect(),
        }
    }
}

/// The training text that follows from `seed`: it never ends, and no question of [`held_out_questions`] is in it.
pub fn training_text(seed: u64) -> impl Iterator<Item = Document> {
    let mut random = Random::new(seed);
    std::iter::repeat_with(move || {
        if random.chance(STORY_SHARE) {
            let hero = Hero::draw(&mut random);
            Document::Story(story(&hero, &mut random))
        } else {
            Document::Chat(conversation(&mut random, &chat::MIX))
        }
    })
}

/// How many of 100 documents of the revision are stories: enough not to forget how to tell one.
const REVISION_STORY_SHARE: usize = 15;

/// What is read when [`training_text`] has been learned: few stories, and the kinds of question that take longest to
/// learn more often. No held-out question is in it either.
pub fn revision_text(seed: u64) -> impl Iterator<Item = Document> {
    let mut random = Random::new(seed ^ 0x0005_ec0d_2e71_5102);
    std::iter::repeat_with(move || {
        if random.chance(REVISION_STORY_SHARE) {
            let hero = Hero::draw(&mut random);
            Document::Story(story(&hero, &mut random))
        } else {
            Document::Chat(conversation(&mut random, &chat::REVISION))
        }
    })
}

/// One to three questions in a row, so that a model that chats is not put off by what was said before. A story
/// is long and ends the conversation.
fn conversation(random: &mut Random, mix: &chat::Mix) -> Vec<Turn> {
    let mut turns = Vec::new();
    for _ in 0..1 + random.below(3) {
        let question = chat::training_question(random, mix);
        turns.extend(question.dialogue());
        if question.kind == Kind::Story {
            break;
        }
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_held_out_question_is_in_the_training_text() {
        let tested: BTreeSet<String> = held_out_questions(2_000, 1).iter().map(Question::said).collect();
        for document in training_text(0).take(30_000) {
            let Document::Chat(turns) = document else { continue };
            let said: Vec<String> = turns.into_iter().step_by(2).map(|turn| turn.text).collect();
            for text in &said {
                assert!(!tested.contains(text), "{text}");
            }
            // A question of two turns; also one that two unrelated questions happen to form.
            for pair in said.windows(2) {
                assert!(!tested.contains(&pair.join("\n")), "{pair:?}");
            }
        }
    }

    #[test]
    fn a_seed_gives_one_text_and_another_seed_another() {
        let text = |seed| format!("{:?}", training_text(seed).take(200).collect::<Vec<_>>());
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }

    #[test]
    fn turns_alternate_and_the_model_has_the_last_word() {
        for document in training_text(4).take(2_000) {
            if let Document::Chat(turns) = document {
                for (place, turn) in turns.iter().enumerate() {
                    let expected_user = place % 2 == 0;
                    assert_eq!(matches!(turn.role, Role::User), expected_user);
                    assert_eq!(turn.text.trim(), turn.text);
                }
                assert_eq!(turns.len() % 2, 0);
            }
        }
    }
}
