//! LoRA adapters on disk: the folders that PEFT writes, and the GGUF files of llama.cpp.
//!
//! A folder holds `adapter_config.json` (rank, alpha, which modules) and `adapter_model.safetensors` with two factors for
//! each module, `lora_A` `[rank, in]` and `lora_B` `[out, rank]`. The layer computes `y = W x + s B (A x)` with
//! `s = alpha / rank`, or `alpha / √rank` (rsLoRA). What cannot be computed so is refused by the name of its field.

mod config;
mod fault;
mod gguf;
mod merge;
mod save;
mod scope;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use gemma_nn::LoraFactors;

use crate::files::{map, read_capped};
use crate::gguf::is_gguf;
use crate::{Error, StoredTensor, TensorSpec, parse_safetensors};

use scope::Scope;

pub use config::{AdapterConfig, Targets};
pub use fault::AdapterFault;
pub use gguf::save_gguf_adapter;
pub use save::{AdapterTensor, save_adapter};

/// The configuration of an adapter.
pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
/// Its factors.
pub(crate) const FACTORS_FILE: &str = "adapter_model.safetensors";
/// What PEFT writes before the path of a module.
pub(crate) const PREFIX: &str = "base_model.model.";
/// The longest configuration that is read, in bytes.
const CONFIG_LIMIT: u64 = 16 << 20;

/// A LoRA adapter: two factors for some of a network's projections.
#[derive(Clone, Debug)]
pub struct Adapter {
    path: PathBuf,
    config: AdapterConfig,
    modules: BTreeMap<String, Module>,
    strength: f32,
    /// What a GGUF file calls the architecture of the model.
    architecture: Option<String>,
}

/// The factors of one projection.
#[derive(Clone, Debug)]
struct Module {
    /// The module's path, as the file has it.
    name: String,
    /// `[rank, in]`.
    a: StoredTensor,
    /// `[out, rank]`.
    b: StoredTensor,
    scale: f32,
}

impl Adapter {
    /// Opens a folder that PEFT, or [`save_adapter`], has written, or a GGUF file of an adapter.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the configuration asks for something that is not computed here
    /// ([`AdapterFault`]).
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let failed = |fault: AdapterFault| Error::Adapter { path: folder.to_owned(), fault };
        let missing = |file| failed(AdapterFault::MissingFile { file });
        if is_gguf(folder) {
            return gguf::open(folder);
        }
        if folder.is_file() {
            return Err(failed(AdapterFault::AFile));
        }
        let config_path = folder.join(CONFIG_FILE);
        let text = read_capped(&config_path, CONFIG_LIMIT)?.ok_or_else(|| missing(CONFIG_FILE))?;
        let json = serde_json::from_slice(&text).map_err(|cause| Error::Json { file: config_path.clone(), cause })?;
        let config = AdapterConfig::from_json(&json).map_err(failed)?;
        let factors_path = folder.join(FACTORS_FILE);
        let bytes = map(&factors_path)?.ok_or_else(|| missing(FACTORS_FILE))?;
        let tensors = parse_safetensors(&factors_path, &bytes)?;
        let modules = modules(&config, tensors).map_err(failed)?;
        let scope = Scope::from_json(&json).map_err(failed)?;
        let ruled_out =
            |module: &Module| Some((module.name.clone(), scope.ruled_out_by(&module.name, &config.targets)?));
        if let Some((module, field)) = modules.values().find_map(ruled_out) {
            return Err(failed(AdapterFault::RuledOut { module, field }));
        }
        Ok(Self { path: folder.to_owned(), config, modules, strength: 1.0, architecture: None })
    }

    /// The same adapter, with so much of its effect: 1 is all of it, 0 none.
    #[must_use]
    pub fn with_strength(self, strength: f32) -> Self {
        Self { strength, ..self }
    }

    /// What its `adapter_config.json` says.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// The folder or file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The paths of the modules it changes, as its file has them.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.modules.values().map(|module| module.name.as_str())
    }

    /// Number of values in all factors.
    pub fn parameters(&self) -> u64 {
        self.modules.values().map(|module| (module.a.elements() + module.b.elements()) as u64).sum()
    }

    /// Whether the adapter belongs to a network with these tensors: each of its modules must be a matrix there, of the
    /// size of its factors.
    ///
    /// # Errors
    /// [`Error::Adapter`] with the first module that does not fit.
    pub fn check(&self, tensors: &[TensorSpec]) -> Result<(), Error> {
        let failed = |fault| Err(Error::Adapter { path: self.path.clone(), fault });
        if let Some(made_for) = self.architecture.as_deref().filter(|made_for| !has_parts_of(tensors, made_for)) {
            return failed(AdapterFault::Architecture { architecture: made_for.to_owned() });
        }
        let matrices: BTreeMap<String, &[usize]> = tensors
            .iter()
            .filter_map(|tensor| Some((canonical(tensor.name.strip_suffix(".weight")?), tensor.shape.as_slice())))
            .collect();
        for (name, module) in &self.modules {
            match matrices.get(name) {
                Some([outputs, inputs]) => {
                    let found = [module.b.shape[0], module.a.shape[1]];
                    if found != [*outputs, *inputs] {
                        let module = module.name.clone();
                        return failed(AdapterFault::Shape {
                            module,
                            expected: vec![*outputs, *inputs],
                            found: found.into(),
                        });
                    }
                }
                _ => return failed(AdapterFault::UnknownModule { module: module.name.clone() }),
            }
        }
        Ok(())
    }

    /// The factors of the projection `name` of a network (the name of its weight without `.weight`), made on `device`;
    /// `None` when the adapter leaves it alone.
    pub fn factors(&self, name: &str, device: &Device) -> Option<LoraFactors> {
        let module = self.modules.get(&canonical(name))?;
        let tensor = |stored: &StoredTensor| {
            let shape = [stored.shape[0], stored.shape[1]];
            Param::from_tensor(Tensor::<2>::from_data(TensorData::new(stored.to_f32(), shape), device))
        };
        Some(LoraFactors::new(tensor(&module.a), tensor(&module.b), module.scale * self.strength))
    }

    /// The factors for the weight `name`.
    fn module_of_weight(&self, name: &str) -> Option<&Module> {
        self.modules.get(&canonical(name.strip_suffix(".weight")?))
    }
}

