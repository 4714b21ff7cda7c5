//! The front door: a tokenizer, a network, and what belongs to them.

use crate::save::Collect;
use crate::{Error, LoadOptions, Network, OnLoad, Speculate};
use burn::tensor::Device;
use gemma_generate::{
    EngineOptions, EngineThread, GenerateOptions, Generated, Generation, Request, Sequence, TextStream,
};
use gemma_tokenizer::{ChatTemplate, EncodeOptions, Family, TokenId, Tokenizer, Turn};
use gemma_weights::{Checkpoint, Dtype, HubOptions, SaveOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A text model, ready to write: a network and everything around it.
#[derive(Debug)]
pub struct Model<N> {
    tokenizer: Option<Arc<Tokenizer>>,
    network: Arc<N>,
    chat_template: ChatTemplate,
    stop_tokens: Vec<TokenId>,
    speculate: Option<Speculate>,
    /// The folder or file that it was opened from, for messages.
    path: Option<PathBuf>,
}

impl<N: Network> Model<N> {
    /// Opens a model: a folder in Hugging Face format, or a hub id `org/name[@revision]`, which is downloaded on
    /// first use.
    ///
    /// # Errors
    /// When there is no such model, it cannot be fetched, or it is not a sound checkpoint of this architecture.
    pub fn load(model: &str, device: &Device) -> Result<Self, Error> {
        Self::load_with(model, &LoadOptions::default(), device)
    }

    /// [`Model::load`] with options.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_with(model: &str, options: &LoadOptions, device: &Device) -> Result<Self, Error> {
        let hub = HubOptions::from_env();
        let hub = HubOptions { offline: hub.offline || options.offline, ..hub };
        Self::load_folder(&gemma_weights::resolve(model, &hub)?, options, device)
    }

    /// Opens a model folder.
    ///
    /// # Errors
    /// When it is not a sound checkpoint of this architecture.
    pub fn load_folder(folder: &Path, options: &LoadOptions, device: &Device) -> Result<Self, Error> {
        Self::from_checkpoint(&Checkpoint::open(folder)?, options, device)
    }

    /// Makes a model of an opened checkpoint. One without tokenizer files can still be used with token numbers.
    ///
    /// # Errors
    /// As [`Model::load_folder`].
    pub fn from_checkpoint(checkpoint: &Checkpoint, options: &LoadOptions, device: &Device) -> Result<Self, Error> {
        Self::from_checkpoint_with(checkpoint, options, device, &mut |_, _| {})
    }

    /// [`Model::from_checkpoint`], reporting progress.
    ///
    /// # Errors
    /// As [`Model::load_folder`].
    pub fn from_checkpoint_with(
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        device: &Device,
        progress: OnLoad<'_>,
    ) -> Result<Self, Error> {
        let chat_template = match &options.chat_template {
            Some(template) => template.clone(),
            None => read_chat_template(checkpoint)?,
        };
        // reading a large vocabulary takes a second, in which the weights can be opened
        let family = options.family.unwrap_or(N::FAMILY);
        let read = || if options.without_tokenizer { Ok(None) } else { read_tokenizer(checkpoint, family) };
        let (tokenizer, network) = std::thread::scope(|scope| {
            let tokenizer = scope.spawn(read);
            let network = N::open_with(checkpoint, options, device, progress);
            (tokenizer.join().expect("reading a tokenizer does not panic"), network)
        });
        let (tokenizer, network) = (tokenizer?, network?);
        options.speculate.as_ref().map_or(Ok(()), |speculate| speculate.check(tokenizer.as_ref()))?;
        let stop_tokens = stop_tokens(checkpoint, N::eos(network.config()), tokenizer.as_ref())?;
        let (tokenizer, network) = (tokenizer.map(Arc::new), Arc::new(network));
        let speculate = options.speculate.clone();
        let path = checkpoint.path().map(Path::to_owned);
        Ok(Self { tokenizer, network, chat_template, stop_tokens, speculate, path })
    }

    /// A model of parts that are there already, such as one that was just trained.
    pub fn from_parts(network: N, tokenizer: Tokenizer) -> Self {
        let mut stop_tokens = N::eos(network.config()).to_vec();
        stop_tokens.extend(tokenizer.end_of_turn());
        Self {
            tokenizer: Some(Arc::new(tokenizer)),
            network: Arc::new(network),
            chat_template: ChatTemplate::builtin(),
            stop_tokens,
            speculate: None,
            path: None,
        }
    }

    /// A model around a network, for token ids only.
    pub fn without_tokenizer(network: N) -> Self {
        let stop_tokens = N::eos(network.config()).to_vec();
        Self {
            tokenizer: None,
            network: Arc::new(network),
            chat_template: ChatTemplate::builtin(),
            stop_tokens,
            speculate: None,
            path: None,
        }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When the checkpoint came without one.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Error> {
        self.tokenizer.as_deref().ok_or_else(|| self.no_tokenizer())
    }

    /// The network.
    pub fn network(&self) -> &N {
        &self.network
    }

    /// The tokenizer, to be kept beside the model: [`DecodeStream::shared`](gemma_tokenizer::DecodeStream::shared) and
    /// requests to an [`EngineThread`](gemma_generate::EngineThread) need it.
    ///
    /// # Errors
    /// As [`Model::tokenizer`].
    pub fn shared_tokenizer(&self) -> Result<Arc<Tokenizer>, Error> {
        self.tokenizer.clone().ok_or_else(|| self.no_tokenizer())
    }

    fn no_tokenizer(&self) -> Error {
        Error::NoTokenizer { path: self.path.clone() }
    }

    /// The network, to be kept beside the model: an [`EngineThread`](gemma_generate::EngineThread) runs on it.
    pub fn shared_network(&self) -> Arc<N> {
        Arc::clone(&self.network)
    }

    /// Starts an engine for the network on a thread of its own; requests of any thread share its forward passes.
    ///
    /// # Errors
    /// When an option is outside its range.
    pub fn engine(&self, options: EngineOptions) -> Result<EngineThread, Error>
    where
        N: Send + Sync + 'static,
    {
        Ok(EngineThread::spawn(self.shared_network(), options)?)
    }

    /// How it decodes speculatively, as [`LoadOptions::speculate`] said. Everything that this type and
    /// [`Conversation`](crate::Conversation) generate does; a [`Generation`] of one's own needs
    /// [`speculating`](Model::speculating).
    pub fn speculate(&self) -> Option<&Speculate> {
        self.speculate.as_ref()
    }

    /// A generation, with the model's own speculation.
    pub fn speculating<'m>(&self, generation: Generation<'m, N>) -> Generation<'m, N> {
        match &self.speculate {
            Some(speculate) => generation.with_speculation(speculate.start()),
            None => generation,
        }
    }

    /// The tokens that end an answer.
    pub fn stop_tokens(&self) -> &[TokenId] {
        &self.stop_tokens
    }

    /// How a conversation becomes a prompt: the checkpoint's own template, or Gemma's.
    pub fn chat_template(&self) -> &ChatTemplate {
        &self.chat_template
    }

    /// Uses another chat template, such as the built-in one in place of one that fails.
    pub fn set_chat_template(&mut self, template: ChatTemplate) {
        self.chat_template = template;
    }

    /// Continues `prompt`, which is read as it is, with `<bos>` in front.
    ///
    /// # Errors
    /// When an option is outside its range or the prompt does not fit.
    pub fn generate(&self, prompt: &str, options: &GenerateOptions) -> Result<Generated, Error> {
        Ok(self.stream(prompt, options)?.finish()?)
    }

    /// Continues `prompt` piece by piece: an iterator of texts that are ready to be shown.
    ///
    /// # Errors
    /// As [`Model::generate`].
    pub fn stream(&self, prompt: &str, options: &GenerateOptions) -> Result<TextStream<'_, '_, N>, Error> {
        self.stream_tokens(&self.tokenizer()?.encode(prompt), options)
    }

    /// Answers a question: `text` becomes a user's turn of the chat template.
    ///
    /// # Errors
    /// As [`Model::generate`].
    pub fn chat(&self, text: &str, options: &GenerateOptions) -> Result<String, Error> {
        Ok(self.stream_chat(&[Turn::user(text)], options)?.finish()?.text)
    }

    /// Answers the last turn of a conversation, piece by piece.
    ///
    /// # Errors
    /// As [`Model::generate`], and when the template refuses the conversation.
    pub fn stream_chat(&self, turns: &[Turn], options: &GenerateOptions) -> Result<TextStream<'_, '_, N>, Error> {
        let prompt = self.tokenizer()?.chat(&self.chat_template, turns, true)?;
        self.stream_tokens(&prompt, options)
    }

    /// Continues several prompts, each read as it is with `<bos>` in front, in forward passes that they share. The answers
    /// are in the order of the prompts.
    ///
    /// # Errors
    /// As [`Model::generate`], for any of the prompts.
    pub fn generate_batch<T: AsRef<str>>(
        &self,
        prompts: &[T],
        options: &GenerateOptions,
    ) -> Result<Vec<Generated>, Error> {
        let tokenizer = self.tokenizer()?;
        let request = |prompt: &T| Request {
            stop_tokens: self.stop_tokens.clone(),
            speculation: self.speculate.as_ref().map(Speculate::start),
            ..Request::new(tokenizer.encode(prompt.as_ref()), options.clone())
        };
        Ok(gemma_generate::generate_batch(self.network(), tokenizer, prompts.iter().map(request).collect())?)
    }

    /// Continues a sequence, such as one of [`load_state`](crate::load_state) or of
    /// [`TextStream::into_sequence`], after `text`, which may be empty: only the text is prefilled.
    ///
    /// # Errors
    /// As [`Model::generate`].
    pub fn stream_from(
        &self,
        sequence: Sequence<N::Cache>,
        text: &str,
        options: &GenerateOptions,
    ) -> Result<TextStream<'_, '_, N>, Error> {
        let tokenizer = self.tokenizer()?;
        let tokens = tokenizer.encode_with(text, EncodeOptions { bos: false, specials: false });
        let generation = Generation::follow(self.network(), sequence, &tokens, options, &self.stop_tokens)?;
        Ok(TextStream::new(self.speculating(generation), tokenizer.stream()))
    }

    /// Continues a prompt that is already tokens, exactly as given.
    ///
    /// # Errors
    /// As [`Model::generate`].
    pub fn stream_tokens(&self, prompt: &[TokenId], options: &GenerateOptions) -> Result<TextStream<'_, '_, N>, Error> {
        let generation = Generation::new(self.network(), prompt, options, &self.stop_tokens)?;
        Ok(TextStream::new(self.speculating(generation), self.tokenizer()?.stream()))
    }

    /// Writes the model as a folder that [`Model::load`] and HF transformers open. All of it, or nothing; an existing
    /// folder is replaced only when `replace` is set.
    ///
    /// # Errors
    /// When the folder cannot be written, or the weights are held in a quantized format.
    pub fn save(&self, folder: &Path, dtype: Dtype, replace: bool) -> Result<(), Error> {
        let mut parameters = Collect::new(dtype);
        self.network.save(&mut parameters);
        if let Some(format) = parameters.quantized {
            return Err(Error::SaveQuantized { format });
        }
        if parameters.adapted {
            return Err(Error::SaveAdapted);
        }
        let config = N::config_to_json(self.network.config(), dtype);
        let files = small_files(&config, Some(self.tokenizer()?), &self.stop_tokens)?;
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, content)| (*name, content.as_slice())).collect();
        let options = SaveOptions { replace, ..SaveOptions::default() };
        Ok(gemma_weights::save_folder_with(folder, &files, &mut parameters.tensors.into_iter(), &options)?)
    }
}

