//! An opened model, and what each verb does with it.

use codegemma::{CodeGemma, Infill, InfillOptions};
use embeddinggemma::{EmbedOptions, EmbeddingGemma, Embeddings};
use gemma_auto::{
    AutoModel, Backend, CausalModel, Error, GenerateOptions, Generated, LoadOptions, Network, TextStream, TokenId,
    Tokenizer, Turn, with_model,
};
use gemma_generate::{check_tokens, logits_in_chunks};
use gemma_model::Segment;
use gemma3::Gemma3;
use paligemma::{Detection, Image, PaliGemma, loc, prompt};

use crate::failure::Failure;
use crate::worker::Cancel;

/// Most tokens of one forward pass of [`Opened::logits`].
const CHUNK: usize = 512;
/// Rows of logits to compute at a time: 64 take 66 MB with 256 000 columns.
const HEAD_ROWS: usize = 64;
/// The name of the model that is opened without a name.
const DEMO: &str = "demo";

/// Takes texts as they come; `false`: no more are wanted.
pub(crate) type Give<'a> = &'a mut dyn FnMut(String) -> bool;

/// A model, as what it is.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "models are few and live long: a box would only add a hop")]
pub(crate) enum Opened {
    /// One that only generates, and perhaps sees images.
    Any(AutoModel),
    /// One with fill-in-the-middle tokens.
    Code(CodeGemma),
    /// One that makes vectors of texts and generates none.
    Embedding(EmbeddingGemma),
}

/// Evaluates an expression with the text model inside; for an embedding model the error that it does not do this.
macro_rules! with_text_model {
    ($opened:expr, $ability:literal, $model:ident => $body:expr) => {
        match $opened {
            Opened::Any(auto) => with_model!(auto, $model => $body),
            Opened::Code(code) => {
                let $model = code.gemma();
                $body
            }
            embedding => Err(embedding.incapable($ability, "use embed, or another model")),
        }
    };
}

impl Opened {
    /// Opens the model that a name stands for.
    ///
    /// # Errors
    /// When there is no such model, it cannot be fetched, or it is not a sound checkpoint.
    pub(crate) fn load(name: Option<&str>, options: &LoadOptions, backend: Option<Backend>) -> Result<Self, Failure> {
        let device = match backend {
            Some(backend) => backend.device()?,
            None => gemma_auto::default_device()?,
        };
        let found = gemma_auto::find(name.unwrap_or(DEMO), options)?;
        if found.is_embedding()? {
            if !options.adapters.is_empty() {
                let text = "an embedding model takes no adapter; give it merged weights";
                return Err(Failure::Argument(text.to_owned()));
            }
            return Ok(Self::Embedding(found.open_embedding_with(options, &device, &mut |_| {})?));
        }
        let model = found.open(options, &device)?;
        if model.capabilities().infill && matches!(model, AutoModel::Gemma(_)) {
            return Ok(Self::Code(model.into_code()?));
        }
        Ok(Self::Any(model))
    }

    /// What it is called in messages.
    pub(crate) fn architecture(&self) -> String {
        match self {
            Self::Any(model) => model.architecture().to_string(),
            Self::Code(_) => "CodeGemma".to_owned(),
            Self::Embedding(_) => "EmbeddingGemma".to_owned(),
        }
    }

    /// The verbs that it has, besides those that every model has.
    pub(crate) fn verbs(&self) -> Vec<&'static str> {
        let can = match self {
            Self::Any(model) => model.capabilities(),
            Self::Code(code) => {
                let chat = code.tokenizer().is_ok_and(|tokenizer| tokenizer.end_of_turn().is_some());
                gemma_auto::Capabilities { generate: true, infill: true, chat, ..Default::default() }
            }
            Self::Embedding(_) => gemma_auto::Capabilities { embed: true, ..Default::default() },
        };
        let boxes = matches!(self, Self::Any(AutoModel::PaliGemma(_)));
        let all = [
            ("generate", can.generate),
            ("chat", can.chat),
            ("infill", can.infill),
            ("ask", can.images),
            ("caption", can.images),
            ("detect", boxes),
            ("embed", can.embed),
            ("logits", can.generate),
        ];
        all.into_iter().filter(|(_, can)| *can).map(|(verb, _)| verb).collect()
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// When the checkpoint came without one.
    pub(crate) fn tokenizer(&self) -> Result<&Tokenizer, Failure> {
        Ok(match self {
            Self::Any(model) => model.tokenizer()?,
            Self::Code(model) => model.tokenizer()?,
            Self::Embedding(model) => model.tokenizer()?,
        })
    }

