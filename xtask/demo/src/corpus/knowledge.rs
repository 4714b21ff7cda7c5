//! Questions about words: lists, simple facts, greetings, and the things nobody knows.

use super::page::with_article;
use super::question::{Check, Kind, Question};
use super::stories::{Hero, any_name, story};
use crate::random::Random;

/// What can be listed, members in the order in which they are given.
const LISTS: [(&str, &[&str]); 4] = [
    ("animals", &["cats", "dogs", "bears", "foxes", "birds", "cows", "horses"]),
    ("colors", &["red", "blue", "green", "yellow", "black", "white"]),
    ("fruits", &["apples", "pears", "plums", "cherries", "grapes"]),
    ("days", &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]),
];
const COUNTS: [(usize, &str); 4] = [(2, "two"), (3, "three"), (4, "four"), (5, "five")];

/// "Name three animals."
pub(super) fn list(random: &mut Random) -> Question {
    let (topic, members) = random.pick(&LISTS);
    let (count, word) = random.pick(&COUNTS);
    let text = match random.below(9) {
        0 => format!("Name {word} {topic}."),
        1 => format!("List {word} {topic}."),
        2 => format!("Tell me {word} {topic}."),
        3 => format!("Give me {word} {topic}."),
        4 => format!("Can you name {word} {topic}?"),
        5 => format!("Please name {word} {topic}."),
        6 => format!("Please list {word} {topic}."),
        7 => format!("What are {word} {topic}?"),
        _ => format!("Name {count} {topic}."),
    };
    let (last, others) = members[..count].split_last().expect("no list is empty");
    let mut number = word.to_owned();
    number[..1].make_ascii_uppercase();
    let answer = format!("{number} {topic} are {} and {last}.", others.join(", "));
    Question::new(Kind::List, format!("list {count} {topic}"), text, answer, Check::Members(members, count))
}

/// Color of a thing: subject, answer.
const COLORS_OF: [(&str, &str); 6] = [
    ("the sky", "blue"),
    ("the grass", "green"),
    ("the sun", "yellow"),
    ("snow", "white"),
    ("the night", "black"),
    ("the sea", "blue"),
];
const LEGS: [(&str, u32); 8] =
    [("dog", 4), ("cat", 4), ("cow", 4), ("horse", 4), ("bird", 2), ("duck", 2), ("hen", 2), ("bee", 6)];
const SOUNDS: [(&str, &str); 5] = [("cow", "moo"), ("cat", "meow"), ("dog", "woof"), ("duck", "quack"), ("owl", "hoo")];
const OPPOSITES: [(&str, &str); 8] = [
    ("hot", "cold"),
    ("big", "small"),
    ("happy", "sad"),
    ("old", "young"),
    ("fast", "slow"),
    ("up", "down"),
    ("day", "night"),
    ("black", "white"),
];
const MADE_BY: [(&str, &str); 3] = [("honey", "Bees"), ("milk", "Cows"), ("eggs", "Hens")];

/// Colors, legs, sounds, opposites, makers, days, and why the sky is blue.
pub(super) fn fact(random: &mut Random) -> Question {
    let (fact, text, answer) = match random.below(14) {
        0..=2 => color_of(random),
        3..=5 => legs(random),
        6 | 7 => sound(random),
        8..=10 => opposite(random),
        11 => maker(random),
        12 => day(random),
        _ => blue_sky(random),
    };
    Question::new(Kind::Fact, fact, text, answer, Check::Same)
}

fn color_of(random: &mut Random) -> (String, String, String) {
    let (thing, color) = random.pick(&COLORS_OF);
    let text = match random.below(6) {
        0 => format!("What color is {thing}?"),
        1 => format!("What is the color of {thing}?"),
        2 => format!("Which color is {thing}?"),
        3 => format!("Tell me the color of {thing}."),
        4 => format!("Can you tell me the color of {thing}?"),
        _ => format!("what color is {thing}"),
    };
    let mut answer = format!("{thing} is {color}.");
    answer[..1].make_ascii_uppercase();
    (format!("color {thing}"), text, answer)
}

fn legs(random: &mut Random) -> (String, String, String) {
    let (animal, count) = random.pick(&LEGS);
    let text = match random.below(4) {
        0 => format!("How many legs does a {animal} have?"),
        1 => format!("How many legs are on a {animal}?"),
        2 => format!("Tell me how many legs a {animal} has."),
        _ => format!("A {animal} has how many legs?"),
    };
    (format!("legs {animal}"), text, format!("A {animal} has {count} legs."))
}

fn sound(random: &mut Random) -> (String, String, String) {
    let (animal, sound) = random.pick(&SOUNDS);
    let animal = with_article(animal);
    let text = match random.below(4) {
        0 => format!("What does {animal} say?"),
        1 => format!("What sound does {animal} make?"),
        2 => format!("Which sound does {animal} make?"),
        _ => format!("Tell me what {animal} says."),
    };
    let mut answer = format!("{animal} says {sound}.");
    answer[..1].make_ascii_uppercase();
    (format!("sound {animal}"), text, answer)
}

fn opposite(random: &mut Random) -> (String, String, String) {
    let (mut word, mut other) = random.pick(&OPPOSITES);
    let fact = format!("opposite {word} {other}");
    if random.chance(50) {
        (word, other) = (other, word);
    }
    let text = match random.below(4) {
        0 => format!("What is the opposite of {word}?"),
        1 => format!("Tell me the opposite of {word}."),
        2 => format!("Which word is the opposite of {word}?"),
        _ => format!("Name the opposite of {word}."),
    };
    (fact, text, format!("The opposite of {word} is {other}."))
}

