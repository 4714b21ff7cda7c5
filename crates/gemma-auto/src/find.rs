//! From a name to a checkpoint: folders, GGUF files, hub ids, built-in models and random weights.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use embeddinggemma::EmbeddingGemma;
use gemma::DecoderConfig;
use gemma_backend::Device;
use gemma_model::{LoadOptions, random_checkpoint};
use gemma_nn::RandomWeights;
use gemma_tokenizer::Family;
use gemma_weights::catalogue::{SHAPES, Shape};
use gemma_weights::{Checkpoint, HubOptions, Precision, TensorSpec};

use crate::{Architecture, AutoModel, Error, FamilyModel, demo_called, demo_checkpoint};

/// How far opening a model is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Files are downloaded from the hub.
    Download {
        /// Bytes that are there.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Weights are loaded.
    Load {
        /// Bytes that are loaded.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
}

/// Called while a model is found and opened.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress);

/// A model that was found by its name: its headers are read, its weights are not.
#[derive(Clone, Debug)]
pub struct Found {
    name: String,
    origin: Origin,
    family: Option<Family>,
}

#[derive(Clone, Debug)]
enum Origin {
    Checkpoint(Checkpoint),
    Shape(&'static Shape, Architecture),
}

/// Finds the model that a name stands for (see [the list of names](crate#names)), and downloads it where that is needed
/// and `options` allow it.
///
/// # Errors
/// When there is no such model, it cannot be fetched, or a header is damaged.
pub fn find(name: &str, options: &LoadOptions) -> Result<Found, Error> {
    find_with(name, options, &mut |_| {})
}

/// [`find`], reporting the progress of a download.
///
/// # Errors
/// As [`find`].
pub fn find_with(name: &str, options: &LoadOptions, on_progress: OnProgress<'_>) -> Result<Found, Error> {
    if let Some(shape) = name.strip_prefix("shape:") {
        let (shape, architecture) = shape_called(shape)?;
        return Ok(Found { name: name.to_owned(), origin: Origin::Shape(shape, architecture), family: options.family });
    }
    if let Some(family) = demo_called(name)? {
        let found = Found::demo(family)?;
        return Ok(Found { family: options.family.or(found.family), ..found });
    }
    let folder = folder(name, options.offline, on_progress)?;
    let checkpoint = Checkpoint::open(&folder)?;
    let checkpoint = match &options.image_encoder {
        Some(mmproj) => checkpoint.with_image_encoder(mmproj)?,
        None => checkpoint,
    };
    let family = options.family.or_else(|| family_called(name, &checkpoint));
    Ok(Found { name: name.to_owned(), origin: Origin::Checkpoint(checkpoint), family })
}

impl Found {
    /// The built-in model of a family.
    ///
    /// # Errors
    /// [`Error::NoDemo`] for a family without one.
    pub fn demo(family: Family) -> Result<Self, Error> {
        let name = format!("demo:{}", family.name());
        let Some(checkpoint) = demo_checkpoint(family)? else {
            return Err(Error::NoDemo { name, known: demo_names() });
        };
        Ok(Self { name, origin: Origin::Checkpoint(checkpoint), family: Some(family) })
    }

    /// The same model with another checkpoint of its architecture.
    pub(crate) fn with_checkpoint(&self, checkpoint: Checkpoint) -> Self {
        Self { origin: Origin::Checkpoint(checkpoint), ..self.clone() }
    }

    /// The name as given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The family whose control tokens the tokenizer has, where name or configuration tell it.
    pub fn family(&self) -> Option<Family> {
        self.family
    }

    /// The same model, whose tokenizer has the control tokens of another family.
    #[must_use]
    pub fn with_family(self, family: Option<Family>) -> Self {
        Self { family: family.or(self.family), ..self }
    }

    /// The checkpoint; of random values for `shape:NAME`.
    ///
    /// # Errors
    /// When no backend opens.
    pub fn checkpoint(&self) -> Result<Cow<'_, Checkpoint>, Error> {
        match &self.origin {
            Origin::Checkpoint(checkpoint) => Ok(Cow::Borrowed(checkpoint)),
            Origin::Shape(shape, architecture) => {
                let made = with_family!(*architecture, F => random_checkpoint::<<F as FamilyModel>::Network>(shape))?;
                Ok(Cow::Owned(made.expect("the architecture has this shape")))
            }
        }
    }

    /// The folder or GGUF file; `None` for built-in models and random weights.
    pub fn path(&self) -> Option<&Path> {
        match &self.origin {
            Origin::Checkpoint(checkpoint) => checkpoint.path(),
            Origin::Shape(..) => None,
        }
    }

    /// Bytes of its weights in memory: as they are stored, or with matrices held in `precision`.
    ///
    /// # Errors
    /// When no backend opens.
    pub fn weight_bytes(&self, precision: Option<Precision>) -> Result<u64, Error> {
        let checkpoint = self.checkpoint()?;
        Ok(match precision {
            None => checkpoint.bytes_len(),
            Some(precision) => {
                let tensors = checkpoint.tensors();
                tensors.map(|(name, tensor)| TensorSpec::new(name, tensor.shape.clone()).bytes(precision)).sum()
            }
        })
    }

    /// The architecture that its `config.json` describes.
    ///
    /// # Errors
    /// When there is no `config.json`, or it describes another architecture.
    pub fn architecture(&self) -> Result<Architecture, Error> {
        match &self.origin {
            Origin::Shape(_, architecture) => Ok(*architecture),
            Origin::Checkpoint(_) => Architecture::of_config(&self.config_json()?),
        }
    }

    /// The text of its `config.json`.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn config_json(&self) -> Result<Vec<u8>, Error> {
        let found = match &self.origin {
            Origin::Shape(shape, _) => Some(shape.config.as_bytes().to_vec()),
            Origin::Checkpoint(checkpoint) => checkpoint.file("config.json")?,
        };
        let missing = || gemma_model::Error::MissingFile { folder: PathBuf::from(&self.name), file: "config.json" };
        Ok(found.ok_or_else(missing)?)
    }

    /// Whether it is a model that embeds texts and generates none (EmbeddingGemma): its layers see both ways.
    ///
    /// # Errors
    /// When `config.json` cannot be read.
    pub fn is_embedding(&self) -> Result<bool, Error> {
        Ok(self.embedding_config()?.is_some())
    }

    /// The configuration of a model that embeds texts; `None` where it is another.
    pub(crate) fn embedding_config(&self) -> Result<Option<DecoderConfig>, Error> {
        let Origin::Checkpoint(checkpoint) = &self.origin else { return Ok(None) };
        let config = checkpoint.file("config.json")?.unwrap_or_default();
        // what is no configuration is refused where the model is opened, with the reason
        Ok(DecoderConfig::from_json(&config).ok().filter(DecoderConfig::is_bidirectional))
    }

    /// Whether it is called a ShieldGemma. Its configuration is that of the Gemma that it was made of.
    pub fn is_called_shieldgemma(&self) -> bool {
        let own = |name: &str| name.to_lowercase().replace('-', "").contains("shieldgemma");
        let last = |path: &Path| path.file_name().is_some_and(|name| own(&name.to_string_lossy()));
        own(&self.name) || self.path().is_some_and(last)
    }

    /// Loads a model that embeds texts, reporting progress.
    ///
    /// # Errors
    /// When it is not a sound checkpoint of an embedding model.
    pub fn open_embedding_with(
        &self,
        options: &LoadOptions,
        device: &Device,
        on_progress: OnProgress<'_>,
    ) -> Result<EmbeddingGemma, Error> {
        let mut progress = |done, total| on_progress(Progress::Load { done, total });
        let opened = EmbeddingGemma::from_checkpoint_with(&*self.checkpoint()?, options, device, &mut progress);
        self.with_file(opened.map_err(Error::from))
    }

    /// Loads the model.
    ///
    /// # Errors
    /// When it is not a sound checkpoint of its architecture, or an option does not suit it.
    pub fn open(&self, options: &LoadOptions, device: &Device) -> Result<AutoModel, Error> {
        self.open_with(options, device, &mut |_| {})
    }

    /// [`Found::open`], reporting progress.
    ///
    /// # Errors
    /// As [`Found::open`].
    pub fn open_with(
        &self,
        options: &LoadOptions,
        device: &Device,
        on_progress: OnProgress<'_>,
    ) -> Result<AutoModel, Error> {
        let options = LoadOptions { family: options.family.or(self.family), ..options.clone() };
        let made;
        let checkpoint = match &self.origin {
            Origin::Checkpoint(checkpoint) => checkpoint,
            // an adapter is found by the names of a checkpoint
            Origin::Shape(..) if !options.adapters.is_empty() || !options.request_adapters.is_empty() => {
                made = self.checkpoint()?;
                &made
            }
            Origin::Shape(shape, architecture) => {
                let weights = RandomWeights::Packed(options.precision.unwrap_or(Precision::Bf16).format());
                return Ok(AutoModel::random(*architecture, shape, weights, &options, device));
            }
        };
        let mut progress = |done, total| on_progress(Progress::Load { done, total });
        let opened = AutoModel::from_checkpoint(self.architecture()?, checkpoint, &options, device, &mut progress);
        self.with_file(opened)
    }

    /// What was opened; the error for a GGUF file uses the file's own words.
    fn with_file<T>(&self, opened: Result<T, Error>) -> Result<T, Error> {
        match &self.origin {
            Origin::Checkpoint(checkpoint) => opened.map_err(|cause| in_gguf(checkpoint, cause)),
            Origin::Shape(..) => opened,
        }
    }
}

