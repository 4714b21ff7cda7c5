//! A model of a few lines: it always answers with the same text, so that protocols are tested without weights.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gemma_serve::http::backend::{
    Capabilities, EmbedInput, Hole, Load, Message, Moderated, Ongoing, Sampling, TokenScore, VisionTask,
};
use gemma_serve::http::{AdapterCard, Backend, Event, Events, Finished, Job, ModelCard, Prompt, Reason, Refusal};
use gemma_tokenizer::{ChatTemplate, EncodeOptions, Family, TokenId, Tokenizer, Turn};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

/// The model.
pub(crate) struct Fake {
    card: ModelCard,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    reply: String,
    delay: Duration,
    cache_limit: usize,
    slots: Arc<Semaphore>,
    /// Jobs that run or wait.
    pub live: Arc<AtomicUsize>,
    adapters: Vec<AdapterCard>,
    /// The jobs that came: how they were to be sampled, their biases and adapters.
    pub asked: Arc<Mutex<Vec<Asked>>>,
}

/// What a job asked for besides its prompt.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) sampling: Sampling,
    pub(crate) logit_bias: Vec<(TokenId, f32)>,
    pub(crate) adapters: Option<Vec<(usize, f32)>>,
}

impl Fake {
    /// A model that answers with `reply`.
    pub(crate) fn new(reply: &str) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/codegemma/demo/tokenizer.json");
        let json = std::fs::read(file).expect("the tokenizer of the demo model");
        let tokenizer = Tokenizer::from_json(&json, Family::CodeGemma).expect("a sound tokenizer");
        let card = ModelCard {
            id: "fake/gemma".to_owned(),
            family: "gemma".to_owned(),
            context_length: Some(1024),
            vocab_size: tokenizer.vocab_len(),
            parameters: 1_000_000,
            quantization: "bf16".to_owned(),
            created: 1_700_000_000,
            capabilities: Capabilities::ALL,
            ..ModelCard::default()
        };
        let slots = Arc::new(Semaphore::new(4));
        let (template, delay, cache_limit) = (ChatTemplate::builtin(), Duration::ZERO, 4096);
        let (live, adapters, asked) = (Arc::default(), Vec::new(), Arc::default());
        let reply = reply.to_owned();
        Self { card, tokenizer, template, reply, delay, cache_limit, slots, live, adapters, asked }
    }

    /// The same under another name.
    pub(crate) fn named(mut self, id: &str) -> Self {
        self.card.id = id.to_owned();
        self
    }

    /// The same, taking this long for each token.
    pub(crate) fn with_delay(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// The same with weights of this size.
    pub(crate) fn with_bytes(mut self, bytes: u64) -> Self {
        self.card.bytes = bytes;
        self
    }

    /// The same with KV caches of at most so many bytes.
    pub(crate) fn with_cache_limit(self, cache_limit: usize) -> Self {
        Self { cache_limit, ..self }
    }

    /// The same with adapters of these names and strengths.
    pub(crate) fn with_adapters(self, adapters: &[(&str, f32)]) -> Self {
        let card = |&(name, strength): &(&str, f32)| AdapterCard {
            name: name.to_owned(),
            path: format!("adapters/{name}"),
            strength,
        };
        Self { adapters: adapters.iter().map(card).collect(), ..self }
    }

    /// The same without a task.
    pub(crate) fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.card.capabilities = capabilities;
        self
    }

    fn enter(&self) -> Live {
        self.live.fetch_add(1, Ordering::SeqCst);
        Live(Arc::clone(&self.live))
    }

    /// A text in tokens.
    pub(crate) fn tokens(&self, text: &str) -> Vec<TokenId> {
        self.tokenizer.encode_with(text, EncodeOptions { bos: false, specials: true })
    }

    /// The logprob of a token at a place: every third token has a likelier neighbour.
    pub(crate) fn score(token: TokenId, place: usize, top: usize) -> TokenScore {
        let logprob = -0.1 - (token % 7) as f32 / 3.0;
        let other = (token + 1, logprob + if place.is_multiple_of(3) { 0.05 } else { -0.05 });
        let mut likeliest = vec![(token, logprob), other];
        likeliest.sort_by(|a, b| b.1.total_cmp(&a.1));
        likeliest.truncate(top);
        TokenScore { token, logprob, top: likeliest }
    }
}

/// What a job will answer: each token with the text that it releases, and why it ends.
fn plan(tokenizer: &Tokenizer, reply: &str, job: &mut Job) -> Result<(Vec<(TokenId, String)>, Reason), Refusal> {
    let mut wanted = tokenizer.encode_with(reply, EncodeOptions { bos: false, specials: true }).into_iter();
    let vocab = tokenizer.vocab_len();
    let mut stream = tokenizer.stream();
    let mut pieces: Vec<(TokenId, String)> = Vec::new();
    let mut text = String::new();
    for place in 0..job.sampling.max_tokens {
        let mut next = wanted.next().unwrap_or(tokenizer.eos());
        if let Some(mask) = &mut job.mask {
            let mut allowed = vec![true; vocab];
            mask.allowed(&mut allowed).map_err(Refusal::failed)?;
            if allowed[tokenizer.eos() as usize] {
                next = tokenizer.eos();
            } else if !allowed[next as usize] {
                // some token or other, so that no list and no text goes on for ever
                let choices: Vec<usize> = (0..vocab).filter(|id| allowed[*id]).collect();
                next = choices[(place * 7919 + 17) % choices.len()] as TokenId;
            }
            mask.accept(next).map_err(Refusal::failed)?;
        }
        if next == tokenizer.eos() && !job.sampling.ignore_eos {
            return Ok((pieces, Reason::Stop));
        }
        let piece = stream.push(next).unwrap_or_default();
        text.push_str(&piece);
        if let Some(at) = job.stop.iter().filter_map(|stop| text.find(stop)).min() {
            let kept = piece.len().saturating_sub(text.len() - at);
            pieces.push((next, piece[..kept].to_owned()));
            return Ok((pieces, Reason::StopText));
        }
        pieces.push((next, piece));
    }
    Ok((pieces, Reason::Length))
}