    /// The longest sequence, in tokens; `None` where there is no limit.
    pub(crate) fn context_length(&self) -> Option<usize> {
        match self {
            Self::Any(model) => model.context_length(),
            Self::Code(code) => code.gemma().network().context_length(),
            Self::Embedding(model) => Some(model.network().config().max_tokens),
        }
    }

    /// Rows of the embedding table: token ids are below it.
    pub(crate) fn vocab(&self) -> usize {
        match self {
            Self::Any(model) => model.vocab(),
            Self::Code(code) => code.gemma().network().vocab(),
            Self::Embedding(model) => model.network().config().text.vocab,
        }
    }

    /// Continues a prompt.
    pub(crate) fn generate(
        &self,
        prompt: &str,
        options: &GenerateOptions,
        cancel: &Cancel,
        give: Give<'_>,
    ) -> Result<(), Failure> {
        if let Self::Any(AutoModel::PaliGemma(model)) = self {
            return give_all(model.stream(&[], prompt, options)?, cancel, give);
        }
        with_text_model!(self, "generate text", model => give_all(model.stream(prompt, options)?, cancel, give))
    }

    /// Fails where the model was not trained to talk.
    pub(crate) fn check_chat(&self) -> Result<(), Failure> {
        if self.verbs().contains(&"chat") {
            return Ok(());
        }
        Err(self.incapable("chat", "use generate, or a checkpoint whose name ends in -it"))
    }

    /// Answers the last turn of a conversation.
    pub(crate) fn chat(
        &self,
        turns: &[Turn],
        options: &GenerateOptions,
        cancel: &Cancel,
        give: Give<'_>,
    ) -> Result<(), Failure> {
        self.check_chat()?;
        with_text_model!(self, "chat", model => give_all(model.stream_chat(turns, options)?, cancel, give))
    }

    /// Fills a hole in code.
    pub(crate) fn infill(&self, hole: &Infill, options: InfillOptions, cancel: &Cancel) -> Result<String, Failure> {
        let Self::Code(code) = self else {
            return Err(self.incapable("fill in code", "use a CodeGemma such as google/codegemma-2b"));
        };
        Ok(code.infill(hole, &InfillOptions { cancel: Some(cancel.flag()), ..options })?.text)
    }

    /// Describes an image.
    pub(crate) fn caption(
        &self,
        image: &Image,
        language: &str,
        options: &GenerateOptions,
        cancel: &Cancel,
    ) -> Result<String, Failure> {
        let question = gemma3::prompt::caption(language);
        Ok(self.look(image, &prompt::caption(language), &question, options, cancel)?.text)
    }

    /// Answers a question about an image.
    pub(crate) fn ask(
        &self,
        image: &Image,
        question: &str,
        language: &str,
        options: &GenerateOptions,
        cancel: &Cancel,
    ) -> Result<String, Failure> {
        let prompt = prompt::answer(language, question);
        Ok(self.look(image, &prompt, &gemma3::prompt::answer(language, question), options, cancel)?.text)
    }

    /// Finds things in an image.
    pub(crate) fn detect(
        &self,
        image: &Image,
        things: &[String],
        options: &GenerateOptions,
        cancel: &Cancel,
    ) -> Result<Vec<Detection>, Failure> {
        let Self::Any(AutoModel::PaliGemma(model)) = self else {
            return Err(self.incapable("find boxes", "use a PaliGemma such as google/paligemma-3b-mix-224"));
        };
        let answer = self.look(image, &prompt::detect(things), "", options, cancel)?;
        let items = loc::items_of_tokens(model.tokenizer()?, &answer.tokens, &answer.logprobs);
        Ok(Detection::of(&loc::objects(&items), image.width(), image.height()))
    }

