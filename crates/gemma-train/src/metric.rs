//! The numbers of a training, as they are written down.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::StepReport;

/// A line of the metrics file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Metric {
    /// What a step did.
    Step {
        /// Which step, from 0.
        step: usize,
        /// When it ended, in seconds since 1970.
        time: u64,
        /// Its loss, in nats.
        loss: f64,
        /// Its learning rate.
        learning_rate: f64,
        /// The norm of its gradients.
        gradient_norm: f64,
        /// Tokens read.
        tokens: usize,
        /// Seconds it took.
        seconds: f64,
    },
    /// The loss on data that is not learned.
    Evaluation {
        /// Steps taken before it.
        after: usize,
        /// When it ended, in seconds since 1970.
        time: u64,
        /// The data's file.
        file: String,
        /// Mean loss, in nats per token to be learned, or per pair.
        eval_loss: f64,
        /// Its exponential; none of pairs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        perplexity: Option<f64>,
        /// The part of the answers that greedy decoding would say exactly, or of the queries whose own text is the nearest;
        /// none of whole texts and of preferences.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        accuracy: Option<f64>,
    },
}

/// How a model fares on data that it does not learn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean loss, in nats per token to be learned, or per pair.
    pub loss: f64,
    /// Its exponential; none of pairs.
    pub perplexity: Option<f64>,
    /// The part of the answers that greedy decoding would say exactly, or of the queries whose own text is the nearest; none
    /// of whole texts and of preferences.
    pub accuracy: Option<f64>,
}

impl Evaluation {
    pub(crate) fn of_texts(loss: f64, accuracy: Option<f64>) -> Self {
        Self { loss, perplexity: Some(loss.exp()), accuracy }
    }

    pub(crate) fn of_pairs(loss: f64, accuracy: Option<f64>) -> Self {
        Self { loss, perplexity: None, accuracy }
    }
}

impl From<StepReport> for Metric {
    fn from(step: StepReport) -> Self {
        let StepReport { step, loss, learning_rate, gradient_norm, tokens, seconds, .. } = step;
        Self::Step { step, time: now(), loss, learning_rate, gradient_norm, tokens, seconds }
    }
}

impl Metric {
    /// The loss on data that is not learned, as of now.
    pub fn evaluation(after: usize, file: String, found: Evaluation) -> Self {
        let Evaluation { loss: eval_loss, perplexity, accuracy } = found;
        Self::Evaluation { after, time: now(), file, eval_loss, perplexity, accuracy }
    }

    /// When it was taken, in seconds since 1970.
    pub fn time(&self) -> u64 {
        match self {
            Self::Step { time, .. } | Self::Evaluation { time, .. } => *time,
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
