//! `gemma inspect`: what a checkpoint is, what it needs, and what it lacks.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use embeddinggemma::{EmbeddingGemma, EmbeddingNetwork};
use gemma::{Decoder, DecoderConfig, Network, Norms};
use gemma_auto::{Architecture, Family, Footprint, LoadOptions};
use gemma_model::config_keys;
use gemma_weights::{
    Checkpoint, HubId, Precision, TensorSpec,
    catalogue::{self, Release, SHAPES, Shape},
};
use gemma3::Gemma3Network;
use paligemma::{SiglipConfig, VisionLanguageModel};
use recurrentgemma::{Griffin, GriffinConfig, Temporal};
use serde::{Serialize, Serializer};

use crate::{interrupt::Ending, output, session};

/// Describe a checkpoint: architecture, sizes, memory per precision, and missing tensors.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  gemma inspect
  gemma inspect google/gemma-2-2b-it
  gemma inspect ./my-model --json

Nothing is downloaded and no weight is read, only the headers. An incomplete folder is reported and ends with exit
code 2.")]
pub(crate) struct Inspect {
    /// A folder, a GGUF file or a hub id; the demo without it.
    #[arg(value_name = "FOLDER|FILE|ID", conflicts_with = "model")]
    pub(crate) path: Option<String>,

