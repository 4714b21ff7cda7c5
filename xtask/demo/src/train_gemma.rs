//! Trains the Gemma 2 demo model, from random weights to the folder that the library embeds.

use std::path::Path;

use anyhow::{Result, ensure};
use burn::module::Module;
use gemma::{Decoder, DecoderConfig, Gemma, GenerateOptions, LayerSpec, Network, Norms, RandomWeights};
use gemma_nn::{AttentionSpec, RopeSpec, Trainable, Visibility};
use gemma_tokenizer::{ChatTemplate, Family, Role, Tokenizer};
use gemma_train::Example;
use gemma_weights::{Checkpoint, Dtype, Loader};

use crate::bpe::{CONTROL, learn};
use crate::corpus::{Document, Kind, Question, held_out_questions, revision_text, training_text};
use crate::training::{self, Round};
use crate::{VOCABULARY_DOCUMENTS, VOCABULARY_SIZE, vocabulary_text};

/// Optimizer steps of the committed model.
pub const STEPS: usize = 2000;
/// Optimizer steps of its revision.
pub const REVISION_STEPS: usize = 2000;
/// Documents of one step, about 95 tokens each.
const DOCUMENTS: usize = 12;
/// Held-out questions asked when the training is over.
const QUESTIONS: usize = 200;
/// Keys that a windowed layer of the demo sees: less than a story, so that the window matters.
const WINDOW: usize = 32;

/// The demo's network: Gemma 2 in everything but size.
pub fn config() -> DecoderConfig {
    let (heads, head_dim) = (4, 32);
    let layer = |index: usize| LayerSpec {
        attention: AttentionSpec {
            heads,
            kv_heads: 2,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            softcap: Some(50.0),
            visibility: Visibility::Causal { window: index.is_multiple_of(2).then_some(WINDOW) },
            qk_norm: None,
            qkv_bias: false,
            output_bias: false,
        },
        rope: RopeSpec::new(head_dim, 10_000.0),
        intermediate_size: 384,
        norms: Norms::BeforeAndAfter,
    };
    DecoderConfig {
        vocab: VOCABULARY_SIZE,
        hidden_size: 128,
        layers: (0..4).map(layer).collect(),
        norm_eps: 1e-6,
        final_softcap: Some(30.0),
        context: 1024,
        eos: vec![1],
        is_tied: true,
    }
}

/// What is learned of a document: all of a story; of a conversation, the model's words.
pub fn example(document: &Document, tokenizer: &Tokenizer) -> Result<Example> {
    let turns = match document {
        Document::Story(text) => {
            let mut tokens = tokenizer.encode(text);
            tokens.push(tokenizer.eos());
            return Ok(Example::text(tokens));
        }
        Document::Chat(turns) => turns,
    };
    let template = ChatTemplate::builtin();
    let tokens = tokenizer.chat(&template, turns, false)?;
    let mut learn = vec![false; tokens.len()];
    for (index, _) in turns.iter().enumerate().filter(|(_, turn)| turn.role == Role::Model) {
        let begin = tokenizer.chat(&template, &turns[..index], true)?.len();
        let end = tokenizer.chat(&template, &turns[..=index], false)?.len();
        learn[begin..end].fill(true);
    }
    Ok(Example::new(tokens, learn))
}

/// Trains the model and saves it to `out`, which is replaced: a round on the training text, then a shorter one, with a
/// new optimizer, on the revision. `steps` overrides the length of each; `begun`, the folder that a first round has
/// written, skips to the second.
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
            save(run(model, &round, &mut training_text(seed), &tokenizer)?, make_tokenizer(seed)?, out)?;
            out
        }
    };
    // the second round begins with what the first one saved, in bf16
    let checkpoint = Checkpoint::open(first)?;
    let mut loader = Loader::new(&checkpoint, None, &device);
    let model = Decoder::load(&mut Trainable::new(&mut loader), &config(), checkpoint.dtype());
    let round = Round { name: "revision", steps: steps.unwrap_or(REVISION_STEPS), learning_rate: 2e-3 };
    save(run(model, &round, &mut revision_text(seed), &tokenizer)?, tokenizer, out)?;
    // judged as it will be used: as saved
    let saved = Gemma::load_folder(out, &Default::default(), &device)?;
    let story = saved.generate("Once upon a time", &GenerateOptions::greedy(160))?;
    println!("Once upon a time{}\n", story.text);
    print_marks(&saved)
}

fn save(model: Decoder, tokenizer: Tokenizer, out: &Path) -> Result<()> {
    Ok(Gemma::from_parts(model.valid(), tokenizer).save(out, Dtype::Bf16, true)?)
}

fn run(
    model: Decoder,
    round: &Round,
    documents: &mut dyn Iterator<Item = Document>,
    tokenizer: &Tokenizer,
) -> Result<Decoder> {
    round.run(model, || documents.take(DOCUMENTS).filter_map(|document| example(&document, tokenizer).ok()).collect())
}

pub(crate) fn make_tokenizer(seed: u64) -> Result<Tokenizer> {
    let text = vocabulary_text(seed, VOCABULARY_DOCUMENTS);
    training::tokenizer(&learn(&CONTROL, text, VOCABULARY_SIZE), Family::Gemma)
}

/// A held-out question, the model's answer, and whether it is right.
#[derive(Debug)]
pub struct Mark {
    /// The question.
    pub question: Question,
    /// What the model said.
    pub answer: String,
    /// Whether that is right.
    pub right: bool,
}

/// Asks `model` questions of the kind it has learned, none of which it has read.
///
/// # Errors
/// When an answer cannot be generated.
pub fn examine(model: &Gemma, count: usize, seed: u64) -> Result<Vec<Mark>> {
    let options = GenerateOptions::greedy(200);
    held_out_questions(count, seed)
        .into_iter()
        .map(|question| {
            let answer = model.stream_chat(&question.turns, &options)?.finish()?.text;
            let right = question.is_right(&answer);
            Ok(Mark { question, answer, right })
        })
        .collect()
}

fn print_marks(model: &Gemma) -> Result<()> {
    let marks = examine(model, QUESTIONS, 1)?;
    ensure!(!marks.is_empty(), "no held-out questions");
    for mark in marks.iter().filter(|mark| !mark.right).take(20) {
        println!("wrong: {:?} -> {:?}, not {:?}", mark.question.said(), mark.answer, mark.question.answer);
    }
    for kind in Kind::ALL {
        let of_kind = || marks.iter().filter(|mark| mark.question.kind == kind);
        println!("{kind:?}: {} of {} right", of_kind().filter(|mark| mark.right).count(), of_kind().count());
    }
    let right = marks.iter().filter(|mark| mark.right).count();
    println!("{right} of {} held-out questions right", marks.len());
    Ok(())
}
