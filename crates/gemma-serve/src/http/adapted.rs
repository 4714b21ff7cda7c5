//! An adapter under a name of its own: the base model's backend, whose jobs choose the adapter.

use std::sync::Arc;

use gemma_tokenizer::{ChatTemplate, TokenId, Tokenizer};

use super::backend::{AdapterCard, Backend, Capabilities, Events, Hole, Job, Load, Message, ModelCard, Prompt};
use super::error::Refusal;

/// A base model with one of its adapters. It answers with text; what runs beside the engine is the base model's.
pub(super) struct Adapted {
    base: Arc<dyn Backend>,
    card: ModelCard,
    /// The number of the adapter, and how much of it.
    choice: (usize, f32),
}

impl Adapted {
    /// Adapter `number` of a model; `None` when the model has no such adapter.
    pub(super) fn new(base: Arc<dyn Backend>, number: usize) -> Option<Self> {
        let AdapterCard { name, strength, .. } = base.adapters().get(number)?;
        let choice = (number, *strength);
        let card = adapter_card(base.card(), name);
        Some(Self { base, card, choice })
    }
}

/// The card of an adapter of a model.
pub(super) fn adapter_card(base: &ModelCard, name: &str) -> ModelCard {
    let capabilities = Capabilities { detect: false, embed: false, moderate: false, ..base.capabilities };
    ModelCard { id: name.to_owned(), parent: Some(base.id.clone()), capabilities, ..base.clone() }
}

impl Backend for Adapted {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn tokenizer(&self) -> &Tokenizer {
        self.base.tokenizer()
    }

    fn chat_template(&self) -> &ChatTemplate {
        self.base.chat_template()
    }

    fn adapters(&self) -> &[AdapterCard] {
        self.base.adapters()
    }

    fn submit(&self, job: Job) -> Result<Events, Refusal> {
        let adapters = job.adapters.or_else(|| Some(vec![self.choice]));
        self.base.submit(Job { adapters, ..job })
    }

    fn load(&self) -> Load {
        self.base.load()
    }

    fn chat_prompt(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Prompt, Refusal> {
        self.base.chat_prompt(messages, add_generation_prompt)
    }

    fn infill_prompt(&self, hole: &Hole, budget: usize) -> Result<(Vec<TokenId>, Vec<TokenId>), Refusal> {
        self.base.infill_prompt(hole, budget)
    }
}
