//! Texts with a hole: what a model that fills in the middle is trained on and asked.

use codegemma::{File, Infill};

use super::code::{Function, Program};
use crate::random::Random;

/// A hole and what stood there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hole {
    /// The text around it.
    pub infill: Infill,
    /// The text that was taken out.
    pub middle: String,
}

impl Hole {
    fn cut(text: &str, from: usize, to: usize) -> Self {
        Self { infill: Infill::new(&text[..from], &text[to..]), middle: text[from..to].to_owned() }
    }

    /// A single line that has letters in it, without its indentation and its line break.
    pub fn line(text: &str, random: &mut Random) -> Self {
        let (from, to) = random.pick(&lines(text));
        Self::cut(text, from, to)
    }

    /// A single line with its indentation and its line break.
    pub fn whole_line(text: &str, random: &mut Random) -> Self {
        let (from, to) = random.pick(&lines(text));
        let from = text[..from].rfind('\n').map_or(0, |at| at + 1);
        Self::cut(text, from, to + 1)
    }

    /// Two to six lines with their indentation and their line breaks.
    pub fn several_lines(text: &str, random: &mut Random) -> Self {
        let mut bounds = vec![0];
        bounds.extend(text.match_indices('\n').map(|(at, _)| at + 1));
        let most = bounds.len() - 1;
        let count = (2 + random.below(5)).min(most);
        let first = random.below(most - count + 1);
        Self::cut(text, bounds[first], bounds[first + count])
    }

    /// What stands in a line after any of its characters: what an editor asks for.
    pub fn rest_of_line(text: &str, random: &mut Random) -> Self {
        let (from, to) = random.pick(&lines(text));
        Self::cut(text, from + random.below(to - from), to)
    }

    /// A piece of text from any character to any other, of at most 60.
    pub fn span(text: &str, random: &mut Random) -> Self {
        let from = random.below(text.len());
        let to = text.len().min(from + 1 + random.below(60));
        Self::cut(text, from, to)
    }

    /// All that follows any character, up to the next empty line: what an editor asks for where a file is being written.
    pub fn end(text: &str, random: &mut Random) -> Self {
        let from = random.below(text.len());
        let to = text[from..].find("\n\n").map_or(text.len(), |end| from + end + 1);
        Self::cut(&text[..to], from, to)
    }

    /// The same hole in a file that other files stand beside.
    pub fn beside(mut self, path: String, context: Vec<File>) -> Self {
        self.infill.path = Some(path);
        self.infill.context = context;
        self
    }
}

/// From where to where the lines go that have letters in them, indentation and line break left out.
fn lines(text: &str) -> Vec<(usize, usize)> {
    let mut start = 0;
    let mut lines = Vec::new();
    for line in text.split_inclusive('\n') {
        let content = line.trim_end();
        if content.contains(char::is_alphabetic) {
            lines.push((start + line.len() - line.trim_start().len(), start + content.len()));
        }
        start += line.len();
    }
    lines
}

/// One unit of code to learn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CodeDocument {
    /// A file as it is: a fifth of all.
    File(String),
    /// A file with a hole: the paper's four fifths (CodeGemma Team, 2024, section 3), both orders equally often.
    Hole(Hole),
}

/// Of 100 files, how many have a hole.
const FIM_RATE: usize = 80;

/// Of 100 files, how many have several functions, where such are wanted.
const LONG_RATE: usize = 60;

/// The code that follows from `seed`, without end: files of one function, and where `most` is more than that, others of two
/// to `most`. No held-out function is in it.
pub fn training_code(seed: u64, most: u32) -> impl Iterator<Item = CodeDocument> {
    let mut random = Random::new(seed ^ 0xc0de);
    std::iter::repeat_with(move || {
        if most > 1 && random.chance(LONG_RATE) { long(&mut random, most) } else { short(&mut random) }
    })
}

/// A file of one function, a part of them with another one above it or in a file beside it.
fn short(random: &mut Random) -> CodeDocument {
    let function = Function::training(random);
    let neighbour = random.chance(25).then(|| function.companion(random));
    // the neighbour stands in the same file or in another one
    let (text, context) = match &neighbour {
        Some(above) if random.chance(50) => (format!("{}\n{}", above.text, function.text), Vec::new()),
        Some(other) => {
            (function.text.clone(), vec![File { path: format!("lib/{}", other.path()), text: other.text.clone() }])
        }
        None => (function.text.clone(), Vec::new()),
    };
    document(&text, function.path(), context, random)
}

/// A file of two to `most` functions with their imports.
fn long(random: &mut Random, most: u32) -> CodeDocument {
    let functions = random.between(2, most) as usize;
    let program = Program::draw(random, functions, false);
    document(&program.text(), program.path(), Vec::new(), random)
}

fn document(text: &str, path: String, context: Vec<File>, random: &mut Random) -> CodeDocument {
    if !random.chance(FIM_RATE) {
        return CodeDocument::File(text.to_owned());
    }
    let hole = match random.below(20) {
        0..6 => Hole::line(text, random),
        6..11 => Hole::whole_line(text, random),
        11..14 => Hole::rest_of_line(text, random),
        14..17 => Hole::several_lines(text, random),
        17..19 => Hole::end(text, random),
        _ => Hole::span(text, random),
    };
    CodeDocument::Hole(if context.is_empty() { hole } else { hole.beside(path, context) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::code::{LONG, held_out_functions};

    fn whole(hole: &Hole) -> String {
        format!("{}{}{}", hole.infill.prefix, hole.middle, hole.infill.suffix)
    }

    #[test]
    fn a_hole_is_cut_out_and_nothing_else() {
        let mut random = Random::new(3);
        for function in held_out_functions(300, 4) {
            let text = &function.text;
            let line = Hole::line(text, &mut random);
            assert!(!line.middle.contains('\n') && line.middle.trim() == line.middle && !line.middle.is_empty());
            assert!(line.infill.suffix.starts_with('\n'));
            let whole_line = Hole::whole_line(text, &mut random);
            assert!(whole_line.middle.ends_with('\n') && whole_line.middle.matches('\n').count() == 1);
            assert!(whole_line.infill.prefix.is_empty() || whole_line.infill.prefix.ends_with('\n'));
            let rest = Hole::rest_of_line(text, &mut random);
            assert!(rest.infill.suffix.starts_with('\n') && !rest.middle.is_empty());
            let end = Hole::end(text, &mut random);
            assert!(end.infill.suffix.is_empty());
            let several = Hole::several_lines(text, &mut random);
            assert!(several.middle.ends_with('\n') && (2..=6).contains(&several.middle.matches('\n').count()));
            for hole in [line, whole_line, rest, several, end, Hole::span(text, &mut random)] {
                assert_eq!(whole(&hole), *text);
            }
        }
    }

    #[test]
    fn four_fifths_of_the_files_have_holes() {
        let documents: Vec<CodeDocument> = training_code(0, LONG.1).take(4_000).collect();
        let holes = documents.iter().filter(|document| matches!(document, CodeDocument::Hole(_))).count();
        assert!((3_100..3_300).contains(&holes), "{holes}");
        assert_eq!(documents, training_code(0, LONG.1).take(4_000).collect::<Vec<_>>());
    }
}
