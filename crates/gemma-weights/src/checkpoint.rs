//! A model folder as Hugging Face lays it out: one file of tensors or several with an index, and the JSON files
//! beside them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use gemma_kernels::Format;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::files::{self, Files, is_plain_name};
use crate::gguf;
use crate::json::Entries;
use crate::names::unwrapped;
use crate::safetensors::{parse_safetensors, parse_shared};
use crate::{Dtype, Error, GenerationConfig, StoredTensor, TensorSpec};

/// The file of an unsharded model.
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
/// The file that says which shard holds which tensor.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";
/// The largest `config.json` beside a GGUF file that is looked at, in bytes.
const CONFIG_LIMIT: u64 = 1 << 20;

/// An opened model folder: its tensors, mapped and not read, and the files beside them.
///
/// Opening checks every header and, for a sharded model, that index and shards agree; it reads no weight. The
/// files must not be shortened while the checkpoint (or a tensor of it) lives, see [`gemma_kernels::map_file`].
#[derive(Clone, Debug)]
pub struct Checkpoint {
    files: Files,
    tensors: BTreeMap<String, StoredTensor>,
    unknown_keys: Vec<String>,
}

impl Checkpoint {
    /// Opens a folder that holds `model.safetensors`, or `model.safetensors.index.json` and its shards; or a GGUF file,
    /// of a split model any of its parts.
    ///
    /// ```no_run
    /// # use gemma_weights::Checkpoint;
    /// let checkpoint = Checkpoint::open("models/gemma-2-2b-it".as_ref())?;
    /// println!("{} values as {}", checkpoint.parameters(), checkpoint.dtype());
    /// # Ok::<(), gemma_weights::Error>(())
    /// ```
    ///
    /// # Errors
    /// When there is no such folder, when it holds no weights, and for each way in which a file can be damaged or
    /// index and shards can disagree; the message names file and tensor.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        if gguf::is_gguf(folder) {
            return Self::open_gguf(folder);
        }
        Self::from_files(Files::of_folder(folder)?)
    }

    fn open_gguf(path: &Path) -> Result<Self, Error> {
        let parts = gguf::map_parts(path)?;
        let damaged = |fault| Error::Gguf { file: path.to_owned(), fault };
        // not the model's own, so what cannot be read is as if it were not there
        let beside = path.parent().map(|folder| folder.join("config.json"));
        let beside = beside.and_then(|file| files::read_capped(&file, CONFIG_LIMIT).ok().flatten());
        let beside = beside.and_then(|text| serde_json::from_slice(&text).ok());
        let translated = gguf::translate(gguf::parse(&parts)?, beside.as_ref()).map_err(damaged)?;
        let gguf::Translated { files, tensors, unknown, architecture } = translated;
        Ok(Self { files: Files::Gguf { path: path.to_owned(), files, architecture }, tensors, unknown_keys: unknown })
    }

    /// The same model with the image encoder of an `mmproj` file: of the GGUF file of a Gemma 3 that was made with images.
    ///
    /// # Errors
    /// [`Error::Gguf`] when the file is no sound encoder of Gemma 3, [`Error::NoEncoderWanted`] when this checkpoint is not
    /// a GGUF file of Gemma 3.
    pub fn with_image_encoder(&self, mmproj: &Path) -> Result<Self, Error> {
        let Files::Gguf { path, files, architecture } = &self.files else { return Err(Error::NoEncoderWanted) };
        let config = files.iter().find(|(name, _)| *name == "config.json");
        let text: Option<serde_json::Value> = config.and_then(|(_, config)| serde_json::from_slice(config).ok());
        let Some(text) = text.filter(|text| text["model_type"] == "gemma3_text") else {
            return Err(Error::NoEncoderWanted);
        };
        let parts = gguf::map_parts(mmproj)?;
        let damaged = |fault| Error::Gguf { file: mmproj.to_owned(), fault };
        let encoder = gguf::translate_encoder(gguf::parse_encoder(&parts)?).map_err(damaged)?;
        let mut config = serde_json::json!({
            "model_type": "gemma3",
            "architectures": ["Gemma3ForConditionalGeneration"],
            "mm_tokens_per_image": encoder.image_tokens,
            "eos_token_id": text["eos_token_id"],
            "vision_config": encoder.config,
        });
        for field in ["boi_token_index", "eoi_token_index", "image_token_index"] {
            if let Some(number) = text.get(field) {
                config[field] = number.clone();
            }
        }
        config["text_config"] = text;
        let mut files = files.clone();
        for (name, content) in &mut files {
            if *name == "config.json" {
                *content = config.to_string().into_bytes();
            }
        }
        let mut tensors = self.tensors.clone();
        tensors.extend(encoder.tensors);
        let files = Files::Gguf { path: path.clone(), files, architecture: architecture.clone() };
        Ok(Self { files, tensors, unknown_keys: self.unknown_keys.clone() })
    }

    /// A checkpoint of random bf16 values that has the size of a real one, to measure programs with: `config` is its
    /// `config.json`. All tensors share one buffer, the largest tensor's.
    pub fn random(config: Vec<u8>, tensors: &[TensorSpec]) -> Self {
        let elements = |spec: &TensorSpec| spec.shape.iter().product::<usize>();
        let largest = tensors.iter().map(elements).max().unwrap_or(0);
        let mut state = 1u64;
        let mut value = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let bits = (state >> 33) as u16;
            // between 1/64 and 1/32, of either sign
            ((bits & 0x807f) | 0x3c80).to_le_bytes()
        };
        let values: Bytes = (0..largest).flat_map(|_| value()).collect::<Vec<u8>>().into();
        let stored = |spec: &TensorSpec| {
            let bytes = values.slice(..2 * elements(spec));
            (spec.name.clone(), StoredTensor { format: Format::Bf16, shape: spec.shape.clone(), bytes })
        };
        let files = Files::Made(vec![("config.json", config)]);
        Self { files, tensors: tensors.iter().map(stored).collect(), unknown_keys: Vec::new() }
    }

    /// A checkpoint that is part of the program: (file name, content) of what would lie in a folder.
    ///
    /// # Errors
    /// As [`open`](Self::open): the content goes through the same checks.
    pub fn from_static(files: &[(&'static str, &'static [u8])]) -> Result<Self, Error> {
        Self::from_files(Files::BuiltIn(files.to_vec()))
    }

    fn from_files(files: Files) -> Result<Self, Error> {
        let tensors = if let Some(bytes) = files.map(SINGLE_FILE)? {
            parse_shared(&files.path(SINGLE_FILE), &bytes)?
        } else if files.contains(INDEX_FILE) {
            read_shards(&files)?
        } else {
            return Err(Error::NoWeights { found: files.foreign_weights(), path: folder_of(&files) });
        };
        Ok(Self { files, tensors: unwrapped(tensors), unknown_keys: Vec::new() })
    }

    /// The keys of a GGUF file that nothing reads; they should do no harm.
    pub fn unknown_keys(&self) -> &[String] {
        &self.unknown_keys
    }

    /// Whether the tensor `head` is there and holds other values than `table`: a model whose output head is not its
    /// embedding table, whatever its configuration says. Reads both, if both are there.
    pub fn is_untied(&self, head: &str, table: &str) -> bool {
        match (self.get(head), self.get(table)) {
            (Some(head), Some(table)) => !head.is_same(table),
            _ => false,
        }
    }

    /// The same files with other names of tensors: `rename` says each new name, or `None` to leave the tensor out. Where
    /// two tensors would get one name, the second keeps its own.
    #[must_use]
    pub fn renamed(&self, rename: impl Fn(&str) -> Option<String>) -> Self {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            let Some(new) = rename(name) else { continue };
            let name = if tensors.contains_key(&new) { name.clone() } else { new };
            tensors.insert(name, tensor.clone());
        }
        Self { files: self.files.clone(), tensors, unknown_keys: self.unknown_keys.clone() }
    }

    /// The same files with the tensors of another checkpoint beside their own, under the names that `rename` gives.
    #[must_use]
    pub fn with_tensors_of(&self, other: &Self, rename: impl Fn(&str) -> String) -> Self {
        let mut tensors = self.tensors.clone();
        tensors.extend(other.tensors.iter().map(|(name, tensor)| (rename(name), tensor.clone())));
        Self { files: self.files.clone(), tensors, unknown_keys: self.unknown_keys.clone() }
    }

    /// Every tensor, in the order of the names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &StoredTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// Puts another tensor in the place of the one called `name`.
    pub(crate) fn replace(&mut self, name: &str, tensor: StoredTensor) {
        self.tensors.insert(name.to_owned(), tensor);
    }

    /// The content of a file beside the weights, such as `config.json` or `tokenizer.json`; `None` if the checkpoint
    /// has no such file.
    ///
    /// # Errors
    /// [`Error::Read`] when it is there but cannot be read, [`Error::TooLarge`] beyond 256 MiB, [`Error::FileName`]
    /// for a name with a path in it.
    pub fn file(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        self.files.read(name)
    }

    /// The generation_config.json of the folder; `None` if it has none.
    ///
    /// # Errors
    /// As [`file`](Self::file) and [`GenerationConfig::from_json`].
    pub fn generation_config(&self) -> Result<Option<GenerationConfig>, Error> {
        const NAME: &str = "generation_config.json";
        let content = self.file(NAME)?;
        content.map(|json| GenerationConfig::from_json(&self.files.path(NAME), &json)).transpose()
    }

    /// The folder, or the GGUF file; `None` for a checkpoint that is part of the program.
    pub fn path(&self) -> Option<&Path> {
        match &self.files {
            Files::Folder(folder) => Some(folder),
            Files::Gguf { path, .. } => Some(path),
            Files::BuiltIn(_) | Files::Made(_) => None,
        }
    }

    /// A message about this checkpoint if it is a GGUF file, which is read as the files of a folder: with the name of the file,
    /// its keys and its names of tensors. `None` for another checkpoint, and a message that names the file itself.
    pub fn of_gguf(&self, message: &str) -> Option<String> {
        let Files::Gguf { path, architecture, .. } = &self.files else { return None };
        let file = path.display().to_string();
        (!message.contains(&file)).then(|| format!("{file}: {}", gguf::in_words_of_file(message, architecture)))
    }

    /// The format of the largest tensor: in practice that of every matrix.
    pub fn format(&self) -> Format {
        let largest = self.tensors.values().max_by_key(|tensor| tensor.elements());
        largest.map_or(Format::F32, |tensor| tensor.format)
    }

    /// The type to which a model's constants are rounded: that of the largest tensor of a folder, as the reference
    /// computes; f32 for a GGUF file, as the programs compute for which such files are made.
    pub fn dtype(&self) -> Dtype {
        match self.files {
            Files::Gguf { .. } => Dtype::F32,
            _ => Dtype::of_format(self.format()).unwrap_or(Dtype::F32),
        }
    }

    /// Number of values in all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.elements() as u64).sum()
    }

    /// Size of all tensors as stored, in bytes.
    pub fn bytes_len(&self) -> u64 {
        self.tensors.values().map(|tensor| tensor.bytes.len() as u64).sum()
    }
}

