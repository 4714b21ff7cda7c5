//! What the HTTP layer asks of a model: a tokenizer, prompts, and a queue that turns jobs into events.
//!
//! The handlers know no tensor and no engine. They see one trait, [`Backend`], which the engine implements and which
//! tests implement with a few lines, so that the protocols are tested in seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gemma_tokenizer::{ChatTemplate, TokenId, Tokenizer, Turn};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

use super::error::Refusal;

/// What a client can learn of a model without using it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ModelCard {
    /// The name that requests and replies carry, such as `google/gemma-2-2b-it`.
    pub id: String,
    /// The name of the base model, of an adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The family: `gemma`, `codegemma`, `paligemma`, `recurrentgemma`, ...
    pub family: String,
    /// Most tokens of prompt and answer together; `None`: no limit.
    pub context_length: Option<usize>,
    /// Number of tokens that the model knows: the columns of its logits.
    pub vocab_size: usize,
    /// Number of parameters; 0 when it is not known.
    pub parameters: u64,
    /// Bytes of the weights; 0 when it is not known.
    pub bytes: u64,
    /// The format in which most weights are held: `bf16`, `q8_0`, ...
    pub quantization: String,
    /// Unix time at which the model was loaded, in seconds.
    pub created: u64,
    /// What the model can do.
    pub capabilities: Capabilities,
}

/// A LoRA adapter that requests to a model may choose. Its number is its place among the model's.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterCard {
    /// The name that a request gives as its model to choose the adapter alone.
    pub name: String,
    /// The folder.
    pub path: String,
    /// How much of it a request by that name gets: 1 is all of it.
    pub strength: f32,
}

/// What a model can do besides continuing a text.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Capabilities {
    /// It was trained on a chat template.
    pub chat: bool,
    /// It has fill-in-the-middle tokens.
    pub infill: bool,
    /// It reads images.
    pub images: bool,
    /// It answers with boxes and masks (PaliGemma).
    pub detect: bool,
    /// It computes embeddings.
    pub embed: bool,
    /// It classifies content (ShieldGemma).
    pub moderate: bool,
    /// It generates text.
    pub generate: bool,
}

impl Capabilities {
    /// All of them.
    pub const ALL: Self =
        Self { chat: true, infill: true, images: true, detect: true, embed: true, moderate: true, generate: true };
}

/// How tokens are drawn; the fields are those of `gemma_generate::GenerateOptions`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sampling {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// 0 always takes the likeliest token.
    pub temperature: f32,
    /// `None`: all tokens.
    pub top_k: Option<usize>,
    /// `None`: all tokens.
    pub top_p: Option<f32>,
    /// `None`: all tokens.
    pub min_p: Option<f32>,
    /// 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of each token that the answer already has; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted for each time that the answer already has the token; 0 is off.
    pub frequency_penalty: f32,
    /// Lowers the logits of tokens that would prolong a repeated passage.
    pub dry: Option<Dry>,
    /// Mirostat 2.0 in place of top-k, top-p and min-p.
    pub mirostat: Option<Mirostat>,
    /// `None` takes a fresh one.
    pub seed: Option<u64>,
    /// Go on after the model's stop tokens.
    pub ignore_eos: bool,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            temperature: 1.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            dry: None,
            mirostat: None,
            seed: None,
            ignore_eos: false,
        }
    }
}

/// The DRY repetition penalty; `gemma_generate::Dry` says what it computes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dry {
    /// How much; 0 is off.
    pub multiplier: f32,
    /// How fast it grows with each token of a repeated passage.
    pub base: f32,
    /// The shortest passage that must not be prolonged, in tokens.
    pub allowed_length: usize,
    /// Only so many of the last tokens count; `None`: all.
    pub last_tokens: Option<usize>,
    /// Texts that end a passage; `None`: the published ones.
    pub breakers: Option<Vec<String>>,
}

/// Mirostat 2.0; `gemma_generate::Mirostat` says what it computes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mirostat {
    /// The surprise to aim at, in bits per token.
    pub tau: f32,
    /// How fast the cut follows.
    pub eta: f32,
}

/// A prompt that is ready for the model.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    /// The tokens, `<bos>` included.
    pub tokens: Vec<TokenId>,
    /// Encoded image files (PNG, JPEG or WebP), in the order of their places in the tokens.
    pub images: Vec<Vec<u8>>,
}

impl From<Vec<TokenId>> for Prompt {
    fn from(tokens: Vec<TokenId>) -> Self {
        Self { tokens, images: Vec::new() }
    }
}

/// Which tokens may come next: a grammar, seen by the decoding loop.
pub trait TokenMask: Send {
    /// Writes `true` for each token that may come next; `allowed` has one place per column of the logits.
    ///
    /// # Errors
    /// When the grammar took more than its limits.
    fn allowed(&mut self, allowed: &mut [bool]) -> Result<(), String>;