/// The factors of several adapters on their way to the projections of a network. It notes which were asked for, so that
/// none is left out unseen.
#[derive(Debug)]
pub struct AdapterFactors<'a> {
    /// Those that always count.
    always: &'a [Adapter],
    /// Those that count for the requests that choose them.
    choices: &'a [Adapter],
    device: Device,
    found: BTreeSet<String>,
}

/// Where the layers of a text decoder lie. Only these know which request a row belongs to.
const LAYERS: &str = "model.layers.";

impl<'a> AdapterFactors<'a> {
    /// Factors that will be made on `device`: of adapters that `always` count, and of those that requests choose, by their
    /// places in `choices`.
    pub fn new(always: &'a [Adapter], choices: &'a [Adapter], device: &Device) -> Self {
        Self { always, choices, device: device.clone(), found: BTreeSet::new() }
    }

    /// Whether the adapters belong to a network with these tensors, and those that requests choose change nothing that
    /// requests share.
    ///
    /// # Errors
    /// [`Error::Adapter`] as [`Adapter::check`], or with [`AdapterFault::NotPerRequest`].
    pub fn check(&self, tensors: &[TensorSpec]) -> Result<(), Error> {
        self.always.iter().chain(self.choices).try_for_each(|adapter| adapter.check(tensors))?;
        for adapter in self.choices {
            if let Some((_, module)) = adapter.modules.iter().find(|(name, _)| !name.starts_with(LAYERS)) {
                let fault = AdapterFault::NotPerRequest { module: module.name.clone() };
                return Err(Error::Adapter { path: adapter.path.clone(), fault });
            }
        }
        Ok(())
    }

    /// Those of the projection `name`, one pair for each adapter that changes it. They are constants.
    pub fn find(&mut self, name: &str) -> Vec<LoraFactors> {
        self.found.insert(canonical(name));
        let of = |adapter: &Adapter| Some(adapter.factors(name, &self.device)?.frozen());
        let choices = self.choices.iter().enumerate();
        let choices = choices.filter_map(|(number, adapter)| Some(of(adapter)?.for_choice(number)));
        self.always.iter().filter_map(of).chain(choices).collect()
    }

    /// # Errors
    /// [`Error::Adapter`] when an adapter has factors for something that is no projection.
    pub fn finish(self) -> Result<(), Error> {
        for adapter in self.always.iter().chain(self.choices) {
            if let Some(module) = adapter.modules.iter().find(|(name, _)| !self.found.contains(*name)) {
                let fault = AdapterFault::NotAProjection { module: module.1.name.clone() };
                return Err(Error::Adapter { path: adapter.path.clone(), fault });
            }
        }
        Ok(())
    }
}

/// Whether a network with these tensors can be one of a GGUF file's architecture: Gemma 2 brought norms behind the
/// sublayers, Gemma 3 those of queries and keys.
fn has_parts_of(tensors: &[TensorSpec], architecture: &str) -> bool {
    let has = |end: &str| tensors.iter().any(|tensor| tensor.name.ends_with(end));
    let found = [has(".pre_feedforward_layernorm.weight"), has(".self_attn.q_norm.weight")];
    match architecture {
        "gemma" => found == [false, false],
        "gemma2" => found == [true, false],
        _ => found == [true, true],
    }
}

