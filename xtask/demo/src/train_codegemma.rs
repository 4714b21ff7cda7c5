//! Trains the CodeGemma demo model: from random weights to the folder that the library embeds.

use std::path::Path;

use anyhow::{Context, Result};
use burn::module::Module;
use burn::tensor::Tensor;
use codegemma::{Order, fim_tokens, hole_lesson};
use gemma::{Decoder, DecoderConfig, Gemma, GenerateOptions, LayerSpec, Network, Norms, RandomWeights};
use gemma_backend::Device;
use gemma_generate::{CausalModel, Generation};
use gemma_nn::{AttentionSpec, RopeSpec, Trainable, Visibility};
use gemma_tokenizer::{Family, Tokenizer};
use gemma_train::{Example, cross_entropy};
use gemma_weights::{Checkpoint, Dtype, Loader};

use crate::bpe::{CONTROL, FIM_CONTROL, Vocabulary, learn};
use crate::corpus::code::{LONG, Program, held_out_functions, held_out_programs};
use crate::corpus::holes::{CodeDocument, Hole, training_code};
use crate::random::Random;
use crate::training::{self, Round};

/// Pieces of the tokenizer: nearly every word of the programs is one.
const VOCABULARY_SIZE: usize = 896;
/// Files that the tokenizer is learned from.
const VOCABULARY_FILES: usize = 4_000;
/// Held-out holes of either kind filled after each round.
const HOLES: usize = 100;
/// Longest prompt, in tokens: that of six functions.
const BUDGET: usize = 768;
/// Files of one step; one of a single function has about 60 tokens, one of several about 200.
const DOCUMENTS: usize = 14;

/// A round of the training: on which files.
struct Course {
    round: Round,
    /// The most functions of a file.
    most: u32,
    /// Of 100 holes, how many are asked for in the order prefix, suffix, middle. It is the harder one: the place of the
    /// hole is not where the prompt ends.
    psm_rate: usize,
}

/// The rounds of the committed model. Where a hole's answer stands is learned in short files, in which there is little to
/// confuse it with, and carried over to longer ones. The last rounds take smaller steps.
const COURSES: [Course; 7] = [
    Course { round: Round { name: "one function", steps: 2500, learning_rate: 4e-3 }, most: 1, psm_rate: 60 },
    Course { round: Round { name: "up to two", steps: 1500, learning_rate: 3e-3 }, most: 2, psm_rate: 60 },
    Course { round: Round { name: "up to four", steps: 2500, learning_rate: 3e-3 }, most: 4, psm_rate: 60 },
    Course { round: Round { name: "up to six", steps: 450, learning_rate: 2e-3 }, most: LONG.1, psm_rate: 70 },
    Course { round: Round { name: "finer", steps: 3000, learning_rate: 1.2e-3 }, most: LONG.1, psm_rate: 75 },
    Course { round: Round { name: "finer still", steps: 3000, learning_rate: 1e-3 }, most: LONG.1, psm_rate: 70 },
    Course { round: Round { name: "finest", steps: 3000, learning_rate: 6e-4 }, most: LONG.1, psm_rate: 65 },
];

/// The demo's network: Gemma 1 with as many key as query heads, as CodeGemma 7B is, in everything but size.
pub fn config(vocab: usize) -> DecoderConfig {
    let (heads, head_dim) = (4, 32);
    let layer = |_| LayerSpec {
        attention: AttentionSpec {
            heads,
            kv_heads: heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            softcap: None,
            visibility: Visibility::CAUSAL,
            qk_norm: None,
            qkv_bias: false,
            output_bias: false,
        },
        rope: RopeSpec::new(head_dim, 10_000.0),
        intermediate_size: 256,
        norms: Norms::Before,
    };
    DecoderConfig {
        vocab,
        hidden_size: 128,
        layers: (0..6).map(layer).collect(),
        norm_eps: 1e-6,
        final_softcap: None,
        context: 1024,
        eos: vec![1],
        is_tied: true,
    }
}

/// A text to learn, and where in it the middle of a hole begins; its end where it has none.
struct Lesson {
    example: Example,
    middle: usize,
}

impl AsRef<Example> for Lesson {
    fn as_ref(&self) -> &Example {
        &self.example
    }
}

