//! Speculative decoding of everything that a model generates.

use std::sync::Arc;

use gemma_generate::{Drafter, PromptLookup, Speculation};
use gemma_tokenizer::{TokenId, Tokenizer};

use crate::Error;

/// Makes the drafter of one text.
pub(crate) type NewDrafter = dyn Fn() -> Box<dyn Drafter> + Send + Sync;

/// How a model drafts its next tokens, by default not at all: set in [`LoadOptions::speculate`](crate::LoadOptions::speculate), it makes a
/// [`Speculation`] for each text. The text is the same as without.
///
/// ```no_run
/// use gemma_model::{Error, LoadOptions, Model, Network, Speculate};
///
/// # fn open<N: Network + Send + Sync + 'static>(device: &burn::tensor::Device) -> Result<(), Error> {
/// let small: Model<N> = Model::load("google/gemma-3-270m-it", device)?;
/// let speculate = Some(Speculate::by_lookup().or_model(&small)?);
/// let large: Model<N> = Model::load_with("google/gemma-3-1b-it", &LoadOptions { speculate, ..Default::default() }, device)?;
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct Speculate {
    lookup: bool,
    draft_model: Option<Arc<NewDrafter>>,
    /// The draft model's.
    tokenizer: Option<Arc<Tokenizer>>,
    most: Option<usize>,
}

impl std::fmt::Debug for Speculate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Speculate")
            .field("lookup", &self.lookup)
            .field("draft_model", &self.draft_model.is_some())
            .field("most", &self.most)
            .finish()
    }
}

impl Speculate {
    /// Drafts what followed the same tokens earlier in the text.
    pub fn by_lookup() -> Self {
        Self { lookup: true, ..Self::default() }
    }

    /// The same, with drafts of a smaller model, whose tokenizer this is, where there is no other.
    pub(crate) fn or_drafts(self, draft_model: Arc<NewDrafter>, tokenizer: Option<Arc<Tokenizer>>) -> Self {
        Self { draft_model: Some(draft_model), tokenizer, ..self }
    }

    /// The same with drafts of at most so many tokens.
    pub fn at_most(self, most: usize) -> Self {
        Self { most: Some(most), ..self }
    }

    /// The speculation for one text.
    pub fn start(&self) -> Speculation<'static> {
        let speculation = Speculation::default();
        self.extend(if self.lookup { speculation.or(PromptLookup::default()) } else { speculation })
    }

    /// A text's own drafters, and this draft model where they have no guess.
    pub fn extend<'a>(&self, mut speculation: Speculation<'a>) -> Speculation<'a> {
        if let Some(new) = &self.draft_model {
            speculation = speculation.or(new());
        }
        match self.most {
            Some(most) => speculation.at_most(most),
            None => speculation,
        }
    }

    /// Refuses a draft model of another vocabulary than the one it drafts for: its drafts would all be wrong.
    pub(crate) fn check(&self, tokenizer: Option<&Tokenizer>) -> Result<(), Error> {
        let (Some(draft), Some(own)) = (&self.tokenizer, tokenizer) else { return Ok(()) };
        let len = draft.vocab_len().min(own.vocab_len());
        let same = (0..len as TokenId).filter(|id| draft.piece(*id) == own.piece(*id)).count();
        // names of control tokens and of pieces that no text has differ between models of one vocabulary
        if same * 100 >= draft.vocab_len().max(own.vocab_len()) * 95 {
            return Ok(());
        }
        Err(Error::DraftVocabulary { same, draft: draft.vocab_len(), own: own.vocab_len() })
    }
}