fn folder_of(files: &Files) -> PathBuf {
    files.path("").components().collect()
}

/// The part of the index that matters: which shard holds which tensor.
#[derive(Deserialize)]
pub(crate) struct Index {
    pub weight_map: Entries<String>,
    /// The other fields; with them, serde reads an object and no array of the fields' values.
    #[serde(flatten)]
    _others: IgnoredAny,
}

/// Reads the index and every shard it names; they must agree in both directions.
fn read_shards(files: &Files) -> Result<BTreeMap<String, StoredTensor>, Error> {
    let index = files.path(INDEX_FILE);
    let content = files.read(INDEX_FILE)?.unwrap_or_default();
    let Index { weight_map: Entries(entries), .. } =
        serde_json::from_slice(&content).map_err(|cause| Error::Json { file: index.clone(), cause })?;

    // tensor -> the shard that should hold it
    let mut places = BTreeMap::new();
    for (tensor, shard) in entries {
        if !is_plain_name(&shard) || !shard.ends_with(".safetensors") {
            return Err(Error::ShardName { index, shard });
        }
        if let Some(first) = places.insert(tensor.clone(), shard.clone())
            && first != shard
        {
            return Err(Error::InTwoShards { index, tensor, first, second: shard });
        }
    }

    let shards: std::collections::BTreeSet<&String> = places.values().collect();
    let mut tensors = BTreeMap::new();
    let mut found_in: BTreeMap<String, &String> = BTreeMap::new();
    for shard in shards {
        let Some(bytes) = files.map(shard)? else {
            return Err(Error::ShardMissing { index, shard: shard.clone() });
        };
        for (name, tensor) in parse_safetensors(&files.path(shard), &bytes)? {
            if let Some(first) = found_in.insert(name.clone(), shard) {
                return Err(Error::InTwoShards { index, tensor: name, first: first.clone(), second: shard.clone() });
            }
            if !places.contains_key(&name) {
                return Err(Error::NotInIndex { index, tensor: name, shard: shard.clone() });
            }
            tensors.insert(name, tensor);
        }
    }
    let misplaced = places.iter().find(|(tensor, shard)| found_in.get(*tensor) != Some(shard));
    if let Some((tensor, shard)) = misplaced {
        return Err(Error::NotInShard { index, tensor: tensor.clone(), shard: shard.clone() });
    }
    Ok(tensors)
}
