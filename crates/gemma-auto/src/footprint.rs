//! What a network takes in memory, counted on the parameters that loading it asks for.

use gemma_backend::{Backend, Device};
use gemma_generate::{CausalModel, EngineOptions};
use gemma_model::{LoadOptions, Network};
use gemma_nn::{ParameterList, WithPrecision};
use gemma_tokenizer::Tokenizer;
use gemma_weights::catalogue::{self, RELEASES, Shape};
use gemma_weights::{Dtype, Precision, TensorSpec};

use crate::{Architecture, Error, FamilyModel, Found};

/// The parameters of a released network and what its KV cache or recurrent state takes.
///
/// ```
/// let shape = gemma_weights::catalogue::shape("gemma-2b").expect("in the catalogue");
/// assert_eq!(gemma_auto::Footprint::of_shape(shape, 0)?.parameters(), 2_506_172_416);
/// # Ok::<(), gemma_auto::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Footprint {
    tensors: Vec<TensorSpec>,
    /// Bytes of the cache of one sequence of the tokens that were asked about, f32.
    pub cache_bytes: u64,
}

impl Footprint {
    /// Of a released network, with one sequence of `tokens` tokens. No parameter is made.
    ///
    /// # Errors
    /// When no backend opens.
    pub fn of_shape(shape: &Shape, tokens: usize) -> Result<Self, Error> {
        let device = any_device()?;
        let mut footprint = with_family!(Architecture::of_shape(shape), F => {
            type N = <F as FamilyModel>::Network;
            let config = N::config_from_json(shape.config.as_bytes()).expect("every released configuration is read (tested)");
            let mut parameters = ParameterList::new(&device);
            let cache_bytes = N::load(&mut parameters, &config, Dtype::F32).cache_bytes(tokens) as u64;
            Self { tensors: TensorSpec::list(parameters), cache_bytes }
        });
        if shape.makes_vectors() {
            // its two dense layers lie in folders of their own, and it keeps nothing of a text
            let hidden_size = footprint.tensors.last().map_or(0, |norm| norm.shape[0]);
            for (name, shape) in
                [("2_Dense", [4 * hidden_size, hidden_size]), ("3_Dense", [hidden_size, 4 * hidden_size])]
            {
                footprint.tensors.push(TensorSpec::new(format!("{name}.linear.weight"), shape));
            }
            footprint.cache_bytes = 0;
        }
        Ok(footprint)
    }

    /// Values in a checkpoint; a tied output head counts once.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(TensorSpec::values).sum()
    }

    /// Bytes of the weights in memory where matrices are held in `precision`; see [`TensorSpec::bytes`].
    pub fn weight_bytes(&self, precision: Precision) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes(precision)).sum()
    }
}

/// What a model takes in memory while it is served, known before its weights are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServingMemory {
    /// Bytes of the weights, those of adapters included.
    pub weights: u64,
    /// The most bytes of the engine's caches.
    pub cache: u64,
    /// Bytes of the tokenizer.
    pub tokenizer: u64,
}

impl ServingMemory {
    /// All of it.
    pub fn bytes(&self) -> u64 {
        self.weights.saturating_add(self.cache).saturating_add(self.tokenizer)
    }
}

impl Found {
    /// What the model takes in memory when it is opened with `options` and served by an engine whose requests have no more
    /// than `context` tokens.
    ///
    /// # Errors
    /// When no backend opens, or the configuration is not sound.
    pub fn serving_memory(
        &self,
        options: &LoadOptions,
        engine: &EngineOptions,
        context: Option<usize>,
    ) -> Result<ServingMemory, Error> {
        let (cache, vocab) = match self.embedding_config()? {
            // what makes vectors keeps nothing of a text
            Some(config) => (0, config.vocab),
            None => self.cache_and_vocabulary(options, engine, context)?,
        };
        let adapters = options.adapters.iter().chain(&options.request_adapters);
        Ok(ServingMemory {
            weights: self.weight_bytes(options.precision)?
                + adapters.map(|adapter| 4 * adapter.parameters()).sum::<u64>(),
            cache: cache as u64,
            tokenizer: Tokenizer::memory_bytes(vocab) as u64,
        })
    }

    /// The most bytes that the KV caches of a model that generates take, and the size of its vocabulary.
    fn cache_and_vocabulary(
        &self,
        options: &LoadOptions,
        engine: &EngineOptions,
        context: Option<usize>,
    ) -> Result<(usize, usize), Error> {
        let device = any_device()?;
        Ok(with_family!(self.architecture()?, F => {
            type N = <F as FamilyModel>::Network;
            let config = N::config_from_json(&self.config_json()?)?;
            let mut parameters = ParameterList::new(&device);
            let mut source = WithPrecision::new(&mut parameters, options.compute_precision());
            let network = N::load(&mut source, &N::configure(config, options)?, Dtype::F32);
            (engine.most_cache_bytes(&network, context), network.vocab())
        }))
    }
}

