//! `KServe`'s inference protocol v2, in the form that the original gave it: text in, text out, as bytes.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::http::admission::{admit_all, further_places, receive};
use crate::http::collect::collect;
use crate::http::error::ApiError;
use crate::http::kept::until_sent;
use crate::http::object;
use crate::http::openai::LONGEST_NAME;
use crate::http::state::{AppState, Arrival};
use crate::validation::{Ask, Names, Parameters, Prompt};

#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "an object with `id`, `inputs` and `outputs`")]
pub(in crate::http) struct InferRequest {
    /// Comes back with the answer.
    #[schema(example = "0")]
    id: String,
    /// As in `/generate`, for all inputs.
    #[serde(default, deserialize_with = "object::optional")]
    parameters: Option<Parameters>,
    /// At least one.
    #[schema(min_items = 1)]
    inputs: Vec<Input>,
    /// Names for the answers: as many as inputs.
    #[schema(min_items = 1)]
    outputs: Vec<Output>,
}

/// A prompt. `shape` and `datatype` say nothing that `data` does not.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = InferInput)]
struct Input {
    /// UTF-8, a number for each byte.
    #[schema(value_type = Vec<u8>, example = json!([72, 105]))]
    data: Vec<u8>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = InferOutput)]
struct Output {
    name: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct InferResponse {
    id: String,
    outputs: Vec<Tensor>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InferTensor)]
struct Tensor {
    name: String,
    shape: [usize; 2],
    datatype: &'static str,
    /// UTF-8, a number for each byte.
    #[schema(value_type = Vec<u8>)]
    data: Vec<u8>,
}

/// `GET /v2`.
pub(in crate::http) async fn server() -> Json<Value> {
    Json(json!({
        "name": "text-generation-inference",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["health", "models", "metrics"],
    }))
}

/// `GET /v2/health/live`: this process answers.
pub(in crate::http) async fn live() -> Json<Value> {
    Json(json!({ "live": true }))
}

/// `GET /v2/health/ready` and the model's own.
pub(in crate::http) async fn ready(State(state): State<Arc<AppState>>) -> Response {
    let is_ready = state.health.is_serving();
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "live": true, "ready": is_ready }))).into_response()
}

/// `GET /v2/models/{model}/versions/{version}`: any name of a usual length is this server's model.
pub(in crate::http) async fn model(Path((name, version)): Path<(String, String)>) -> Result<Json<Value>, ApiError> {
    if name.len().max(version.len()) > LONGEST_NAME {
        return Err(ApiError::UnknownModel(name));
    }
    Ok(Json(json!({ "name": name, "version": version, "extensions": ["infer", "ready"] })))
}

/// `POST /v2/models/{model}/versions/{version}/infer`: one output per input, in their order.
pub(in crate::http) async fn infer(State(state): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    let (arrival, mut place, InferRequest { id, parameters, inputs, outputs }) = receive(&state, request).await?;
    if inputs.is_empty() || inputs.len() != outputs.len() {
        let problem =
            format!("has {} entries for {} outputs; send as many, and at least one", inputs.len(), outputs.len());
        return Err(ApiError::Special { kind: "length mismatch", field: "inputs", problem });
    }
    place.merge(further_places(&state, &arrival.tenant, inputs.len(), "inputs")?);
    let parameters = parameters.unwrap_or_default();
    let asks = inputs.into_iter().map(|input| ask(input, &parameters, &arrival)).collect::<Result<Vec<_>, _>>()?;
    let places = std::iter::from_fn(move || place.split(1));
    let admitted = admit_all(&state, asks.into_iter().zip(places)).await?;
    let answers = try_join_all(admitted.into_iter().map(|one| collect(one, false))).await?;
    let places: Vec<_> = answers.iter().map(|answer| answer.ticket.places()).collect();
    let outputs = outputs.into_iter().zip(answers).map(|(output, answer)| {
        let data = answer.best().finished.generated_text.clone().into_bytes();
        Tensor { name: output.name, shape: [1, data.len()], datatype: "BYTES", data }
    });
    Ok(until_sent(&state, Json(InferResponse { id, outputs: outputs.collect() }).into_response(), places))
}

fn ask(input: Input, parameters: &Parameters, arrival: &Arrival) -> Result<Ask, ApiError> {
    let text = String::from_utf8(input.data).map_err(|error| {
        let problem = format!("has data that is not UTF-8: {}", error.utf8_error());
        ApiError::Special { kind: "utf8", field: "inputs", problem }
    })?;
    let Arrival { request_id, tenant, received, deadline } = arrival.clone();
    let (prompt, parameters) = (Prompt::Text(text), parameters.clone());
    Ok(Ask { prompt, parameters, stream: false, names: &Names::GENERATE, request_id, tenant, received, deadline })
}
