//! Which drafts are verified.

use std::num::NonZeroUsize;

use anyhow::Result;
use clap::Args;
use gemma_auto::{Family, LoadOptions, Speculate};

use super::{Compute, at_least_one};
use crate::session;

/// Speculative decoding: tokens are drafted, and the model verifies several in one forward pass. The text is the same.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Speculative decoding")]
pub(crate) struct Speculative {
    /// A smaller model with the same vocabulary that drafts tokens: a folder, a GGUF file or a hub id.
    ///
    /// Drafts that do not pay are made ever more rarely.
    #[arg(long, value_name = "FOLDER|FILE|ID")]
    pub(crate) draft_model: Option<String>,

    /// Draft what followed the same tokens earlier in the text, as where text is to be quoted or rewritten.
    #[arg(long)]
    pub(crate) prompt_lookup: bool,

    /// Most tokens of a draft, from 1 to 32; 16 without it.
    #[arg(long, value_name = "N", value_parser = draft_max, allow_negative_numbers = true)]
    pub(crate) draft_max: Option<NonZeroUsize>,
}

fn draft_max(text: &str) -> Result<NonZeroUsize, String> {
    at_least_one(text).ok().filter(|most| most.get() <= 32).ok_or_else(|| "must be an integer from 1 to 32".to_owned())
}

impl Speculative {
    /// What a model is opened with; opens the draft model, which computes as the model does.
    ///
    /// # Errors
    /// When the draft model cannot be opened, or cannot draft.
    pub(crate) fn open(&self, compute: &Compute, offline: bool) -> Result<Option<Speculate>> {
        let lookup = self.prompt_lookup.then(Speculate::by_lookup);
        let speculate = match &self.draft_model {
            None => lookup,
            Some(name) => {
                let options = LoadOptions { offline, ..compute.load_options() };
                let model = session::locate(Some(name), Family::Gemma, options, compute)?.open()?.model;
                Some(model.drafting_after(lookup.unwrap_or_default())?)
            }
        };
        Ok(match (speculate, self.draft_max) {
            (Some(speculate), Some(most)) => Some(speculate.at_most(most.get())),
            (speculate, _) => speculate,
        })
    }
}
