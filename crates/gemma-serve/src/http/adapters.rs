//! `/lora-adapters`: the adapters of the first model, and how much of each a request gets that chooses none.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::App;
use super::body::JsonList;
use super::error::Refusal;
use super::sampling::{AdapterField, adapter_choices};

/// `GET /lora-adapters`, in llama.cpp's form: `scale` is how much of it a request gets that chooses none, `strength` how much
/// one gets that gives its name as the model.
pub(crate) async fn list(State(app): State<App>) -> Json<Value> {
    let model = &app.models[0];
    let adapters = model.adapters().iter().zip(model.default_scales()).enumerate();
    Json(
        adapters
            .map(|(id, (adapter, scale))| {
                json!({"id": id, "path": adapter.path, "scale": scale, "name": adapter.name, "strength": adapter.strength})
            })
            .collect(),
    )
}

/// `POST /lora-adapters`: sets the scales for requests that choose no adapter; those that the list leaves out become 0. Requests
/// that run keep theirs.
pub(crate) async fn set(
    State(app): State<App>,
    JsonList(fields): JsonList<AdapterField>,
) -> Result<Json<Value>, Refusal> {
    let model = &app.models[0];
    model.set_default_scales(&adapter_choices("", &fields, model.adapters().len())?);
    Ok(Json(json!({"success": true})))
}
