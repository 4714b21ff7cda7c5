//! Trains the RecurrentGemma demo model: stories, questions, and a word to be remembered far beyond the window.

use std::path::Path;

use anyhow::Result;
use burn::module::Module;
use gemma_nn::{Adapted, Trainable};
use gemma_tokenizer::{Family, Tokenizer, Turn};
use gemma_train::Example;
use gemma_weights::{Checkpoint, Dtype, Loader};
use recurrentgemma::{GenerateOptions, Griffin, GriffinConfig, Initial, Network, RecurrentGemma};

use crate::bpe::{CONTROL, learn};
use crate::corpus::{Document, Recall, training_text};
use crate::random::Random;
use crate::train_gemma::example;
use crate::training::{self, Round};
use crate::{VOCABULARY_DOCUMENTS, VOCABULARY_SIZE, vocabulary_text};

/// Optimizer steps of the committed model, of each round.
pub const STEPS: [usize; 2] = [1200, 700];
/// Documents of one step.
const DOCUMENTS: usize = 12;
/// How many of 100 documents are tasks of memory.
const RECALL_SHARE: usize = 50;
/// Most words between a word and the question for it, in each round. (A word of a story is a little more than a token.)
const LONGEST: [usize; 2] = [160, 480];
/// Keys that an attention block sees.
pub const WINDOW: usize = 32;

/// The demo's network: Griffin in everything but size, ending as the releases do on two recurrent blocks.
///
/// # Panics
/// Never: the numbers are those of a sound configuration.
pub fn config() -> GriffinConfig {
    let width = 128;
    let text = serde_json::json!({
        "model_type": "recurrent_gemma",
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": width,
        "lru_width": width,
        "intermediate_size": 2 * 3 * width,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "attention_window_size": WINDOW,
        "block_types": ["recurrent", "recurrent", "attention"],
        "logits_soft_cap": 30.0,
    });
    GriffinConfig::from_json(text.to_string().as_bytes()).expect("a sound configuration")
}

/// Trains the model and saves it to `out`, which is replaced after each of two rounds; in the second the words are
/// farther away. `steps` overrides the length of both; `begun`, the folder that a first round has written, skips to the
/// second.
///
/// # Errors
/// When the device, the tokenizer or a folder fail.
pub fn make(out: &Path, begun: Option<&Path>, steps: Option<usize>, seed: u64) -> Result<()> {
    let tokenizer = make_tokenizer(seed)?;
    let device = training::device()?;
    let first = match begun {
        Some(folder) => folder,
        None => {
            let mut random = Initial::random(seed, &device.clone().autodiff());
            let model = Griffin::load(&mut Adapted::with(&mut random, Initial), &config(), Dtype::Bf16);
            let round = Round { name: "reading", steps: steps.unwrap_or(STEPS[0]), learning_rate: 4e-3 };
            save(run(model, &round, LONGEST[0], seed, &tokenizer)?, make_tokenizer(seed)?, out)?;
            out
        }
    };
    let checkpoint = Checkpoint::open(first)?;
    let mut loader = Loader::new(&checkpoint, None, &device);
    let model = Griffin::load(&mut Trainable::new(&mut loader), &config(), checkpoint.dtype());
    let round = Round { name: "remembering", steps: steps.unwrap_or(STEPS[1]), learning_rate: 2e-3 };
    save(run(model, &round, LONGEST[1], seed ^ 0x7265_6361_6c6c, &tokenizer)?, tokenizer, out)?;
    // judged as it will be used: as saved
    let saved = RecurrentGemma::load_folder(out, &Default::default(), &device)?;
    let story = saved.generate("Once upon a time", &GenerateOptions::greedy(160))?;
    println!("Once upon a time{}\n", story.text);
    for times in [1, 2, 5, 10, 20, 40] {
        let marks = examine(&saved, 50, times * WINDOW, 1)?;
        println!("at {times} times the window: {} of {} right", marks.iter().filter(|mark| mark.right).count(), 50);
    }
    Ok(())
}

fn save(model: Griffin, tokenizer: Tokenizer, out: &Path) -> Result<()> {
    Ok(RecurrentGemma::from_parts(model.valid(), tokenizer).save(out, Dtype::Bf16, true)?)
}

fn run(model: Griffin, round: &Round, longest: usize, seed: u64, tokenizer: &Tokenizer) -> Result<Griffin> {
    let (mut random, mut texts) = (Random::new(seed), training_text(seed));
    let mut document = move || {
        if !random.chance(RECALL_SHARE) {
            return texts.next().expect("the text never ends");
        }
        // as many short tasks as long ones, whatever is short: a word is learned near before it is learned far
        let most = longest >> random.below(4);
        let between = random.below(most + 1);
        Document::Chat(Recall::draw(&mut random, between).turns())
    };
    round.run(model, || {
        let documents = std::iter::repeat_with(&mut document).take(DOCUMENTS);
        documents.filter_map(|document| example(&document, tokenizer).ok()).collect::<Vec<Example>>()
    })
}

fn make_tokenizer(seed: u64) -> Result<Tokenizer> {
    let mut text = vocabulary_text(seed, VOCABULARY_DOCUMENTS);
    // often enough that each of the words is one piece
    let mut random = Random::new(seed);
    text.extend(std::iter::repeat_with(|| Recall::draw(&mut random, 0).text).take(VOCABULARY_DOCUMENTS));
    training::tokenizer(&learn(&CONTROL, text, VOCABULARY_SIZE), Family::RecurrentGemma)
}

/// A task, the model's answer, and whether it is right.
#[derive(Debug)]
pub struct Mark {
    /// The task.
    pub recall: Recall,
    /// Tokens between the word and the question, at least.
    pub distance: usize,
    /// What the model said.
    pub answer: String,
    /// Whether that is right.
    pub right: bool,
}

/// Asks `model` for words that it read at least `distance` tokens ago.
///
/// # Errors
/// When an answer cannot be generated.
pub fn examine(model: &RecurrentGemma, count: usize, distance: usize, seed: u64) -> Result<Vec<Mark>> {
    let mut random = Random::new(seed);
    let options = GenerateOptions::greedy(8);
    (0..count)
        .map(|_| {
            // a word is at least one token
            let recall = Recall::draw(&mut random, distance);
            let answer = model.stream_chat(&[Turn::user(&recall.text)], &options)?.finish()?.text;
            let right = answer.trim() == recall.word;
            Ok(Mark { recall, distance, answer, right })
        })
        .collect()
}