/// Counts a job as long as it lives.
struct Live(Arc<AtomicUsize>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Backend for Fake {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn chat_template(&self) -> &ChatTemplate {
        &self.template
    }

    fn adapters(&self) -> &[AdapterCard] {
        &self.adapters
    }

    fn submit(&self, mut job: Job) -> Result<Events, Refusal> {
        let (sampling, logit_bias, adapters) = (job.sampling.clone(), job.logit_bias.clone(), job.adapters.clone());
        self.asked.lock().expect("no test panics with it").push(Asked { sampling, logit_bias, adapters });
        let (sender, events) = mpsc::unbounded_channel();
        let (pieces, reason) = plan(&self.tokenizer, &self.reply, &mut job)?;
        let live = self.enter();
        let (slots, delay) = (Arc::clone(&self.slots), self.delay);
        tokio::spawn(async move {
            let _live = live;
            let permit = tokio::select! {
                permit = slots.acquire() => permit,
                () = sender.closed() => return,
            };
            let _permit = permit.expect("the semaphore is never closed");
            let send = |event: Event| sender.send(event).is_ok();
            if !send(Event::Started) {
                return;
            }
            if job.prompt_logprobs {
                let top = job.logprobs.unwrap_or(0);
                let score = |(place, token): (usize, &TokenId)| (place > 0).then(|| Fake::score(*token, place, top));
                send(Event::Prompt(job.prompt.tokens.iter().enumerate().map(score).collect()));
            }
            let generated_tokens = pieces.len();
            for (place, (token, text)) in pieces.into_iter().enumerate() {
                tokio::time::sleep(delay).await;
                let score = job.logprobs.map(|top| Fake::score(token, place, top));
                if !send(Event::Token { token, text, score }) {
                    return;
                }
            }
            let finished = Finished {
                reason,
                prompt_tokens: job.prompt.tokens.len(),
                cached_tokens: 1,
                generated_tokens,
                prompt_seconds: 0.25,
                decode_seconds: 0.5,
            };
            send(Event::Done { text: String::new(), finished });
        });
        Ok(events)
    }

    fn load(&self) -> Load {
        Load { cache_bytes: 1024, cache_limit_bytes: self.cache_limit, ..Load::default() }
    }

    fn chat_prompt(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Prompt, Refusal> {
        let turns: Vec<Turn> = messages.iter().map(|message| message.turn.clone()).collect();
        let tokens = self.tokenizer.chat(&self.template, &turns, add_generation_prompt);
        let tokens = tokens.map_err(|error| Refusal::field("messages", error.to_string()))?;
        Ok(Prompt { tokens, images: messages.iter().flat_map(|message| message.images.clone()).collect() })
    }

    fn infill_prompt(&self, hole: &Hole, budget: usize) -> Result<(Vec<TokenId>, Vec<TokenId>), Refusal> {
        if !self.card.capabilities.infill {
            return Err(Refusal::unsupported(format!("{} has no fill-in-the-middle tokens", self.card.id)));
        }
        let fim = self.tokenizer.control().fim.expect("the demo tokenizer of CodeGemma");
        let mut tokens = vec![self.tokenizer.bos(), fim.prefix];
        tokens.extend(self.tokens(&hole.prefix));
        tokens.push(fim.suffix);
        tokens.extend(self.tokens(&hole.suffix));
        tokens.push(fim.middle);
        tokens.truncate(budget);
        Ok((tokens, vec![fim.file_separator]))
    }

    fn embed(
        &self,
        texts: &[EmbedInput],
        _: Option<&str>,
        ongoing: &Ongoing,
    ) -> Result<(Vec<Vec<f32>>, usize), Refusal> {
        let _live = self.enter();
        // one text at a time, as a model does with long ones
        for _ in texts {
            ongoing.check()?;
            std::thread::sleep(self.delay);
        }
        Ok((texts.iter().map(|_| vec![0.6, 0.0, 0.8]).collect(), 3 * texts.len()))
    }

    fn moderate(&self, subject: &Moderated, _: &Ongoing) -> Result<Vec<(String, f32)>, Refusal> {
        let score = match subject {
            Moderated::Text(text) if text.contains("bad") => 0.75,
            Moderated::Text(_) => 0.25,
            Moderated::Image(_) => 0.5,
        };
        Ok(vec![("harassment".to_owned(), score)])
    }

    fn vision(&self, image: &[u8], task: &VisionTask, _: &Ongoing) -> Result<Value, Refusal> {
        Ok(json!({"bytes": image.len(), "task": format!("{task:?}")}))
    }
}
