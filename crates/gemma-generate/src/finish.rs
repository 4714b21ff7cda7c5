//! Why a generation is over, and what it took.

use serde::{Deserialize, Serialize};

/// Why a generation is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model sampled one of its stop tokens, which is not part of the answer.
    Stop,
    /// A stop text came up, or another [stop rule](crate::StopRule) ended the answer; the text ends before it.
    StopText,
    /// [`GenerateOptions::max_tokens`](crate::GenerateOptions::max_tokens) tokens were generated.
    Length,
    /// The model's context is full: the last token sampled does not fit any more.
    ContextFull,
    /// The caller set the cancel flag, or called [`Engine::cancel`](crate::Engine::cancel).
    Cancelled,
    /// The deadline has passed.
    OutOfTime,
}

impl FinishReason {
    /// The name that serde writes: `stop`, `stop_text`, `length`, `context_full`, `cancelled`, `out_of_time`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::StopText => "stop_text",
            Self::Length => "length",
            Self::ContextFull => "context_full",
            Self::Cancelled => "cancelled",
            Self::OutOfTime => "out_of_time",
        }
    }
}

/// What a generation took. Only the engine's time counts, not what the caller spends between two steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Timings {
    /// Tokens of the prompt that were not in the cache at the beginning.
    pub prompt_tokens: usize,
    /// Seconds up to the first token: prefill and sampling. Among other requests, those of all steps up to then.
    pub prompt_seconds: f64,
    /// Tokens of the answer.
    pub generated_tokens: usize,
    /// Tokens sampled after the first (the last may be a stop token). Without draft tokens, each also is a forward pass.
    pub decode_steps: usize,
    /// Seconds that these took.
    pub decode_seconds: f64,
    /// Tokens drafted by [`Speculation`](crate::Speculation) that the model verified.
    pub draft_tokens: usize,
    /// Of these, how many the model accepted: so many forward passes were saved.
    pub accepted_tokens: usize,
}

/// What two generations of one answer took together.
impl std::ops::AddAssign for Timings {
    fn add_assign(&mut self, other: Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.prompt_seconds += other.prompt_seconds;
        self.generated_tokens += other.generated_tokens;
        self.decode_steps += other.decode_steps;
        self.decode_seconds += other.decode_seconds;
        self.draft_tokens += other.draft_tokens;
        self.accepted_tokens += other.accepted_tokens;
    }
}

impl Timings {
    /// Prefill speed in tokens per second; `None` before the first token.
    pub fn prompt_tokens_per_second(&self) -> Option<f64> {
        (self.prompt_seconds > 0.0).then(|| self.prompt_tokens as f64 / self.prompt_seconds)
    }

    /// Decode speed in tokens per second, the first token not counted; `None` before the second.
    pub fn decode_tokens_per_second(&self) -> Option<f64> {
        (self.decode_seconds > 0.0).then(|| self.decode_steps as f64 / self.decode_seconds)
    }
}
