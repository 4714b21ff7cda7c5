//! `/v1/embeddings` and `/v1/moderations`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::app::new_id;
use super::backend::{Backend, EmbedInput, Moderated, Ongoing};
use super::body::JsonBody;
use super::error::Refusal;
use super::messages::{Content, image_of_url};
use super::running::beside;
use super::texts::{Prompts, TextOrTokens};

/// Most texts of one request.
const MOST_TEXTS: usize = 2048;
/// A policy counts as violated from this probability on.
const THRESHOLD: f32 = 0.5;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct EmbeddingRequest {
    model: Option<String>,
    input: Option<Prompts>,
    dimensions: Option<usize>,
    encoding_format: Option<String>,
    /// EmbeddingGemma's prompt: `query`, `document`, `classification`, ...
    task: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ModerationRequest {
    model: Option<String>,
    input: Option<ModerationInput>,
}

/// One text, several texts, or one message of texts and images.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string, an array of strings, or an array of content parts")]
enum ModerationInput {
    Text(String),
    Texts(Vec<String>),
    Parts(Content),
}

impl ModerationInput {
    /// For each result of the reply what is classified together.
    fn subjects(self, image_limit: usize) -> Result<Vec<Vec<Moderated>>, Refusal> {
        Ok(match self {
            Self::Text(text) => vec![vec![Moderated::Text(text)]],
            Self::Texts(texts) => texts.into_iter().map(|text| vec![Moderated::Text(text)]).collect(),
            Self::Parts(content) => {
                let text = Some(content.text).filter(|text| !text.is_empty()).map(Moderated::Text);
                let image = |url: &String| image_of_url(url, "input", image_limit).map(Moderated::Image);
                let images = content.urls.iter().map(image).collect::<Result<Vec<_>, _>>()?;
                vec![text.into_iter().chain(images).collect()]
            }
        })
    }
}

/// The embeddings of some texts, cut to `dimensions`, and the tokens they took.
///
/// # Errors
/// When the model computes none, or there are fewer dimensions.
pub(crate) async fn embed(
    app: &App,
    backend: &Arc<dyn Backend>,
    inputs: Vec<TextOrTokens>,
    dimensions: Option<usize>,
    task: Option<String>,
) -> Result<(Vec<Vec<f32>>, usize), Refusal> {
    if inputs.len() > MOST_TEXTS {
        return Err(Refusal::field("input", format!("{} texts; at most {MOST_TEXTS}", inputs.len())));
    }
    let inputs: Vec<EmbedInput> = inputs
        .into_iter()
        .map(|input| match input {
            TextOrTokens::Text(text) => EmbedInput::Text(text),
            TextOrTokens::Tokens(tokens) => EmbedInput::Tokens(tokens),
        })
        .collect();
    let work = move |backend: &dyn Backend, ongoing: &Ongoing| backend.embed(&inputs, task.as_deref(), ongoing);
    let (mut vectors, tokens) = beside(app, backend, "embeddings", work).await?;
    if let Some(dimensions) = dimensions {
        let full = vectors.first().map_or(0, Vec::len);
        if dimensions == 0 || dimensions > full {
            return Err(Refusal::field("dimensions", format!("{dimensions} is outside 1 to {full}")));
        }
        vectors.iter_mut().for_each(|vector| shorten(vector, dimensions));
    }
    Ok((vectors, tokens))
}

/// Keeps the first dimensions and normalizes again (Matryoshka representation learning, Kusupati et al. 2022).
fn shorten(vector: &mut Vec<f32>, dimensions: usize) {
    vector.truncate(dimensions);
    let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|value| *value /= norm);
    }
}

/// `POST /v1/embeddings`.
pub(crate) async fn embeddings(
    State(app): State<App>,
    JsonBody(request): JsonBody<EmbeddingRequest>,
) -> Result<Json<Value>, Refusal> {
    let backend = app.backend(request.model.as_deref()).await?;
    let inputs =
        request.input.ok_or_else(|| Refusal::field("input", "missing; send a string or an array of strings"))?;
    let base64 = match request.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(Refusal::field("encoding_format", format!("{other:?} is unknown; use float or base64")));
        }
    };
    let (vectors, tokens) = embed(&app, &backend, inputs.0, request.dimensions, request.task).await?;
    let entry = |(index, vector): (usize, Vec<f32>)| {
        let embedding = match base64 {
            true => {
                let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                json!(STANDARD.encode(bytes))
            }
            false => json!(vector),
        };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    };
    let data: Vec<Value> = vectors.into_iter().enumerate().map(entry).collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(Json(json!({"object": "list", "model": backend.card().id, "data": data, "usage": usage})))
}

/// The result for what is classified together: of each policy the largest probability.
fn classified(backend: &dyn Backend, subjects: &[Moderated], ongoing: &Ongoing) -> Result<Value, Refusal> {
    let mut largest: BTreeMap<String, f32> = BTreeMap::new();
    for subject in subjects {
        for (policy, score) in backend.moderate(subject, ongoing)? {
            let place = largest.entry(policy).or_insert(0.0);
            *place = place.max(score);
        }
    }
    let flags: BTreeMap<&String, bool> = largest.iter().map(|(policy, score)| (policy, *score >= THRESHOLD)).collect();
    let any = flags.values().any(|flag| *flag);
    Ok(json!({"flagged": any, "categories": flags, "category_scores": largest}))
}

/// `POST /v1/moderations`.
pub(crate) async fn moderations(
    State(app): State<App>,
    JsonBody(request): JsonBody<ModerationRequest>,
) -> Result<Json<Value>, Refusal> {
    let backend = app.backend(request.model.as_deref()).await?;
    let inputs =
        request.input.ok_or_else(|| Refusal::field("input", "missing; send a string or an array of strings"))?;
    let inputs = inputs.subjects(app.settings.image_limit)?;
    if inputs.is_empty() || inputs[0].is_empty() || inputs.len() > MOST_TEXTS {
        return Err(Refusal::field("input", format!("{} texts; send 1 to {MOST_TEXTS}", inputs.len())));
    }
    if inputs[0].len() > app.settings.images {
        return Err(Refusal::field("input", format!("more than {} images in one request", app.settings.images)));
    }
    let model = backend.card().id.clone();
    let work = move |backend: &dyn Backend, ongoing: &Ongoing| {
        inputs.iter().map(|input| classified(backend, input, ongoing)).collect::<Result<Vec<Value>, Refusal>>()
    };
    let results = beside(&app, &backend, "moderations", work).await?;
    Ok(Json(json!({"id": new_id("modr-"), "model": model, "results": results})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortened_embedding_has_length_one() {
        let mut vector = vec![3.0, 4.0, 12.0];
        shorten(&mut vector, 2);
        assert_eq!(vector, [0.6, 0.8]);
        let mut zero = vec![0.0, 1.0];
        shorten(&mut zero, 1);
        assert_eq!(zero, [0.0]);
    }
}
