//! A found model in another type or container.

use std::path::Path;

use gemma_model::{Network, convert_to_folder, convert_to_gguf};
use gemma_weights::{Adapter, Dtype, Format, OnConvert, TensorSpec, save_gguf_adapter};

use crate::{Error, FamilyModel, Found};

impl Found {
    /// The model with LoRA adapters added to its weights. The matrices that they change are held in memory, in `format`, or
    /// as they are stored.
    ///
    /// # Errors
    /// When the checkpoint is not a sound one, or an adapter does not belong to it.
    pub fn merged(&self, adapters: &[Adapter], format: Option<Format>) -> Result<Self, Error> {
        self.check_adapters(adapters)?;
        Ok(self.with_checkpoint(self.checkpoint()?.merged(adapters, format)))
    }

    /// Writes a LoRA adapter of this model as a GGUF file that llama.cpp loads beside the model.
    ///
    /// # Errors
    /// When the adapter does not belong to the model, GGUF has no architecture for it, or the file cannot be written.
    pub fn adapter_to_gguf(&self, adapter: &Adapter, path: &Path, replace: bool) -> Result<(), Error> {
        self.check_adapters(std::slice::from_ref(adapter))?;
        let checkpoint = self.checkpoint()?;
        let config = with_family!(self.architecture()?, F => {
            type N = <F as FamilyModel>::Network;
            N::config_to_json(&N::config_of(&checkpoint)?, Dtype::F32)
        });
        Ok(save_gguf_adapter(adapter, &config, path, replace).map_err(gemma_model::Error::from)?)
    }

    fn check_adapters(&self, adapters: &[Adapter]) -> Result<(), Error> {
        let checkpoint = self.checkpoint()?;
        let check = |tensors: &[TensorSpec]| adapters.iter().try_for_each(|adapter| adapter.check(tensors));
        with_family!(self.architecture()?, F => {
            type N = <F as FamilyModel>::Network;
            let device = gemma_backend::default_device().map_err(gemma_model::Error::from)?;
            let tensors = N::tensors_of(&N::prepared(&checkpoint), &N::config_of(&checkpoint)?, &device);
            check(&tensors).map_err(gemma_model::Error::from)?;
        });
        Ok(())
    }

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
