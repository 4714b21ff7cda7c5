//! The way to the library: which device, which model, which tokenizer the flags mean.

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use burn::tensor::Tensor;
use codegemma::CodeGemma;
use gemma::{Device, RandomWeights};
use gemma_generate::CausalModel;
use gemma_model::{LoadOptions, Model, Network, OnLoad, fields::Architecture};
use gemma_tokenizer::{Family, TokenId, Tokenizer};
use gemma_weights::{
    Checkpoint, HubId, HubOptions, Precision,
    catalogue::{self, SHAPES, Shape},
};
use paligemma::{PaliGemma, PaliGemmaConfig};
use serde::Serialize;

use crate::{
    args::{self, Compute},
    progress,
};

/// The networks that the program runs. A verb is written once, for any [`Network`]; [`with_network!`] picks the one that
/// a checkpoint describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Gemma 1, 1.1, 2 and 3, VaultGemma and CodeGemma.
    Gemma,
    /// RecurrentGemma.
    RecurrentGemma,
    /// PaliGemma and PaliGemma 2.
    PaliGemma,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Gemma, Self::RecurrentGemma, Self::PaliGemma];

    /// The network that a `config.json` describes. One that no network knows is left for Gemma's to refuse.
    pub(crate) fn of(config: &[u8]) -> Result<Self, gemma_model::Error> {
        let architecture = Architecture::from_json(config)?;
        Ok(Self::ALL.into_iter().find(|kind| kind.is_called(architecture.name())).unwrap_or(Self::Gemma))
    }

    /// Whether `config.json` calls this network by such a name.
    fn is_called(self, name: Option<&str>) -> bool {
        match self {
            Self::Gemma => matches!(
                name,
                Some(
                    "gemma"
                        | "GemmaForCausalLM"
                        | "gemma2"
                        | "Gemma2ForCausalLM"
                        | "gemma3_text"
                        | "gemma3"
                        | "Gemma3ForCausalLM"
                        | "vaultgemma"
                        | "VaultGemmaForCausalLM"
                )
            ),
            Self::PaliGemma => matches!(name, Some("paligemma" | "PaliGemmaForConditionalGeneration")),
            Self::RecurrentGemma => matches!(name, Some("recurrent_gemma" | "RecurrentGemmaForCausalLM")),
        }
    }

    /// The network that has a released shape.
    pub(crate) fn of_shape(shape: &Shape) -> Option<Self> {
        if shape.vision.is_some() {
            // its decoder alone would be Gemma's
            return PaliGemmaConfig::from_shape(shape).map(|_| Self::PaliGemma).or(Some(Self::Gemma));
        }
        Self::ALL.into_iter().find(|kind| with_network!(*kind, N => N::config_from_shape(shape).is_some()))
    }
}

/// Evaluates an expression with `N` standing for the network of a [`Kind`].
macro_rules! with_network {
    ($kind:expr, $N:ident => $body:expr) => {
        match $kind {
            $crate::session::Kind::Gemma => {
                type $N = gemma::Decoder;
                $body
            }
            $crate::session::Kind::PaliGemma => {
                type $N = paligemma::VisionLanguageModel;
                $body
            }
            $crate::session::Kind::RecurrentGemma => {
                type $N = recurrentgemma::Griffin;
                $body
            }
        }
    };
}
pub(crate) use with_network;

/// The hub's settings: the environment's, and what was typed.
pub(crate) fn hub(offline: bool) -> HubOptions {
    let options = HubOptions::from_env();
    HubOptions { offline: offline || options.offline, ..options }
}

/// Sets how many threads compute on the CPU, all cores without a number; to be called once. Where the system
/// refuses to start so many, a number that was asked for is an error, and otherwise fewer have to do.
pub(crate) fn set_threads(threads: Option<NonZeroUsize>) -> Result<()> {
    let builder = |count| rayon::ThreadPoolBuilder::new().num_threads(count);
    // a global pool that could not be started cannot be tried again, so another one is tried first
    let starts = |count| builder(count).build().is_ok();
    let wanted = threads.map_or(0, NonZeroUsize::get);
    if starts(wanted) {
        return builder(wanted).build_global().context("cannot set the number of threads");
    }
    if let Some(threads) = threads {
        bail!("the system refuses to start {threads} threads; give a smaller --threads");
    }
    let mut count = std::thread::available_parallelism().map_or(1, NonZeroUsize::get) / 2;
    while count > 1 && !starts(count) {
        count /= 2;
    }
    let pool = if count > 1 { builder(count) } else { builder(1).use_current_thread() };
    pool.build_global().context("cannot start a thread")
}