    /// The same, as the other commands take it.
    #[arg(short, long, value_name = "FOLDER|FILE|ID")]
    pub(crate) model: Option<String>,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The JSON object.
#[derive(Serialize)]
struct Report {
    model: String,
    /// The folder, or the file.
    folder: Option<String>,
    family: &'static str,
    /// The released shape with these numbers, if there is one.
    shape: Option<&'static str>,
    vocab: usize,
    hidden_size: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
    /// Keys a windowed layer sees, and how many layers are windowed.
    window: Option<usize>,
    windowed_layers: usize,
    /// Null: a text of any length.
    context: Option<usize>,
    /// The image encoder, if there is one.
    image: Option<ImageRow>,
    /// How most of the values are stored, as --precision and --format call it.
    dtype: &'static str,
    /// Values that are stored in each format.
    formats: BTreeMap<&'static str, u64>,
    parameters: u64,
    stored_bytes: u64,
    /// Bytes of weights in memory per `--precision`.
    #[serde(serialize_with = "as_object")]
    memory_bytes: Vec<(&'static str, u64)>,
    files: Vec<FileRow>,
    /// The tokenizer's file; without one the checkpoint can read and write numbers only.
    tokenizer: Option<&'static str>,
    missing: Vec<String>,
    unexpected: Vec<String>,
    misshapen: Vec<String>,
    /// Keys of `config.json` or of a GGUF file that nothing reads.
    unknown_keys: Vec<String>,
}

#[derive(Serialize)]
struct ImageRow {
    side: usize,
    patch: usize,
    tokens: usize,
    hidden_size: usize,
    layers: usize,
    heads: usize,
    intermediate_size: usize,
}

impl ImageRow {
    /// `tokens`: what one image becomes.
    fn of(vision: &SiglipConfig, tokens: usize) -> Self {
        Self {
            side: vision.image_size,
            patch: vision.patch,
            tokens,
            hidden_size: vision.hidden_size,
            layers: vision.layers,
            heads: vision.heads,
            intermediate_size: vision.intermediate_size,
        }
    }
}

#[derive(Serialize)]
struct FileRow {
    name: String,
    bytes: u64,
}

fn as_object<S: Serializer>(memory: &[(&'static str, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(memory.iter().copied())
}

pub(crate) fn run(args: &Inspect) -> Result<Ending> {
    let name = args.path.as_deref().or(args.model.as_deref());
    if let Some(id) = name.and_then(missing_id) {
        return match catalogue::release(&id.repository()) {
            Some(release) => not_downloaded(release, args.json),
            None => bail!("{id} is not downloaded; `gemma pull {id}` fetches it"),
        };
    }
    let options = LoadOptions { offline: true, ..LoadOptions::default() };
    let found = match name {
        Some(name) => gemma_auto::find(name, &options)?,
        None => gemma_auto::Found::demo(Family::Gemma)?,
    };
    let checkpoint = found.checkpoint()?;
    let report = report(name.unwrap_or("the built-in demo"), &checkpoint, found.is_embedding()?);
    let report = report.map_err(|cause| match checkpoint.of_gguf(&output::one_line(&cause)) {
        Some(fault) => anyhow!(fault),
        None => cause,
    })?;
    if args.json {
        output::json(&report)?
    } else {
        output::line(told(&report))?
    }
    let faults = faults(&report);
    if !faults.is_empty() {
        bail!("{} cannot be used as it is: {}", report.model, faults.join("; "));
    }
    Ok(Ending::Done)
}

/// The hub id that a name is, if it names neither a folder nor something in the cache.
fn missing_id(name: &str) -> Option<HubId> {
    let id = session::hub(true).id(name).ok().filter(|_| !Path::new(name).exists())?;
    session::cached(name).folder.is_none().then_some(id)
}

/// What is known of a released checkpoint without its files.
fn not_downloaded(release: &Release, json: bool) -> Result<Ending> {
    let shape = release.shape();
    let footprint = Footprint::of_shape(shape, 0)?;
    let memory: Vec<_> = Precision::ALL.map(|precision| (precision.name(), footprint.weight_bytes(precision))).to_vec();
    if json {
        output::json(&serde_json::json!({
            "model": release.id,
            "folder": null,
            "family": release.family.name(),
            "shape": shape.name,
            "parameters": footprint.parameters(),
            "context": shape.context_length(),
            "memory_bytes": memory.into_iter().collect::<BTreeMap<_, _>>(),
            "missing": ["everything: it is not downloaded"],
        }))?;
    } else {
        output::line(format_args!(
            "{}\n\n{}, {} parameters, released {}, {}\n\n{}\n\nnot downloaded: gemma pull {}",
            release.id,
            release.family.name(),
            output::grouped(footprint.parameters()),
            release.month,
            release.licence().name,
            memory_table(&memory),
            release.id,
        ))?;
    }
    Ok(Ending::Done)
}

/// `embeds`: whether the model makes vectors and no text.
fn report(model: &str, checkpoint: &Checkpoint, embeds: bool) -> Result<Report> {
    checkpoint.require_tensors()?;
    let Some(config_file) = checkpoint.file("config.json")? else {
        bail!("{model} holds no config.json; take it from the model's repository");
    };
    let device = gemma_backend::default_device()?;
    let mut checkpoint = checkpoint.clone();
    let mut image = None;
    let (facts, expected, ignored): (_, _, fn(&str) -> bool) = match Architecture::of_config(&config_file)? {
        Architecture::Gemma if embeds => {
            let config;
            (checkpoint, config) = EmbeddingGemma::describe(&checkpoint)?;
            let same = |shape: &&Shape| {
                let other = DecoderConfig::from_json(shape.config.as_bytes());
                let eos = || config.text.eos.clone();
                other.is_ok_and(|other| DecoderConfig { is_tied: true, eos: eos(), ..other } == config.text)
            };
            let shape = SHAPES.iter().filter(|shape| shape.makes_vectors()).find(same).map(|shape| shape.name);
            let facts = Facts::of_gemma(&config.text, None, shape).context("config.json describes no layer")?;
            let facts = Facts { family: "EmbeddingGemma", context: Some(config.max_tokens), ..facts };
            (facts, EmbeddingNetwork::tensors(&config, &device), Decoder::is_ignored)
        }
        Architecture::Gemma => {
            let config = Decoder::config_of(&checkpoint)?;
            checkpoint = Decoder::prepared(&checkpoint);
            let shape =
                released::<Decoder>(Architecture::Gemma, &config, |released| released.eos.clone_from(&config.eos));
            let facts = Facts::of_gemma(&config, None, shape).context("config.json describes no layer")?;
            (facts, Decoder::tensors(&config, &device), Decoder::is_ignored)
        }
        Architecture::RecurrentGemma => {
            let config = Griffin::config_of(&checkpoint)?;
            let shape = released::<Griffin>(Architecture::RecurrentGemma, &config, |released| {
                released.eos.clone_from(&config.eos)
            });
            (Facts::of_recurrentgemma(&config, shape), Griffin::tensors(&config, &device), Griffin::is_ignored)
        }
        Architecture::Gemma3 => {
            let config = Gemma3Network::config_of(&checkpoint)?;
            checkpoint = Gemma3Network::prepared(&checkpoint);
            image = Some(ImageRow::of(&config.vision, config.image_tokens));
            let shape = released::<Gemma3Network>(Architecture::Gemma3, &config, |released| {
                released.text.eos.clone_from(&config.text.eos);
                released.yes_and_no = config.yes_and_no;
            });
            let facts = Facts::of_gemma(&config.text, Some(&config.vision), shape);
            let expected = Gemma3Network::tensors(&config, &device);
            (facts.context("config.json describes no layer")?, expected, Gemma3Network::is_ignored)
        }
        Architecture::PaliGemma => {
            let config = VisionLanguageModel::config_of(&checkpoint)?;
            image = Some(ImageRow::of(&config.vision, config.image_tokens()));
            let shape = released::<VisionLanguageModel>(Architecture::PaliGemma, &config, |released| {
                released.text.eos.clone_from(&config.text.eos);
            });
            let facts = Facts::of_gemma(&config.text, Some(&config.vision), shape);
            let expected = VisionLanguageModel::tensors_of(&checkpoint, &config, &device);
            (facts.context("config.json describes no layer")?, expected, VisionLanguageModel::is_ignored)
        }
    };
    let (missing, unexpected, misshapen) = match checkpoint.check(&expected, &ignored) {
        Err(gemma_weights::Error::Tensors { missing, unexpected, misshapen }) => (missing, unexpected, misshapen),
        other => other.map(|()| Default::default())?,
    };
    let tokenizers = ["tokenizer.json", "tokenizer.model"];
    let tokenizer = tokenizers.into_iter().find(|file| checkpoint.file(file).is_ok_and(|file| file.is_some()));
    let Facts {
        family,
        shape,
        vocab,
        hidden_size,
        layers,
        attention,
        intermediate_size,
        window,
        windowed_layers,
        context,
    } = facts;
    Ok(Report {
        model: model.to_owned(),
        folder: checkpoint.path().map(|path| path.display().to_string()),
        family,
        shape,
        vocab,
        hidden_size,
        layers,
        heads: attention[0],
        kv_heads: attention[1],
        head_dim: attention[2],
        intermediate_size,
        window,
        windowed_layers,
        context,
        image,
        dtype: checkpoint.format().name(),
        formats: formats(&checkpoint),
        parameters: expected.iter().map(TensorSpec::values).sum(),
        stored_bytes: checkpoint.bytes_len(),
        memory_bytes: Precision::ALL
            .map(|precision| (precision.name(), expected.iter().map(|tensor| tensor.bytes(precision)).sum()))
            .to_vec(),
        files: files(&checkpoint),
        tokenizer,
        missing,
        unexpected,
        misshapen,
        unknown_keys: [checkpoint.unknown_keys(), &config_keys::unknown(&config_file)].concat(),
    })
}

/// What a configuration says of its network.
struct Facts {
    family: &'static str,
    shape: Option<&'static str>,
    vocab: usize,
    hidden_size: usize,
    layers: usize,
    /// Heads, heads of keys and values, dimensions of a head.
    attention: [usize; 3],
    intermediate_size: usize,
    window: Option<usize>,
    windowed_layers: usize,
    context: Option<usize>,
}

impl Facts {
    fn of_gemma(config: &DecoderConfig, vision: Option<&SiglipConfig>, shape: Option<&'static str>) -> Option<Self> {
        let windows = || config.layers.iter().filter_map(|layer| layer.attention.window());
        let first = config.layers.first()?;
        Some(Self {
            family: match (first.norms, first.attention.qk_norm.is_some(), vision.is_some()) {
                (Norms::Before, _, false) => "Gemma 1",
                (Norms::BeforeVault, ..) => "VaultGemma",
                (Norms::BeforeAndAfter, true, _) => "Gemma 3",
                (Norms::BeforeAndAfter, false, false) => "Gemma 2",
                (Norms::Before, _, true) => "PaliGemma",
                (Norms::BeforeAndAfter, false, true) => "PaliGemma 2",
            },
            shape,
            vocab: config.vocab,
            hidden_size: config.hidden_size,
            layers: config.layers.len(),
            attention: [first.attention.heads, first.attention.kv_heads, first.attention.head_dim],
            intermediate_size: first.intermediate_size,
            window: windows().next(),
            windowed_layers: windows().count(),
            context: Some(config.context),
        })
    }

    fn of_recurrentgemma(config: &GriffinConfig, shape: Option<&'static str>) -> Self {
        let attention = || {
            config.blocks.iter().filter_map(|block| match block.temporal {
                Temporal::Attention(spec) => Some(spec),
                Temporal::Recurrent(_) => None,
            })
        };
        Self {
            family: "RecurrentGemma",
            shape,
            vocab: config.vocab,
            hidden_size: config.hidden_size,
            layers: config.blocks.len(),
            attention: attention().next().map_or([0; 3], |spec| [spec.heads, spec.kv_heads, spec.head_dim]),
            intermediate_size: config.blocks.first().map_or(0, |block| block.intermediate_size),
            window: attention().next().map(|_| config.window()),
            windowed_layers: attention().count(),
            context: None,
        }
    }
}

/// How many values are stored in each format.
fn formats(checkpoint: &Checkpoint) -> BTreeMap<&'static str, u64> {
    let mut formats = BTreeMap::new();
    for (_, tensor) in checkpoint.tensors() {
        *formats.entry(tensor.format.name()).or_default() +=
            tensor.shape.iter().map(|size| *size as u64).product::<u64>();
    }
    formats
}

/// Formats with their shares of the values: `q5_0 62.1 %, q8_0 37.8 %, f32 0.1 %`; one alone by its name.
fn shares(formats: &BTreeMap<&'static str, u64>) -> String {
    if let [only] = formats.keys().collect::<Vec<_>>()[..] {
        return (*only).to_owned();
    }
    let all = formats.values().sum::<u64>().max(1) as f64;
    let mut shares: Vec<_> = formats.iter().collect();
    shares.sort_by_key(|(_, values)| std::cmp::Reverse(**values));
    let share = |(name, values): (&&str, &u64)| format!("{name} {:.1} %", 100.0 * *values as f64 / all);
    shares.into_iter().map(share).collect::<Vec<_>>().join(", ")
}

/// The name of the released network with this configuration, once `adapt` has taken over what tells checkpoints of one
/// network apart, such as the tokens that end a text.
fn released<N: Network>(
    architecture: Architecture,
    config: &N::Config,
    adapt: impl Fn(&mut N::Config),
) -> Option<&'static str>
where
    N::Config: PartialEq,
{
    let same = |shape: &&Shape| {
        N::config_from_json(shape.config.as_bytes()).is_ok_and(|mut other| {
            adapt(&mut other);
            other == *config
        })
    };
    // a decoder alone also reads its half of a configuration with images
    SHAPES.iter().filter(|shape| Architecture::of_shape(shape) == architecture).find(same).map(|shape| shape.name)
}

/// The ordinary files of the folder, by name, or the file itself.
fn files(checkpoint: &Checkpoint) -> Vec<FileRow> {
    let file = checkpoint.path().filter(|path| path.is_file());
    if let Some((path, name)) = file.and_then(|path| Some((path, path.file_name()?))) {
        let bytes = fs::metadata(path).map_or(0, |found| found.len());
        return vec![FileRow { name: name.to_string_lossy().into_owned(), bytes }];
    }
    let entries = checkpoint.path().and_then(|folder| fs::read_dir(folder).ok());
    let row = |entry: fs::DirEntry| {
        let bytes = fs::metadata(entry.path()).ok().filter(fs::Metadata::is_file)?.len();
        Some(FileRow { name: entry.file_name().to_string_lossy().into_owned(), bytes })
    };
    let mut files: Vec<FileRow> = entries.into_iter().flatten().flatten().filter_map(row).collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files
}

/// What keeps the checkpoint from being used, a phrase each.
fn faults(report: &Report) -> Vec<String> {
    let lists = [("missing", &report.missing), ("unexpected", &report.unexpected), ("misshapen", &report.misshapen)];
    let told = lists.into_iter().filter(|(_, names)| !names.is_empty());
    told.map(|(what, names)| format!("{} {what} ({})", names.len(), shortened(names))).collect()
}

/// The first few names.
fn shortened(names: &[String]) -> String {
    let shown = names[..names.len().min(4)].join(", ");
    if names.len() > 4 { shown + ", ..." } else { shown }
}

fn told(report: &Report) -> String {
    let mut table = output::Table::new(["", ""]);
    let mut row = |what: &str, value: String| table.row([what.to_owned(), value]);
    // a file is listed with its size
    if !report.folder.as_ref().is_some_and(|path| Path::new(path).is_file()) {
        row("folder", report.folder.clone().unwrap_or_else(|| "part of the program".to_owned()));
    }
    row("family", report.family.to_owned() + &report.shape.map(|name| format!(", {name}")).unwrap_or_default());
    row("parameters", format!("{} as {}", output::grouped(report.parameters), shares(&report.formats)));
    row("vocabulary", output::grouped(report.vocab as u64));
    row(
        "layers",
        format!(
            "{} of hidden_size {}, intermediate_size {}",
            report.layers, report.hidden_size, report.intermediate_size
        ),
    );
    row("heads", format!("{} of {}, {} for keys and values", report.heads, report.head_dim, report.kv_heads));
    let window =
        report.window.map(|window| format!("; sliding window of {window} in {} layers", report.windowed_layers));
    let context = report.context.map_or("any number of".to_owned(), |context| context.to_string());
    row("context", format!("{context} tokens{}", window.unwrap_or_default()));
    if let Some(ImageRow { side, patch, tokens, hidden_size, layers, .. }) = &report.image {
        row("images", format!("{side} x {side} pixels in patches of {patch} x {patch}, {tokens} tokens"));
        row("encoder", format!("{layers} layers of hidden_size {hidden_size}"));
    }
    for file in &report.files {
        row("file", format!("{}, {}", file.name, output::bytes(file.bytes)));
    }
    row("tokenizer", report.tokenizer.unwrap_or("missing: token numbers can be used, texts cannot").to_owned());
    if !report.unknown_keys.is_empty() {
        row("not read", report.unknown_keys.join(", "));
    }
    for fault in faults(report) {
        row("fault", fault);
    }
    let stored = std::iter::once(("as stored", report.stored_bytes));
    let memory: Vec<_> = stored.chain(report.memory_bytes.iter().copied()).collect();
    format!("{}{table}\n\n{}", report.model, memory_table(&memory))
}

fn memory_table(memory: &[(&'static str, u64)]) -> String {
    let mut table = output::Table::new(["--precision", "memory for weights"]);
    for &(name, bytes) in memory {
        table.row([name.to_owned(), output::bytes(bytes)]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_shapes_are_recognised() {
        for shape in SHAPES {
            let Ok(config) = Decoder::config_from_json(shape.config.as_bytes()) else { continue };
            if Architecture::of_shape(shape) != Architecture::Gemma {
                continue;
            }
            let mut other = DecoderConfig { eos: vec![1, 107], ..config };
            let found = |config: &DecoderConfig| {
                released::<Decoder>(Architecture::Gemma, config, |released| released.eos.clone_from(&config.eos))
            };
            assert_eq!(found(&other), Some(shape.name));
            other.hidden_size = 8;
            assert_eq!(found(&other), None);
        }
    }

    #[test]
    fn formats_have_shares() {
        assert_eq!(shares(&BTreeMap::from([("bf16", 7)])), "bf16");
        assert_eq!(
            shares(&BTreeMap::from([("f32", 1), ("q4_k", 900), ("q6_k", 99)])),
            "q4_k 90.0 %, q6_k 9.9 %, f32 0.1 %"
        );
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
        assert_eq!(shortened(&names), "a, b, c, d, ...");
        assert_eq!(shortened(&names[..2]), "a, b");
    }
}
