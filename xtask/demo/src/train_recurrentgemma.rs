//! Trains the RecurrentGemma demo model: the text of the Gemma demo, and a word to remember past every window.

use std::path::Path;

use anyhow::Result;
use burn::module::Module;
use gemma_nn::{AttentionSpec, Trainable};
use gemma_tokenizer::{Family, Tokenizer};
use gemma_train::Example;
use gemma_weights::{Checkpoint, Dtype, Loader};
use recurrentgemma::{
    BlockSpec, GenerateOptions, Griffin, GriffinConfig, Network, RecurrentGemma, RecurrentSpec, Temporal,
};

use crate::bpe::{CONTROL, learn};
use crate::corpus::memory::{Memory, memory_text};
use crate::corpus::{Document, revision_text, training_text};
use crate::random::Random;
use crate::train_gemma::example;
use crate::training::{self, Round};
use crate::{VOCABULARY_DOCUMENTS, VOCABULARY_SIZE, vocabulary_text};

/// Optimizer steps of each of the two rounds of the committed model.
pub const STEPS: usize = 1000;
/// Documents of one step: stories and conversations, and conversations with a word to remember.
const DOCUMENTS: [usize; 2] = [8, 4];
/// Keys that an attention layer of the demo sees.
pub const WINDOW: usize = 32;
/// Conversations with a word to remember that the vocabulary is learned from.
const VOCABULARY_MEMORIES: usize = 1000;
/// Conversations that the finished model is examined with.
const EXAMINED: usize = 50;

/// The demo's network: RecurrentGemma in everything but size.
pub fn config() -> GriffinConfig {
    let (width, heads) = (128, 4);
    let head_dim = width / heads;
    let recurrent = Temporal::Recurrent(RecurrentSpec { channels: width, blocks: heads, taps: 4 });
    let attention = Temporal::Attention(AttentionSpec {
        heads,
        kv_heads: 1,
        head_dim,
        scale: (head_dim as f32).powf(-0.5),
        softcap: None,
        span: Some(WINDOW),
        qkv_bias: false,
        output_bias: true,
    });
    let block = |temporal| BlockSpec { temporal, hidden: 256 };
    GriffinConfig::new(VOCABULARY_SIZE, width, [recurrent, recurrent, attention, recurrent, recurrent].map(block).into())
}

/// Trains the model and saves it to `out`, which is replaced: a round on the training text, then one, with a new
/// optimizer, on the revision; each with words to remember. `steps` overrides the length of each; `begun`, the folder
/// that a first round has written, skips to the second.
///
/// # Errors
/// When the device, the tokenizer or a folder fail.
pub fn make(out: &Path, begun: Option<&Path>, steps: Option<usize>, seed: u64) -> Result<()> {
    let tokenizer = make_tokenizer(seed)?;
    let device = training::device()?;
    let steps = steps.unwrap_or(STEPS);
    let first = match begun {
        Some(folder) => folder,
        None => {
            let model = Griffin::initial(&config(), seed, &device.clone().autodiff());
            let round = Round { name: "reading", steps, learning_rate: 4e-3 };
            save(run(model, &round, &mut training_text(seed), seed, &tokenizer)?, make_tokenizer(seed)?, out)?;
            out
        }
    };
    // the second round begins with what the first one saved, in bf16
    let checkpoint = Checkpoint::open(first)?;
    let mut loader = Loader::new(&checkpoint, None, &device);
    let model = Griffin::load(&mut Trainable::new(&mut loader), &config(), checkpoint.dtype());
    let round = Round { name: "revision", steps, learning_rate: 2e-3 };
    save(run(model, &round, &mut revision_text(seed), seed ^ 1, &tokenizer)?, tokenizer, out)?;
    // judged as it will be used: as saved
    let saved = RecurrentGemma::load_folder(out, &Default::default(), &device)?;
    let story = saved.generate("Once upon a time", &GenerateOptions::greedy(160))?;
    println!("Once upon a time{}\n", story.text);
    for windows in [1, 10, 40] {
        let marks = examine(&saved, EXAMINED, windows * WINDOW, 1)?;
        let right = marks.iter().filter(|mark| mark.right).count();
        println!("{right} of {} words remembered over {windows} windows", marks.len());
    }
    Ok(())
}

fn save(model: Griffin, tokenizer: Tokenizer, out: &Path) -> Result<()> {
    Ok(RecurrentGemma::from_parts(model.valid(), tokenizer).save(out, Dtype::Bf16, true)?)
}

fn run(
    model: Griffin,
    round: &Round,
    documents: &mut dyn Iterator<Item = Document>,
    seed: u64,
    tokenizer: &Tokenizer,
) -> Result<Griffin> {
    let mut memories = memory_text(seed).map(Document::Chat);
    round.run(model, || {
        let [texts, words] = DOCUMENTS;
        let mixed = documents.take(texts).chain(memories.by_ref().take(words));
        // alternately, so that the two halves of a batch have about the same length
        let mut examples: Vec<Example> = mixed.filter_map(|document| example(&document, tokenizer).ok()).collect();
        examples.sort_by_key(|example| example.tokens.len());
        let (even, odd): (Vec<_>, Vec<_>) = examples.into_iter().enumerate().partition(|(index, _)| index % 2 == 0);
        even.into_iter().chain(odd).map(|(_, example)| example).collect()
    })
}

fn make_tokenizer(seed: u64) -> Result<Tokenizer> {
    let memories = memory_text(seed).take(VOCABULARY_MEMORIES).flat_map(|turns| Document::Chat(turns).into_texts());
    let text = vocabulary_text(seed, VOCABULARY_DOCUMENTS).into_iter().chain(memories);
    training::tokenizer(&learn(&CONTROL, text, VOCABULARY_SIZE), Family::RecurrentGemma)
}

/// A conversation with a word to remember, the model's answer, and whether it is right.
#[derive(Debug)]
pub struct Mark {
    /// The conversation.
    pub memory: Memory,
    /// Tokens between the word and the question for it.
    pub between: usize,
    /// What the model said.
    pub answer: String,
    /// Whether that is right.
    pub right: bool,
}

/// Has `model` remember words over at least `distance` tokens.
///
/// # Errors
/// When an answer cannot be generated.
pub fn examine(model: &RecurrentGemma, count: usize, distance: usize, seed: u64) -> Result<Vec<Mark>> {
    let mut random = Random::new(seed ^ 0x00e8_a31e_0000_3e30);
    let tokenizer = model.tokenizer()?;
    let options = GenerateOptions::greedy(20);
    let tokens = |turns: &[gemma_tokenizer::Turn]| match turns {
        [] => Ok(0),
        turns => Ok::<_, anyhow::Error>(tokenizer.chat(model.chat_template(), turns, false)?.len()),
    };
    (0..count)
        .map(|_| {
            let memory = Memory::draw(&mut random, |between| tokens(between).is_ok_and(|len| len >= distance));
            let between = tokens(&memory.turns[2..memory.turns.len() - 1])?;
            let answer = model.stream_chat(&memory.turns, &options)?.finish()?.text;
            let right = answer.trim() == memory.answer();
            Ok(Mark { memory, between, answer, right })
        })
        .collect()
}
