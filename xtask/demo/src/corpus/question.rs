//! A question with its one fact, its model answer, and a checker for what a model says instead.

use gemma_tokenizer::{Role, Turn};

/// What a question is about; the corpus and the score are reported per kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Two numbers to add, bare or as a word problem.
    Sum,
    /// Two numbers to subtract, bare or as a word problem.
    Difference,
    /// A sum or difference that goes on in a second turn ("And plus 3?").
    FollowUp,
    /// Which of two numbers is larger or smaller.
    Comparison,
    /// Counting, and the number before or after another.
    Counting,
    /// "Name three animals."
    List,
    /// Colors, legs, sounds, opposites, days.
    Fact,
    /// Greetings, names, and who the model is.
    Greeting,
    /// A question about something that does not exist: the model does not know.
    Unknown,
    /// "Tell me a story about a fox."
    Story,
}

impl Kind {
    /// Every kind, in the order of reports.
    pub const ALL: [Self; 10] = [
        Self::Sum,
        Self::Difference,
        Self::FollowUp,
        Self::Comparison,
        Self::Counting,
        Self::List,
        Self::Fact,
        Self::Greeting,
        Self::Unknown,
        Self::Story,
    ];
}

/// How an answer is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// The words of the model answer, whatever the case and the spacing.
    Same,
    /// The last number of the answer is this one.
    LastNumber(u32),
    /// So many different members of a list, and nothing else from other lists.
    Members(&'static [&'static str], usize),
    /// Begins like this.
    Begins(&'static str),
    /// Contains all of these words, at least four sentences, and is finished.
    Tells(Vec<String>),
}

/// What a user says, what the model should answer, and how to tell whether an answer is right.
#[derive(Clone, Debug)]
pub struct Question {
    /// What it is about.
    pub kind: Kind,
    /// The conversation up to and including the user's last turn.
    pub turns: Vec<Turn>,
    /// The answer as the training text gives it.
    pub answer: String,
    /// The knowledge that answers it, whatever the wording: "sum 5 7", "fact sky".
    pub fact: String,
    pub(super) check: Check,
}

impl Question {
    /// A question of one turn.
    pub(super) fn new(
        kind: Kind,
        fact: String,
        text: impl Into<String>,
        answer: impl Into<String>,
        check: Check,
    ) -> Self {
        let turns = vec![Turn::user(text)];
        Self { kind, turns, answer: answer.into(), fact, check }
    }

    /// The question `next`, asked after this one was answered.
    pub(super) fn then(self, next: Self) -> Self {
        let mut turns = self.turns;
        turns.push(Turn::model(self.answer));
        turns.extend(next.turns);
        Self { turns, ..next }
    }

    /// The whole conversation, with the model answer as its last turn.
    pub fn dialogue(&self) -> Vec<Turn> {
        let mut turns = self.turns.clone();
        turns.push(Turn::model(self.answer.clone()));
        turns
    }

    /// Whether the training text must not contain this question: FNV-1a of all that the user says in it
    /// (turns joined by line breaks) is a multiple of ten.
    pub fn is_held_out(&self) -> bool {
        is_held_out(&self.said())
    }

    /// All that the user says, turns joined by line breaks.
    pub fn said(&self) -> String {
        self.said_within(self.turns.len())
    }

    /// Whether this question, or a shorter conversation that it begins with, is held out.
    pub(super) fn touches_held_out(&self) -> bool {
        (1..=self.turns.len()).any(|turns| is_held_out(&self.said_within(turns)))
    }

    /// What the user says in the first so many turns.
    fn said_within(&self, turns: usize) -> String {
        let said = self.turns[..turns].iter().filter(|turn| matches!(turn.role, Role::User));
        said.map(|turn| turn.text.as_str()).collect::<Vec<_>>().join("\n")
    }

    /// Judges an answer. Case and white space never matter; for numbers only the result counts, for lists any
    /// right members, for a story that it is about what was asked for and comes to an end.
    pub fn is_right(&self, answer: &str) -> bool {
        let answer = normalized(answer);
        match &self.check {
            Check::Same => answer == normalized(&self.answer),
            Check::LastNumber(number) => last_number(&answer) == Some(*number),
            Check::Members(members, count) => names_members(&answer, members, *count),
            Check::Begins(start) => answer.starts_with(&normalized(start)),
            Check::Tells(words) => {
                let sentences = answer.matches(['.', '!', '?']).count();
                let told = words.iter().all(|word| answer.contains(&normalized(word)));
                told && sentences >= 4 && answer.ends_with(['.', '!', '"'])
            }
        }
    }
}

/// Whether a text belongs to the tenth that is never trained on.
pub fn is_held_out(text: &str) -> bool {
    fnv1a(text).is_multiple_of(10)
}

/// The 64-bit FNV-1a hash of a text (Fowler, Noll and Vo).
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Lower case, words separated by single spaces.
fn normalized(text: &str) -> String {
    text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn last_number(text: &str) -> Option<u32> {
    text.split(|c: char| !c.is_ascii_digit()).rfind(|digits| !digits.is_empty())?.parse().ok()
}

/// Whether `text` lists exactly `count` different `members`. Commas, "and", "are" and the like are glue; any
/// other word after "are" is a wrong member.
fn names_members(text: &str, members: &[&str], count: usize) -> bool {
    let listed = text.split_once(" are ").map_or(text, |(_, listed)| listed);
    let words: Vec<&str> =
        listed.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty() && *word != "and").collect();
    let known = |word: &&str| members.iter().any(|member| member.eq_ignore_ascii_case(word));
    let different: std::collections::BTreeSet<&str> = words.iter().copied().collect();
    words.len() == count && different.len() == count && words.iter().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(check: Check) -> Question {
        Question::new(Kind::Fact, "fact".into(), "Why?", "The sky is blue.", check)
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv1a(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a("foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn the_same_words_are_right_in_any_case() {
        let question = question(Check::Same);
        assert!(question.is_right(" the sky  is blue."));
        assert!(!question.is_right("The sky is red."));
        assert!(!question.is_right("The sky is blue. The sky is blue."));
    }

    #[test]
    fn numbers_are_judged_by_the_last_one() {
        let question = question(Check::LastNumber(12));
        assert!(question.is_right("7 plus 5 is 12."));
        assert!(question.is_right("12"));
        assert!(!question.is_right("7 plus 5 is 13."));
        assert!(!question.is_right("I do not know."));
    }

    #[test]
    fn lists_take_any_members_but_no_strangers_and_no_doubles() {
        let question = question(Check::Members(&["red", "blue", "green"], 2));
        assert!(question.is_right("Two colors are red and blue."));
        assert!(question.is_right("green, red"));
        for wrong in ["Two colors are red and red.", "Two colors are red and cats.", "Red.", ""] {
            assert!(!question.is_right(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_story_must_be_about_what_was_asked_and_end() {
        let question = question(Check::Tells(vec!["fox".into(), "Mia".into()]));
        assert!(question.is_right("There was a fox. It was Mia. She ran. She slept."));
        assert!(!question.is_right("There was a fox. It was Tom. He ran. He slept."));
        assert!(!question.is_right("There was a fox. It was Mia. She ran. She slept. Then"));
    }

    #[test]
    fn a_second_turn_keeps_the_first() {
        let first = question(Check::Same);
        let both = first.clone().then(question(Check::LastNumber(1)));
        assert_eq!(both.turns.len(), 3);
        assert_eq!(both.turns[1].text, first.answer);
        assert_eq!(both.said(), "Why?\nWhy?");
        assert_eq!(both.dialogue().len(), 4);
    }
}