/// The error, in the words of a GGUF file if the checkpoint is one: there is no `config.json` in it.
pub(crate) fn in_gguf(checkpoint: &Checkpoint, cause: Error) -> Error {
    match checkpoint.of_gguf(&cause.to_string()) {
        Some(fault) => Error::InGguf { fault, cause: Box::new(cause) },
        None => cause,
    }
}

/// The released shape of a name, and its architecture.
fn shape_called(name: &str) -> Result<(&'static Shape, Architecture), Error> {
    // one that makes vectors is no model of this crate
    let known = || SHAPES.iter().filter(|shape| !shape.makes_vectors());
    let found = known().find(|shape| shape.name == name).map(|shape| (shape, Architecture::of_shape(shape)));
    found.ok_or_else(|| Error::NoShape { name: name.to_owned(), known: known().map(|shape| shape.name).collect() })
}

fn demo_names() -> Vec<String> {
    crate::demo_families().iter().map(|family| format!("demo:{}", family.name())).collect()
}

/// The folder or GGUF file that a name stands for, downloaded where that is needed and allowed.
pub(crate) fn folder(name: &str, offline: bool, on_progress: OnProgress<'_>) -> Result<PathBuf, Error> {
    let hub = HubOptions::from_env();
    let hub = HubOptions { offline: offline || hub.offline, ..hub };
    let mut downloaded = |download: gemma_weights::Download<'_>| {
        on_progress(Progress::Download { done: download.all_done, total: download.all_total });
    };
    Ok(gemma_weights::resolve_with(name, &hub, &mut downloaded)?)
}

