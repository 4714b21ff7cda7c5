//! `gemma convert`: a model in another type or container.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use clap::Args;
use gemma_auto::{Error as Fault, Family, Found, LoadOptions};
use gemma_weights::{Dtype, Format};
use serde::Serialize;

use crate::{
    args::{Compute, written_format},
    interrupt::{self, Ending},
    output, progress, session,
};

/// Write a model as a GGUF file, or as a folder in Hugging Face format.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma convert google/gemma-2-2b-it gemma.gguf --format q8_0     for llama.cpp, or for less disk
  gemma convert gemma.gguf gemma-2-2b                             a folder of safetensors
  gemma convert demo:gemma demo.gguf
  gemma convert shape:gemma-2b random.gguf                        random weights of a released shape, to measure with

The name of the target says what is written: FILE.gguf, or else a folder. Tensors go from file to file one at a time, so
the model need not fit into memory. A folder holds f32, bf16 or f16 (default: bf16); a GGUF file any of f32, bf16, f16,
q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k and q6_k (default: as stored), with f16 where rows are no whole blocks. Gemma 1, 2
and 3 (text) and CodeGemma can be written as GGUF files; Gemma 3 with images, RecurrentGemma and PaliGemma as folders;
EmbeddingGemma not at all: `gemma embed` opens its folders and GGUF files as they are.")]
pub(crate) struct Convert {
    /// The model: a folder, a GGUF file, a hub id, demo:FAMILY, or shape:NAME for random weights.
    pub(crate) model: String,

    /// Where to write: FILE.gguf, or a folder.
    pub(crate) target: PathBuf,

    /// How values are stored; the formats are listed below.
    #[arg(long, value_name = "FORMAT", value_parser = written_format(), hide_possible_values = true)]
    pub(crate) format: Option<Format>,

    /// Whose control tokens the tokenizer has, where its file leaves their names out.
    #[arg(long, value_name = "FAMILY")]
    pub(crate) family: Option<Family>,

    /// Replace the file, or the model folder, that is there.
    ///
    /// A folder that holds anything but files of a model is never replaced.
    #[arg(long)]
    pub(crate) force: bool,

    /// Do not go to the network.
    #[arg(long)]
    pub(crate) offline: bool,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The JSON object.
#[derive(Serialize)]
struct Converted {
    path: String,
    bytes: u64,
    /// Matrices that are f16 instead, since whole blocks of the format do not fill their rows.
    unquantized: usize,
}

pub(crate) fn run(args: &Convert) -> Result<Ending> {
    let options = LoadOptions { offline: args.offline, family: args.family, ..LoadOptions::default() };
    let found = session::locate(Some(&args.model), Family::Gemma, options, &Compute::default())?;
    write(found.inner(), &args.target, args.format, args.force, args.json)
}

/// Whether a target is a GGUF file, and not a folder.
pub(crate) fn is_gguf(target: &Path) -> bool {
    target.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Writes a model as a folder or a GGUF file, as the name of the target says.
pub(crate) fn write(found: &Found, target: &Path, format: Option<Format>, force: bool, json: bool) -> Result<Ending> {
    if target.as_os_str() == "-" || target.file_name().is_some_and(|name| name == ".gguf") {
        bail!("{} is no name of a file or folder; give FILE.gguf or a folder", target.display());
    }
    if found.is_embedding()? {
        bail!(
            "an EmbeddingGemma is not converted; `gemma embed` opens its folders and GGUF files as they are, and holds them \
             in other formats with --precision"
        );
    }
    let is_gguf = is_gguf(target);
    if is_gguf && !found.architecture()?.in_gguf() {
        bail!("GGUF has no architecture for {}; name a folder to write instead of {}", found.name(), target.display());
    }
    let bar = progress::bytes("writing");
    let watch = interrupt::watch();
    let mut on_progress = |done, total| {
        progress::set(&bar, done, total);
        if watch.pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let written = if is_gguf {
        found.convert_to_gguf(format, target, force, &mut on_progress)
    } else {
        let dtype = match format.map(|format| (format, Dtype::of_format(format))) {
            None => Dtype::Bf16,
            Some((_, Some(dtype))) => dtype,
            Some((format, None)) => bail!("a folder holds f32, bf16 or f16, not {format}; name a target FILE.gguf"),
        };
        found.convert_to_folder(dtype, target, force, &mut on_progress).map(|()| 0)
    };
    bar.finish_and_clear();
    finish(written, target, format, json)
}

/// Says how the writing of a target went; `written` has the number of matrices that are not in the `format` that was wished.
pub(crate) fn finish(
    written: Result<usize, Fault>,
    target: &Path,
    format: Option<Format>,
    json: bool,
) -> Result<Ending> {
    let unquantized = match written {
        Err(Fault::Model(gemma_model::Error::Weights(gemma_weights::Error::Stopped))) => {
            return Ok(Ending::Interrupted);
        }
        Err(Fault::Model(gemma_model::Error::Weights(gemma_weights::Error::WouldOverwrite { folder }))) => {
            bail!("{} is there already; give --force to replace it, or another place", folder.display())
        }
        Err(Fault::Model(gemma_model::Error::Weights(gemma_weights::Error::WrongKind {
            path,
            expected: "a folder",
        }))) => {
            bail!("{} is a file; name a folder to write, or a FILE.gguf", path.display())
        }
        other => other?,
    };
    let (bytes, path) = (size_of(target)?, target.display());
    if json {
        output::json(&Converted { path: path.to_string(), bytes, unquantized })?;
    } else {
        let remark = match format {
            Some(format) if unquantized > 0 => {
                format!(" ({unquantized} matrices as f16: whole blocks of {format} do not fill their rows)")
            }
            _ => String::new(),
        };
        output::line(format_args!("{path}: {}{remark}", output::bytes(bytes)))?;
    }
    Ok(Ending::Done)
}

/// Bytes of a file, or of the files of a folder.
fn size_of(path: &Path) -> Result<u64> {
    let found = std::fs::metadata(path)?;
    if found.is_file() {
        return Ok(found.len());
    }
    std::fs::read_dir(path)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}