/// The device that computes.
pub(crate) fn device(args: &Compute) -> Result<Device> {
    Ok(match args.backend {
        Some(backend) => backend.device()?,
        None => gemma_backend::default_device()?,
    })
}

/// Something that was loaded, and how long that took.
pub(crate) struct Opened<T> {
    pub(crate) model: T,
    pub(crate) seconds: f64,
}

/// A checkpoint that was found, and what to open it with.
pub(crate) struct Found {
    checkpoint: Checkpoint,
    compute: Compute,
    /// Whose control tokens the tokenizer has; `None`: those of the network's own family.
    family: Option<Family>,
    /// See [`LoadOptions::inclusive_window`].
    inclusive_window: bool,
    begin: Instant,
}

/// Finds the model that the flags name, downloading it where that is needed and allowed, or the demo.
pub(crate) fn find(args: &args::Model) -> Result<Found> {
    let found = locate(args.model.as_deref(), args.offline, &args.compute)?;
    Ok(Found { inclusive_window: args.inclusive_window, ..found })
}

/// Opens the model that looks at images: the one that the flags name, or the demo of PaliGemma.
pub(crate) fn open_images(args: &args::Model) -> Result<Opened<PaliGemma>> {
    found_images(args)?.open_images()
}

/// [`find`], for verbs and flags that need images: without a name, the demo of PaliGemma.
pub(crate) fn found_images(args: &args::Model) -> Result<Found> {
    locate_or(paligemma::demo_checkpoint, args.model.as_deref(), args.offline, &args.compute)
}

/// [`find`], for a name and flags that stand apart.
pub(crate) fn locate(model: Option<&str>, offline: bool, compute: &Compute) -> Result<Found> {
    locate_or(gemma::demo_checkpoint, model, offline, compute)
}

/// Finds the model for code that the flags name, or the demo for code.
pub(crate) fn find_code(args: &args::CodeModel) -> Result<Found> {
    let model = args.model.as_deref();
    let found = locate_or(codegemma::demo_checkpoint, model, args.offline, &args.compute)?;
    let named = model.map(|model| family_of(model, found.checkpoint.path().unwrap_or(Path::new(""))));
    Ok(Found { family: args.family.or(named), ..found })
}

/// Finds a model by its name alone, and whose control tokens it has.
pub(crate) fn find_named(model: &str, offline: bool) -> Result<Found> {
    let found = locate(Some(model), offline, &Compute::default())?;
    let family = match demo_called(model)? {
        Some((family, _)) => family,
        None => family_of(model, found.checkpoint.path().unwrap_or(Path::new(""))),
    };
    Ok(Found { family: Some(family), ..found })
}

/// What opens a model that is built in.
pub(crate) type Demo = fn() -> Result<Checkpoint, gemma_model::Error>;

/// The models that are built in: `demo:NAME`, whose control tokens its tokenizer has, and what opens it. `demo` alone is
/// the first.
const DEMOS: [(&str, Family, Demo); 4] = [
    ("gemma", Family::Gemma, gemma::demo_checkpoint),
    ("codegemma", Family::CodeGemma, codegemma::demo_checkpoint),
    ("recurrentgemma", Family::RecurrentGemma, recurrentgemma::demo_checkpoint),
    ("paligemma", Family::PaliGemma, paligemma::demo_checkpoint),
];

/// The built-in model that a name stands for, `demo` or `demo:FAMILY`; `None` for all other names, and where a folder
/// is called so.
pub(crate) fn demo_called(name: &str) -> Result<Option<(Family, Demo)>> {
    let family = match name.strip_prefix("demo") {
        Some("") => DEMOS[0].0,
        Some(rest) if rest.starts_with(':') => &rest[1..],
        _ => return Ok(None),
    };
    if Path::new(name).is_dir() {
        return Ok(None);
    }
    match DEMOS.iter().find(|(name, ..)| *name == family) {
        Some((_, family, demo)) => Ok(Some((*family, *demo))),
        None => {
            let names: Vec<String> = DEMOS.iter().map(|(name, ..)| format!("demo:{name}")).collect();
            bail!("there is no built-in model {name}; use {}", names.join(", "))
        }
    }
}

