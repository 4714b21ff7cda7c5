//! Trains the CodeGemma demo model: from random weights to the folder that the library embeds.

use std::path::Path;

use anyhow::{Context, Result};
use burn::module::Module;
use codegemma::{Order, fim_tokens, hole_lesson};
use gemma::{Decoder, DecoderConfig, Gemma, GenerateOptions, LayerSpec, Network, Norms, RandomWeights};
use gemma_backend::Device;
use gemma_generate::Generation;
use gemma_nn::{AttentionSpec, RopeSpec, Trainable, Visibility};
use gemma_tokenizer::{Family, Tokenizer};
use gemma_train::Example;
use gemma_weights::{Checkpoint, Dtype, Loader};

use crate::bpe::{CONTROL, FIM_CONTROL, Vocabulary, learn};
use crate::corpus::code::{Program, held_out_functions, held_out_programs};
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

/// A round of the training: on which files, and what is learned of them.
struct Course {
    round: Round,
    /// Files of one step; a short one has about 80 tokens, one of several functions about 320.
    documents: usize,
    /// Whether half of the files have several functions.
    with_long: bool,
    /// Whether all of a file is learned, or the middle of its hole alone.
    all: bool,
}

/// The rounds of the committed model. Where a hole's answer stands is learned in short files, in which there is little to
/// confuse it with, and carried over to long ones.
const COURSES: [Course; 3] = [
    Course {
        round: Round { name: "short files", steps: 2500, learning_rate: 4e-3 },
        documents: 14,
        with_long: false,
        all: true,
    },
    Course {
        round: Round { name: "long files", steps: 1500, learning_rate: 3e-3 },
        documents: 12,
        with_long: true,
        all: true,
    },
    Course {
        round: Round { name: "middles", steps: 1500, learning_rate: 2e-3 },
        documents: 14,
        with_long: true,
        all: false,
    },
];

/// The demo's network: Gemma 1 with one key and value head, as CodeGemma 2B is, in everything but size.
pub fn config(vocab: usize) -> DecoderConfig {
    let (heads, head_dim) = (4, 32);
    let layer = |_| LayerSpec {
        attention: AttentionSpec {
            heads,
            kv_heads: 1,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            softcap: None,
            visibility: Visibility::CAUSAL,
            qk_norm: None,
            qkv_bias: false,
            output_bias: false,
        },
        rope: RopeSpec::new(head_dim, 10_000.0),
        intermediate_size: 320,
        norms: Norms::Before,
    };
    DecoderConfig {
        vocab,
        hidden_size: 128,
        layers: (0..4).map(layer).collect(),
        norm_eps: 1e-6,
        final_softcap: None,
        context: 1024,
        eos: vec![1],
        is_tied: true,
    }
}

/// The tokens of a document and what is learned of them: all of a file; of one with a hole the middle, and in the first
/// round what stands around it too. A middle ends as it does in CodeGemma's training: with a file separator.
fn example(document: &CodeDocument, order: Order, all: bool, tokenizer: &Tokenizer) -> Result<Example> {
    match document {
        CodeDocument::File(text) => {
            let mut tokens = tokenizer.encode(text);
            tokens.push(tokenizer.eos());
            Ok(Example::text(tokens))
        }
        CodeDocument::Hole(hole) => {
            let lesson = hole_lesson(&hole.infill, &hole.middle, tokenizer, order, BUDGET)?;
            let learn = (0..lesson.tokens.len()).map(|place| all || place >= lesson.prompt_len).collect();
            let tokens = lesson.tokens;
            Ok(Example::new(tokens, learn))
        }
    }
}

/// The batches of a round: an endless stream of code, either order equally often.
fn batches(course: &Course, seed: u64, tokenizer: &Tokenizer) -> impl FnMut() -> Vec<Example> {
    let &Course { documents: count, with_long, all, .. } = course;
    let mut random = Random::new(seed ^ 0x0bd3);
    let mut documents = training_code(seed, with_long);
    move || {
        let documents = documents.by_ref().take(count);
        let order = |random: &mut Random| if random.chance(50) { Order::Psm } else { Order::Spm };
        documents.filter_map(|document| example(&document, order(&mut random), all, tokenizer).ok()).collect()
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
        model = round.run(model, batches(course, seed + index as u64, &pieces))?;
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
    let texts = training_code(seed, true).take(VOCABULARY_FILES).map(|document| match document {
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
