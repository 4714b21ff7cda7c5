//! Everything that can go wrong because of what a user gave, in one enum.

use std::fmt::Display;
use std::path::PathBuf;

/// The families that are computed.
const RUNS: &str = "Gemma 1, 2 and 3, CodeGemma, PaliGemma 1 and 2, RecurrentGemma, EmbeddingGemma and ShieldGemma";

/// A text of somebody else in a message: one line of at most sixty letters.
pub(crate) fn shortened(text: &str) -> String {
    const MOST: usize = 60;
    let mut letters = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let start: String = letters.by_ref().take(MOST).collect();
    if letters.next().is_some() { start + "..." } else { start }
}

/// What a parser says, in one line of bounded length: it quotes what it reads.
pub fn one_line(cause: &impl Display) -> String {
    const MOST: usize = 300;
    cause.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect()
}

/// Why a model could not be opened, or a text not be made.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint on disk, or the way to it.
    #[error(transparent)]
    Weights(#[from] gemma_weights::Error),
    /// The tokenizer's file, or a conversation that the chat template refuses.
    #[error(transparent)]
    Tokenizer(#[from] gemma_tokenizer::Error),
    /// The prompt or an option of the generation.
    #[error(transparent)]
    Generate(#[from] gemma_generate::Error),
    /// The backend.
    #[error(transparent)]
    Backend(#[from] gemma_backend::BackendError),
    /// A draft model has another vocabulary.
    #[error(
        "the draft model shares {same} tokens with the model ({draft} and {own} in all); choose one of the same family, \
         whose vocabulary is the same"
    )]
    DraftVocabulary {
        /// Token ids that stand for the same piece in both.
        same: usize,
        /// Tokens of the draft model's vocabulary.
        draft: usize,
        /// Tokens of the model's.
        own: usize,
    },
    /// The turns of a conversation are not questions and answers in turn.
    #[error("turn {turn} of the conversation (from 0) is no answer to a question; give questions and answers in turn")]
    Turns {
        /// The first that is out of order, or that is missing.
        turn: usize,
    },
    /// A text was asked for, and the checkpoint has no tokenizer.
    #[error(
        "{} has neither tokenizer.json nor tokenizer.model; take one from the model's repository, or give token numbers",
        path.as_deref().map_or("the model".into(), std::path::Path::to_string_lossy)
    )]
    NoTokenizer {
        /// The folder or file that the model was opened from.
        path: Option<PathBuf>,
    },
    /// A folder lacks a file that a model needs.
    #[error("{}: {file} is missing; a model folder holds config.json, the weights and a tokenizer", folder.display())]
    MissingFile {
        /// The folder.
        folder: PathBuf,
        /// The file, or the choice of files.
        file: &'static str,
    },
    /// The tokenizer's file in a folder cannot be used.
    #[error("cannot use {}: {cause}", file.display())]
    TokenizerFile {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        cause: gemma_tokenizer::Error,
    },
    /// `config.json` is not JSON, or a field is missing or of another type.
    #[error("config.json cannot be read: {}; take the file from the model's repository", one_line(cause))]
    ConfigJson {
        /// What the parser said.
        cause: serde_json::Error,
    },
    /// A field of `config.json` is of another type than it should be.
    #[error("config.json: {}: {}; take the file from the model's repository", shortened(field), one_line(cause))]
    ConfigType {
        /// The field, those that it lies in first.
        field: String,
        /// What the parser said.
        cause: serde_json::Error,
    },
    /// A field of `config.json` has a value that cannot be right or is not supported.
    #[error("config.json: {field} is {value}; it must be {expected}")]
    ConfigField {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A field of the files of a processor has a value that does not fit the model, or is not computed.
    #[error("preprocessor_config.json: {field} is {}; it must be {expected}", shortened(value))]
    ProcessorField {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// The checkpoint belongs to another architecture.
    #[error("config.json: `{}` is not {expected}; other families have crates of their own", shortened(name))]
    Architecture {
        /// What the file names.
        name: String,
        /// What it must name.
        expected: &'static str,
    },
    /// The checkpoint belongs to a network of the Gemma family that nothing here computes yet.
    #[error("config.json: this is a {family} model, which is not computed yet; {RUNS} are")]
    NotYet {
        /// The family, such as Gemma 4.
        family: String,
    },
    /// A model with adapters beside its weights.
    #[error("a model with LoRA adapters is not saved as a folder; merge them into its weights with `gemma merge`")]
    SaveAdapted,
    /// A training of factors that no projection has.
    #[error("target_modules names no projection of the model; name q_proj, v_proj, up_proj or another one")]
    NoTargets,
    /// An adapter that changes the output head, beside whose factors no loss is computed.
    #[error(
        "the adapter has LoRA matrices for lm_head, with which nothing is trained here; merge it first (`gemma merge`)"
    )]
    HeadFactors,
    /// Quantized matrices have no place in a safetensors folder.
    #[error("a model held in {format} cannot be saved as a folder; load it with --precision bf16 or f32 and save that")]
    SaveQuantized {
        /// The format held.
        format: gemma_kernels::Format,
    },
    /// A window that could be read in two ways was asked for, of a model that has none.
    #[error("inclusive_window is set, and this model has no window that is read in two ways; leave it out")]
    InclusiveWindow,
    /// A conversation has more or fewer places for images than there are images.
    #[error(
        "the conversation has {found} places for images and {given} are given; leave the mark of an image out of texts, and use the model's own chat template or the built-in one"
    )]
    Places {
        /// Places in the rendered conversation.
        found: usize,
        /// Images that belong to it.
        given: usize,
    },
    /// A file is not the state of a sequence that this model could go on from.
    #[error("{}: {fault}", file.display())]
    State {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        fault: StateFault,
    },
}

/// The sentence, which is what a `main` prints that returns the error.
impl std::fmt::Debug for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}

/// Why a state is not kept or taken up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateFault {
    /// It is some other safetensors file.
    #[error("not a state file; give a file that --save-state or `save_state` wrote")]
    NotAState,
    /// It was written in a format that this version does not know.
    #[error("a state file of version {version}, and this program reads version 1; read the text again")]
    Version {
        /// The version it says it has.
        version: String,
    },
    /// Its content is not what was written.
    #[error("a damaged state file; read the text again and keep its state anew")]
    Damaged,
    /// Its numbers mean something else here.
    #[error("the state of another model, or of this one in another precision; open the model that it was written with")]
    OtherModel,
}
