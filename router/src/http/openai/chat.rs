//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use super::OpenAiError;
use super::calling::Chat;
use super::request::OpenAiRequest;
use super::response::{ChatChoice, Completion, Envelope, SYSTEM_FINGERPRINT, finish_reason, usage};
use super::stream::Streamed;
use super::voice::AssistantMessage;
use super::wanted::{Form, Wanted};
use crate::http::admission::{Places, admit, further_places, receive};
use crate::http::collect::collect;
use crate::http::error::ApiError;
use crate::http::headers;
use crate::http::kept::until_sent;
use crate::http::sse;
use crate::http::state::{AppState, Arrival};
use crate::validation::{Ask, Prompt};

pub(in crate::http) async fn chat_completions(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let (arrival, place, request) = receive(&state, request).await?;
    chat_answer(&state, request, arrival, place).await
}

pub(in crate::http) async fn chat_answer(
    state: &AppState,
    mut request: OpenAiRequest,
    arrival: Arrival,
    mut place: Places,
) -> Result<Response, OpenAiError> {
    if request.messages.as_ref().is_some_and(Vec::is_empty) {
        return Err(ApiError::field("messages", "must not be empty; send at least one message").into());
    }
    let streamed = request.stream.unwrap_or_default();
    let Chat { conversation, mut parameters, reading, names } = request.chat(&state.format)?;
    let wanted = Wanted { reading, ..Wanted::of(&request, Form::Chat, &mut parameters, state)? };
    place.merge(further_places(state, &arrival.tenant, wanted.num_choices, "n")?);
    let ask = Ask {
        prompt: Prompt::Chat(Box::new(conversation)),
        parameters,
        stream: streamed,
        names,
        request_id: arrival.request_id,
        tenant: arrival.tenant,
        received: arrival.received,
        deadline: arrival.deadline,
    };
    let envelope = Envelope::new("chatcmpl", state.models.resolve(request.model.as_deref())?);
    let admitted = admit(state, ask, place).await?;
    if streamed {
        let headers = headers::of_stream(&state.compute_type, admitted.ticket.characters);
        let places = admitted.ticket.places();
        return Ok(sse::respond(state, Streamed { wanted, envelope }.chunks(vec![admitted]), headers, places));
    }
    let answer = collect(admitted, wanted.logprobs.is_some()).await?;
    let choices = answer.ranked(wanted.num_choices).into_iter().enumerate().map(|(index, sequence)| {
        let reason = sequence.finished.reason;
        let (message, finish_reason) = match wanted.voice(&answer.prompt) {
            None => (AssistantMessage::plain(&sequence.shown), finish_reason(reason)),
            Some(voice) => AssistantMessage::read(voice, &sequence.shown, reason),
        };
        let logprobs = wanted.logprobs.as_ref().map(|logprobs| logprobs.chat(&sequence.tokens));
        ChatChoice { index, message, logprobs, finish_reason }
    });
    let completion = Completion {
        id: &envelope.id,
        object: "chat.completion",
        created: envelope.created,
        model: &envelope.model,
        system_fingerprint: SYSTEM_FINGERPRINT,
        choices: choices.collect(),
        usage: usage(&answer),
    };
    let headers = headers::of_answer(&state.compute_type, &answer.cost_of_all());
    Ok(until_sent(state, (headers, Json(completion)).into_response(), answer.ticket.places()))
}
