//! Questions about numbers: sums, differences, follow-ups, comparisons and counting.
//!
//! The answer always repeats the numbers ("7 plus 5 is 12."), so that a wrong result can be told from a
//! misread question, and a word problem is first turned into its sum.

use super::question::{Check, Kind, Question};
use super::stories::{any_name, pronouns};
use crate::random::Random;

/// The largest number in a sum; the minuend of a difference does not exceed it either.
pub(super) const LARGEST_OPERAND: u32 = 20;
/// The largest number that is compared.
pub(super) const LARGEST_COMPARED: u32 = 30;

const THINGS: [&str; 6] = ["apples", "eggs", "flowers", "nuts", "books", "balls"];

/// `a` plus `b`: every third question is a word problem.
pub(super) fn sum(random: &mut Random) -> Question {
    if random.chance(35) {
        return sum_of_things(random);
    }
    let (a, b) = (random.between(0, LARGEST_OPERAND), random.between(0, LARGEST_OPERAND));
    let text = match random.below(10) {
        0 | 1 => format!("What is {a} plus {b}?"),
        2 => format!("What is {a} + {b}?"),
        3 => format!("{a} + {b}"),
        4 => format!("{a} + {b} = ?"),
        5 => format!("How much is {a} plus {b}?"),
        6 => format!("Add {a} and {b}."),
        7 => format!("Can you add {a} and {b}?"),
        8 => format!("what is {a} plus {b}"),
        _ => format!("What is the sum of {a} and {b}?"),
    };
    Question::new(Kind::Sum, sum_fact(a, b), text, plus(a, b), Check::LastNumber(a + b))
}

fn sum_of_things(random: &mut Random) -> Question {
    let (a, b) = (random.between(2, LARGEST_OPERAND), random.between(2, LARGEST_OPERAND));
    let (name, things) = (any_name(random), random.pick(&THINGS));
    let she = pronouns(name).subject;
    let text = match random.below(4) {
        0 => format!("{name} has {a} {things} and gets {b} more. How many {things} does {she} have now?"),
        1 => format!("{name} has {a} {things}. Then {she} finds {b} more. How many {things} does {name} have?"),
        2 => format!("There are {a} {things} on the table. {name} brings {b} more. How many {things} are there now?"),
        _ => format!("{name} finds {a} {things} and then {b} more {things}. How many {things} is that?"),
    };
    let answer = format!("{a} plus {b} is {}. That makes {} {things}.", a + b, a + b);
    Question::new(Kind::Sum, sum_fact(a, b), text, answer, Check::LastNumber(a + b))
}

/// `a` minus `b`, never below zero: every third question is a word problem.
pub(super) fn difference(random: &mut Random) -> Question {
    if random.chance(35) {
        return difference_of_things(random);
    }
    let (a, b) = minuend_and_subtrahend(random, 0, 0);
    let text = match random.below(8) {
        0 | 1 => format!("What is {a} minus {b}?"),
        2 => format!("What is {a} - {b}?"),
        3 => format!("{a} - {b}"),
        4 => format!("{a} - {b} = ?"),
        5 => format!("How much is {a} minus {b}?"),
        6 => format!("what is {a} minus {b}"),
        _ => format!("Take {b} away from {a}."),
    };
    let fact = format!("difference {a} {b}");
    Question::new(Kind::Difference, fact, text, minus(a, b), Check::LastNumber(a - b))
}

fn difference_of_things(random: &mut Random) -> Question {
    let (a, b) = minuend_and_subtrahend(random, 2, 2);
    let (name, things) = (any_name(random), random.pick(&THINGS));
    let she = pronouns(name).subject;
    let text = match random.below(3) {
        0 => format!("{name} has {a} {things} and gives {b} away. How many {things} does {she} have now?"),
        1 => format!("{name} has {a} {things}. Then {she} loses {b}. How many {things} does {name} have?"),
        _ => format!("There are {a} {things} on the table. {name} takes {b} away. How many {things} are there now?"),
    };
    let answer = format!("{a} minus {b} is {}. That makes {} {things}.", a - b, a - b);
    let fact = format!("difference {a} {b}");
    Question::new(Kind::Difference, fact, text, answer, Check::LastNumber(a - b))
}

/// A subtrahend of at least `smallest`, a difference of at least `left`.
fn minuend_and_subtrahend(random: &mut Random, smallest: u32, left: u32) -> (u32, u32) {
    let a = random.between(smallest + left, LARGEST_OPERAND);
    (a, random.between(smallest, a - left))
}