fn family_called(name: &str, checkpoint: &Checkpoint) -> Option<Family> {
    let config = checkpoint.file("config.json").ok().flatten().unwrap_or_default();
    family_of(name, &config)
}

/// The family whose control tokens a tokenizer has: as `config.json` says, or as the model is called. It matters only
/// for tokenizer files that leave the families' own names out.
pub(crate) fn family_of(name: &str, config: &[u8]) -> Option<Family> {
    let config: serde_json::Value = serde_json::from_slice(config).unwrap_or_default();
    let described = config["model_type"].as_str().and_then(Family::of_model_type);
    // Gemma's `model_type` is CodeGemma's as well
    match described {
        Some(family) if family != Family::Gemma => Some(family),
        other => Family::in_name(name).or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_is_read_or_guessed() {
        assert_eq!(family_of("google/gemma-2b", b""), Some(Family::Gemma));
        assert_eq!(family_of("google/codegemma-2b", br#"{"model_type": "gemma"}"#), Some(Family::CodeGemma));
        assert_eq!(family_of("x", br#"{"model_type": "paligemma"}"#), Some(Family::PaliGemma));
        assert_eq!(family_of("my-codegemma", br#"{"model_type": "recurrent_gemma"}"#), Some(Family::RecurrentGemma));
        assert_eq!(family_of("x", b"not json"), None);
    }

    #[test]
    fn every_built_in_model_opens_and_says_what_it_can_do() {
        let device = gemma_backend::default_device().unwrap();
        for (family, architecture, images, infill) in [
            (Family::Gemma, Architecture::Gemma, false, false),
            (Family::CodeGemma, Architecture::Gemma, false, true),
            (Family::RecurrentGemma, Architecture::RecurrentGemma, false, false),
            (Family::PaliGemma, Architecture::PaliGemma, true, false),
        ] {
            let found = find(&format!("demo:{}", family.name()), &LoadOptions::default()).unwrap();
            assert_eq!((found.family(), found.architecture().unwrap()), (Some(family), architecture));
            let model = found.open(&LoadOptions::default(), &device).unwrap();
            let can = model.capabilities();
            assert_eq!((can.generate, can.images, can.infill, can.embed), (true, images, infill, false), "{found:?}");
            assert_eq!(model.architecture(), architecture);
        }
    }

    #[test]
    fn a_folder_is_opened_as_its_configuration_says() {
        let folder = tempfile::tempdir().unwrap();
        let device = gemma_backend::default_device().unwrap();
        let demo = Found::demo(Family::RecurrentGemma).unwrap().open(&LoadOptions::default(), &device).unwrap();
        let AutoModel::RecurrentGemma(model) = &demo else { panic!("{demo:?}") };
        let path = folder.path().join("saved");
        model.save(&path, gemma_weights::Dtype::Bf16, false).unwrap();
        let found = find(path.to_str().unwrap(), &LoadOptions::default()).unwrap();
        assert_eq!(found.architecture().unwrap(), Architecture::RecurrentGemma);
        let again = found.open(&LoadOptions::default(), &device).unwrap();
        let options = gemma_generate::GenerateOptions::greedy(12);
        let texts = [&demo, &again].map(|model| model.generate("Once upon", &options).unwrap());
        assert_eq!(texts[0].tokens, texts[1].tokens);
    }

    #[test]
    fn unknown_names_are_refused_with_those_that_exist() {
        let refusal =
            |name: &str| find(name, &LoadOptions { offline: true, ..LoadOptions::default() }).unwrap_err().to_string();
        assert!(refusal("shape:gemma-3b").contains("gemma-2-27b"));
        assert!(refusal("demo:llama").contains("demo:paligemma"));
        assert!(refusal("./no/such/folder").contains("no such"));
    }
}