/// A device on which nothing is computed.
fn any_device() -> Result<Device, Error> {
    Ok(match Backend::compiled().first() {
        Some(backend) => backend.device()?,
        None => gemma_backend::default_device()?,
    })
}

/// The table of checkpoints as `docs/models.md` shows it; a test holds the page to it.
///
/// # Errors
/// When no backend opens.
pub fn models_table() -> Result<String, Error> {
    use Precision::{Bf16, Q4_0, Q8_0};
    let mut table = String::from(
        "| checkpoint | released | parameters | context | weights in bf16, q8_0, q4_0 | Arena, August 2024 |\n\
         |---|---|---|---|---|---|\n",
    );
    for release in RELEASES {
        let shape = release.shape();
        let footprint = Footprint::of_shape(shape, 0)?;
        let gigabytes =
            [Bf16, Q8_0, Q4_0].map(|precision| format!("{:.1}", footprint.weight_bytes(precision) as f64 / 1e9));
        let arena = release.arena.map(|arena| {
            let catalogue::Arena { score, plus_minus, votes, rank } = arena;
            format!("{score} (±{plus_minus}, {votes} votes, rank {rank})")
        });
        table += &format!(
            "| `{}` | {} | {:.2} B | {} | {} GB | {} |\n",
            release.id,
            release.month,
            footprint.parameters() as f64 / 1e9,
            shape.context_length(),
            gigabytes.join(", "),
            arena.unwrap_or_default(),
        );
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gemma_weights::catalogue::shape;

    fn of(name: &str, tokens: usize) -> Footprint {
        Footprint::of_shape(shape(name).expect(name), tokens).expect("a backend")
    }

    /// Counts read off the tensors of models built from each release's `config.json`.
    #[test]
    fn parameters_are_those_of_the_released_files() {
        for (name, parameters) in [
            ("gemma-2b", 2_506_172_416),
            ("gemma-7b", 8_537_680_896),
            ("gemma-2-2b", 2_614_341_888),
            ("gemma-2-9b", 9_241_705_984),
            ("gemma-2-27b", 27_227_128_320),
            ("gemma-3-270m", 268_098_176),
            ("gemma-3-1b", 999_885_952),
            ("gemma-3-4b", 4_300_079_472),
            ("gemma-3-12b", 12_187_325_040),
            ("gemma-3-27b", 27_432_406_640),
            ("vaultgemma-1b", 1_038_741_120),
            ("recurrentgemma-2b", 2_682_862_080),
            ("recurrentgemma-9b", 8_579_977_216),
            ("paligemma-3b-224", 2_923_466_480),
            ("paligemma-3b-448", 2_924_351_216),
            ("paligemma-3b-896", 2_927_890_160),
        ] {
            assert_eq!(of(name, 0).parameters(), parameters, "{name}");
        }
    }

    /// Without biases, every parameter but the norms is in a matrix: 2 and 4 bytes each, or blocks of 32.
    #[test]
    fn bytes_follow_the_precision() {
        let footprint = of("gemma-2b", 0);
        let norms = (2 * 18 + 1) * 2_048;
        let matrices = footprint.parameters() - norms;
        assert_eq!(footprint.weight_bytes(Precision::F32), 4 * footprint.parameters());
        assert_eq!(footprint.weight_bytes(Precision::Bf16), 2 * matrices + 4 * norms);
        assert_eq!(footprint.weight_bytes(Precision::F16), footprint.weight_bytes(Precision::Bf16));
        assert_eq!(footprint.weight_bytes(Precision::Q8_0), matrices / 32 * 34 + 4 * norms);
        assert_eq!(footprint.weight_bytes(Precision::Q4_0), matrices / 32 * 18 + 4 * norms);
    }

    #[test]
    fn the_cache_grows_with_the_context_until_the_window_is_full() {
        let bytes = |name, tokens| of(name, tokens).cache_bytes;
        assert_eq!(bytes("gemma-2b", 64), 4 * 18 * 64 * 2 * 256);
        assert!(bytes("gemma-2-2b", 8_192) < 2 * bytes("gemma-2-2b", 4_096));
        assert_eq!(bytes("recurrentgemma-2b", 4_096), bytes("recurrentgemma-2b", 100_000));
        assert!(bytes("recurrentgemma-2b", 1) > 0);
    }
}
