//! What can be wrong with an adapter.

use crate::error::Shown;
use crate::gguf::file_name;

/// The ways in which an adapter cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterFault {
    /// A file that is no adapter.
    #[error(
        "it is a file that is not GGUF; give the folder that PEFT's save_pretrained wrote, with adapter_config.json in it, \
         or a GGUF file of an adapter"
    )]
    AFile,
    /// A file is missing.
    #[error("it has no {file}; give the folder that PEFT's save_pretrained wrote")]
    MissingFile {
        /// The file.
        file: &'static str,
    },
    /// A field asks for something that is not computed here.
    #[error("adapter_config.json: {} is {}, which is not computed here; {advice}", Shown(field), Shown(value))]
    Unsupported {
        /// The field.
        field: String,
        /// Its value.
        value: String,
        /// What to do.
        advice: &'static str,
    },
    /// A field has a value of the wrong kind.
    #[error("adapter_config.json: {field} is {}, but must be {expected}", Shown(value))]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A pattern that cannot be read.
    #[error("adapter_config.json: {field}: {} is not a regular expression that is read here", Shown(pattern))]
    Pattern {
        /// The field.
        field: &'static str,
        /// The pattern.
        pattern: String,
    },
    /// A tensor that belongs to no LoRA module.
    #[error(
        "tensor {} is no factor of a projection (…lora_A.weight, …lora_B.weight); such adapters are not computed here",
        Shown(tensor)
    )]
    UnknownTensor {
        /// The tensor.
        tensor: String,
    },
    /// A factor that is no matrix.
    #[error("factor {} has the shape {shape:?} and not two axes", Shown(tensor))]
    FactorShape {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// A module with one factor.
    #[error("module {} has no {which}; the file is damaged, save the adapter again", Shown(module))]
    HalfModule {
        /// The module.
        module: String,
        /// The factor that is missing.
        which: &'static str,
    },
    /// A module that the configuration does not name.
    #[error(
        "module {} has LoRA matrices, but target_modules does not name it; the two files do not belong together",
        Shown(module)
    )]
    NotATarget {
        /// The module.
        module: String,
    },
    /// A module that another field of the configuration takes out.
    #[error(
        "module {} has LoRA matrices, but {field} rules it out; the two files do not belong together",
        Shown(module)
    )]
    RuledOut {
        /// The module.
        module: String,
        /// The field.
        field: &'static str,
    },
    /// Factors that cannot be multiplied.
    #[error(
        "the factors of {} have the ranks {a} and {b}, which must be one; the file is damaged, save the adapter again",
        Shown(module)
    )]
    Ranks {
        /// The module.
        module: String,
        /// Rows of `lora_A`.
        a: usize,
        /// Columns of `lora_B`.
        b: usize,
    },
    /// An adapter for a model of another architecture.
    #[error(
        "its general.architecture is {}, and the model is of another one; take the adapter of this model",
        Shown(architecture)
    )]
    Architecture {
        /// What the file says.
        architecture: String,
    },
    /// A rank that is not the configuration's.
    #[error(
        "module {} has rank {found}, but adapter_config.json says {expected}; the two files do not belong together",
        Shown(module)
    )]
    Rank {
        /// The module.
        module: String,
        /// The configuration's rank.
        expected: usize,
        /// The factor's.
        found: usize,
    },
    /// Two modules that are the same one.
    #[error("modules {} and {} are the same projection", Shown(first), Shown(second))]
    Twice {
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// No module at all.
    #[error("it has no LoRA matrices")]
    Empty,
    /// A module that the network does not have.
    #[error("the model has no matrix {}; the adapter was made for another model", Shown(module))]
    UnknownModule {
        /// The module.
        module: String,
    },
    /// A module of another size.
    #[error(
        "module {} is {expected:?} in the model, but the adapter is for {found:?}; it was made for another model",
        Shown(module)
    )]
    Shape {
        /// The module.
        module: String,
        /// The model's shape, `[out, in]`.
        expected: Vec<usize>,
        /// The adapter's.
        found: Vec<usize>,
    },
    /// Modules that no projection of the network took.
    #[error(
        "the model's {} cannot take LoRA matrices; train the adapter on projections (q_proj, up_proj, ...) only",
        Shown(module)
    )]
    NotAProjection {
        /// The first of them.
        module: String,
    },
    /// A module that all requests share, in an adapter that requests choose.
    #[error(
        "{} lies outside the decoder's layers, where requests have no adapters of their own; use --adapter for all \
         requests, or merge it",
        Shown(module)
    )]
    NotPerRequest {
        /// The first of them.
        module: String,
    },
}

impl AdapterFault {
    /// The same with names of modules as a GGUF file of this architecture has them.
    pub(super) fn in_gguf(mut self, architecture: &str) -> Self {
        if let Self::HalfModule { module, .. } | Self::Ranks { module, .. } | Self::Shape { module, .. } = &mut self
            && let Some(name) = file_name(&format!("{module}.weight"), architecture)
        {
            *module = name;
        }
        self
    }
}