/// [`locate`], with the demo that is taken when no name is given.
fn locate_or(demo: Demo, model: Option<&str>, offline: bool, compute: &Compute) -> Result<Found> {
    // A backend that was asked for and is not there should be known before a download, while looking for the best
    // one takes time that a mistyped name need not cost.
    compute.backend.map(|backend| backend.device()).transpose()?;
    let built_in = match model {
        Some(name) => demo_called(name)?.map(|(_, demo)| demo),
        None => Some(demo),
    };
    let folder = match (model, built_in) {
        (Some(model), None) => Some(folder(model, offline)?),
        _ => None,
    };
    let begin = Instant::now();
    let checkpoint = match (&folder, built_in) {
        (Some(folder), _) => Checkpoint::open(folder)?,
        (None, built_in) => built_in.unwrap_or(demo)()?,
    };
    Ok(Found { checkpoint, compute: *compute, family: None, inclusive_window: false, begin })
}

impl Found {
    /// The checkpoint itself.
    pub(crate) fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Whose control tokens the tokenizer has, where that is known beforehand.
    pub(crate) fn family(&self) -> Option<Family> {
        self.family
    }

    /// Which network it is.
    pub(crate) fn kind(&self) -> Result<Kind> {
        let config = self.checkpoint.file("config.json")?;
        Ok(config.map(|config| Kind::of(&config)).transpose()?.unwrap_or(Kind::Gemma))
    }

    /// Opens the model.
    pub(crate) fn open<N: Network>(self) -> Result<Opened<Model<N>>> {
        self.build(Model::<N>::from_checkpoint_with)
    }

    /// Opens the model that looks at images.
    pub(crate) fn open_images(self) -> Result<Opened<PaliGemma>> {
        self.build(PaliGemma::from_checkpoint_with)
    }

    /// Opens only the network, which needs no tokenizer.
    pub(crate) fn open_network<N: Network>(self) -> Result<Opened<N>> {
        self.build(N::open_with)
    }

    /// Opens a model that fills gaps; `on_load` hears of the progress too.
    pub(crate) fn open_code(self, on_load: OnLoad<'_>) -> Result<Opened<CodeGemma>> {
        let Opened { model, seconds } = self.build_telling(Model::<gemma::Decoder>::from_checkpoint_with, on_load)?;
        Ok(Opened { model: CodeGemma::new(model)?, seconds })
    }

    fn build<T, E>(self, build: Build<T, E>) -> Result<Opened<T>>
    where
        anyhow::Error: From<E>,
    {
        self.build_telling(build, &mut |_, _| {})
    }

