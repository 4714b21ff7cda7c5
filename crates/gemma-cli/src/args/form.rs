//! Flags that say what an answer has to look like: a grammar, or a JSON schema.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use gemma_generate::TokenMask;
use gemma_model::{Model, Network};
use gemma_serve::grammar::{AnswerForm, GrammarMask, Grammars};
use gemma_tokenizer::TokenId;

use crate::text;

/// What the answer has to look like.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct Form {
    /// Sample only what this grammar allows: a file in Lark's notation whose rule is `start`, as llguidance reads it.
    #[arg(long, value_name = "FILE", conflicts_with = "json_schema")]
    pub(crate) grammar: Option<PathBuf>,

    /// Sample only JSON that this schema describes: a file, or the schema itself, such as '{"type": "object"}'.
    #[arg(short = 'j', long, value_name = "FILE|SCHEMA")]
    pub(crate) json_schema: Option<String>,
}

impl Form {
    /// The constraint that the flags name, if any.
    ///
    /// # Errors
    /// When a file cannot be read, or a schema is no JSON.
    pub(crate) fn read(&self) -> Result<Option<Constraint>> {
        let form = match (&self.grammar, &self.json_schema) {
            (Some(file), _) => AnswerForm::Lark(text::read(file)?),
            (None, Some(schema)) => {
                let is_text = schema.trim_start().starts_with('{');
                let text = if is_text { schema.clone() } else { text::read(Path::new(schema))? };
                let named = || if is_text { "--json-schema".to_owned() } else { schema.clone() };
                let schema: serde_json::Value =
                    serde_json::from_str(&text).with_context(|| format!("{} is no JSON schema", named()))?;
                if !schema.is_object() && !schema.is_boolean() {
                    bail!("{} is no JSON schema: it must be a JSON object, such as {{\"type\": \"object\"}}", named());
                }
                AnswerForm::Schema(schema)
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(Constraint { form, grammars: Grammars::default() }))
    }
}

/// A grammar that answers have to follow, compiled anew for each of them.
pub(crate) struct Constraint {
    form: AnswerForm,
    grammars: Grammars,
}

impl Constraint {
    /// The mask of one answer.
    ///
    /// # Errors
    /// When the grammar cannot be used, or the model has no tokenizer.
    pub(crate) fn mask<N: Network>(&self, model: &Model<N>) -> Result<Box<dyn TokenMask>> {
        let mask = self.grammars.compile(&self.form, model.tokenizer()?, model.network().vocab())?;
        Ok(Box::new(Mask(mask)))
    }
}

/// A grammar's mask, as the decoding loop asks for it.
struct Mask(GrammarMask);

impl TokenMask for Mask {
    fn allow(&mut self, allowed: &mut [bool]) -> Result<(), String> {
        self.0.allow(allowed)
    }

    fn accept(&mut self, token: TokenId) -> Result<(), String> {
        self.0.accept(token)
    }
}
