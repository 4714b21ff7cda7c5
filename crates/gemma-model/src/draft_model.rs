//! Drafts of a smaller model for [`Speculate`].

use std::sync::Arc;

use gemma_generate::DraftModel;

use crate::speculate::NewDrafter;
use crate::{Error, Model, Network, Speculate};

impl Speculate {
    /// Drafts with a smaller model that has the same vocabulary.
    ///
    /// # Errors
    /// When it cannot draft, as a recurrent model.
    pub fn by_model<N: Network + Send + Sync + 'static>(model: &Model<N>) -> Result<Self, Error> {
        Self::default().or_model(model)
    }

    /// The same, with drafts of a smaller model where there is no other.
    ///
    /// # Errors
    /// As [`Speculate::by_model`].
    pub fn or_model<N: Network + Send + Sync + 'static>(self, model: &Model<N>) -> Result<Self, Error> {
        let draft_model = DraftModel::new(model.shared_network())?;
        let new: Arc<NewDrafter> = Arc::new(move || Box::new(draft_model.drafter()));
        Ok(self.or_drafts(new, model.shared_tokenizer().ok()))
    }
}
