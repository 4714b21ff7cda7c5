//! The backend of an EmbeddingGemma: it makes vectors and no text.

use std::time::{SystemTime, UNIX_EPOCH};

use embeddinggemma::{EmbedOptions, EmbeddingGemma};
use gemma_model::WeightSummary;
use gemma_tokenizer::{ChatTemplate, TokenId, Tokenizer};

use super::backend::{Backend, Capabilities, EmbedInput, Events, Job, Load, ModelCard, Ongoing};
use super::error::Refusal;

/// A model that embeds texts.
#[derive(Debug)]
pub struct EmbeddingBackend {
    card: ModelCard,
    chat_template: ChatTemplate,
    model: EmbeddingGemma,
}

impl EmbeddingBackend {
    /// Serves a model under a name.
    ///
    /// # Errors
    /// When the model has no tokenizer.
    pub fn new(name: &str, model: EmbeddingGemma) -> Result<Self, embeddinggemma::Error> {
        model.tokenizer()?;
        let config = model.network().config();
        let mut weights = WeightSummary::default();
        model.network().save(&mut weights);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let card = ModelCard {
            id: name.to_owned(),
            family: "embeddinggemma".to_owned(),
            context_length: Some(config.max_tokens),
            vocab_size: config.text.vocab,
            parameters: weights.parameters,
            bytes: weights.bytes as u64,
            quantization: weights.format().to_owned(),
            created: now,
            capabilities: Capabilities { embed: true, ..Capabilities::default() },
            ..ModelCard::default()
        };
        Ok(Self { card, chat_template: ChatTemplate::builtin(), model })
    }

    /// The tokens of the inputs: texts behind the prefix of the task, tokens as they are.
    fn rows(&self, inputs: &[EmbedInput], task: Option<&str>) -> Result<Vec<Vec<TokenId>>, Refusal> {
        let wrong_task = |error: embeddinggemma::Error| Refusal::field("task", error.to_string());
        let prefix = self.model.prefix(task.unwrap_or("none"), None).map_err(wrong_task)?;
        let row = |input: &EmbedInput| match input {
            EmbedInput::Text(text) => self.model.tokens(&prefix, text).map_err(Refusal::of),
            EmbedInput::Tokens(tokens) => Ok(tokens.clone()),
        };
        inputs.iter().map(row).collect()
    }
}

impl Backend for EmbeddingBackend {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn tokenizer(&self) -> &Tokenizer {
        self.model.tokenizer().expect("checked when the backend was made")
    }

    fn chat_template(&self) -> &ChatTemplate {
        &self.chat_template
    }

    fn submit(&self, _: Job) -> Result<Events, Refusal> {
        let message = format!("{} computes embeddings and no text; use /v1/embeddings", self.card.id);
        Err(Refusal::unsupported(message))
    }

    fn load(&self) -> Load {
        Load::default()
    }

    fn embed(
        &self,
        texts: &[EmbedInput],
        task: Option<&str>,
        ongoing: &Ongoing,
    ) -> Result<(Vec<Vec<f32>>, usize), Refusal> {
        let rows = self.rows(texts, task)?;
        let tokens = rows.iter().map(Vec::len).sum();
        let mut wanted = Ok(());
        let found = self.model.embed_tokens_with(&rows, EmbedOptions::default(), &mut |_, _| {
            wanted = ongoing.check();
            wanted.is_ok()
        });
        let found = found.map_err(|error| match error {
            embeddinggemma::Error::NotFinite { .. } => Refusal::failed(error.to_string()),
            _ => Refusal::field("input", error.to_string()),
        })?;
        wanted?;
        let found = found.ok_or_else(|| Refusal::failed("the embeddings ended early"))?;
        Ok((found.rows().map(<[f32]>::to_vec).collect(), tokens))
    }
}