/// The tokens of a document. A middle ends as it does in CodeGemma's training: with a file separator.
fn lesson(document: &CodeDocument, order: Order, tokenizer: &Tokenizer) -> Result<Lesson> {
    match document {
        CodeDocument::File(text) => {
            let mut tokens = tokenizer.encode(text);
            tokens.push(tokenizer.eos());
            Ok(Lesson { middle: tokens.len(), example: Example::text(tokens) })
        }
        CodeDocument::Hole(hole) => {
            let lesson = hole_lesson(&hole.infill, &hole.middle, tokenizer, order, BUDGET)?;
            Ok(Lesson { middle: lesson.prompt_len, example: Example::text(lesson.tokens) })
        }
    }
}

/// The mean loss of the middles plus that of all tokens: what stands around a hole teaches to write and to copy, but there
/// is ten times as much of it.
fn loss(model: &Decoder, lessons: &[Lesson]) -> Tensor<1> {
    let tokens: Vec<_> = lessons.iter().flat_map(|lesson| lesson.example.inputs().iter().copied()).collect();
    let segments: Vec<_> = lessons.iter().map(|lesson| lesson.example.segment()).collect();
    let all: Vec<_> = lessons.iter().flat_map(|lesson| lesson.example.targets()).collect();
    let middles: Vec<_> = lessons
        .iter()
        .flat_map(|lesson| {
            let in_middle = |(place, target): (usize, Option<u32>)| target.filter(|_| place + 1 >= lesson.middle);
            lesson.example.targets().enumerate().map(in_middle)
        })
        .collect();
    let logits = model.uncached_logits(&tokens, &segments);
    let around = cross_entropy(logits.clone(), &all);
    if middles.iter().any(Option::is_some) { around + cross_entropy(logits, &middles) } else { around }
}

/// The batches of a round: an endless stream of code.
fn batches(course: &Course, seed: u64, tokenizer: &Tokenizer) -> impl FnMut() -> Vec<Lesson> {
    let &Course { most, psm_rate, .. } = course;
    let mut random = Random::new(seed ^ 0x0bd3);
    let mut documents = training_code(seed, most);
    move || {
        let documents = documents.by_ref().take(DOCUMENTS);
        let order = |random: &mut Random| if random.chance(psm_rate) { Order::Psm } else { Order::Spm };
        documents.filter_map(|document| lesson(&document, order(&mut random), tokenizer).ok()).collect()
    }
}

/// Trains the model in rounds, each with a new optimizer, and saves it to `out` after each, which is replaced. `steps`
/// overrides the length of each round; `begun`, a folder that a training has written, is gone on from with the rounds
/// from `first` on, counted from 0.
///
/// # Errors
/// When the device, the tokenizer or a folder fail.
pub fn make(out: &Path, begun: Option<&Path>, first: usize, steps: Option<usize>, seed: u64) -> Result<()> {
    let device = training::device()?;
    // a training that goes on keeps the pieces that it began with
    let stored = match begun {
        Some(folder) => std::fs::read(folder.join("tokenizer.json")).context("the begun training's tokenizer")?,
        None => training::stored_tokenizer(&vocabulary(seed))?,
    };
    let tokenizer = || Tokenizer::from_json(&stored, Family::CodeGemma);
    let config = config(tokenizer()?.vocab_len());
    let mut model = match begun {
        Some(folder) => load(folder, &config, &device)?,
        None => Decoder::random(&config, RandomWeights::Dense, seed, &device.clone().autodiff()),
    };
    let pieces = tokenizer()?;
    for (index, course) in COURSES.iter().enumerate().skip(first) {
        let round = Round { steps: steps.unwrap_or(course.round.steps), ..course.round };
        // a seed of its own, so that each round brings new files
        model = round.run_with(model, batches(course, seed + index as u64, &pieces), loss)?;
        save(&model, tokenizer()?, out)?;
        // judged as it will be used: as saved
        print_marks(&Gemma::load_folder(out, &Default::default(), &device)?)?;
    }
    Ok(())
}

/// The weights that a round has saved, in bf16, to be trained further.
fn load(folder: &Path, config: &DecoderConfig, device: &Device) -> Result<Decoder> {
    let checkpoint = Checkpoint::open(folder)?;
    let mut loader = Loader::new(&checkpoint, None, device);
    Ok(Decoder::load(&mut Trainable::new(&mut loader), config, checkpoint.dtype()))
}

fn save(model: &Decoder, tokenizer: Tokenizer, out: &Path) -> Result<()> {
    Ok(Gemma::from_parts(model.valid(), tokenizer).save(out, Dtype::Bf16, true)?)
}

