//! The front door: a tokenizer, a network, and what belongs to them.

use std::path::{Path, PathBuf};

use gemma::{Decoder, DecoderConfig, Network};
use gemma_backend::Device;
use gemma_model::{LoadOptions, OnLoad, read_tokenizer};
use gemma_nn::{Adapt, Segment};
use gemma_tokenizer::{EncodeOptions, TokenId, Tokenizer};
use gemma_weights::{Checkpoint, HubOptions};

use crate::embedding::Embeddings;
use crate::folder::Modules;
use crate::network::{EmbeddingConfig, EmbeddingNetwork, dense_name};
use crate::{Error, Task};

/// Tokens that are read in one call of the network: enough for its products to be fast, few enough for memory.
const CALL_TOKENS: usize = 4096;
/// The longest text where the checkpoint does not say, in tokens.
const MAX_TOKENS: usize = 2048;

/// How texts are embedded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmbedOptions {
    /// Values that a vector is cut to; `None`: all. 512, 256 and 128 were trained for.
    pub dimensions: Option<usize>,
}

/// Called after each call of the network: texts done, texts in all; `false` ends the work.
pub type OnEmbed<'a> = &'a mut dyn FnMut(usize, usize) -> bool;

/// An EmbeddingGemma model, ready to embed.
#[derive(Debug)]
pub struct EmbeddingGemma {
    network: EmbeddingNetwork,
    tokenizer: Option<Tokenizer>,
    prompts: std::collections::BTreeMap<String, String>,
    /// The folder or file that it was opened from, for messages.
    path: Option<PathBuf>,
}

impl EmbeddingGemma {
    /// Opens a model: a sentence-transformers folder, a GGUF file, or a hub id `org/name[@revision]`, which is
    /// downloaded on first use.
    ///
    /// # Errors
    /// When there is no such model, it cannot be fetched, or it is not a sound embedding model.
    pub fn load(model: &str, device: &Device) -> Result<Self, Error> {
        Self::load_with(model, &LoadOptions::default(), device)
    }

    /// [`EmbeddingGemma::load`] with options.
    ///
    /// # Errors
    /// As [`EmbeddingGemma::load`].
    pub fn load_with(model: &str, options: &LoadOptions, device: &Device) -> Result<Self, Error> {
        let hub = HubOptions::from_env();
        let hub = HubOptions { offline: hub.offline || options.offline, ..hub };
        let folder = gemma_weights::resolve(model, &hub)?;
        Self::from_checkpoint(&Checkpoint::open(&folder)?, options, device)
    }

    /// Makes a model of an opened checkpoint. One without tokenizer files can still be used with token numbers.
    ///
    /// # Errors
    /// As [`EmbeddingGemma::load`].
    pub fn from_checkpoint(checkpoint: &Checkpoint, options: &LoadOptions, device: &Device) -> Result<Self, Error> {
        Self::from_checkpoint_with(checkpoint, options, device, &mut |_, _| {})
    }

    /// [`EmbeddingGemma::from_checkpoint`], reporting progress.
    ///
    /// # Errors
    /// As [`EmbeddingGemma::load`].
    pub fn from_checkpoint_with(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        device: &Device,
        progress: OnLoad<'_>,
    ) -> Result<Self, Error> {
        struct Unchanged;
        impl Adapt for Unchanged {}
        Self::from_checkpoint_changed(checkpoint, options, device, progress, Unchanged)
    }

    /// [`EmbeddingGemma::from_checkpoint_with`], from a source of parameters that is changed on the way: how a checkpoint is
    /// opened for training.
    ///
    /// # Errors
    /// As [`EmbeddingGemma::load`].
    pub fn from_checkpoint_changed(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        device: &Device,
        progress: OnLoad<'_>,
        change: impl Adapt,
    ) -> Result<Self, Error> {
        let path = checkpoint.path().map(Path::to_owned);
        let (checkpoint, config, modules) = described(checkpoint)?;
        let tokenizer = read_tokenizer(&checkpoint, Decoder::FAMILY)?;
        let network = EmbeddingNetwork::open(&checkpoint, &config, options, device, progress, change)?;
        Ok(Self { network, tokenizer, prompts: modules.prompts, path })
    }

    /// What is known of a checkpoint without reading its weights: itself with the tensors of its dense layers, and its
    /// sizes.
    ///
    /// # Errors
    /// As [`EmbeddingGemma::load`].
    pub fn describe(checkpoint: &Checkpoint) -> Result<(Checkpoint, EmbeddingConfig), Error> {
        described(checkpoint).map(|(checkpoint, config, _)| (checkpoint, config))
    }