    fn build_telling<T, E>(self, build: Build<T, E>, on_load: OnLoad<'_>) -> Result<Opened<T>>
    where
        anyhow::Error: From<E>,
    {
        let device = device(&self.compute)?;
        let bar = progress::bytes("loading");
        let options = LoadOptions {
            precision: self.compute.precision,
            activations: self.compute.activations(),
            cache: self.compute.cache_precision,
            family: self.family,
            inclusive_window: self.inclusive_window,
            ..LoadOptions::default()
        };
        let model = build(&self.checkpoint, &options, &device, &mut |done, total| {
            progress::set(&bar, done, total);
            on_load(done, total);
        });
        bar.finish_and_clear();
        let model = model.map_err(anyhow::Error::from);
        // what is wrong with a folder's file is said with its path; what a GGUF file says has only such a file's name
        let model = match self.checkpoint.path().filter(|path| path.is_file()) {
            Some(path) => model.with_context(|| format!("{}, read as the files of a folder", path.display()))?,
            None => model?,
        };
        Ok(Opened { model, seconds: self.begin.elapsed().as_secs_f64() })
    }
}

/// What makes a model of a checkpoint.
type Build<T, E> = fn(&Checkpoint, &LoadOptions, &Device, OnLoad<'_>) -> Result<T, E>;

/// The released shape of a name, and the network that has it.
pub(crate) fn shape(name: &str) -> Result<(&'static Shape, Kind)> {
    let known = |shape: &&Shape| Kind::of_shape(shape).is_some();
    match catalogue::shape(name).filter(known).and_then(|shape| Some((shape, Kind::of_shape(shape)?))) {
        Some(found) => Ok(found),
        None => {
            let names: Vec<&str> = SHAPES.iter().filter(known).map(|shape| shape.name).collect();
            bail!("there is no shape {name}; use one of {}", names.join(", "))
        }
    }
}

/// Makes a network of a released shape with random weights.
pub(crate) fn random<N: Network>(shape: &Shape, compute: &Compute) -> Result<Opened<N>> {
    let config = N::config_from_shape(shape).context("the network has this shape")?;
    let precision = compute.precision.unwrap_or(Precision::Bf16);
    let device = device(compute)?;
    let start = Instant::now();
    let weights = RandomWeights::Packed(precision.format());
    let model = N::random_with(&config, weights, compute.compute_precision(), 0, &device);
    Ok(Opened { model, seconds: start.elapsed().as_secs_f64() })
}

/// The folder that a name stands for, downloaded where that is needed and allowed.
pub(crate) fn folder(model: &str, offline: bool) -> Result<PathBuf> {
    let bar = progress::bytes("pulling");
    let folder = gemma_weights::resolve_with(model, &hub(offline), &mut |download| progress::show(&bar, download));
    bar.finish_and_clear();
    Ok(folder?)
}

/// The tokenizer of a model: its files are enough, no weights are needed.
///
/// `model` may also be a tokenizer file itself.
pub(crate) fn tokenizer(model: Option<&str>, family: Option<Family>, offline: bool) -> Result<Tokenizer> {
    let Some(model) = model else {
        return Ok(gemma::demo_tokenizer()?);
    };
    if let Some((own, demo)) = demo_called(model)? {
        let file = demo()?.file("tokenizer.json")?.context("every built-in model has a tokenizer")?;
        return Ok(Tokenizer::from_json(&file, family.unwrap_or(own))?);
    }
    let named = Path::new(model);
    if gemma_weights::is_gguf(named) {
        let family = family.unwrap_or_else(|| family_of(model, Path::new("")));
        let tokenizer = gemma_model::read_tokenizer(&Checkpoint::open(named)?, family)?;
        return tokenizer.with_context(|| format!("{model} holds no tokenizer"));
    }
    let (folder, files) = match named.file_name().and_then(|name| name.to_str()) {
        Some(name) if named.is_file() => (named.with_file_name(""), vec![name.to_owned()]),
        _ => (self::folder(model, offline)?, ["tokenizer.json", "tokenizer.model"].map(str::to_owned).to_vec()),
    };
    let family = family.unwrap_or_else(|| family_of(model, &folder));
    let Some(file) = files.iter().map(|name| folder.join(name)).find(|file| file.is_file()) else {
        bail!("{model} holds neither tokenizer.json nor tokenizer.model; take them from the model's repository");
    };
    let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let tokenizer = match file.extension().and_then(|ending| ending.to_str()) {
        Some("json") => Tokenizer::from_json(&bytes, family),
        Some("model") => Tokenizer::from_sentencepiece(&bytes, family),
        _ => bail!(
            "{} is not a tokenizer; name a tokenizer.json, a tokenizer.model, their folder or a GGUF file",
            file.display()
        ),
    };
    tokenizer.with_context(|| format!("cannot use {}", file.display()))
}

/// The family whose control tokens a tokenizer has: as `config.json` beside it says, or as it is called.
///
/// It matters only for files that leave the families' own names out, so a guess does no harm.
fn family_of(model: &str, folder: &Path) -> Family {
    let config = fs::read(folder.join("config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
    match config["model_type"].as_str() {
        Some("paligemma") => Family::PaliGemma,
        Some("recurrent_gemma") => Family::RecurrentGemma,
        _ if model.to_lowercase().contains("codegemma") => Family::CodeGemma,
        _ if model.to_lowercase().contains("paligemma") => Family::PaliGemma,
        _ => Family::Gemma,
    }
}

/// The tokenizer of a model for code, and its `config.json` if there is one: enough for a prompt.
pub(crate) fn code_tokenizer(args: &args::CodeModel) -> Result<(Tokenizer, Option<Vec<u8>>)> {
    let Some(model) = args.model.as_deref() else {
        return Ok((codegemma::demo_tokenizer()?, codegemma::demo_checkpoint()?.file("config.json")?));
    };
    let tokenizer = tokenizer(Some(model), args.family, args.offline)?;
    if let Some((_, demo)) = demo_called(model)? {
        return Ok((tokenizer, demo()?.file("config.json")?));
    }
    let folder = if Path::new(model).is_file() { PathBuf::new() } else { folder(model, args.offline)? };
    Ok((tokenizer, fs::read(folder.join("config.json")).ok()))
}

/// Refuses a text that is too long for the context whatever tokens it is cut into, before much memory is spent on that.
pub(crate) fn check_text(decoder: &impl CausalModel, tokenizer: &Tokenizer, text: &str) -> Result<()> {
    const SMALL: usize = 1 << 20;
    let Some(limit) = decoder.context_length().filter(|_| text.len() > SMALL) else { return Ok(()) };
    let pieces = (0..tokenizer.vocab_len()).filter_map(|id| tokenizer.piece(id as TokenId));
    let longest = pieces.map(str::len).max().unwrap_or(1);
    if text.len() / longest > limit {
        bail!("the prompt has {} bytes, more than {limit} tokens, the context, can say; shorten it", text.len());
    }
    Ok(())
}

/// Refuses tokens that the model cannot read.
///
/// # Errors
/// No tokens, a token beyond the vocabulary, or more tokens than the context holds.
pub(crate) fn check_tokens(decoder: &impl CausalModel, tokens: &[TokenId]) -> Result<(), gemma_generate::Error> {
    use gemma_generate::Error;
    let vocab = decoder.vocab();
    if tokens.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    if let Some(place) = tokens.iter().position(|token| *token as usize >= vocab) {
        return Err(Error::TokenOutOfRange { token: tokens[place], place, vocab });
    }
    match decoder.context_length() {
        Some(limit) if tokens.len() > limit => Err(Error::PromptTooLong { tokens: tokens.len(), limit }),
        _ => Ok(()),
    }
}

/// The numbers of a tensor, row by row.
pub(crate) fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().expect("converted to f32")
}

/// How much of a checkpoint is on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cached {
    /// Whether it can be opened without a download.
    pub(crate) complete: bool,
    /// The folder, if it can.
    pub(crate) folder: Option<PathBuf>,
}

impl Cached {
    /// As the table shows it.
    pub(crate) fn word(&self) -> &'static str {
        if self.complete { "yes" } else { "" }
    }
}

/// Looks for a released checkpoint in the cache.
pub(crate) fn cached(id: &str) -> Cached {
    let folder = HubId::parse(id).ok().and_then(|id| gemma_weights::cached(&id, &hub(true)));
    Cached { complete: folder.is_some(), folder }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_model_has_a_name() {
        for (name, family, _) in DEMOS {
            let (own, demo) = demo_called(&format!("demo:{name}")).expect("a name").expect("a built-in model");
            assert_eq!(own, family);
            let checkpoint = demo().expect("a sound checkpoint");
            assert!(checkpoint.file("tokenizer.json").expect("readable").is_some(), "{name}");
        }
        assert_eq!(demo_called("demo").expect("a name").map(|(family, _)| family), Some(Family::Gemma));
        for other in ["./demo", "demos", "google/gemma-2b", "demo/x"] {
            assert!(demo_called(other).expect("some other model").is_none(), "{other}");
        }
        let error = demo_called("demo:llama").map(|_| ()).expect_err("no such model").to_string();
        assert!(error.contains("demo:llama") && error.contains("demo:recurrentgemma"), "{error}");
    }

    #[test]
    fn the_family_is_read_or_guessed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(family_of("google/gemma-2b", folder.path()), Family::Gemma);
        assert_eq!(family_of("google/codegemma-2b", folder.path()), Family::CodeGemma);
        fs::write(folder.path().join("config.json"), r#"{"model_type": "paligemma"}"#).expect("written");
        assert_eq!(family_of("x", folder.path()), Family::PaliGemma);
    }
}
