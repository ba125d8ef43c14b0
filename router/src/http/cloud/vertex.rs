//! `POST /vertex`, Google's form: a list of instances in, a list of texts out.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::http::admission::{admit_all, further_places, receive};
use crate::http::body;
use crate::http::collect::collect;
use crate::http::error::ApiError;
use crate::http::kept::until_sent;
use crate::http::openai::{Chat, OpenAiRequest};
use crate::http::state::{AppState, Arrival};
use crate::http::wire::GenerateRequest;
use crate::validation::{Ask, Names, Parameters, Prompt};

#[derive(Debug, Deserialize, ToSchema)]
#[serde(expecting = "an object with `instances`")]
pub(in crate::http) struct VertexRequest {
    /// Bodies of `/generate` or of chat; at least one.
    #[schema(value_type = Vec<Object>, min_items = 1)]
    instances: Vec<Value>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct VertexResponse {
    /// In the order of the instances.
    predictions: Vec<String>,
}

pub(in crate::http) async fn vertex(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (arrival, mut place, VertexRequest { instances }) = receive(&state, request).await?;
    if instances.is_empty() {
        let problem = "must not be empty; send at least one".to_owned();
        return Err(ApiError::Special { kind: "Input validation error", field: "instances", problem });
    }
    place.merge(further_places(&state, &arrival.tenant, instances.len(), "instances")?);
    let asks = instances.into_iter().enumerate().map(|(index, instance)| ask(&state, instance, index, &arrival));
    let asks = asks.collect::<Result<Vec<_>, _>>()?;
    let places = std::iter::from_fn(move || place.split(1));
    let admitted = admit_all(&state, asks.into_iter().zip(places)).await?;
    let answers = try_join_all(admitted.into_iter().map(|one| collect(one, false))).await?;
    let predictions = answers.iter().map(|answer| answer.best().finished.generated_text.clone()).collect();
    let places: Vec<_> = answers.iter().map(|answer| answer.ticket.places()).collect();
    Ok(until_sent(&state, Json(VertexResponse { predictions }).into_response(), places))
}

/// An instance is a body of `/generate` that samples unless it says otherwise, or one of chat.
fn ask(state: &AppState, instance: Value, index: usize, arrival: &Arrival) -> Result<Ask, ApiError> {
    let within = Some(format!("instances[{index}]"));
    let (prompt, parameters, names) = if instance.get("messages").is_some() {
        let mut request: OpenAiRequest = body::shape(instance, within)?;
        if request.wants_several() {
            let problem = "must be 1: there is one prediction for each instance; send the instance several times";
            return Err(ApiError::field(format!("instances[{index}].n"), problem));
        }
        // A prediction is the output as it is: a call stays in the model's own form.
        let Chat { conversation, parameters, names, .. } = request.chat(&state.format)?;
        (Prompt::Chat(Box::new(conversation)), Parameters { shown: Arc::default(), ..parameters }, names)
    } else {
        let request: GenerateRequest = body::shape(instance, within)?;
        let (inputs, mut parameters) = request.into_parts();
        parameters.do_sample.get_or_insert(true);
        (Prompt::Text(inputs), parameters, &Names::GENERATE)
    };
    let Arrival { request_id, tenant, received, deadline } = arrival.clone();
    Ok(Ask { prompt, parameters, stream: false, names, request_id, tenant, received, deadline })
}