/// What lies beside the weights in a folder: configuration and tokenizer.
pub(crate) fn small_files(
    config: &serde_json::Value,
    tokenizer: Option<&Tokenizer>,
    stop_tokens: &[TokenId],
) -> Result<Vec<(&'static str, Vec<u8>)>, Error> {
    let text = |value: &serde_json::Value| format!("{value:#}\n").into_bytes();
    let mut files = vec![("config.json", text(config))];
    let Some(tokenizer) = tokenizer else { return Ok(files) };
    let generation = serde_json::json!({
        "bos_token_id": tokenizer.bos(), "eos_token_id": stop_tokens, "pad_token_id": 0,
    });
    let token_names =
        serde_json::json!({ "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>" });
    let mut tokenizer_config = serde_json::json!({
        "add_bos_token": true, "add_eos_token": false, "clean_up_tokenization_spaces": false,
        "tokenizer_class": "GemmaTokenizerFast", "chat_template": CHAT_TEMPLATE,
    });
    for (key, value) in token_names.as_object().expect("an object") {
        tokenizer_config[key] = value.clone();
    }
    files.extend([
        ("generation_config.json", text(&generation)),
        ("tokenizer.json", tokenizer.to_json()?),
        ("tokenizer_config.json", text(&tokenizer_config)),
        ("special_tokens_map.json", text(&token_names)),
    ]);
    Ok(files)
}

