//! `/v1/vision/{caption,detect,segment}`: PaliGemma's tasks with typed answers.

use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::backend::VisionTask;
use super::body::JsonBody;
use super::error::Refusal;
use super::messages::image_of_base64;
use super::running::beside;
use super::texts::Texts;

/// Most objects to look for in one request.
const MOST_OBJECTS: usize = 32;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct VisionRequest {
    model: Option<String>,
    image: Option<String>,
    /// For `caption`. Default `en`.
    language: Option<String>,
    /// For `detect` and `segment`.
    objects: Texts,
}

/// `POST /v1/vision/{task}`.
pub(crate) async fn vision(
    State(app): State<App>,
    Path(task): Path<String>,
    JsonBody(request): JsonBody<VisionRequest>,
) -> Result<Json<Value>, Refusal> {
    let backend = app.backend(request.model.as_deref()).await?;
    let objects = || match request.objects.0.len() {
        0 => Err(Refusal::field("objects", "missing; send the names of what to look for")),
        1..=MOST_OBJECTS => Ok(request.objects.0.clone()),
        count => Err(Refusal::field("objects", format!("{count} objects; at most {MOST_OBJECTS}"))),
    };
    let task_name = task.clone();
    let task = match task.as_str() {
        "caption" => VisionTask::Caption(request.language.clone().unwrap_or_else(|| "en".to_owned())),
        "detect" => VisionTask::Detect(objects()?),
        "segment" => VisionTask::Segment(objects()?),
        _ => return Err(Refusal::new(axum::http::StatusCode::NOT_FOUND, "use caption, detect or segment")),
    };
    let image =
        request.image.ok_or_else(|| Refusal::field("image", "missing; send an image as a data URL or in base64"))?;
    let image = image_of_base64(&image, "image", app.settings.image_limit)?;
    let model = backend.card().id.clone();
    let result =
        beside(&app, &backend, "vision", move |backend, ongoing| backend.vision(&image, &task, ongoing)).await?;
    let mut reply = json!({"object": format!("vision.{task_name}"), "model": model});
    if let (Value::Object(reply), Value::Object(result)) = (&mut reply, result) {
        reply.extend(result);
    }
    Ok(Json(reply))
}
