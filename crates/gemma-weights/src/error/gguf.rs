//! What can be wrong with a GGUF file.

use gemma_kernels::Format;

use super::shown::Shown;
use crate::gguf::ARCHITECTURES;

/// The ways in which a GGUF file can lie about itself, or hold what is not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufFault {
    /// It does not begin with `GGUF`.
    #[error("it does not begin with GGUF")]
    Magic,
    /// A version of the container that is not read.
    #[error("it has version {version} of the format; versions 2 and 3 are read")]
    Version {
        /// The version.
        version: u32,
    },
    /// Its numbers begin with the most significant byte.
    #[error("it is a big-endian file, made for another kind of processor")]
    BigEndian,
    /// A file that lies beside models and is none.
    #[error("it is {what} and no model")]
    NotAModel {
        /// What it is.
        what: &'static str,
    },
    /// A file that was given as an image encoder and is none.
    #[error("it is no image encoder (mmproj)")]
    NotAnEncoder,
    /// A file that was given as an adapter and is none.
    #[error("it is no LoRA adapter")]
    NotAnAdapter,
    /// A part of a split model under another name.
    #[error("it is part {part} of a model in {parts} parts, and is not called NAME-{part:05}-of-{parts:05}.gguf")]
    Part {
        /// Its number, from 1.
        part: u64,
        /// How many parts there are.
        parts: u64,
    },
    /// The parts of a split model hold other tensors than they announce.
    #[error("split.tensors.count announces {announced} tensors, and there are {found} in all")]
    SplitTensors {
        /// How many the file says there are.
        announced: u64,
        /// How many there are.
        found: usize,
    },
    /// The file ends before what it announces.
    #[error("it ends too early (what begins at byte {at} does not fit)")]
    Truncated {
        /// Where the last part that was begun lies, in bytes.
        at: u64,
    },
    /// A text that is not UTF-8.
    #[error("the text at byte {at} is not UTF-8")]
    NotText {
        /// Where it lies, in bytes.
        at: u64,
    },
    /// A type of value that the format does not have, or a list of lists.
    #[error("the value before byte {at} has the unknown type {kind}")]
    Kind {
        /// The number of the type.
        kind: u32,
        /// Where it lies, in bytes.
        at: u64,
    },
    /// A key or a tensor that is there twice.
    #[error("{} is there twice", Shown(name))]
    Duplicate {
        /// Its name.
        name: String,
    },
    /// A tensor with more axes than the format allows.
    #[error("tensor {} has {axes} axes", Shown(tensor))]
    Axes {
        /// The tensor.
        tensor: String,
        /// Number of axes.
        axes: usize,
    },
    /// A tensor in a format that is not read.
    #[error("tensor {} is stored as {format}, which is not read", Shown(tensor))]
    Format {
        /// The tensor.
        tensor: String,
        /// What GGML calls the format.
        format: String,
    },
    /// A row whose length is no multiple of the block size.
    #[error("tensor {} has rows of {cols} values, which {format} cannot hold", Shown(tensor))]
    Block {
        /// The tensor.
        tensor: String,
        /// Its format.
        format: Format,
        /// Values per row.
        cols: usize,
    },
    /// A tensor beyond the end of the file.
    #[error("tensor {} lies beyond the file's {file} bytes", Shown(tensor))]
    OutOfRange {
        /// The tensor.
        tensor: String,
        /// Size of the file in bytes.
        file: u64,
    },
    /// A tensor in bytes of another.
    #[error("tensor {} begins within another one", Shown(tensor))]
    Overlap {
        /// The tensor.
        tensor: String,
    },
    /// A tensor that no Gemma model has.
    #[error("no layer knows the tensor {}", Shown(tensor))]
    UnknownTensor {
        /// The tensor.
        tensor: String,
    },
    /// Another kind of model.
    #[error("its architecture is {}; those of {} are read", Shown(architecture), ARCHITECTURES.join(", "))]
    Architecture {
        /// What the file says.
        architecture: String,
    },
    /// A key with a value that cannot be right or is not supported.
    #[error("{} is {}; it must be {expected}", Shown(key), Shown(found))]
    Field {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A key that is not there.
    #[error("the key {} is not there", Shown(key))]
    Missing {
        /// The key.
        key: String,
    },
}

impl GgufFault {
    /// What whoever has the file can do.
    pub(super) fn advice(&self) -> &'static str {
        match self {
            Self::BigEndian => "take the little-endian file of the same model",
            Self::NotAnEncoder => "give the mmproj file that lies beside the model",
            Self::NotAnAdapter => {
                "give the file that convert_lora_to_gguf.py wrote, or the folder of PEFT that it read"
            }
            Self::NotAModel { what } if what.contains("adapter") => {
                "give the file of the model itself, and this one as --adapter beside it"
            }
            Self::NotAModel { what } if what.contains("mmproj") => {
                "give the file of the model itself, and this one as --mmproj beside it"
            }
            Self::NotAModel { .. } => "give the file of the model itself",
            Self::Part { .. } => "give all parts the names they had, in one folder",
            Self::SplitTensors { .. } => "fetch all its parts again, of one model",
            Self::Architecture { architecture } if architecture.starts_with("gemma") => {
                "this one is not computed yet; take a model of one of these, or another program"
            }
            Self::Architecture { .. } => "take a model of one of these, or another program",
            Self::Format { .. } => "take a file of another quantization, such as Q4_K_M or Q8_0",
            Self::Version { .. } => "convert the model again with a program of today",
            // what the model itself asks for, another conversion would ask for, too
            Self::Field { key, .. }
                if [".rope.", ".attention.", "softcapping"].iter().any(|part| key.contains(part)) =>
            {
                "take another model, or a file whose key is right"
            }
            Self::Field { .. } | Self::Missing { .. } | Self::UnknownTensor { .. } => {
                "take a file that a program of today converted"
            }
            _ => "fetch it again",
        }
    }
}
