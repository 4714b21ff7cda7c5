//! Small Python, JavaScript and Rust files from a table of recipes.
//!
//! A recipe is a function in all three languages with blanks for what it works on. Every blank occurs on more than one
//! line, so that whichever line is taken away, the others say what stood there: the name of a parameter, the noun, the
//! name of the result. That is what the model has to learn, and what a held-out function asks of it. A file is one
//! function or several, with the imports that they need.

mod recipes;

use std::collections::BTreeSet;

use recipes::{BLANKS, NOUNS, RECIPES};

use super::is_held_out;
use super::page::capitalized;
use crate::random::Random;

/// The languages of the corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Language {
    /// Snake case, a docstring, blocks by indentation.
    Python,
    /// Camel case, a comment above, blocks in braces.
    JavaScript,
    /// Snake case, a documentation comment above, types.
    Rust,
}

/// Functions of a long file: the fewest and the most.
pub const LONG: (u32, u32) = (3, 6);

impl Language {
    const ALL: [Self; 3] = [Self::Python, Self::JavaScript, Self::Rust];

    /// The ending of a file's name.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Python => "py",
            Self::JavaScript => "js",
            Self::Rust => "rs",
        }
    }
}

/// A function that the generator wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// The language it is written in.
    pub language: Language,
    /// What it works on, in the plural: the name of its file.
    pub noun: &'static str,
    /// Its text, which ends with a line break.
    pub text: String,
    /// The line that its file begins with; empty where it needs none.
    pub import: &'static str,
    /// What it is called, in snake case.
    name: String,
}

/// A file that the generator wrote: functions of one language, most of them about the same thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The functions, from top to bottom, each of another name.
    pub functions: Vec<Function>,
    /// Empty lines between two functions.
    spacing: usize,
}

impl Function {
    /// Draws any function of a language, held out or not.
    fn draw(random: &mut Random, language: Language, noun: (&'static str, &'static str)) -> Self {
        let recipe = &RECIPES[random.below(RECIPES.len())];
        let mut words = vec![("one", noun.0), ("many", noun.1)];
        words.extend(BLANKS.map(|(blank, choices)| (blank, random.pick(choices))));
        let fill = |text: &str| {
            words.iter().fold(text.to_owned(), |text, (blank, word)| text.replace(&format!("{{{blank}}}"), word))
        };
        let body = |lines: &[&str]| lines.iter().map(|line| format!("    {}\n", fill(line))).collect::<String>();
        let (name, about, parameters) = (fill(recipe.name), fill(recipe.about), fill(recipe.parameters));
        let text = match language {
            Language::Python => {
                format!("def {name}({parameters}):\n    \"\"\"{about}\"\"\"\n{}", body(recipe.python))
            }
            Language::JavaScript => {
                let name = camel_case(&name);
                format!("// {about}\nfunction {name}({parameters}) {{\n{}}}\n", body(recipe.javascript))
            }
            Language::Rust => {
                let signature = fill(recipe.signature);
                format!("/// {about}\nfn {name}{signature} {{\n{}}}\n", body(recipe.rust))
            }
        };
        Self { language, noun: noun.1, text, import: recipe.imports[language as usize], name }
    }

    /// A function that is held out or not, as asked.
    fn drawn(random: &mut Random, language: Language, noun: (&'static str, &'static str), held_out: bool) -> Self {
        loop {
            let function = Self::draw(random, language, noun);
            if function.is_held_out() == held_out {
                return function;
            }
        }
    }

    /// A function to learn from.
    pub fn training(random: &mut Random) -> Self {
        let (language, noun) = (random.pick(&Language::ALL), random.pick(&NOUNS));
        Self::drawn(random, language, noun, false)
    }

    /// A function to learn from, of the same language and about the same thing as this one.
    pub fn companion(&self, random: &mut Random) -> Self {
        let noun = NOUNS.into_iter().find(|noun| noun.1 == self.noun).expect("a function is about a noun of the table");
        loop {
            let other = Self::drawn(random, self.language, noun, false);
            if other.text != self.text {
                return other;
            }
        }
    }

    /// Whether it is kept from training: a rule on its text, so the same for every seed.
    pub fn is_held_out(&self) -> bool {
        is_held_out(&self.text)
    }

    /// The path of the file that it stands in.
    pub fn path(&self) -> String {
        format!("{}.{}", self.noun, self.language.ending())
    }
}

impl Program {
    /// A file of so many functions, all of them held out or none.
    pub fn draw(random: &mut Random, functions: usize, held_out: bool) -> Self {
        let (language, noun) = (random.pick(&Language::ALL), random.pick(&NOUNS));
        let mut drawn: Vec<Function> = Vec::with_capacity(functions);
        while drawn.len() < functions {
            let noun = if random.chance(70) { noun } else { random.pick(&NOUNS) };
            let function = Function::drawn(random, language, noun, held_out);
            if drawn.iter().all(|other| other.name != function.name) {
                drawn.push(function);
            }
        }
        let spacing = if language == Language::Python && random.chance(60) { 2 } else { 1 };
        Self { functions: drawn, spacing }
    }