    /// Takes the token that was sampled.
    ///
    /// # Errors
    /// When the token was not allowed, or the grammar took more than its limits.
    fn accept(&mut self, token: TokenId) -> Result<(), String>;
}

/// One answer to be generated.
#[derive(Default)]
pub struct Job {
    /// What to continue.
    pub prompt: Prompt,
    /// How.
    pub sampling: Sampling,
    /// Texts that end the answer; the answer is cut before the first that is completed.
    pub stop: Vec<String>,
    /// Tokens that end the answer besides the model's own.
    pub stop_tokens: Vec<TokenId>,
    /// How many of the likeliest tokens to report beside each token of the answer; `None`: no logprobs at all.
    pub logprobs: Option<usize>,
    /// Report the logprobs of the prompt's tokens too.
    pub prompt_logprobs: bool,
    /// The numbers of the adapters that the request chose, and how much of each; `None`: those that the name of the model
    /// stands for.
    pub adapters: Option<Vec<(usize, f32)>>,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Allows only some tokens at each step.
    pub mask: Option<Box<dyn TokenMask>>,
    /// The answer ends here at the latest, with what there is.
    pub deadline: Option<Instant>,
    /// The answer ends at the first line break after this time since its first token (llama.cpp's `t_max_predict_ms`).
    /// The HTTP layer sees to it.
    pub decode_limit: Option<Duration>,
}

/// How likely a token was.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    /// The token.
    pub token: TokenId,
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens with theirs, the likeliest first.
    pub top: Vec<(TokenId, f32)>,
}

/// Why an answer is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The model sampled one of its stop tokens.
    Stop,
    /// A stop text came up.
    StopText,
    /// The limit of tokens was reached.
    Length,
    /// The context is full.
    ContextFull,
    /// The deadline passed.
    OutOfTime,
    /// The server is shutting down.
    Shutdown,
}

impl Reason {
    /// OpenAI's word: `stop` or `length`.
    pub fn openai(self) -> &'static str {
        match self {
            Self::Stop | Self::StopText => "stop",
            Self::Length | Self::ContextFull | Self::OutOfTime | Self::Shutdown => "length",
        }
    }

    /// llama.cpp's word: `eos`, `word` or `limit`.
    pub fn llama(self) -> &'static str {
        match self {
            Self::Stop => "eos",
            Self::StopText => "word",
            Self::Length | Self::ContextFull | Self::OutOfTime | Self::Shutdown => "limit",
        }
    }
}

/// What an answer took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finished {
    /// Why it is over.
    pub reason: Reason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, how many the prefix cache already held.
    pub cached_tokens: usize,
    /// Tokens of the answer.
    pub generated_tokens: usize,
    /// Seconds of the prefill, until the first token.
    pub prompt_seconds: f64,
    /// Seconds after the first token.
    pub decode_seconds: f64,
}

/// What happens to a job.
#[derive(Clone, Debug)]
pub enum Event {
    /// It was admitted: the prefill begins.
    Started,
    /// The logprobs of the prompt, one entry per token; the first token has nothing before it.
    Prompt(Vec<Option<TokenScore>>),
    /// A token of the answer.
    Token {
        /// The token.
        token: TokenId,
        /// The text that can be shown now, often none: whole characters only, and nothing of a stop text.
        text: String,
        /// Its logprob, when the job asked for it.
        score: Option<TokenScore>,
    },
    /// It is over; `text` is what was held back.
    Done {
        /// The rest of the text.
        text: String,
        /// What it took.
        finished: Finished,
    },
    /// It failed.
    Failed(Refusal),
}

/// The events of a job. Dropping it cancels the job within one step.
pub type Events = UnboundedReceiver<Event>;

/// One message of a chat, images included.
#[derive(Clone, Debug)]
pub struct Message {
    /// Who speaks, and the text.
    pub turn: Turn,
    /// Encoded image files that stand before the text.
    pub images: Vec<Vec<u8>>,
}

/// A hole in a file, with what surrounds it.
#[derive(Clone, Debug, Default)]
pub struct Hole {
    /// The text before the hole.
    pub prefix: String,
    /// The text after the hole.
    pub suffix: String,
    /// Other files: path and text, the most telling one last.
    pub files: Vec<(String, String)>,
    /// The path of the file itself.
    pub path: Option<String>,
}

/// A task for a vision model.
#[derive(Clone, Debug)]
pub enum VisionTask {
    /// Describe the image in a language such as `en`.
    Caption(String),
    /// Find these objects.
    Detect(Vec<String>),
    /// Segment these objects.
    Segment(Vec<String>),
}

/// How full a backend is.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Load {
    /// Requests that generate now.
    pub running: usize,
    /// Requests that wait for room.
    pub waiting: usize,
    /// Bytes of KV cache in use.
    pub cache_bytes: usize,
    /// Most bytes that the KV cache may take.
    pub cache_limit_bytes: usize,
}

