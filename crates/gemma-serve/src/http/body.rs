//! Request bodies: JSON of bounded size and depth, and the unions that the protocols allow.
//!
//! Unknown fields are ignored. A field of the wrong type is a 400 that names the field.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::App;
use super::error::Refusal;
use super::sampling::SamplingFields;
use super::structured::StructuredFields;

/// A JSON body as `T`.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for JsonBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &App) -> Result<Self, Refusal> {
        let bytes = read_body(request, app).await?;
        parse(&bytes).map(JsonBody)
    }
}

/// A JSON body that is an array of `T`.
pub(crate) struct JsonList<T>(pub(crate) Vec<T>);

impl<T: DeserializeOwned> FromRequest<App> for JsonList<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &App) -> Result<Self, Refusal> {
        let bytes = read_body(request, app).await?;
        match bytes.trim_ascii_start().first() {
            Some(b'[') => read(&bytes).map(JsonList),
            _ => Err(Refusal::invalid("the body is no array; send an array of objects")),
        }
    }
}

/// A JSON body as `T` whose errors have Ollama's form.
pub(crate) struct OllamaBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for OllamaBody<T> {
    type Rejection = axum::response::Response;

    async fn from_request(request: Request, app: &App) -> Result<Self, Self::Rejection> {
        let bytes = read_body(request, app).await.map_err(Refusal::into_ollama)?;
        parse(&bytes).map(OllamaBody).map_err(Refusal::into_ollama)
    }
}

/// A JSON body as `T`, with the fields that say how to sample and what form the answer has.
pub(crate) struct SampledBody<T>(pub(crate) T, pub(crate) SamplingFields, pub(crate) StructuredFields);

impl<T: DeserializeOwned> FromRequest<App> for SampledBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &App) -> Result<Self, Refusal> {
        let bytes = read_body(request, app).await?;
        // each part ignores the fields of the others; a flattened struct would lose the path of a wrong field
        Ok(Self(parse(&bytes)?, parse(&bytes)?, parse(&bytes)?))
    }
}

/// The bytes of a body, refused when it is too long or too slow.
async fn read_body(request: Request, app: &App) -> Result<Vec<u8>, Refusal> {
    let limit = app.settings.body_limit;
    let too_long = || Refusal::too_large(format!("the body is longer than {limit} bytes; send less at once"));
    let coding = request.headers().get(header::CONTENT_ENCODING).filter(|coding| *coding != "identity");
    if let Some(coding) = coding {
        let coding: String = String::from_utf8_lossy(coding.as_bytes()).chars().take(20).collect();
        let message = format!("the body is encoded as {coding:?}; send it without a content-encoding");
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_long());
    }
    let read = async {
        let mut body: Body = request.into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Refusal::invalid(format!("the body ended early: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > limit {
                return Err(too_long());
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    };
    let late = |_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive");
    let bytes = tokio::time::timeout(app.settings.body_timeout, read).await.map_err(late)??;
    if app.settings.log_requests {
        tracing::info!(body = %String::from_utf8_lossy(&bytes), "request body");
    }
    Ok(bytes)
}

/// Deepest nesting of arrays and objects.
const DEEPEST: usize = 100;

/// How deep the arrays and objects of a JSON text are nested.
fn depth(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Reads a JSON object.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    if bytes.is_empty() {
        return Err(Refusal::invalid("the body is empty; send a JSON object"));
    }
    // serde also reads a struct from an array of its fields
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(Refusal::invalid("the body is an array; send a JSON object"));
    }
    read(bytes)
}

/// Reads JSON of bounded depth.
fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    if depth(bytes) > DEEPEST {
        return Err(Refusal::invalid(format!("the JSON is nested deeper than {DEEPEST} levels")));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let message = error.inner().to_string();
        if path == "." || error.inner().is_syntax() || error.inner().is_eof() {
            Refusal::invalid(format!("the body is not the JSON that is expected here: {message}"))
        } else {
            Refusal::field(path, message)
        }
    })?;
    deserializer.end().map_err(|error| Refusal::invalid(format!("the body is not one JSON value: {error}")))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::http::texts::{Prompts, TextOrTokens, Texts};

    #[derive(Debug, Deserialize)]
    struct Example {
        #[serde(default)]
        stop: Texts,
        prompt: Option<Prompts>,
        n: Option<u32>,
    }

    #[test]
    fn every_form_of_a_prompt_is_read() {
        let prompts = |json: &str| {
            parse::<Example>(format!("{{\"prompt\":{json}}}").as_bytes()).map(|e| e.prompt.expect("given").0)
        };
        let text = |text: &str| TextOrTokens::Text(text.to_owned());
        assert_eq!(prompts("\"a\""), Ok(vec![text("a")]));
        assert_eq!(prompts("[\"a\",\"b\"]"), Ok(vec![text("a"), text("b")]));
        assert_eq!(prompts("[2,3]"), Ok(vec![TextOrTokens::Tokens(vec![2, 3])]));
        assert_eq!(prompts("[[2],[3,4]]"), Ok(vec![TextOrTokens::Tokens(vec![2]), TextOrTokens::Tokens(vec![3, 4])]));
        for wrong in ["7", "[]", "[\"a\",2]", "[-1]", "[1.5]", "[{}]", "{}", "[[\"a\"]]"] {
            let refusal = prompts(wrong).expect_err(wrong);
            assert!(refusal.param.as_deref().is_some_and(|param| param.starts_with("prompt")), "{wrong}: {refusal:?}");
        }
    }

    #[test]
    fn a_wrong_type_names_the_field_and_unknown_fields_pass() {
        let refusal = parse::<Example>(br#"{"n":"two","surprise":{}}"#).expect_err("n is text");
        assert_eq!(refusal.param.as_deref(), Some("n"));
        let refusal = parse::<Example>(br#"{"stop":["a",1]}"#).expect_err("1 is no text");
        assert_eq!(refusal.param.as_deref(), Some("stop[1]"));
        let example = parse::<Example>(br#"{"surprise":[1],"stop":null}"#).expect("unknown fields are ignored");
        assert_eq!((example.stop, example.n), (Texts::default(), None));
    }

    #[test]
    fn what_is_not_one_json_value_is_refused() {
        for wrong in ["", "{", "[1", "{} {}", "nul", "{\"n\":1}x", "[]", " [[\"a\"],\"b\",1]"] {
            assert_eq!(parse::<Example>(wrong.as_bytes()).expect_err(wrong).status, 400, "{wrong}");
        }
        let deep = format!("{{\"x\":{}{}}}", "[".repeat(200), "]".repeat(200));
        let refusal = parse::<Example>(deep.as_bytes()).expect_err("200 levels");
        assert!(refusal.message.contains("nested deeper"), "{refusal:?}");
        let text = format!("{{\"x\":\"{}\\\"{}\"}}", "[".repeat(200), "{".repeat(200));
        assert!(parse::<Example>(text.as_bytes()).is_ok(), "brackets in a text are no nesting");
    }
}
