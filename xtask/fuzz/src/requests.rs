//! Targets that read what clients of the server send: requests of every protocol, files of a batch, and grammars.
//!
//! The handlers are those of the server, over a model of a few lines that answers with a fixed text.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::body::Body;
use axum::http::{Method, Request};
use gemma_serve::grammar::{AnswerForm, Grammars};
use gemma_serve::http::backend::{Capabilities, EmbedInput, Hole, Load, Message, Moderated, Ongoing, VisionTask};
use gemma_serve::http::{
    App, Backend, Event, Events, Finished, Job, ModelCard, Prompt, Reason, Refusal, Settings, batch, router,
};
use gemma_tokenizer::{ChatTemplate, EncodeOptions, TokenId, Tokenizer, Turn};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

use crate::inputs::as_file;

/// What the model answers, whatever it is asked: a text, then a call of a tool.
const ANSWER: &str = "It is {\"a\": [1]}.\n```json\n{\"name\": \"f\", \"parameters\": {\"x\": 1}}\n```";
/// Most tokens of an answer: a request may ask for any number.
const MOST_TOKENS: usize = 64;

/// A request: the path in the first line, then the body. An input that begins with `{` is a batch's file of requests.
pub(crate) fn http(bytes: &[u8]) -> Result<()> {
    if bytes.starts_with(b"{") {
        return as_file(".jsonl", bytes, run_batch);
    }
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (path, body) = (String::from_utf8_lossy(&bytes[..end]), bytes.get(end + 1..).unwrap_or_default());
    let request = Request::builder().method(Method::POST).uri(&*path).body(Body::from(body.to_vec()))?;
    runtime()?.block_on(async move {
        let Ok(response) = router(app()?.clone()).oneshot(request).await;
        let status = response.status();
        let text = response.into_body().collect().await?.to_bytes();
        let told = String::from_utf8_lossy(&text);
        // the handlers catch what panics behind them; that is a fault all the same
        assert!(status != 500 || !told.contains("made the model fail"), "a panic behind the handlers: {told}");
        // a refusal quotes what it was sent, and must stay short; it may hold any letter, since JSON escapes them
        assert!(status.is_success() || text.len() <= 4000, "a refusal of {} bytes: {told:.300}", text.len());
        Ok(())
    })
}

fn run_batch(path: &Path) -> Result<()> {
    let app = app()?.clone();
    let run = batch::run_to(app, path, std::io::sink(), 2, |summary| summary.answered < 32);
    Ok(runtime()?.block_on(run).map(drop)?)
}

/// A grammar: `lark`, `schema` or `regex` in the first line, then its text. One that compiles is followed for some tokens.
pub(crate) fn grammar(bytes: &[u8]) -> Result<()> {
    static GRAMMARS: OnceLock<Grammars> = OnceLock::new();
    let text = String::from_utf8_lossy(bytes);
    let (kind, text) = text.split_once('\n').unwrap_or(("lark", &text));
    let form = match (kind, serde_json::from_str::<Value>(text)) {
        ("schema", Ok(schema)) => AnswerForm::Schema(schema),
        ("schema", Err(error)) => bail!(error),
        ("regex", _) => AnswerForm::Regex(text.to_owned()),
        _ => AnswerForm::Lark(text.to_owned()),
    };
    let tokenizer = tokenizer()?;
    let vocab = tokenizer.vocab_len();
    let mut mask = GRAMMARS.get_or_init(Grammars::default).compile(&form, tokenizer, vocab)?;
    let mut allowed = vec![false; vocab];
    for step in 0..12_usize {
        mask.allow(&mut allowed).map_err(anyhow::Error::msg)?;
        let choices: Vec<usize> = (0..vocab).filter(|token| allowed[*token]).collect();
        let Some(next) = choices.get((step * 7919 + 17) % choices.len().max(1)) else { break };
        mask.accept(*next as TokenId).map_err(anyhow::Error::msg)?;
    }
    Ok(())
}

fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    let made = || Builder::new_multi_thread().worker_threads(1).enable_all().build().ok();
    RUNTIME.get_or_init(made).as_ref().context("a runtime starts")
}

fn tokenizer() -> Result<&'static Tokenizer> {
    static TOKENIZER: OnceLock<Option<Tokenizer>> = OnceLock::new();
    TOKENIZER.get_or_init(|| codegemma::demo_tokenizer().ok()).as_ref().context("the demo opens")
}