    /// Answers about an image: `prompt` is the task as PaliGemma was trained on it, `question` the same in words.
    fn look(
        &self,
        image: &Image,
        prompt: &str,
        question: &str,
        options: &GenerateOptions,
        cancel: &Cancel,
    ) -> Result<Generated, Failure> {
        match self {
            Self::Any(AutoModel::PaliGemma(model)) => {
                let features = model.encode_image(image);
                Ok(PaliGemma::stream(model, &[&features], prompt, options)?.with_cancel(cancel.flag()).finish()?)
            }
            Self::Any(AutoModel::Gemma3(model)) => {
                let encoded = model.encode_image(image);
                Ok(Gemma3::stream(model, &[&encoded], question, options)?.with_cancel(cancel.flag()).finish()?)
            }
            other => Err(other.incapable("see images", "use a PaliGemma such as google/paligemma-3b-mix-224")),
        }
    }

    /// One vector for each text.
    pub(crate) fn embed(
        &self,
        texts: &[String],
        task: &str,
        title: Option<&str>,
        options: EmbedOptions,
        cancel: &Cancel,
    ) -> Result<Embeddings, Failure> {
        let Self::Embedding(model) = self else {
            return Err(self.incapable("embed texts", "use an embedding model such as google/embeddinggemma-300m"));
        };
        let prefix = model.prefix(task, title)?;
        let rows = texts.iter().map(|text| model.tokens(&prefix, text)).collect::<Result<Vec<_>, _>>()?;
        let found = model.embed_tokens_with(&rows, options, &mut |_, _| !cancel.is_set())?;
        found.ok_or_else(cancelled)
    }

    /// The logits after every token, row after row.
    pub(crate) fn logits(&self, tokens: &[TokenId], cancel: &Cancel) -> Result<Vec<f32>, Failure> {
        match self {
            Self::Any(AutoModel::PaliGemma(model)) => {
                model.network().check_prompt(tokens, 0)?;
                // a prompt of PaliGemma sees itself both ways, and so is read in one piece
                logits(model.network(), tokens, &[Segment::causal(0, tokens.len()).with_prefix(tokens.len())], cancel)
            }
            Self::Any(AutoModel::Gemma3(model)) => {
                model.network().check_prompt(tokens, 0)?;
                logits(model.network(), tokens, &causal(tokens.len()), cancel)
            }
            other => with_text_model!(other, "give logits", model => {
                check_tokens(model.network(), tokens, None)?;
                logits(model.network(), tokens, &causal(tokens.len()), cancel)
            }),
        }
    }

    /// The error for something that the model does not do.
    fn incapable(&self, ability: &'static str, instead: &'static str) -> Failure {
        Error::Incapable { architecture: self.architecture(), ability, instead }.into()
    }
}

fn cancelled() -> Failure {
    Failure::Computation("cancelled".to_owned())
}

/// Hands out the pieces of a text.
fn give_all<M: CausalModel>(stream: TextStream<'_, '_, M>, cancel: &Cancel, give: Give<'_>) -> Result<(), Failure> {
    for piece in stream.with_cancel(cancel.flag()) {
        if !give(piece?) {
            break;
        }
    }
    Ok(())
}

/// A sequence of so many tokens in pieces, each of which sees what is before it.
fn causal(len: usize) -> Vec<Segment> {
    (0..len).step_by(CHUNK).map(|start| Segment::causal(start, CHUNK.min(len - start))).collect()
}

/// The logits after every token of a sequence that is read in these pieces.
fn logits<N: Network>(
    network: &N,
    tokens: &[TokenId],
    pieces: &[Segment],
    cancel: &Cancel,
) -> Result<Vec<f32>, Failure> {
    let mut cache = network.new_cache();
    let mut values = Vec::with_capacity(tokens.len() * network.vocab());
    let mut rest = tokens;
    for piece in pieces {
        let (part, after) = rest.split_at(piece.len);
        rest = after;
        let states = network.hidden_states(part, std::slice::from_ref(piece), &mut [&mut cache]);
        logits_in_chunks(network, &states, HEAD_ROWS, |_, logits| {
            if cancel.is_set() {
                return Err(cancelled());
            }
            let rows = logits.into_data().convert::<f32>().try_into_vec::<f32>();
            values.extend(rows.map_err(|error| Failure::Computation(format!("{error:?}")))?);
            Ok(())
        })?;
    }
    Ok(values)
}
