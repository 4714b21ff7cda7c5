//! Conversations: which kinds of question are asked how often, and which are kept for the test.

use std::collections::BTreeSet;

use super::question::{Kind, Question};
use super::{arithmetic, knowledge};
use crate::random::Random;

/// How many of 100 questions are of each kind.
pub(super) type Mix = [(Kind, usize); 10];

/// What is asked in the training text and in the test. Numbers take the largest share: they are most of what there is
/// to know (231 sums and 231 differences), while a list or a fact is learned from a few dozen examples.
pub(super) const MIX: Mix = [
    (Kind::Sum, 30),
    (Kind::Difference, 19),
    (Kind::FollowUp, 12),
    (Kind::Comparison, 9),
    (Kind::Counting, 6),
    (Kind::List, 5),
    (Kind::Fact, 8),
    (Kind::Greeting, 5),
    (Kind::Unknown, 2),
    (Kind::Story, 4),
];

/// What is asked in the revision: more of what takes long to learn.
pub(super) const REVISION: Mix = [
    (Kind::Sum, 15),
    (Kind::Difference, 15),
    (Kind::FollowUp, 11),
    (Kind::Comparison, 18),
    (Kind::Counting, 15),
    (Kind::List, 7),
    (Kind::Fact, 15),
    (Kind::Greeting, 1),
    (Kind::Unknown, 1),
    (Kind::Story, 2),
];

/// How often a new held-out question of one kind is looked for before another kind gets its turn: a kind with
/// few texts runs out of unseen ones.
const TRIES: usize = 400;

fn any_kind(random: &mut Random, mix: &Mix) -> Kind {
    let mut left = random.below(mix.iter().map(|(_, share)| share).sum());
    for (kind, share) in mix {
        if left < *share {
            return *kind;
        }
        left -= share;
    }
    unreachable!("the number drawn is below the sum of all shares")
}

fn question(kind: Kind, random: &mut Random) -> Question {
    match kind {
        Kind::Sum => arithmetic::sum(random),
        Kind::Difference => arithmetic::difference(random),
        Kind::FollowUp => arithmetic::follow_up(random),
        Kind::Comparison => arithmetic::comparison(random),
        Kind::Counting => arithmetic::counting(random),
        Kind::List => knowledge::list(random),
        Kind::Fact => knowledge::fact(random),
        Kind::Greeting => knowledge::greeting(random),
        Kind::Unknown => knowledge::unknown(random),
        Kind::Story => knowledge::story_request(random),
    }
}

/// One question that training may see.
pub(super) fn training_question(random: &mut Random, mix: &Mix) -> Question {
    loop {
        let question = question(any_kind(random, mix), random);
        if !question.touches_held_out() {
            return question;
        }
    }
}

/// `count` different questions that no training text contains, mixed like the training questions.
///
/// What answers them does occur in training, in other words: see [`Question::fact`]. The same seed gives the
/// same questions.
pub fn held_out_questions(count: usize, seed: u64) -> Vec<Question> {
    let mut random = Random::new(seed ^ 0x4e1d_007a_5eed_0001);
    let mut asked = BTreeSet::new();
    let mut questions = Vec::with_capacity(count);
    while questions.len() < count {
        let kind = any_kind(&mut random, &MIX);
        for _ in 0..TRIES {
            let question = question(kind, &mut random);
            if question.is_held_out() && asked.insert(question.said()) {
                questions.push(question);
                break;
            }
        }
    }
    questions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training_questions(count: usize) -> impl Iterator<Item = Question> {
        let mut random = Random::new(21);
        (0..count).map(move |_| training_question(&mut random, &MIX))
    }

    #[test]
    fn training_and_test_share_no_question() {
        let tested: BTreeSet<String> = held_out_questions(1_000, 1).iter().map(Question::said).collect();
        assert_eq!(tested.len(), 1_000);
        for question in training_questions(50_000) {
            assert!(!tested.contains(&question.said()), "{}", question.said());
            assert!(!question.is_held_out());
        }
    }

    #[test]
    fn what_is_tested_is_taught_in_other_words() {
        let taught: BTreeSet<String> = training_questions(50_000).map(|q| q.fact).collect();
        for question in held_out_questions(2_000, 2) {
            assert!(taught.contains(&question.fact), "{}: {}", question.fact, question.said());
        }
    }

    #[test]
    fn every_sum_and_difference_is_taught() {
        let taught: BTreeSet<String> = training_questions(50_000).map(|q| q.fact).collect();
        for a in 0..=arithmetic::LARGEST_OPERAND {
            for b in 0..=a {
                for fact in [format!("sum {b} {a}"), format!("difference {a} {b}")] {
                    assert!(taught.contains(&fact), "{fact}");
                }
            }
        }
    }

    #[test]
    fn what_a_newcomer_types_first_is_taught() {
        let first = ["Hello!", "Hi!", "Who are you?", "Why is the sky blue?", "Tell me a story."];
        let said: BTreeSet<String> = training_questions(50_000).map(|q| q.said()).collect();
        for text in first {
            assert!(said.contains(text), "{text}");
        }
    }

    #[test]
    fn model_answers_are_right_and_other_answers_wrong() {
        for question in training_questions(5_000) {
            assert!(question.is_right(&question.answer), "{question:?}");
            assert!(!question.is_right("It is 99 or so"), "{question:?}");
            assert!(!question.is_right(""), "{question:?}");
        }
    }

    #[test]
    fn the_mix_is_the_promised_one() {
        for mix in [MIX, REVISION] {
            assert_eq!(mix.iter().map(|(_, share)| share).sum::<usize>(), 100);
        }
        assert_eq!(MIX.map(|(kind, _)| kind), Kind::ALL);
        let held_out = held_out_questions(400, 3);
        for kind in Kind::ALL {
            assert!(held_out.iter().any(|q| q.kind == kind), "no {kind:?}");
        }
    }
}
