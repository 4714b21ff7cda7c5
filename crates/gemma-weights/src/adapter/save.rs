//! Writing an adapter as a folder that PEFT opens.

use std::io::Write;
use std::path::Path;

use gemma_kernels::Format;

use super::{AdapterConfig, CONFIG_FILE, FACTORS_FILE, PREFIX};
use crate::new_file::NewFile;
use crate::save::save_safetensors;
use crate::{Dtype, Error, SavedTensor};

/// The two factors of a module: its path without PEFT's prefix, `lora_A` `[rank, in]` and `lora_B` `[out, rank]`, each as
/// shape and values in row-major order.
pub type AdapterTensor = (String, [usize; 2], Vec<f32>, [usize; 2], Vec<f32>);

/// Writes an adapter into `folder`, which is made where it is not there, as PEFT does: `adapter_config.json` and
/// `adapter_model.safetensors`. Each file appears complete or not at all. Factors that are there are replaced only when
/// `replace` is set.
///
/// # Errors
/// [`Error::WouldOverwrite`], [`Error::Write`].
pub fn save_adapter(
    folder: &Path,
    config: &AdapterConfig,
    modules: impl IntoIterator<Item = AdapterTensor>,
    replace: bool,
) -> Result<(), Error> {
    let factors = folder.join(FACTORS_FILE);
    if !replace && factors.exists() {
        return Err(Error::WouldOverwrite { folder: folder.to_owned() });
    }
    std::fs::create_dir_all(folder).map_err(|cause| Error::Write { path: folder.to_owned(), cause })?;
    let mut tensors = modules.into_iter().flat_map(|(module, a_shape, a, b_shape, b)| {
        let saved = |part: &str, shape: [usize; 2], values: &[f32]| -> SavedTensor {
            let mut bytes = vec![0; values.len() * 4];
            Format::F32.encode_row(values, &mut bytes);
            (format!("{PREFIX}{module}.lora_{part}.weight"), Dtype::F32, shape.to_vec(), bytes.into())
        };
        [saved("A", a_shape, &a), saved("B", b_shape, &b)]
    });
    save_safetensors(&factors, [("format".to_owned(), "pt".to_owned())].into(), &mut tensors)?;
    let (path, text) = (folder.join(CONFIG_FILE), format!("{:#}\n", config.to_json()));
    let mut file = NewFile::open(&path)?;
    file.as_file_mut().write_all(text.as_bytes()).map_err(|cause| Error::Write { path: path.clone(), cause })?;
    file.finish()
}
