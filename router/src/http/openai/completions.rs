//! `POST /v1/completions`: one or several prompts, one or several choices each.

use std::borrow::Cow;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;

use super::OpenAiError;
use super::request::OpenAiRequest;
use super::response::{Completion, Envelope, SYSTEM_FINGERPRINT, TextChoice, Usage, finish_reason, usage};
use super::stream::Streamed;
use super::wanted::{Form, Wanted};
use crate::http::admission::{Places, admit_all, further_places, receive};
use crate::http::collect::{Answer, Sequence, collect};
use crate::http::error::ApiError;
use crate::http::headers::{self, Cost};
use crate::http::kept::until_sent;
use crate::http::sse;
use crate::http::state::{AppState, Arrival};
use crate::tenants::Tenant;
use crate::validation::{Ask, Names, Parameters};

pub(in crate::http) async fn completions(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let (arrival, place, request) = receive(&state, request).await?;
    completions_answer(&state, request, arrival, place).await
}

pub(in crate::http) async fn completions_answer(
    state: &AppState,
    mut request: OpenAiRequest,
    arrival: Arrival,
    place: Places,
) -> Result<Response, OpenAiError> {
    let streamed = request.stream.unwrap_or_default();
    let mut parameters = request.parameters()?;
    let wanted = Wanted::of(&request, Form::Text, &mut parameters, state)?;
    let asks = asks(state, &mut request, &parameters, &arrival)?;
    let envelope = Envelope::new("cmpl", state.models.resolve(request.model.as_deref())?);
    let placed = seat(state, &arrival.tenant, asks, wanted.num_choices, place)?;
    let admitted = admit_all(state, placed).await?;
    if streamed {
        let characters = admitted.iter().map(|prompt| prompt.ticket.characters).sum();
        let headers = headers::of_stream(&state.compute_type, characters);
        let held: Vec<_> = admitted.iter().map(|prompt| prompt.ticket.places()).collect();
        return Ok(sse::respond(state, Streamed { wanted, envelope }.chunks(admitted), headers, held));
    }
    let keep = wanted.logprobs.is_some();
    let answers = try_join_all(admitted.into_iter().map(|prompt| collect(prompt, keep))).await?;
    Ok(whole(state, &envelope, &wanted, &answers))
}

fn asks(
    state: &AppState,
    request: &mut OpenAiRequest,
    parameters: &Parameters,
    arrival: &Arrival,
) -> Result<Vec<Ask>, ApiError> {
    let prompts = request.prompt.take().ok_or_else(|| ApiError::field("prompt", "is missing; send some text"))?.0;
    let allowed = state.config.max_client_batch_size;
    if prompts.is_empty() {
        return Err(ApiError::field("prompt", "must not be empty; send a string or a list of strings"));
    }
    if prompts.len() > allowed {
        let problem =
            format!("has {} entries, but at most {allowed} are allowed (max_client_batch_size)", prompts.len());
        return Err(ApiError::Special { kind: "batch size exceeded", field: "prompt", problem });
    }
    let ask = |prompt| Ask {
        prompt,
        parameters: parameters.clone(),
        stream: request.stream.unwrap_or_default(),
        names: &Names::COMPLETIONS,
        request_id: Arc::clone(&arrival.request_id),
        tenant: Arc::clone(&arrival.tenant),
        received: arrival.received,
        deadline: arrival.deadline,
    };
    Ok(prompts.into_iter().map(ask).collect())
}

/// A place for every choice of every prompt; the first one has been taken already.
fn seat(
    state: &AppState,
    tenant: &Tenant,
    asks: Vec<Ask>,
    num_choices: usize,
    mut first: Places,
) -> Result<Vec<(Ask, Places)>, ApiError> {
    let field = if asks.len() > 1 { "prompt" } else { "n" };
    first.merge(further_places(state, tenant, asks.len().saturating_mul(num_choices), field)?);
    let shares = std::iter::from_fn(move || first.split(num_choices));
    Ok(asks.into_iter().zip(shares).collect())
}

fn whole(state: &AppState, envelope: &Envelope, wanted: &Wanted, answers: &[Answer]) -> Response {
    let (mut cost, mut total) = (Cost::default(), Usage::default());
    let mut choices = Vec::new();
    for answer in answers {
        cost.add(&answer.cost_of_all());
        total.add(if wanted.is_prompt_only { usage(answer).of_prompt() } else { usage(answer) });
        for sequence in answer.ranked(wanted.num_choices) {
            choices.push(choice(choices.len(), wanted, answer, sequence));
        }
    }
    let completion = Completion {
        id: &envelope.id,
        object: "text_completion",
        created: envelope.created,
        model: &envelope.model,
        system_fingerprint: SYSTEM_FINGERPRINT,
        choices,
        usage: total,
    };
    let places: Vec<_> = answers.iter().map(|answer| answer.ticket.places()).collect();
    until_sent(state, (headers::of_answer(&state.compute_type, &cost), Json(completion)).into_response(), places)
}

fn choice<'a>(index: usize, wanted: &Wanted, answer: &'a Answer, sequence: &'a Sequence) -> TextChoice<'a> {
    let shown = if wanted.is_prompt_only { "" } else { sequence.shown.as_str() };
    let text = if wanted.echo { Cow::Owned(format!("{}{shown}", answer.prompt)) } else { Cow::Borrowed(shown) };
    let logprobs = wanted.logprobs.as_ref().map(|logprobs| {
        let mut offset = 0;
        let prompt = logprobs.prompt(&answer.prompt, &answer.prompt_ids, &answer.prefilled, &mut offset);
        let tokens = if wanted.is_prompt_only { &[] } else { sequence.tokens.as_slice() };
        prompt.and(logprobs.text(tokens, &mut offset))
    });
    TextChoice { index, text, logprobs, finish_reason: finish_reason(sequence.finished.reason) }
}