/// A bare sum or difference, then "And plus 3?": the second turn means the result of the first.
pub(super) fn follow_up(random: &mut Random) -> Question {
    let (first, result) = if random.chance(60) {
        let a = random.between(0, LARGEST_OPERAND);
        let b = random.between(0, LARGEST_OPERAND - a);
        let text = random.pick(&["What is {a} plus {b}?", "What is {a} + {b}?", "{a} + {b}"]);
        let text = fill(text, a, b);
        let question = Question::new(Kind::Sum, sum_fact(a, b), text, plus(a, b), Check::LastNumber(a + b));
        (question, a + b)
    } else {
        let (a, b) = minuend_and_subtrahend(random, 0, 0);
        let text = random.pick(&["What is {a} minus {b}?", "What is {a} - {b}?", "{a} - {b}"]);
        let fact = format!("difference {a} {b}");
        let text = fill(text, a, b);
        let question = Question::new(Kind::Difference, fact, text, minus(a, b), Check::LastNumber(a - b));
        (question, a - b)
    };
    first.then(continuation(random, result))
}

fn continuation(random: &mut Random, result: u32) -> Question {
    if random.chance(60) || result == 0 {
        let c = random.between(1, LARGEST_OPERAND);
        let text = random.pick(&["And plus {b}?", "And {b} more?", "Now add {b}."]);
        let (text, answer) = (fill(text, result, c), plus(result, c));
        let check = Check::LastNumber(result + c);
        Question::new(Kind::FollowUp, sum_fact(result, c), text, answer, check)
    } else {
        let c = random.between(1, result);
        let text = random.pick(&["And minus {b}?", "And {b} less?", "Now take {b} away."]);
        let (text, answer) = (fill(text, result, c), minus(result, c));
        let check = Check::LastNumber(result - c);
        Question::new(Kind::FollowUp, format!("difference {result} {c}"), text, answer, check)
    }
}

/// Which of two different numbers is larger or smaller.
pub(super) fn comparison(random: &mut Random) -> Question {
    let a = random.between(0, LARGEST_COMPARED);
    let b = (a + random.between(1, LARGEST_COMPARED)) % (LARGEST_COMPARED + 1);
    let fact = format!("order {} {}", a.min(b), a.max(b));
    let larger = random.chance(50);
    let word = if larger { "larger" } else { "smaller" };
    let choice = if larger { a.max(b) } else { a.min(b) };
    let text = match random.below(5) {
        0 => format!("Which is {word}, {a} or {b}?"),
        1 => format!("Which number is {word}, {a} or {b}?"),
        2 => format!("What is {word}, {a} or {b}?"),
        3 => format!("Tell me the {word} number: {a} or {b}."),
        _ => {
            let (yes, truth) =
                if choice == a { ("Yes", word) } else { ("No", if larger { "smaller" } else { "larger" }) };
            let text = format!("Is {a} {word} than {b}?");
            let answer = format!("{yes}, {a} is {truth} than {b}.");
            return Question::new(Kind::Comparison, fact, text, answer, Check::Same);
        }
    };
    let answer = format!("{choice} is {word} than {}.", a + b - choice);
    Question::new(Kind::Comparison, fact, text, answer, Check::Same)
}

/// Counting up, and the number before or after another.
pub(super) fn counting(random: &mut Random) -> Question {
    if random.chance(50) {
        let a = random.between(0, LARGEST_OPERAND - 1);
        let b = random.between(a + 1, LARGEST_OPERAND.min(a + 9));
        let text = match random.below(3) {
            0 => format!("Count from {a} to {b}."),
            1 => format!("Can you count from {a} to {b}?"),
            _ => format!("Please count from {a} to {b}."),
        };
        let numbers: Vec<String> = (a..=b).map(|n| n.to_string()).collect();
        let answer = format!("{}.", numbers.join(", "));
        return Question::new(Kind::Counting, "count".into(), text, answer, Check::Same);
    }
    let a = random.between(1, LARGEST_COMPARED);
    let (word, result) = random.pick(&[("after", a + 1), ("before", a - 1)]);
    let text = match random.below(4) {
        0 => format!("What comes {word} {a}?"),
        1 => format!("Which number comes {word} {a}?"),
        2 => format!("What number is {word} {a}?"),
        _ => format!("Tell me the number {word} {a}."),
    };
    let answer = format!("{result} comes {word} {a}.");
    Question::new(Kind::Counting, format!("{word} {a}"), text, answer, Check::Same)
}

/// Order does not matter: 5 plus 7 and 7 plus 5 are one fact.
fn sum_fact(a: u32, b: u32) -> String {
    format!("sum {} {}", a.min(b), a.max(b))
}

fn plus(a: u32, b: u32) -> String {
    format!("{a} plus {b} is {}.", a + b)
}

fn minus(a: u32, b: u32) -> String {
    format!("{a} minus {b} is {}.", a - b)
}

fn fill(text: &str, a: u32, b: u32) -> String {
    text.replace("{a}", &a.to_string()).replace("{b}", &b.to_string())
}
