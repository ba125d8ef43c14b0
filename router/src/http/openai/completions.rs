//! `POST /v1/completions`: one or several prompts, one choice each.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;

use super::OpenAiError;
use super::request::OpenAiRequest;
use super::response::{Completion, Envelope, SYSTEM_FINGERPRINT, TextChoice, Usage, finish_reason};
use super::stream::{Form, Streamed};
use crate::http::admission::{Admitted, Places, accept, places, receive, start};
use crate::http::collect::{Answer, collect};
use crate::http::error::ApiError;
use crate::http::headers::{self, Cost};
use crate::http::sse;
use crate::http::state::{AppState, Arrival};
use crate::validation::{Ask, Names, Prompt};

pub(in crate::http) async fn completions(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let (arrival, place, mut request): (_, _, OpenAiRequest) = receive(&state, request).await?;
    let streamed = request.stream.unwrap_or_default();
    let asks = asks(&state, &mut request, &arrival)?;
    let envelope = Envelope::new("cmpl", state.models.resolve(request.model.as_deref()));
    // Nothing runs before every prompt has been accepted: one bad prompt costs no work.
    let placed = seat(&state, asks, place)?;
    let accepted = try_join_all(placed.into_iter().map(|(ask, place)| accept(&state, ask, place))).await?;
    let admitted: Vec<Admitted> = accepted.into_iter().map(|accepted| start(&state, accepted)).collect();
    if streamed {
        let characters = admitted.iter().map(|choice| choice.ticket.characters).sum();
        let headers = headers::of_stream(&state.compute_type, characters);
        let answer = Streamed { form: Form::Text, envelope, wants_usage: request.wants_usage() };
        return Ok(sse::respond(answer.chunks(admitted), headers));
    }
    let answers = try_join_all(admitted.into_iter().map(|choice| collect(choice, false))).await?;
    Ok(whole(&state, &envelope, &answers))
}

fn asks(state: &AppState, request: &mut OpenAiRequest, arrival: &Arrival) -> Result<Vec<Ask>, ApiError> {
    let prompts = request.prompt.take().ok_or_else(|| ApiError::field("prompt", "is missing; send some text"))?.0;
    let allowed = state.config.max_client_batch_size;
    if prompts.is_empty() {
        return Err(ApiError::field("prompt", "must not be empty; send a string or a list of strings"));
    }
    let parameters = request.parameters()?;
    if prompts.len() > allowed {
        let problem =
            format!("has {} entries, but at most {allowed} are allowed (max_client_batch_size)", prompts.len());
        return Err(ApiError::Special { kind: "batch size exceeded", field: "prompt", problem });
    }
    let num_places = state.config.max_concurrent_requests;
    if prompts.len() > num_places {
        let problem = format!(
            "has {} entries, but this server takes at most {num_places} prompts at once (max_concurrent_requests)",
            prompts.len()
        );
        return Err(ApiError::field("prompt", problem));
    }
    let ask = |prompt| Ask {
        prompt: Prompt::Text(prompt),
        parameters: parameters.clone(),
        stream: request.stream.unwrap_or_default(),
        names: &Names::COMPLETIONS,
        request_id: Arc::clone(&arrival.request_id),
        received: arrival.received,
    };
    Ok(prompts.into_iter().map(ask).collect())
}

/// A place for every prompt; the first one has been taken already.
fn seat(state: &AppState, asks: Vec<Ask>, first: Places) -> Result<Vec<(Ask, Places)>, ApiError> {
    let mut rest = places(state, u32::try_from(asks.len() - 1).unwrap_or(u32::MAX))?;
    let all = std::iter::once(first).chain(std::iter::from_fn(move || rest.split()));
    Ok(asks.into_iter().zip(all).collect())
}

fn whole(state: &AppState, envelope: &Envelope, answers: &[Answer]) -> Response {
    let mut cost = Cost::default();
    for answer in answers {
        cost.add(&answer.cost());
    }
    let choices = answers.iter().enumerate().map(|(index, answer)| TextChoice {
        index,
        text: &answer.best.shown,
        logprobs: None,
        finish_reason: finish_reason(answer.best.finished.reason),
    });
    let completion = Completion {
        id: &envelope.id,
        object: "text_completion",
        created: envelope.created,
        model: &envelope.model,
        system_fingerprint: SYSTEM_FINGERPRINT,
        choices: choices.collect(),
        usage: Usage::from(&cost),
    };
    (headers::of_answer(&state.compute_type, &cost), Json(completion)).into_response()
}