/// Gemma's chat format as a Jinja template, for the programs that read a saved folder.
pub(crate) const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}";

/// The tokenizer of a checkpoint; `None` when it came without one.
///
/// # Errors
/// When its file is not a sound one.
pub fn read_tokenizer(checkpoint: &Checkpoint, family: Family) -> Result<Option<Tokenizer>, Error> {
    // a GGUF file has none of these names in it
    let named = |name: &str| {
        let folder = checkpoint.path().filter(|path| path.is_dir()).map(|folder| folder.join(name));
        move |cause| match folder {
            Some(file) => Error::TokenizerFile { file, cause },
            None => Error::Tokenizer(cause),
        }
    };
    if let Some(json) = checkpoint.file("tokenizer.json")? {
        return Ok(Some(Tokenizer::from_json(&json, family).map_err(named("tokenizer.json"))?));
    }
    let Some(model) = checkpoint.file("tokenizer.model")? else { return Ok(None) };
    Ok(Some(Tokenizer::from_sentencepiece(&model, family).map_err(named("tokenizer.model"))?))
}

/// The chat template of a checkpoint, or Gemma's. One with a mistake is reported when a conversation begins.
///
/// # Errors
/// When a file cannot be read, or the template is beyond the limits of what is read.
pub fn read_chat_template(checkpoint: &Checkpoint) -> Result<ChatTemplate, Error> {
    let template = own_chat_template(checkpoint)?.unwrap_or_else(ChatTemplate::builtin);
    match template.check() {
        Err(error @ gemma_tokenizer::Error::TemplateLimit { .. }) => Err(error.into()),
        // what else is wrong with it matters to conversations alone
        _ => Ok(template),
    }
}