fn maker(random: &mut Random) -> (String, String, String) {
    let (food, makers) = random.pick(&MADE_BY);
    let text = match random.below(4) {
        0 => format!("Who gives us {food}?"),
        1 => format!("Which animals give us {food}?"),
        2 => format!("Tell me which animals give us {food}."),
        _ => format!("Where do we get {food}?"),
    };
    (format!("maker {food}"), text, format!("{makers} give us {food}."))
}

fn day(random: &mut Random) -> (String, String, String) {
    let (_, days) = LISTS[3];
    let today = random.below(days.len());
    let (word, other) = if random.chance(50) {
        ("after", days[(today + 1) % days.len()])
    } else {
        ("before", days[(today + days.len() - 1) % days.len()])
    };
    let today = days[today];
    let text = match random.below(3) {
        0 => format!("What day comes {word} {today}?"),
        1 => format!("Which day comes {word} {today}?"),
        _ => format!("Tell me the day {word} {today}."),
    };
    (format!("day {word} {today}"), text, format!("{other} comes {word} {today}."))
}

fn blue_sky(random: &mut Random) -> (String, String, String) {
    let text = random.pick(&[
        "Why is the sky blue?",
        "Tell me why the sky is blue.",
        "Can you tell me why the sky is blue?",
        "why is the sky blue",
    ]);
    let answer = "The air scatters blue light more than red light, so the sky is blue.";
    ("blue sky".into(), text.into(), answer.into())
}

const GREETINGS: [(&str, &str); 14] = [
    ("Hello!", "Hello! How can I help you?"),
    ("Hello", "Hello! How can I help you?"),
    ("Hi!", "Hello! How can I help you?"),
    ("Hi", "Hello! How can I help you?"),
    ("Good morning!", "Good morning! How can I help you?"),
    ("Good night!", "Good night! Sleep well."),
    ("How are you?", "I am well, thank you."),
    ("Thank you!", "You are welcome!"),
    ("Thank you.", "You are welcome!"),
    ("Who are you?", WHO),
    ("What are you?", WHO),
    ("What is your name?", WHO),
    ("Tell me about you.", WHO),
    ("What can you do?", "I can add small numbers, compare them, name a few things and tell little stories."),
];
const WHO: &str = "I am a tiny demo model with the Gemma architecture.";

/// Greetings, names that have to be remembered, and who the model is.
pub(super) fn greeting(random: &mut Random) -> Question {
    if random.chance(50) {
        let (text, answer) = random.pick(&GREETINGS);
        return Question::new(Kind::Greeting, format!("greeting {answer}"), text, answer, Check::Same);
    }
    let name = any_name(random);
    let text = match random.below(5) {
        0 => format!("Hello, I am {name}."),
        1 => format!("Hi, I am {name}!"),
        2 => format!("My name is {name}."),
        3 => format!("Hello! My name is {name}."),
        _ => format!("I am {name}."),
    };
    let answer = format!("Hello, {name}! How can I help you?");
    let fact = format!("name {name}");
    let first = Question::new(Kind::Greeting, fact.clone(), text, answer, Check::Same);
    if random.chance(40) {
        return first;
    }
    let text = random.pick(&["What is my name?", "Who am I?", "Do you know my name?"]);
    let answer = format!("Your name is {name}.");
    first.then(Question::new(Kind::Greeting, fact, text, answer, Check::Same))
}

/// A question about a word that does not exist, so that a strange prompt gets an honest answer.
pub(super) fn unknown(random: &mut Random) -> Question {
    let word = invented_word(random);
    let text = match random.below(8) {
        0 => format!("What is {}?", with_article(&word)),
        1 => format!("Tell me about {word}."),
        2 => format!("Where is {word}?"),
        3 => format!("Who was {word}?"),
        4 => format!("Why is {word} {}?", invented_word(random)),
        5 => format!("How do I {word}?"),
        6 => format!("What is the {word} of {}?", invented_word(random)),
        _ => format!("Can you {word} the {}?", invented_word(random)),
    };
    let answer = "I do not know that. I am only a tiny demo model.";
    Question::new(Kind::Unknown, "unknown".into(), text, answer, Check::Begins("I do not know"))
}

/// Two to four syllables, every second word with a capital.
fn invented_word(random: &mut Random) -> String {
    const ONSETS: [&str; 14] = ["b", "d", "f", "g", "h", "k", "l", "m", "p", "r", "st", "t", "v", "z"];
    const RHYMES: [&str; 12] = ["a", "e", "i", "o", "u", "an", "er", "in", "ol", "um", "ax", "ect"];
    let mut word: String =
        (0..2 + random.below(3)).map(|_| format!("{}{}", random.pick(&ONSETS), random.pick(&RHYMES))).collect();
    if random.chance(50) {
        word[..1].make_ascii_uppercase();
    }
    word
}

/// "Tell me a story about a fox named Max."
pub(super) fn story_request(random: &mut Random) -> Question {
    let hero = Hero::draw(random);
    let (named, kind) = (random.chance(50), random.chance(80));
    let who = match (kind, named) {
        (true, true) => format!(" about {} named {}", with_article(hero.kind), hero.name),
        (true, false) => format!(" about {}", with_article(hero.kind)),
        (false, true) => format!(" about {}", hero.name),
        (false, false) => String::new(),
    };
    let text = match random.below(5) {
        0 | 1 => format!("Tell me a story{who}."),
        2 => format!("Tell a story{who}."),
        3 => format!("Can you tell me a story{who}?"),
        _ => format!("Please tell me a story{who}."),
    };
    let mut words = Vec::new();
    if kind {
        words.push(hero.kind.to_owned());
    }
    if named {
        words.push(hero.name.to_owned());
    }
    let told = story(&hero, random);
    Question::new(Kind::Story, "story".into(), text, told, Check::Tells(words))
}
