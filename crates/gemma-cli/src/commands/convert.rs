//! `gemma convert`: a model in another type or container.

use std::ops::ControlFlow;

use anyhow::{Context, Result, bail};
use gemma_model::{convert_to_folder, convert_to_gguf, random_checkpoint};
use gemma_weights::Dtype;
use serde::Serialize;

use crate::{
    args,
    commands::Ending,
    interrupt, output, progress,
    session::{self, Kind, with_network},
};

/// The JSON object.
#[derive(Serialize)]
struct Converted {
    path: String,
    bytes: u64,
    /// Matrices that are f16 instead, since whole blocks of the format do not fill their rows.
    unquantized: usize,
}

pub(crate) fn run(args: &args::Convert) -> Result<Ending> {
    let (kind, checkpoint, family) = match args.model.strip_prefix("shape:") {
        Some(name) => {
            let (shape, kind) = session::shape(name)?;
            let checkpoint = with_network!(kind, N => random_checkpoint::<N>(shape))?;
            (kind, checkpoint.context("the network has this shape")?, None)
        }
        None => {
            let found = session::find_named(&args.model, args.offline)?;
            (found.kind()?, found.checkpoint().clone(), found.family())
        }
    };
    let family = args.family.or(family);
    let target = &args.target;
    if target.as_os_str() == "-" || target.file_name().is_some_and(|name| name == ".gguf") {
        bail!("{} is no name of a file or folder; give FILE.gguf or a folder", target.display());
    }
    let is_gguf = target.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    if is_gguf && kind != Kind::Gemma {
        bail!("GGUF has no architecture for {}; name a folder to write instead of {}", args.model, target.display());
    }
    let bar = progress::bytes("writing");
    let watch = interrupt::watch();
    let mut on_progress = |done, total| {
        progress::set(&bar, done, total);
        if watch.pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let written = if is_gguf {
        with_network!(kind, N => convert_to_gguf::<N>(&checkpoint, family, args.format, target, args.force, &mut on_progress))
    } else {
        let dtype = match args.format.map(|format| (format, Dtype::of_format(format))) {
            None => Dtype::Bf16,
            Some((_, Some(dtype))) => dtype,
            Some((format, None)) => bail!("a folder holds f32, bf16 or f16, not {format}; name a target FILE.gguf"),
        };
        with_network!(kind, N => convert_to_folder::<N>(&checkpoint, family, dtype, target, args.force, &mut on_progress).map(|()| 0))
    };
    bar.finish_and_clear();
    let unquantized = match written {
        Err(gemma_model::Error::Weights(gemma_weights::Error::Stopped)) => return Ok(Ending::Interrupted),
        Err(gemma_model::Error::Weights(gemma_weights::Error::WouldOverwrite { folder })) => {
            bail!("{} is there already; give --force to replace it, or another place", folder.display())
        }
        Err(gemma_model::Error::Weights(gemma_weights::Error::WrongKind { path, expected: "a folder" })) => {
            bail!("{} is a file; name a folder to write, or a FILE.gguf", path.display())
        }
        other => other?,
    };
    let (bytes, path) = (size_of(target)?, target.display());
    if args.json {
        output::json(&Converted { path: path.to_string(), bytes, unquantized })?;
    } else {
        let remark = match args.format {
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
fn size_of(path: &std::path::Path) -> Result<u64> {
    let found = std::fs::metadata(path)?;
    if found.is_file() {
        return Ok(found.len());
    }
    std::fs::read_dir(path)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}