/// The chat template that a checkpoint comes with; instruction-tuned ones have one.
///
/// # Errors
/// When a file cannot be read.
pub fn own_chat_template(checkpoint: &Checkpoint) -> Result<Option<ChatTemplate>, Error> {
    Ok(match checkpoint.file("chat_template.jinja")? {
        Some(source) => Some(ChatTemplate::from_jinja(&String::from_utf8_lossy(&source))),
        None => checkpoint.file("tokenizer_config.json")?.and_then(|json| ChatTemplate::from_tokenizer_config(&json)),
    })
}

/// What ends an answer: what either configuration names, and the end of a turn, which instruction-tuned checkpoints say
/// whatever their configuration lists.
pub(crate) fn stop_tokens(
    checkpoint: &Checkpoint,
    eos: &[TokenId],
    tokenizer: Option<&Tokenizer>,
) -> Result<Vec<TokenId>, Error> {
    let mut tokens = eos.to_vec();
    tokens.extend(checkpoint.generation_config()?.map(|file| file.eos).unwrap_or_default());
    if let Some(tokenizer) = tokenizer {
        tokens.push(tokenizer.eos());
        tokens.extend(tokenizer.end_of_turn());
    }
    tokens.sort_unstable();
    tokens.dedup();
    Ok(tokens)
}