/// Pairs the tensors of a file and finds each pair's scale.
fn modules(
    config: &AdapterConfig,
    tensors: BTreeMap<String, StoredTensor>,
) -> Result<BTreeMap<String, Module>, AdapterFault> {
    let mut halves: BTreeMap<String, [Option<StoredTensor>; 2]> = BTreeMap::new();
    for (tensor, stored) in tensors {
        let unknown = || AdapterFault::UnknownTensor { tensor: tensor.clone() };
        let path = tensor.strip_prefix(PREFIX).ok_or_else(unknown)?;
        // older versions of PEFT kept the adapter's name in the key
        let path = path.strip_suffix(".weight").ok_or_else(unknown)?;
        let path = path.strip_suffix(".default").unwrap_or(path);
        let (module, place) = match (path.strip_suffix(".lora_A"), path.strip_suffix(".lora_B")) {
            (Some(module), _) => (module, 0),
            (_, Some(module)) => (module, 1),
            _ => return Err(unknown()),
        };
        halves.entry(module.to_owned()).or_default()[place] = Some(stored);
    }
    pair(config, halves)
}

/// Makes modules of the two factors that were found for each.
fn pair(
    config: &AdapterConfig,
    halves: BTreeMap<String, [Option<StoredTensor>; 2]>,
) -> Result<BTreeMap<String, Module>, AdapterFault> {
    if halves.is_empty() {
        return Err(AdapterFault::Empty);
    }
    let mut modules = BTreeMap::new();
    for (name, [a, b]) in halves {
        let half = |which| AdapterFault::HalfModule { module: name.clone(), which };
        let (a, b) = (a.ok_or_else(|| half("lora_A"))?, b.ok_or_else(|| half("lora_B"))?);
        for (tensor, stored) in [("lora_A", &a), ("lora_B", &b)] {
            if stored.shape.len() != 2 || stored.shape.contains(&0) {
                let tensor = format!("{name}.{tensor}");
                return Err(AdapterFault::FactorShape { tensor, shape: stored.shape.clone() });
            }
        }
        if !config.targets.contains(&name) {
            return Err(AdapterFault::NotATarget { module: name });
        }
        let (rank, found, other) = (config.rank_of(&name), a.shape[0], b.shape[1]);
        if found != other {
            return Err(AdapterFault::Ranks { module: name, a: found, b: other });
        }
        if found != rank {
            return Err(AdapterFault::Rank { module: name, expected: rank, found });
        }
        let scale = config.scale_of(&name);
        let key = canonical(&name);
        if let Some(Module { name: first, .. }) = modules.insert(key, Module { name: name.clone(), a, b, scale }) {
            return Err(AdapterFault::Twice { first, second: name });
        }
    }
    Ok(modules)
}

/// One name for the names that a module has in the layouts of files: models that contain a language model write its
/// `model.` as `language_model.model.` or as `model.language_model.`, and their image encoder in four ways.
pub(crate) fn canonical(name: &str) -> String {
    let inner = name.strip_prefix("model.").filter(|inner| {
        ["language_model.", "vision_tower.", "multi_modal_projector."].iter().any(|part| inner.starts_with(part))
    });
    let name = inner.unwrap_or(name);
    match name.strip_prefix("language_model.") {
        Some(decoder) => format!("model.{}", decoder.strip_prefix("model.").unwrap_or(decoder)),
        // a transformer without a head has no name around it
        None if name.starts_with("layers.") => format!("model.{name}"),
        None => name.replacen("vision_tower.vision_model.", "vision_tower.", 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_has_one_name_in_all_layouts() {
        let inside = "model.layers.0.self_attn.q_proj";
        for prefix in ["", "language_model.", "model.language_model."] {
            let name = if prefix.starts_with("model.") {
                inside.replacen("model.", prefix, 1)
            } else {
                format!("{prefix}{inside}")
            };
            assert_eq!(canonical(&name), inside);
        }
        let encoder = "vision_tower.encoder.layers.1.self_attn.q_proj";
        for prefix in
            ["vision_tower.vision_model.", "vision_tower.", "model.vision_tower.vision_model.", "model.vision_tower."]
        {
            assert_eq!(canonical(&format!("{prefix}encoder.layers.1.self_attn.q_proj")), encoder);
        }
        assert_eq!(canonical("model.layers.0.mlp.up_proj"), "model.layers.0.mlp.up_proj");
        assert_eq!(canonical("layers.0.mlp.up_proj"), "model.layers.0.mlp.up_proj");
    }

    #[test]
    fn architectures_are_told_apart_by_their_norms() {
        let norms = |parts: &[&str]| -> Vec<TensorSpec> {
            parts.iter().map(|part| TensorSpec::new(format!("model.layers.0.{part}.weight"), vec![4])).collect()
        };
        let first = norms(&["input_layernorm"]);
        let second = norms(&["input_layernorm", "pre_feedforward_layernorm"]);
        let third = norms(&["self_attn.q_norm", "pre_feedforward_layernorm"]);
        for (tensors, own) in [(first, &["gemma"][..]), (second, &["gemma2"]), (third, &["gemma3", "gemma-embedding"])]
        {
            for architecture in crate::gguf::ARCHITECTURES {
                assert_eq!(has_parts_of(&tensors, architecture), own.contains(&architecture), "{architecture} {own:?}");
            }
        }
    }
}
