//! Learning from preferences.

use burn::module::Module;
use gemma_model::Blocks;

use crate::gradients::{BatchGradients, NamedValues};
use crate::{Error, Example, StepReport, Trainer};

/// An answer that is preferred to another one, to the same prompt.
#[derive(Clone, Debug)]
pub struct Preference {
    /// The better answer; its tokens to be learned are those after the prompt.
    pub chosen: Example,
    /// The worse one.
    pub rejected: Example,
    /// What the model gave them before the training: the sums of the log-probabilities of their answers.
    pub reference: [f64; 2],
}

impl<M: Blocks + Module> Trainer<M> {
    /// One step of direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290, eq. 7): the loss of a pair is
    /// `-log σ(beta (Δchosen - Δrejected))`, where `Δ` is how much the log-probability of an answer has risen over that of
    /// the reference model. The loss that is reported is the mean over the pairs, in nats.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn preference_step(&mut self, pairs: &[Preference], beta: f64) -> Result<StepReport, Error> {
        self.step_on(|trainer| Ok(trainer.preference_gradients(pairs, beta)))
    }

    /// The mean loss of some pairs.
    pub fn preference_loss(&self, pairs: &[Preference], beta: f64) -> f64 {
        let log_probs = self.log_probs(&both(pairs));
        let losses =
            pairs.iter().zip(log_probs.chunks(2)).map(|(pair, log_probs)| softplus(-margin(pair, log_probs, beta)));
        losses.sum::<f64>() / pairs.len().max(1) as f64
    }

    /// The loss of some pairs and its gradient, summed over the pairs.
    pub(crate) fn preference_gradients(&self, pairs: &[Preference], beta: f64) -> BatchGradients {
        let examples = both(pairs);
        if examples.iter().all(|example| example.learned() == 0) {
            return BatchGradients::default();
        }
        // how much each pair weighs depends on where the model stands with it
        let log_probs = self.log_probs(&examples);
        let mut loss = 0.0;
        let mut weighted = Vec::with_capacity(examples.len());
        for (pair, (examples, log_probs)) in pairs.iter().zip(examples.chunks(2).zip(log_probs.chunks(2))) {
            let margin = margin(pair, log_probs, beta);
            loss += softplus(-margin);
            let weight = (beta * sigmoid(-margin)) as f32;
            weighted.extend([(&examples[0], weight), (&examples[1], -weight)]);
        }
        let mut gradients = NamedValues::new();
        self.weighted_gradients(&weighted, &mut gradients);
        let tokens = examples.iter().map(|example| example.inputs().len()).sum();
        BatchGradients { loss, count: pairs.len(), tokens, gradients }
    }
}

/// The better and the worse answer of each pair, in turn.
pub(crate) fn both(pairs: &[Preference]) -> Vec<Example> {
    pairs.iter().flat_map(|pair| [pair.chosen.clone(), pair.rejected.clone()]).collect()
}

fn margin(pair: &Preference, log_probs: &[f64], beta: f64) -> f64 {
    beta * ((log_probs[0] - pair.reference[0]) - (log_probs[1] - pair.reference[1]))
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `log(1 + exp(x))`, for any `x`.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
