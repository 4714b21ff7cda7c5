//! Content classification by ShieldGemma: a text or an image against the built-in guidelines.

use std::sync::Arc;

use gemma_model::{Model, Network};
use gemma_tokenizer::TokenId;
use gemma3::{Gemma3, IMAGE_MARK, Image};
use shieldgemma::{Guideline, Subject, image_prompt, judge_tokens, text_prompt, violation, yes_and_no};

use super::super::backend::{Moderated, Ongoing};
use super::super::error::Refusal;
use super::refusal;

/// Policies with the probability that they are violated.
type Scores = Result<Vec<(String, f32)>, Refusal>;

/// Classifies content.
pub(super) type Judge = Arc<dyn Fn(&Moderated, &Ongoing) -> Scores + Send + Sync>;

/// What the model computes wrongly is not the request's fault.
fn refused(error: shieldgemma::Error) -> Refusal {
    match &error {
        shieldgemma::Error::Model(gemma_model::Error::Generate(cause)) => refusal(cause),
        _ => Refusal::of(error),
    }
}

/// ShieldGemma 1: a text is judged as what a person asks a model.
pub(super) fn text_judge<N: Network + Send + Sync + 'static>(model: &Model<N>) -> Result<Judge, shieldgemma::Error> {
    let (network, tokenizer) = (model.shared_network(), model.shared_tokenizer()?);
    let answers = yes_and_no(&tokenizer)?;
    Ok(Arc::new(move |subject: &Moderated, ongoing: &Ongoing| {
        let Moderated::Text(text) = subject else {
            return Err(Refusal::unsupported("this model classifies texts; for images use a ShieldGemma 2"));
        };
        let limit = network.context_length().unwrap_or(usize::MAX);
        let mut scores = Vec::new();
        for guideline in Guideline::built_in().iter().filter(|guideline| guideline.prompt.is_some()) {
            ongoing.check()?;
            let prompt: Vec<TokenId> =
                tokenizer.encode_chat(&text_prompt(Subject::Prompt(text), guideline).map_err(Refusal::of)?);
            if prompt.len() > limit {
                return Err(Refusal::context(prompt.len(), limit));
            }
            let violates = judge_tokens(&*network, &[prompt], answers).map_err(refused)?;
            scores.extend(violates.into_iter().map(|violates| (guideline.name.clone(), violates as f32)));
        }
        Ok(scores)
    }))
}

/// ShieldGemma 2: images only. `answers`: the tokens of Yes and No.
pub(super) fn image_judge(model: Arc<Gemma3>, answers: [TokenId; 2]) -> Judge {
    Arc::new(move |subject: &Moderated, ongoing: &Ongoing| {
        let Moderated::Image(bytes) = subject else {
            return Err(Refusal::unsupported(
                "this model classifies images; for texts use a ShieldGemma of 2B, 9B or 27B",
            ));
        };
        let image = Image::decode(bytes, "image").map_err(|error| Refusal::field("input", error.to_string()))?;
        let encoded = model.encode_image(&image);
        let mut scores = Vec::new();
        for guideline in Guideline::built_in().iter().filter(|guideline| guideline.image.is_some()) {
            ongoing.check()?;
            let prompt = image_prompt(guideline, IMAGE_MARK).map_err(Refusal::of)?;
            let prompt = model.rendered_tokens(&prompt, &[&encoded]).map_err(Refusal::of)?;
            let logits = model.next_logits(&prompt, &[&encoded]).map_err(Refusal::of)?;
            let violates = violation(logits, answers).map_err(refused)?;
            scores.push((guideline.name.clone(), violates as f32));
        }
        Ok(scores)
    })
}
