//! Trains the CodeGemma demo model: from random weights to the folder that the library embeds.

use std::path::Path;

use anyhow::{Result, ensure};
use burn::module::Module;
use codegemma::{Order, fim_tokens, hole_lesson};
use gemma::{Decoder, DecoderConfig, Gemma, GenerateOptions, LayerSpec, Network, Norms, RandomWeights};
use gemma_generate::Generation;
use gemma_nn::{AttentionSpec, RopeSpec, Trainable, Visibility};
use gemma_tokenizer::{Family, Tokenizer};
use gemma_train::Example;
use gemma_weights::{Checkpoint, Dtype, Loader};

use crate::bpe::{CONTROL, FIM_CONTROL, learn};
use crate::corpus::code::held_out_functions;
use crate::corpus::holes::{CodeDocument, Hole, training_code};
use crate::random::Random;
use crate::training::{self, Round};

/// Pieces of the tokenizer: nearly every word of the programs is one.
const VOCABULARY_SIZE: usize = 768;
/// Files that the tokenizer is learned from.
const VOCABULARY_FILES: usize = 4_000;
/// Optimizer steps of the first round of the committed model.
pub const STEPS: usize = 3000;
/// Optimizer steps of its second round, which learns the middles alone.
pub const REVISION_STEPS: usize = 1500;
/// Files of one step, about 80 tokens each.
const DOCUMENTS: usize = 14;
/// Held-out holes filled when the training is over.
const HOLES: usize = 200;
/// Longest prompt, in tokens.
const BUDGET: usize = 512;

/// The demo's network: Gemma 1 with one key and value head, as CodeGemma 2B is, in everything but size.
pub fn config() -> DecoderConfig {
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
        vocab: VOCABULARY_SIZE,
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
fn batches(seed: u64, all: bool, tokenizer: &Tokenizer) -> impl FnMut() -> Vec<Example> {
    let mut random = Random::new(seed ^ 0x0bd3);
    let mut documents = training_code(seed);
    move || {
        let documents = documents.by_ref().take(DOCUMENTS);
        let order = |random: &mut Random| if random.chance(50) { Order::Psm } else { Order::Spm };
        documents.filter_map(|document| example(&document, order(&mut random), all, tokenizer).ok()).collect()
    }
}

/// Trains the model and saves it to `out`, which is replaced: a round that learns to write programs, then a shorter one
/// with a new optimizer that learns to fill their holes. `steps` overrides the length of each; `begun`, the folder that a
/// first round has written, skips to the second.
///
/// # Errors
/// When the device, the tokenizer or a folder fail.
pub fn make(out: &Path, begun: Option<&Path>, steps: Option<usize>, seed: u64) -> Result<()> {
    let tokenizer = make_tokenizer(seed)?;
    let device = training::device()?;
    let first = match begun {
        Some(folder) => folder,
        None => {
            let model = Decoder::random(&config(), RandomWeights::Dense, seed, &device.clone().autodiff());
            let round = Round { name: "reading", steps: steps.unwrap_or(STEPS), learning_rate: 4e-3 };
            let model = round.run(model, batches(seed, true, &tokenizer))?;
            save(model, make_tokenizer(seed)?, out)?;
            print_marks(&Gemma::load_folder(out, &Default::default(), &device)?)?;
            out
        }
    };
    // the second round begins with what the first one saved, in bf16
    let checkpoint = Checkpoint::open(first)?;
    let mut loader = Loader::new(&checkpoint, None, &device);
    let model = Decoder::load(&mut Trainable::new(&mut loader), &config(), checkpoint.dtype());
    let round = Round { name: "filling", steps: steps.unwrap_or(REVISION_STEPS), learning_rate: 2e-3 };
    let model = round.run(model, batches(seed + 1, false, &tokenizer))?;
    save(model, tokenizer, out)?;
    // judged as it will be used: as saved
    print_marks(&Gemma::load_folder(out, &Default::default(), &device)?)
}

fn save(model: Decoder, tokenizer: Tokenizer, out: &Path) -> Result<()> {
    Ok(Gemma::from_parts(model.valid(), tokenizer).save(out, Dtype::Bf16, true)?)
}

pub(crate) fn make_tokenizer(seed: u64) -> Result<Tokenizer> {
    let texts = training_code(seed).take(VOCABULARY_FILES).map(|document| match document {
        CodeDocument::File(text) => text,
        // with the path of the file, which is to have its pieces too
        CodeDocument::Hole(Hole { infill, middle }) => {
            let path = infill.path.unwrap_or_default();
            let paths = infill.context.iter().map(|file| format!("{}\n", file.path));
            format!("{}{path}\n{}{middle}{}", paths.collect::<String>(), infill.prefix, infill.suffix)
        }
    });
    let control: Vec<&str> = CONTROL.iter().chain(&FIM_CONTROL).copied().collect();
    training::tokenizer(&learn(&control, texts, VOCABULARY_SIZE), Family::CodeGemma)
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

/// Lets `model` fill single-line holes of functions that it has not read, half of them with the line's indentation and
/// its line break.
///
/// # Errors
/// When a hole cannot be filled.
pub fn examine(model: &Gemma, order: Order, count: usize, seed: u64) -> Result<Vec<Filled>> {
    let mut random = Random::new(seed);
    let tokenizer = model.tokenizer()?;
    let stop = codegemma::stop_tokens(fim_tokens(tokenizer)?);
    held_out_functions(count, seed)
        .iter()
        .enumerate()
        .map(|(index, function)| {
            let make = if index.is_multiple_of(2) { Hole::line } else { Hole::whole_line };
            let hole = make(&function.text, &mut random);
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
        let filled = examine(model, order, HOLES, 1)?;
        ensure!(!filled.is_empty(), "no held-out holes");
        for wrong in filled.iter().filter(|filled| !filled.is_right()).take(10) {
            println!("wrong: {:?}, not {:?}", wrong.said, wrong.hole.middle);
        }
        let right = filled.iter().filter(|filled| filled.is_right()).count();
        println!("{order:?}: {right} of {} held-out holes filled exactly", filled.len());
    }
    Ok(())
}
