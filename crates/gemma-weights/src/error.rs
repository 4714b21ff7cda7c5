//! What can go wrong with a checkpoint, on disk or on the way to it. Every message is one line and ends with
//! what to do; names that come out of a file are escaped and shortened before they are shown.

mod fault;
mod gguf;
mod shown;

use std::path::PathBuf;

use gemma_kernels::Format;

pub use fault::SafetensorsFault;
pub use gguf::GgufFault;
pub(crate) use shown::Shown;
use shown::{Listed, Lists, OneLine};

use crate::names::prefix_of;

/// The error of every fallible function of this crate.
///
/// The text of the underlying cause (an input/output error, a JSON error) is part of the message, so
/// `source()` is always `None` and printing a chain repeats nothing.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing lies at the path, and it does not read as a hub id either.
    #[error(
        "{}: no such file or folder; give the path of a model folder or GGUF file, or a hub id such as google/gemma-2-2b-it",
        path.display()
    )]
    NoSuchPath {
        /// The path as given.
        path: PathBuf,
    },

    /// The path is a file (or a device, a pipe, ...) that is no GGUF file, not a folder.
    #[error(
        "{}: neither a model folder nor a GGUF file (one begins with `GGUF`); fetch it again, or give the folder that \
         holds config.json and the .safetensors files",
        path.display()
    )]
    NotAFolder {
        /// The path as given.
        path: PathBuf,
    },

    /// The folder holds no safetensors weights.
    #[error(
        "{}: not a model folder: it holds neither model.safetensors nor model.safetensors.index.json{}",
        path.display(),
        match found {
            Some(file) if file.ends_with(".gguf") => format!("; to use {0}, give {1}", Shown(file), path.join(file).display()),
            Some(file) if file == "adapter_model.safetensors" => {
                "; it holds a LoRA adapter: give its base model, and this folder with --adapter".to_owned()
            }
            Some(file) => format!(" (only {}, which is not read); give a folder in Hugging Face format", Shown(file)),
            None => "; give a folder in Hugging Face format, or a GGUF file".to_owned(),
        }
    )]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// A weight file of another format that is there instead, if any.
        found: Option<String>,
    },

    /// A file could not be read.
    #[error("{}: cannot be read ({cause}); check that it exists and that you may read it", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },

    /// A file that is read into memory as a whole is larger than any sensible file of its kind.
    #[error("{}: {bytes} bytes, more than the {limit} bytes allowed for such a file; is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// The most that is read, in bytes.
        limit: u64,
    },

    /// Another file in place of the one that was meant.
    #[error("{}: it is {what}, not the file itself; {advice}", path.display())]
    StandIn {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// What to do.
        advice: &'static str,
    },

    /// A file beside the weights that was asked for under a name with a path in it.
    #[error("{}: not a plain file name; name a file that lies directly in the model folder", Shown(name))]
    FileName {
        /// The name as given.
        name: String,
    },

    /// A JSON file is not JSON, or lacks what it must have.
    #[error("{}: {}; repair the file or fetch it again", file.display(), OneLine(cause))]
    Json {
        /// The file.
        file: PathBuf,
        /// What the parser said, with line and column.
        cause: serde_json::Error,
    },

    /// A field of a JSON file has a value of the wrong kind.
    #[error("{}: field {field} is {}, but must be {expected}; correct the field", file.display(), Shown(found))]
    Field {
        /// The file.
        file: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value, as JSON.
        found: String,
        /// What it has to be.
        expected: &'static str,
    },

    /// A GGUF file breaks the rules of its format, or is not one of a Gemma model.
    #[error("{}: this GGUF file cannot be used: {fault}; {}", file.display(), fault.advice())]
    Gguf {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        fault: GgufFault,
    },

    /// An image encoder for a model that takes none.
    #[error("an image encoder (mmproj) goes with a GGUF file of Gemma 3 4B, 12B or 27B; leave it out of other models")]
    NoEncoderWanted,

    /// A part of a split GGUF model is not beside the others.
    #[error("{}: this part of the split model is missing; fetch all its parts into one folder", file.display())]
    GgufPart {
        /// The part.
        file: PathBuf,
    },

    /// The file holds a vocabulary and nothing else.
    #[error("{}: it holds a vocabulary and no weights, so `gemma tokenize` is all it is good for; give a whole model", path.display())]
    NoTensors {
        /// The folder or file.
        path: PathBuf,
    },

    /// A safetensors file breaks the rules of its format.
    #[error("{}: damaged safetensors file: {fault}; fetch or write the file again", file.display())]
    Safetensors {
        /// The file.
        file: PathBuf,
        /// The rule it breaks.
        fault: SafetensorsFault,
    },

    /// A tensor is stored in a type this project does not compute with.
    #[error(
        "{}: tensor {} is stored as {}, which is not supported; convert it to F32, BF16 or F16",
        file.display(), Shown(tensor), Shown(dtype)
    )]
    UnsupportedDtype {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type's name in the file.
        dtype: String,
    },

    /// The shard index names a file outside the model folder.
    #[error("{}: names the shard {}, which is not a plain .safetensors file name; fetch the index again", index.display(), Shown(shard))]
    ShardName {
        /// The index file.
        index: PathBuf,
        /// The name it gives.
        shard: String,
    },

    /// The shard index names a file that is not there.
    #[error("{}: shard {} is missing from the folder; fetch the model again", index.display(), Shown(shard))]
    ShardMissing {
        /// The index file.
        index: PathBuf,
        /// The shard's file name.
        shard: String,
    },

    /// A tensor is not in the shard that the index names for it.
    #[error("{}: tensor {} should be in shard {}, but is not; fetch index and shards of one model", index.display(), Shown(tensor), Shown(shard))]
    NotInShard {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard's file name.
        shard: String,
    },

    /// A tensor lies in two shards.
    #[error("{}: tensor {} is in two shards, {} and {}; fetch index and shards of one model", index.display(), Shown(tensor), Shown(first), Shown(second))]
    InTwoShards {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard it was seen in first.
        first: String,
        /// The other shard.
        second: String,
    },

    /// A shard holds a tensor that the index does not mention.
    #[error("{}: does not mention tensor {} of shard {}; fetch index and shards of one model", index.display(), Shown(tensor), Shown(shard))]
    NotInIndex {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard's file name.
        shard: String,
    },

    /// The tensors of the checkpoint are not those that the configuration asks for.
    #[error(
        "the weights do not fit the configuration: {}; {}",
        Lists(&[("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)]),
        advice_on_tensors(missing, unexpected)
    )]
    Tensors {
        /// Names that the configuration asks for and the checkpoint lacks.
        missing: Vec<String>,
        /// Names that the checkpoint has and nothing reads.
        unexpected: Vec<String>,
        /// Names whose shape differs, each with both shapes.
        misshapen: Vec<String>,
    },

    /// A precision that does not exist.
    #[error("unknown precision {}; use one of f32, bf16, f16, q8_0, q4_0", Shown(name))]
    UnknownPrecision {
        /// The name as given.
        name: String,
    },

    /// The folder to save into holds something already, or the file to write is there.
    #[error("{}: is there already; choose another place or ask for it to be replaced", folder.display())]
    WouldOverwrite {
        /// The folder or file.
        folder: PathBuf,
    },

    /// The folder to be replaced holds something that is no file of a model.
    #[error("{}: holds {}, which is no file of a model and would be lost; choose another place, or move it away", folder.display(), Shown(found))]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// A file or folder in it.
        found: String,
    },

    /// The folder to be written is the one in which the program runs.
    #[error("{}: is the current folder, which cannot be replaced; name a folder inside it or elsewhere", folder.display())]
    Current {
        /// The folder.
        folder: PathBuf,
    },

    /// A folder is to be written where there is a file, or a file where there is a folder.
    #[error("{}: is not {expected}; choose another place", path.display())]
    WrongKind {
        /// The path.
        path: PathBuf,
        /// `a folder` or `a file`.
        expected: &'static str,
    },

    /// A value that the wished format cannot hold.
    #[error(
        "the tensor {} holds values that are not finite, or too large for {format}; choose another format",
        Shown(tensor)
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The format.
        format: Format,
    },

    /// The progress callback asked to stop.
    #[error("stopped before it was complete; nothing was written")]
    Stopped,

    /// A model that GGUF files cannot hold.
    #[error("it cannot be written as a GGUF file: {reason}; write a folder instead")]
    NotForGguf {
        /// Why not.
        reason: String,
    },

    /// A file or folder could not be written.
    #[error("{}: cannot be written ({cause}); check the path, your permissions and the free space", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },

    /// A tensor handed to the writer has a number of bytes that does not fit its shape.
    #[error(
        "tensor {} of shape {shape:?} and type {dtype} needs {expected} bytes, not {found}; nothing was saved",
        Shown(name)
    )]
    TensorBytes {
        /// The tensor.
        name: String,
        /// Its type's name.
        dtype: &'static str,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes that type and shape ask for.
        expected: u64,
        /// Bytes given.
        found: u64,
    },

    /// Two tensors or files of the same name were handed to the writer.
    #[error("{} was given twice; nothing was saved", Shown(name))]
    GivenTwice {
        /// The tensor or file name.
        name: String,
    },

    /// A text that is neither a path nor a well-formed hub id.
    #[error(
        "{}: not a hub id ({why}); write org/name or org/name@revision, for example google/gemma-2-2b-it",
        Shown(id)
    )]
    HubId {
        /// The text as given.
        id: String,
        /// The rule it breaks.
        why: &'static str,
    },

    /// The model is not (wholly) in the cache, and downloading is switched off.
    #[error(
        "{id}: not downloaded yet (missing {}) and {}, or copy the model into the cache {}",
        Listed(missing),
        if crate::HubOptions::from_env().offline {
            "the hub is offline; unset HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE)"
        } else {
            "downloads were ruled out; leave out --offline"
        },
        cache.display()
    )]
    Offline {
        /// The hub id.
        id: String,
        /// The cache folder that was searched.
        cache: PathBuf,
        /// The files that are not there.
        missing: Vec<String>,
    },

    /// The model is not in the cache, and this program cannot download.
    #[error(
        "{id}: not downloaded yet (missing {}), and this program was built without the feature `hub`; \
         build it with --features hub, or copy the model into the cache {}",
        Listed(missing), cache.display()
    )]
    HubNotCompiled {
        /// The hub id.
        id: String,
        /// The cache folder that was searched.
        cache: PathBuf,
        /// The files that are not there.
        missing: Vec<String>,
    },

    /// The hub wants a licence to be accepted first, or a token that may read the model.
    #[error(
        "{id}: access is restricted (HTTP {status}); accept the licence at https://huggingface.co/{id} and {}",
        if *with_token {
            "use a token of that account (HF_TOKEN) that may read gated repositories"
        } else {
            "set HF_TOKEN to a token from https://huggingface.co/settings/tokens (or run `hf auth login`)"
        }
    )]
    Gated {
        /// The hub id, without revision.
        id: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },

    /// The hub does not know the model.
    #[error(
        "{id}: there is no such folder and no such model at {endpoint}; check the spelling (a private model needs HF_TOKEN)"
    )]
    NoSuchModel {
        /// The hub id, without revision.
        id: String,
        /// The hub's address.
        endpoint: String,
    },

    /// The hub knows the model, but not the revision.
    #[error(
        "{id}: has no revision {}; leave it out for the newest, or name a branch, a tag or a commit",
        Shown(revision)
    )]
    NoSuchRevision {
        /// The hub id, without revision.
        id: String,
        /// The revision.
        revision: String,
    },

    /// The model's repository holds no weights that are read.
    #[error(
        "{id}: the repository holds no model.safetensors, no index of shards and no GGUF file{}; choose another one",
        if found.is_empty() { String::new() } else { format!(" (only {})", Listed(found)) }
    )]
    NoHubWeights {
        /// The hub id.
        id: String,
        /// The weight files there are.
        found: Vec<String>,
    },

    /// The repository lacks a file without which its model cannot be opened.
    #[error(
        "{id}: the repository has no {}, which its model needs; choose another one, or tell its owner",
        Shown(lacking)
    )]
    HubIncomplete {
        /// The hub id, without revision.
        id: String,
        /// The file that is not there.
        lacking: String,
    },

    /// The repository holds GGUF files, and which of them is meant is not clear.
    #[error(
        "{id}: {}; give {id}:QUANTIZATION or {id}:FILE.gguf, and one of {}",
        match choice {
            Some(choice) => format!("it holds no GGUF file {}", Shown(choice)),
            None => "it holds several GGUF files".to_owned(),
        },
        Listed(files)
    )]
    HubChoice {
        /// The hub id, without revision.
        id: String,
        /// What was asked for, if anything.
        choice: Option<String>,
        /// The files to choose from.
        files: Vec<String>,
    },

    /// The repository holds a LoRA adapter.
    #[error("{id}: it holds a LoRA adapter and no model; pull the model that it changes, {}", Shown(base))]
    HubAdapter {
        /// The hub id, without revision.
        id: String,
        /// The model's name, as the adapter gives it.
        base: String,
    },

    /// The repository is no adapter.
    #[error("{id}: it holds no LoRA adapter ({lacking} is not there); give one in the format of PEFT")]
    NoHubAdapter {
        /// The hub id, without revision.
        id: String,
        /// The file that is not there.
        lacking: String,
    },

    /// The hub is busy for longer than is worth waiting.
    #[error("{url}: the hub answered HTTP {status} and asks to wait {seconds} s; try again then")]
    HubBusy {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The wait it asks for, in seconds.
        seconds: u64,
    },

    /// The access token cannot be sent.
    #[error("the access token for the hub holds characters that no token has; set HF_TOKEN again, or the token file")]
    HubToken,

    /// The hub answered with an HTTP error.
    #[error("{url}: the hub answered HTTP {status}; try again later")]
    HubStatus {
        /// The address asked.
        url: String,
        /// The HTTP status.
        status: u16,
    },

    /// The hub answered with something that is not its protocol.
    #[error("{url}: the hub's answer is not understood ({}); check HF_ENDPOINT", Shown(why))]
    HubAnswer {
        /// The address asked.
        url: String,
        /// What is wrong with the answer.
        why: String,
    },

    /// The hub cannot be reached, or the connection broke more often than is worth retrying.
    #[error(
        "{url}: cannot be fetched ({}); check the network and run the command again, it goes on where it stopped",
        OneLine(cause)
    )]
    HubConnection {
        /// The address asked.
        url: String,
        /// What the network said.
        cause: String,
    },

    /// The hub's certificate was issued by nobody who is trusted.
    #[error(
        "{url}: the certificate is not trusted ({}); if your network signs connections itself, name the file of its \
         authority in SSL_CERT_FILE, or add it to the certificates of the system",
        OneLine(cause)
    )]
    HubCertificate {
        /// The address asked.
        url: String,
        /// What the check said.
        cause: String,
    },

    /// The file that is to say whose certificates are trusted holds none.
    #[error(
        "{}: no certificate can be read from it ({}); name a PEM file in SSL_CERT_FILE or REQUESTS_CA_BUNDLE",
        path.display(), OneLine(cause)
    )]
    Certificates {
        /// The file or folder.
        path: PathBuf,
        /// What went wrong.
        cause: String,
    },

    /// The cache takes no file.
    #[error(
        "{}: the cache cannot be written ({cause}); {}, or name another cache in HF_HUB_CACHE",
        path.display(),
        match cause.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => "free some space",
            _ => "see who may write there",
        }
    )]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },

    /// A folder of the cache cannot be removed.
    #[error("{}: it cannot be removed ({cause}); see who may write the folder, and remove the rest by hand", path.display())]
    Remove {
        /// The folder.
        path: PathBuf,
        /// What the operating system said.
        cause: std::io::Error,
    },

    /// A LoRA adapter that cannot be used.
    #[error("{}: {fault}", path.display())]
    Adapter {
        /// The adapter's folder or file.
        path: PathBuf,
        /// What is wrong with it.
        fault: crate::AdapterFault,
    },

    /// A downloaded file is not what the hub announced.
    #[error(
        "{}: the download is damaged (hash {found}, announced {expected}); it was deleted, run the command again",
        Shown(file)
    )]
    HubHash {
        /// The file's name in the repository.
        file: String,
        /// The sha256 or git hash that the hub announced.
        expected: String,
        /// The hash of what arrived.
        found: String,
    },
}