/// The pieces of a training from the start.
pub(crate) fn vocabulary(seed: u64) -> Vocabulary {
    let texts = training_code(seed, LONG.1).take(VOCABULARY_FILES).map(|document| match document {
        CodeDocument::File(text) => text,
        // with the path of the file, which is to have its pieces too
        CodeDocument::Hole(Hole { infill, middle }) => {
            let path = infill.path.unwrap_or_default();
            let paths = infill.context.iter().map(|file| format!("{}\n", file.path));
            format!("{}{path}\n{}{middle}{}", paths.collect::<String>(), infill.prefix, infill.suffix)
        }
    });
    let control: Vec<&str> = CONTROL.iter().chain(&FIM_CONTROL).copied().collect();
    learn(&control, texts, VOCABULARY_SIZE)
}

/// A hole of a held-out function, what the model put into it, and whether that is what stood there.
#[derive(Debug)]
pub struct Filled {
    /// The hole.
    pub hole: Hole,
    /// What the model said.
    pub said: String,
}

impl Filled {
    /// Whether that is exactly what stood there.
    pub fn is_right(&self) -> bool {
        self.said == self.hole.middle
    }
}

/// Single-line holes of functions that the training has not read, half of them with the line's indentation and its line
/// break.
pub fn short_holes(count: usize, seed: u64) -> Vec<Hole> {
    line_holes(held_out_functions(count, seed).into_iter().map(|function| function.text), seed)
}

/// The same in files of three to six such functions, with the imports that they need.
pub fn long_holes(count: usize, seed: u64) -> Vec<Hole> {
    line_holes(held_out_programs(count, seed).iter().map(Program::text), seed)
}

fn line_holes(texts: impl Iterator<Item = String>, seed: u64) -> Vec<Hole> {
    let mut random = Random::new(seed);
    texts
        .enumerate()
        .map(|(index, text)| {
            let make = if index.is_multiple_of(2) { Hole::line } else { Hole::whole_line };
            make(&text, &mut random)
        })
        .collect()
}

/// Lets `model` fill holes.
///
/// # Errors
/// When a hole cannot be filled.
pub fn examine(model: &Gemma, order: Order, holes: Vec<Hole>) -> Result<Vec<Filled>> {
    let tokenizer = model.tokenizer()?;
    let stop = codegemma::stop_tokens(fim_tokens(tokenizer)?);
    holes
        .into_iter()
        .map(|hole| {
            let prompt = hole.infill.prompt(tokenizer, order, BUDGET)?;
            let stop = [model.stop_tokens(), &stop].concat();
            let generation = Generation::new(model.network(), &prompt.tokens, &GenerateOptions::greedy(64), &stop)?;
            let tokens = generation.map(|pick| Ok(pick?.token)).collect::<Result<Vec<_>>>()?;
            Ok(Filled { said: tokenizer.decode(&tokens), hole })
        })
        .collect()
}

fn print_marks(model: &Gemma) -> Result<()> {
    for order in [Order::Psm, Order::Spm] {
        for (kind, holes) in [("short", short_holes(HOLES, 1)), ("long", long_holes(HOLES, 1))] {
            let filled = examine(model, order, holes)?;
            for wrong in filled.iter().filter(|filled| !filled.is_right()).take(5) {
                println!("wrong: {:?}, not {:?}", wrong.said, wrong.hole.middle);
            }
            let right = filled.iter().filter(|filled| filled.is_right()).count();
            println!("{order:?}: {right} of {} held-out holes in {kind} files filled exactly", filled.len());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_middle_begins_where_its_prompt_ends_and_nothing_is_cut_from_files_of_six_functions() {
        let tokenizer = codegemma::demo_tokenizer().unwrap();
        let separator = fim_tokens(&tokenizer).unwrap().file_separator;
        let mut longest = 0;
        for document in training_code(3, LONG.1).take(2_000) {
            let CodeDocument::Hole(hole) = &document else { continue };
            for order in [Order::Psm, Order::Spm] {
                let Lesson { example, middle } = lesson(&document, order, &tokenizer).unwrap();
                let (prompt, middle) = example.tokens.split_at(middle);
                assert_eq!(middle.last(), Some(&separator));
                assert_eq!(tokenizer.decode(&middle[..middle.len() - 1]), hole.middle);
                let whole = hole.infill.prompt(&tokenizer, order, usize::MAX).unwrap();
                assert_eq!(prompt, whole.tokens, "{:?}", hole.infill);
                longest = longest.max(example.tokens.len());
            }
        }
        assert!(longest > BUDGET / 2, "{longest} tokens");
    }
}
