//! The front door: a Gemma that fills holes.

use crate::{Error, InfillStop, Order, fim};
use gemma::{Gemma, LoadOptions};
use gemma_backend::Device;
use gemma_generate::{GenerateOptions, Generated, Generation, PromptLookup, Speculation, TextStream};
use gemma_tokenizer::{Family, FimTokens, TokenId, Tokenizer};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// A CodeGemma, ready to fill holes: Gemma's network with prompts of its own.
///
/// ```
/// use codegemma::{Infill, InfillOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let model = codegemma::demo(&codegemma::default_device()?)?;
/// let hole = Infill::new("def sum_prices(prices):\n    ", "\n    for price in prices:\n        total += price\n    return total\n");
/// println!("{}", model.infill(&hole, &InfillOptions::default())?.text);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct CodeGemma {
    gemma: Gemma,
    fim: FimTokens,
    stop_tokens: Vec<TokenId>,
}

/// How a hole is filled.
#[derive(Clone, Debug)]
pub struct InfillOptions {
    /// How to generate. The default is greedy, 128 tokens at most: of code the likeliest is wanted.
    pub generate: GenerateOptions,
    /// The order of the parts in the prompt.
    pub order: Order,
    /// Most tokens of the prompt; `None`: what the model's context leaves beside the answer.
    pub budget: Option<usize>,
    /// How far the middle may reach.
    pub stop_rule: InfillStop,
    /// Guess tokens from the program and let the model check several at once. The middle is the same without.
    pub lookup: bool,
    /// Most time from the request to the end of the middle; what is there by then is the result.
    pub time_limit: Option<Duration>,
    /// Ends the generation, between two tokens, when it becomes true.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Default for InfillOptions {
    fn default() -> Self {
        Self {
            generate: GenerateOptions::greedy(128),
            order: Order::default(),
            budget: None,
            stop_rule: InfillStop::default(),
            lookup: true,
            time_limit: None,
            cancel: None,
        }
    }
}

impl CodeGemma {
    /// Opens a model: a folder in Hugging Face format, or a hub id such as `google/codegemma-2b`. Where a tokenizer file
    /// leaves the names of the infilling tokens out, a model that is called CodeGemma has them all the same.
    ///
    /// # Errors
    /// When there is no such model, it cannot be fetched, is not a sound checkpoint, or has no infilling tokens.
    pub fn load(model: &str, device: &Device) -> Result<Self, Error> {
        Self::load_with(model, &LoadOptions::default(), device)
    }

    /// [`CodeGemma::load`] with options.
    ///
    /// # Errors
    /// As [`CodeGemma::load`].
    pub fn load_with(model: &str, options: &LoadOptions, device: &Device) -> Result<Self, Error> {
        // a plain Gemma's files have unused tokens at these places, which would do as names and mean nothing
        let named = model.to_lowercase().contains("codegemma").then_some(Family::CodeGemma);
        let options = LoadOptions { family: options.family.or(named), ..options.clone() };
        Self::new(Gemma::load_with(model, &options, device)?)
    }

    /// Takes an opened model.
    ///
    /// # Errors
    /// [`Error::NoInfilling`] when its tokenizer has no infilling tokens: a plain Gemma has the same network and would
    /// write nonsense. [`Error::Gemma`] when it has no tokenizer.
    pub fn new(gemma: Gemma) -> Result<Self, Error> {
        let fim = fim::fim_tokens(gemma.tokenizer()?)?;
        let mut stop_tokens = gemma.stop_tokens().to_vec();
        stop_tokens.extend(fim::stop_tokens(fim));
        Ok(Self { gemma, fim, stop_tokens })
    }

    /// The model as a plain Gemma, for everything but holes.
    pub fn gemma(&self) -> &Gemma {
        &self.gemma
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// Never in practice: a model without one was refused.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Error> {
        Ok(self.gemma.tokenizer()?)
    }

    /// The infilling tokens.
    pub fn fim_tokens(&self) -> FimTokens {
        self.fim
    }

    /// The tokens that end a middle: the model's own and every infilling token.
    pub fn stop_tokens(&self) -> &[TokenId] {
        &self.stop_tokens
    }

    /// Continues a program from its end, without a hole: `<bos>` and the text as it is, stopped where a hole's middle is.
    ///
    /// # Errors
    /// When an option is outside its range or the text does not fit the context.
    pub fn complete(&self, text: &str, options: &GenerateOptions) -> Result<Generated, Error> {
        let tokenizer = self.gemma.tokenizer()?;
        let generation = Generation::new(self.gemma.network(), &tokenizer.encode(text), options, &self.stop_tokens)?;
        Ok(TextStream::new(generation.with_speculation(Speculation::new(PromptLookup::default())), tokenizer.stream())
            .finish()?)
    }
}