/// The sentence, which is what a `main` prints that returns the error.
impl std::fmt::Debug for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, formatter)
    }
}

/// What to do about tensors that do not fit.
fn advice_on_tensors(missing: &[String], unexpected: &[String]) -> String {
    if let Some(prefix) = prefix_of(missing, unexpected) {
        return format!("all names begin with {}, which has to be taken away", Shown(prefix));
    }
    if let Some(prefix) = prefix_of(unexpected, missing) {
        return format!("all names lack {} at their beginning", Shown(prefix));
    }
    if unexpected.iter().any(|name| name.contains(".lora_A.")) {
        return "merge the LoRA adapter into the weights before saving them".to_owned();
    }
    "config.json and the .safetensors files must be of the same model".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tensor_error_counts_and_cuts_its_lists() {
        let error = Error::Tensors {
            missing: (0..11).map(|i| format!("m{i}")).collect(),
            unexpected: vec![],
            misshapen: vec!["w: expected [2, 3], found [3, 2]".into()],
        };
        let text = error.to_string();
        assert!(text.contains("11 missing (m0, m1, m2, m3, m4, m5, m6, m7 and 3 more)"), "{text}");
        assert!(text.contains("1 misshapen (w: expected [2, 3], found [3, 2])"), "{text}");
        assert!(!text.contains("unexpected"), "{text}");
    }
}