    /// Its text: the imports in alphabetical order, then the functions.
    pub fn text(&self) -> String {
        let imports: BTreeSet<&str> =
            self.functions.iter().map(|function| function.import).filter(|import| !import.is_empty()).collect();
        let space = "\n".repeat(self.spacing);
        let imports: String = imports.iter().map(|import| format!("{import}\n")).collect();
        let functions: Vec<&str> = self.functions.iter().map(|function| function.text.as_str()).collect();
        let begin = if imports.is_empty() { "" } else { space.as_str() };
        format!("{imports}{begin}{}", functions.join(&space))
    }

    /// The path of the file.
    pub fn path(&self) -> String {
        self.functions.first().map(Function::path).unwrap_or_default()
    }
}

/// `snake_case` as `camelCase`.
fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| name + &capitalized(word))
}

/// Functions that the training never sees.
pub fn held_out_functions(count: usize, seed: u64) -> Vec<Function> {
    let mut random = Random::new(seed ^ 0x0c0d_e0c0_de0c_0de0);
    let mut functions: Vec<Function> = Vec::with_capacity(count);
    while functions.len() < count {
        let (language, noun) = (random.pick(&Language::ALL), random.pick(&NOUNS));
        let function = Function::drawn(&mut random, language, noun, true);
        if !functions.contains(&function) {
            functions.push(function);
        }
    }
    functions
}

/// Files of several functions that the training never sees.
pub fn held_out_programs(count: usize, seed: u64) -> Vec<Program> {
    let mut random = Random::new(seed ^ 0xf11e);
    let mut program = || {
        let functions = random.between(LONG.0, LONG.1) as usize;
        Program::draw(&mut random, functions, true)
    };
    (0..count).map(|_| program()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_never_meets_a_held_out_function() {
        let tested: BTreeSet<String> = held_out_functions(300, 1).into_iter().map(|function| function.text).collect();
        let mut random = Random::new(5);
        for _ in 0..20_000 {
            let function = Function::training(&mut random);
            assert!(!tested.contains(&function.text), "{}", function.text);
            assert!(!tested.contains(&function.companion(&mut random).text));
        }
        let tested: BTreeSet<String> =
            held_out_programs(100, 1).into_iter().flat_map(|file| file.functions).map(|one| one.text).collect();
        for _ in 0..2_000 {
            let program = Program::draw(&mut random, 4, false);
            assert!(program.functions.iter().all(|function| !tested.contains(&function.text)));
        }
    }

    #[test]
    fn every_blank_is_filled_and_every_bracket_closed() {
        let mut random = Random::new(6);
        for _ in 0..5_000 {
            let function = Function::training(&mut random);
            let text = &function.text;
            assert!(text.ends_with('\n') && text.is_ascii(), "{text}");
            for (open, close) in [('(', ')'), ('[', ']'), ('{', '}')] {
                assert_eq!(text.matches(open).count(), text.matches(close).count(), "{text}");
            }
            if function.language == Language::Python {
                assert!(!text.contains('{'), "{text}");
            }
        }
    }

    #[test]
    fn names_follow_the_language() {
        assert_eq!(camel_case("count_prices_above"), "countPricesAbove");
        let functions = held_out_functions(200, 2);
        let all: BTreeSet<&str> = functions.iter().map(|function| function.language.ending()).collect();
        assert_eq!(all.len(), 3);
        for function in &functions {
            let name = function.text.split_once('(').expect("a function has parameters").0;
            assert_eq!(name.contains('_'), function.language != Language::JavaScript, "{name}");
        }
    }

    #[test]
    fn a_file_begins_with_the_imports_that_its_functions_need() {
        let programs = held_out_programs(300, 3);
        assert!(programs.iter().all(|program| (3..=6).contains(&program.functions.len())));
        let mut imports = 0;
        for text in programs.iter().map(Program::text) {
            let imported = |line: &str| text.lines().any(|other| other == line);
            for (used, python, javascript, rust) in [
                ("math.sqrt", "import math", "", ""),
                ("Counter()", "from collections import Counter", "", ""),
                ("HashMap", "", "", "use std::collections::HashMap;"),
                ("fs.", "", "import fs from \"fs\";", ""),
                ("fs::read", "", "", "use std::fs;"),
            ] {
                if text.contains(used) {
                    assert!([python, javascript, rust].iter().any(|line| !line.is_empty() && imported(line)), "{text}");
                    imports += 1;
                }
            }
            assert!(!text.contains("\n\n\n\n") && !text.starts_with('\n') && text.ends_with('\n'), "{text}");
        }
        assert!(imports > 50, "{imports}");
    }
}