    /// The network.
    pub fn network(&self) -> &EmbeddingNetwork {
        &self.network
    }

    /// The network alone.
    pub fn into_network(self) -> EmbeddingNetwork {
        self.network
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When the checkpoint came without one.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Error> {
        Ok(self.tokenizer.as_ref().ok_or_else(|| gemma_model::Error::NoTokenizer { path: self.path.clone() })?)
    }

    /// The prefix that the model's folder gives for a name, such as `STS` or `Retrieval-query`.
    pub fn prompt(&self, name: &str) -> Option<&str> {
        self.prompts.get(name).map(String::as_str)
    }

    /// What stands in front of a text of a task: a name of [`Task::names`], or of the prompts in the model's folder. A
    /// document may have a title.
    ///
    /// # Errors
    /// [`Error::NoTask`], listing the names.
    pub fn prefix(&self, task: &str, title: Option<&str>) -> Result<String, Error> {
        let known = match Task::named(task) {
            Some(Task::Document { .. }) => Some(Task::Document { title }),
            other => other,
        };
        match (known, self.prompt(task)) {
            (Some(task), _) => Ok(task.prefix().into_owned()),
            (None, Some(prompt)) => Ok(prompt.to_owned()),
            (None, None) => {
                let names = Task::names().map(str::to_owned).chain(self.prompts.keys().cloned());
                Err(Error::NoTask { name: task.to_owned(), names: names.collect::<Vec<_>>().join(", ") })
            }
        }
    }

    /// One vector for each text.
    ///
    /// # Errors
    /// When the checkpoint came without a tokenizer.
    pub fn embed<S: AsRef<str>>(&self, texts: &[S], task: Task<'_>) -> Result<Embeddings, Error> {
        self.embed_with(texts, task, EmbedOptions::default())
    }

    /// [`EmbeddingGemma::embed`] with options.
    ///
    /// # Errors
    /// When the checkpoint came without a tokenizer, or an option is outside its range.
    pub fn embed_with<S: AsRef<str>>(
        &self,
        texts: &[S],
        task: Task<'_>,
        options: EmbedOptions,
    ) -> Result<Embeddings, Error> {
        let prefix = task.prefix();
        let rows = texts.iter().map(|text| self.tokens(&prefix, text.as_ref()));
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        self.embed_tokens(&rows, options)
    }

    /// The tokens of a text: `<bos>`, prefix and text, `<eos>`. A text that is too long is cut at its end.
    ///
    /// # Errors
    /// When the checkpoint came without a tokenizer.
    pub fn tokens(&self, prefix: &str, text: &str) -> Result<Vec<TokenId>, Error> {
        Ok(self.tokens_within(prefix, text, self.network.config().max_tokens)?.0)
    }

    /// [`EmbeddingGemma::tokens`] of a text that is cut to `most` tokens, and how many were cut off.
    ///
    /// # Errors
    /// When the checkpoint came without a tokenizer.
    pub fn tokens_within(&self, prefix: &str, text: &str, most: usize) -> Result<(Vec<TokenId>, usize), Error> {
        let tokenizer = self.tokenizer()?;
        let whole = format!("{prefix}{text}");
        let mut tokens = tokenizer.encode_with(&whole, EncodeOptions { bos: true, specials: false });
        let most = most.min(self.network.config().max_tokens).saturating_sub(1).max(1);
        let cut = tokens.len().saturating_sub(most);
        tokens.truncate(most);
        tokens.push(tokenizer.eos());
        Ok((tokens, cut))
    }

    /// One vector for each row of tokens, which are read exactly as given.
    ///
    /// # Errors
    /// When a row is empty or too long, a token unknown, or an option outside its range.
    pub fn embed_tokens<R: AsRef<[TokenId]>>(&self, rows: &[R], options: EmbedOptions) -> Result<Embeddings, Error> {
        Ok(self.embed_tokens_with(rows, options, &mut |_, _| true)?.expect("nothing ends it"))
    }

    /// [`EmbeddingGemma::embed_tokens`], reporting progress; `None` when that ended the work.
    ///
    /// # Errors
    /// As [`EmbeddingGemma::embed_tokens`].
    pub fn embed_tokens_with<R: AsRef<[TokenId]>>(
        &self,
        rows: &[R],
        options: EmbedOptions,
        on_progress: OnEmbed<'_>,
    ) -> Result<Option<Embeddings>, Error> {
        let config = self.network.config();
        let most = config.dimensions();
        let dimensions = options.dimensions.unwrap_or(most);
        if !(1..=most).contains(&dimensions) {
            return Err(Error::Dimensions { dimensions, most });
        }
        for row in rows {
            let row = row.as_ref();
            if row.is_empty() || row.len() > config.text.context {
                return Err(Error::Length { tokens: row.len(), limit: config.text.context });
            }
            if let Some(token) = row.iter().find(|token| **token as usize >= config.text.vocab) {
                return Err(Error::Token { token: *token, vocab: config.text.vocab });
            }
        }
        let mut found = Embeddings::cut(&[], most, dimensions);
        let mut first = 0;
        while first < rows.len() {
            let mut tokens = Vec::new();
            let mut segments = Vec::new();
            for row in rows[first..].iter().map(AsRef::as_ref) {
                if !segments.is_empty() && tokens.len() + row.len() > CALL_TOKENS {
                    break;
                }
                tokens.extend_from_slice(row);
                segments.push(Segment::causal(0, row.len()));
            }
            let values = self.network.forward(&tokens, &segments).into_data().try_into_vec::<f32>();
            let values = values.expect("activations are f32");
            if let Some(place) = values.iter().position(|value| !value.is_finite()) {
                return Err(Error::NotFinite { row: first + place / most });
            }
            first += segments.len();
            found.append(Embeddings::cut(&values, most, dimensions));
            if !on_progress(first, rows.len()) {
                return Ok(None);
            }
        }
        Ok(Some(found))
    }
}

/// The checkpoint with the weights of its dense layers, its sizes, and what is said of its modules.
fn described(checkpoint: &Checkpoint) -> Result<(Checkpoint, EmbeddingConfig, Modules), Error> {
    let text = decoder_config(checkpoint)?;
    let (checkpoint, modules) = with_dense_layers(checkpoint)?;
    let max_tokens = modules.max_tokens.unwrap_or(MAX_TOKENS).min(text.context);
    let dense: Vec<[usize; 2]> = modules.dense.iter().map(|(_, sizes)| *sizes).collect();
    let config = EmbeddingConfig { text, dense, max_tokens };
    let mut width = config.text.hidden_size;
    for [outputs, inputs] in &config.dense {
        if *inputs != width {
            return Err(gemma_model::fields::invalid("in_features", inputs, "the size of what comes before").into());
        }
        width = *outputs;
    }
    Ok((checkpoint, config, modules))
}

/// The configuration of the layers, which must see both ways.
fn decoder_config(checkpoint: &Checkpoint) -> Result<DecoderConfig, Error> {
    let missing = || Error::MissingFile {
        folder: checkpoint.path().unwrap_or(Path::new("(embedded)")).to_owned(),
        file: "config.json".to_owned(),
    };
    let config = DecoderConfig::from_json(&checkpoint.file("config.json")?.ok_or_else(missing)?)?;
    if !config.is_bidirectional() {
        let expected = "true in an embedding model; `gemma generate` runs models that make text";
        return Err(gemma_model::fields::invalid("use_bidirectional_attention", "absent or false", expected).into());
    }
    // there is no output head
    Ok(DecoderConfig { is_tied: true, ..config })
}

/// The checkpoint with the weights of the dense layers among its tensors, and what is said of the modules.
fn with_dense_layers(checkpoint: &Checkpoint) -> Result<(Checkpoint, Modules), Error> {
    let path = checkpoint.path().unwrap_or(Path::new(""));
    if path.is_dir() {
        let modules = Modules::of_folder(path)?;
        let mut whole = Decoder::prepared(checkpoint);
        for (index, dense) in modules.open_dense(path)?.iter().enumerate() {
            let name = dense_name(index);
            whole = whole.with_tensors_of(dense, |tensor| tensor.replacen("linear", &name, 1));
        }
        return Ok((whole, modules));
    }
    // a GGUF file: its tensors have these names already
    let mut modules = Modules::default();
    for (index, tensor) in ["dense_2.weight", "dense_3.weight"].into_iter().enumerate() {
        let shape = checkpoint.get(&format!("{}.weight", dense_name(index))).map(|tensor| tensor.shape.clone());
        match shape.as_deref() {
            Some([outputs, inputs]) => modules.dense.push((String::new(), [*outputs, *inputs])),
            _ => return Err(Error::NoDenseLayers { file: path.to_owned(), tensor }),
        }
    }
    Ok((Decoder::prepared(checkpoint), modules))
}