fn app() -> Result<&'static App> {
    static APP: OnceLock<App> = OnceLock::new();
    let tokenizer = tokenizer()?;
    Ok(APP.get_or_init(|| {
        let card = ModelCard {
            id: "fixed".to_owned(),
            family: "codegemma".to_owned(),
            context_length: Some(8192),
            vocab_size: tokenizer.vocab_len(),
            capabilities: Capabilities::ALL,
            ..ModelCard::default()
        };
        let model = Fixed { card, tokenizer, template: ChatTemplate::builtin() };
        let settings = Settings { request_timeout: Duration::from_secs(4), ..Settings::default() };
        App::new(vec![Arc::new(model)], settings)
    }))
}

/// A model that answers with [`ANSWER`], as far as a grammar allows it.
struct Fixed {
    card: ModelCard,
    tokenizer: &'static Tokenizer,
    template: ChatTemplate,
}

impl Backend for Fixed {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn tokenizer(&self) -> &Tokenizer {
        self.tokenizer
    }

    fn chat_template(&self) -> &ChatTemplate {
        &self.template
    }

    fn submit(&self, mut job: Job) -> Result<Events, Refusal> {
        let (sender, events) = tokio::sync::mpsc::unbounded_channel();
        // the receiver is in this function; it cannot have gone away
        let send = |event| drop(sender.send(event));
        send(Event::Started);
        let mut text = self.tokenizer.stream();
        let mut answer = self.plain(ANSWER).into_iter();
        let mut generated = 0;
        let mut allowed = vec![true; self.card.vocab_size];
        while generated < job.sampling.max_tokens.min(MOST_TOKENS) {
            let mut token = answer.next().unwrap_or(self.tokenizer.eos());
            if let Some(mask) = &mut job.mask {
                mask.allowed(&mut allowed).map_err(Refusal::failed)?;
                if !allowed.get(token as usize).copied().unwrap_or(false) {
                    token = allowed.iter().position(|may| *may).unwrap_or(0) as TokenId;
                }
                mask.accept(token).map_err(Refusal::failed)?;
            }
            if token == self.tokenizer.eos() {
                break;
            }
            generated += 1;
            send(Event::Token { token, text: text.push(token).unwrap_or_default(), score: None });
        }
        let finished = Finished {
            reason: Reason::Stop,
            prompt_tokens: job.prompt.tokens.len(),
            cached_tokens: 0,
            generated_tokens: generated,
            prompt_seconds: 0.0,
            decode_seconds: 0.0,
        };
        send(Event::Done { text: String::new(), finished });
        Ok(events)
    }

    fn load(&self) -> Load {
        Load::default()
    }

    fn chat_prompt(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Prompt, Refusal> {
        let turns: Vec<Turn> = messages.iter().map(|message| message.turn.clone()).collect();
        let tokens = self.tokenizer.chat(&self.template, &turns, add_generation_prompt);
        Ok(tokens.map_err(|error| Refusal::field("messages", error.to_string()))?.into())
    }

    fn infill_prompt(&self, hole: &Hole, budget: usize) -> Result<(Vec<TokenId>, Vec<TokenId>), Refusal> {
        let file = |(path, text): &(String, String)| codegemma::File { path: path.clone(), text: text.clone() };
        let infill = codegemma::Infill {
            path: hole.path.clone(),
            context: hole.files.iter().map(file).collect(),
            ..codegemma::Infill::new(&*hole.prefix, &*hole.suffix)
        };
        let prompt = infill.prompt(self.tokenizer, codegemma::Order::Psm, budget);
        Ok((prompt.map_err(|error| Refusal::invalid(error.to_string()))?.tokens, Vec::new()))
    }

    fn embed(&self, texts: &[EmbedInput], _: Option<&str>, _: &Ongoing) -> Result<(Vec<Vec<f32>>, usize), Refusal> {
        Ok((texts.iter().map(|_| vec![0.6, 0.0, 0.8]).collect(), texts.len()))
    }

    fn moderate(&self, _: &Moderated, _: &Ongoing) -> Result<Vec<(String, f32)>, Refusal> {
        Ok(vec![("harassment".to_owned(), 0.5)])
    }

    fn vision(&self, image: &[u8], _: &VisionTask, _: &Ongoing) -> Result<Value, Refusal> {
        let image = gemma_vision::Image::decode(image, "the image");
        Ok(image.map_err(|error| Refusal::invalid(error.to_string()))?.width().into())
    }
}

impl Fixed {
    fn plain(&self, text: &str) -> Vec<TokenId> {
        self.tokenizer.encode_with(text, EncodeOptions { bos: false, specials: false })
    }
}
