//! Short stories from a grammar: a hero, a wish or a trouble, a helper, and an ending that remembers the beginning.
//!
//! A story is a cast (who, where, with what) and one of six plots ([`super::plots`]). The cast is drawn once and
//! every sentence is filled from it, so the same hero, pronoun, thing and place return in the right spots: that
//! reference is what the model has to learn, and what a reader notices when it fails.

use super::page::{Page, capitalized, with_article};
use super::plots;
use crate::random::Random;

/// Names of heroes who are called "she".
pub(super) const GIRLS: [&str; 6] = ["Mia", "Lily", "Anna", "Zoe", "Ruby", "Nora"];
/// Names of heroes who are called "he".
pub(super) const BOYS: [&str; 6] = ["Tom", "Ben", "Max", "Sam", "Leo", "Finn"];
/// What a hero can be besides a girl or a boy.
pub(super) const ANIMAL_HEROES: [&str; 6] = ["fox", "rabbit", "bear", "cat", "dog", "mouse"];

const TRAITS: [&str; 5] = ["little", "kind", "brave", "young", "small"];
const PLACES: [&str; 6] =
    ["in the forest", "by the lake", "on a green hill", "in a village", "on a farm", "by the sea"];

/// The hero's pronouns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pronouns {
    /// Subject: she, he.
    pub(super) subject: &'static str,
    /// Object: her, him.
    pub(super) object: &'static str,
    /// Possessive: her, his.
    pub(super) possessive: &'static str,
}

/// The pronouns of one of `GIRLS` or `BOYS`.
pub(super) fn pronouns(name: &str) -> Pronouns {
    if GIRLS.contains(&name) {
        Pronouns { subject: "she", object: "her", possessive: "her" }
    } else {
        Pronouns { subject: "he", object: "him", possessive: "his" }
    }
}

/// Draws a name, girls and boys equally often.
pub(super) fn any_name(random: &mut Random) -> &'static str {
    if random.chance(50) { random.pick(&GIRLS) } else { random.pick(&BOYS) }
}

/// Who the story is about and where it plays.
#[derive(Clone, Debug)]
pub struct Hero {
    /// A name of `GIRLS` or `BOYS`.
    pub name: &'static str,
    /// "girl", "boy" or one of `ANIMAL_HEROES`.
    pub kind: &'static str,
    nature: &'static str,
    place: &'static str,
}

impl Hero {
    /// Draws a hero: every second one is a child, the others are animals.
    pub fn draw(random: &mut Random) -> Self {
        let name = any_name(random);
        let child = if GIRLS.contains(&name) { "girl" } else { "boy" };
        let kind = if random.chance(50) { child } else { random.pick(&ANIMAL_HEROES) };
        Self { name, kind, nature: random.pick(&TRAITS), place: random.pick(&PLACES) }
    }
}

/// One story about `hero`, 85 to 130 words and punctuation marks long, without a line break.
pub fn story(hero: &Hero, random: &mut Random) -> String {
    let pronouns = pronouns(hero.name);
    let mut page = Page::new();
    page.set("Name", hero.name);
    page.set("kind", hero.kind);
    page.set("place", hero.place);
    page.set("a hero", &with_article(&format!("{} {}", hero.nature, hero.kind)));
    for (key, word) in [("she", pronouns.subject), ("her", pronouns.object), ("his", pronouns.possessive)] {
        page.set(key, word);
        page.set(&capitalized(key), &capitalized(word));
    }
    open(&mut page, random);
    plots::tell(&mut page, random);
    page.text
}

/// The first sentence; half of all stories begin with "Once upon a time".
fn open(page: &mut Page, random: &mut Random) {
    match random.below(8) {
        0 | 1 => page.say("Once upon a time, there was {a hero} named {Name}."),
        2 | 3 => page.say("Once upon a time, {a hero} named {Name} lived {place}."),
        4 => page.say("Long ago, there was {a hero} named {Name} who lived {place}."),
        5 => page.say("There once was {a hero} named {Name} who lived {place}."),
        6 => page.say("{Name} was {a hero} who lived {place}."),
        _ => page.say("Long ago, {a hero} named {Name} lived {place}."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stories(count: usize) -> Vec<(Hero, String)> {
        let mut random = Random::new(11);
        (0..count)
            .map(|_| {
                let hero = Hero::draw(&mut random);
                let text = story(&hero, &mut random);
                (hero, text)
            })
            .collect()
    }

    #[test]
    fn the_hero_keeps_name_and_pronoun() {
        for (hero, text) in stories(2_000) {
            assert!(text.matches(hero.name).count() >= 3, "{text}");
            for stranger in GIRLS.iter().chain(&BOYS).filter(|name| **name != hero.name) {
                assert!(!text.contains(stranger), "{stranger}: {text}");
            }
            let wrong: &[&str] = if GIRLS.contains(&hero.name) { &["he", "him", "his"] } else { &["she", "her"] };
            let words = text.split(|c: char| !c.is_alphabetic());
            for word in words.map(str::to_lowercase) {
                // The mother is a "she" in nobody's story: she has no pronoun at all.
                assert!(!wrong.contains(&word.as_str()), "{word}: {text}");
            }
        }
    }

    #[test]
    fn stories_have_the_promised_length_and_half_begin_as_stories_do() {
        let stories = stories(2_000);
        for (_, text) in &stories {
            let words = text.split_whitespace().count();
            let marks = text.chars().filter(|c| c.is_ascii_punctuation()).count();
            assert!((85..=130).contains(&(words + marks)), "{}: {text}", words + marks);
            assert!(text.ends_with(['.', '!', '"']), "{text}");
            assert!(!text.contains("  ") && !text.contains('{') && !text.contains('\n'), "{text}");
        }
        let classic = stories.iter().filter(|(_, t)| t.starts_with("Once upon a time")).count();
        assert!((900..1100).contains(&classic), "{classic}");
    }

    #[test]
    fn articles_and_capitals() {
        assert_eq!(with_article("old owl"), "an old owl");
        assert_eq!(with_article("kind bear"), "a kind bear");
        assert_eq!(capitalized("she"), "She");
    }
}
