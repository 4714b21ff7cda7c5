//! A found model in another type or container.

use std::path::Path;

use gemma_model::{convert_to_folder, convert_to_gguf};
use gemma_weights::{Dtype, Format, OnConvert};

use crate::{Error, FamilyModel, Found};

impl Found {
    /// Writes the model as a folder that HF transformers opens, its values in `dtype`. All of it, or nothing; an
    /// existing folder is replaced only when `replace` is set.
    ///
    /// # Errors
    /// When the checkpoint is not a sound one, or the folder cannot be written.
    pub fn convert_to_folder(
        &self,
        dtype: Dtype,
        folder: &Path,
        replace: bool,
        on_progress: OnConvert<'_>,
    ) -> Result<(), Error> {
        let (checkpoint, family) = (self.checkpoint()?, self.family());
        with_family!(self.architecture()?, F => {
            type N = <F as FamilyModel>::Network;
            convert_to_folder::<N>(&checkpoint, family, dtype, folder, replace, on_progress)?
        });
        Ok(())
    }

    /// Writes the model as a GGUF file that llama.cpp opens, its matrices in `format`, or as they are stored. Returns
    /// the number of matrices that are f16 instead, since whole blocks of the format do not fill their rows.
    ///
    /// # Errors
    /// When the checkpoint is not a sound one, GGUF has no architecture for it, or the file cannot be written.
    pub fn convert_to_gguf(
        &self,
        format: Option<Format>,
        path: &Path,
        replace: bool,
        on_progress: OnConvert<'_>,
    ) -> Result<usize, Error> {
        let (checkpoint, family) = (self.checkpoint()?, self.family());
        Ok(with_family!(self.architecture()?, F => {
            type N = <F as FamilyModel>::Network;
            convert_to_gguf::<N>(&checkpoint, family, format, path, replace, on_progress)?
        }))
    }
}