/// A loaded model that answers jobs.
pub trait Backend: Send + Sync + 'static {
    /// What the model is.
    fn card(&self) -> &ModelCard;

    /// Its tokenizer.
    fn tokenizer(&self) -> &Tokenizer;

    /// The adapters that requests may choose.
    fn adapters(&self) -> &[AdapterCard] {
        &[]
    }

    /// How its conversations become prompts.
    fn chat_template(&self) -> &ChatTemplate;

    /// Queues a job; the events come one by one. Never blocks.
    ///
    /// # Errors
    /// A job that cannot run: too long (400), larger than the cache (413), or a full queue (429).
    fn submit(&self, job: Job) -> Result<Events, Refusal>;

    /// How full it is.
    fn load(&self) -> Load;

    /// Bytes that it may take: its weights, the limit of its KV cache, and its tokenizer.
    fn memory_bytes(&self) -> u64 {
        let tokenizer = Tokenizer::memory_bytes(self.tokenizer().vocab_len());
        self.card().bytes + self.load().cache_limit_bytes as u64 + tokenizer as u64
    }

    /// The prompt of a chat. The default knows no images.
    ///
    /// # Errors
    /// What the chat template refuses.
    fn chat_prompt(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Prompt, Refusal> {
        if messages.iter().any(|message| !message.images.is_empty()) {
            return Err(Refusal::unsupported(format!("{} does not read images", self.card().id)));
        }
        let turns: Vec<Turn> = messages.iter().map(|message| message.turn.clone()).collect();
        let tokens = self.tokenizer().chat(self.chat_template(), &turns, add_generation_prompt);
        Ok(tokens.map_err(|error| Refusal::field("messages", error.to_string()))?.into())
    }

    /// The fill-in-the-middle prompt of a hole, at most `budget` tokens, and the tokens that end the middle.
    ///
    /// # Errors
    /// When the model has no fill-in-the-middle tokens, or the budget is too small.
    fn infill_prompt(&self, hole: &Hole, budget: usize) -> Result<(Vec<TokenId>, Vec<TokenId>), Refusal> {
        let _ = (hole, budget);
        Err(Refusal::unsupported(format!("{} has no fill-in-the-middle tokens; use a CodeGemma", self.card().id)))
    }

    /// The embeddings of texts, one normalized vector each, and the tokens they took. Blocks.
    ///
    /// # Errors
    /// When the model computes none, or a text is too long.
    fn embed(
        &self,
        texts: &[EmbedInput],
        task: Option<&str>,
        ongoing: &Ongoing,
    ) -> Result<(Vec<Vec<f32>>, usize), Refusal> {
        let _ = (texts, task, ongoing);
        Err(Refusal::unsupported(format!("{} does not compute embeddings; use an EmbeddingGemma", self.card().id)))
    }

    /// For each policy (`harassment`, ...) the probability that the content violates it. Blocks.
    ///
    /// # Errors
    /// When the model is no ShieldGemma, or none for this kind of content.
    fn moderate(&self, subject: &Moderated, ongoing: &Ongoing) -> Result<Vec<(String, f32)>, Refusal> {
        let _ = (subject, ongoing);
        Err(Refusal::unsupported(format!("{} does not classify content; use a ShieldGemma", self.card().id)))
    }

    /// A typed answer about an image. Blocks.
    ///
    /// # Errors
    /// When the model is no PaliGemma, or the image is not sound.
    fn vision(&self, image: &[u8], task: &VisionTask, ongoing: &Ongoing) -> Result<Value, Refusal> {
        let _ = (image, task, ongoing);
        Err(Refusal::unsupported(format!("{} does not caption, detect or segment; use a PaliGemma", self.card().id)))
    }
}

/// Whether blocking work is still wanted: its client has not gone away, and its time is not up.
#[derive(Clone, Debug)]
pub struct Ongoing {
    given_up: Arc<AtomicBool>,
    begun: Instant,
    limit: Duration,
}

impl Ongoing {
    /// Work that may take so long.
    pub fn within(limit: Duration) -> Self {
        Self { given_up: Arc::default(), begun: Instant::now(), limit }
    }

    /// Nobody wants the work any more.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Looked at between two calls of the network.
    ///
    /// # Errors
    /// When the work is not wanted any more.
    pub fn check(&self) -> Result<(), Refusal> {
        match self.given_up.load(Ordering::Relaxed) || self.begun.elapsed() > self.limit {
            true => Err(Refusal::too_slow(self.limit)),
            false => Ok(()),
        }
    }
}

/// Content to classify.
#[derive(Clone, Debug)]
pub enum Moderated {
    /// What a person asks a model.
    Text(String),
    /// An encoded image file.
    Image(Vec<u8>),
}

/// A text to embed.
#[derive(Clone, Debug)]
pub enum EmbedInput {
    /// As text.
    Text(String),
    /// As tokens, exactly as given.
    Tokens(Vec<TokenId>),
}
