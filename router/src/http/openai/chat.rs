//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use super::OpenAiError;
use super::message::conversation;
use super::request::OpenAiRequest;
use super::response::{AssistantMessage, ChatChoice, Completion, Envelope, SYSTEM_FINGERPRINT, finish_reason, usage};
use super::stream::Streamed;
use super::wanted::{Form, Wanted};
use crate::http::admission::{admit, further_places, receive};
use crate::http::collect::collect;
use crate::http::headers;
use crate::http::sse;
use crate::http::state::AppState;
use crate::validation::{Ask, Names, Prompt};

pub(in crate::http) async fn chat_completions(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let (arrival, mut place, mut request): (_, _, OpenAiRequest) = receive(&state, request).await?;
    let streamed = request.stream.unwrap_or_default();
    let mut parameters = request.parameters()?;
    let prompt = Prompt::Chat(Box::new(conversation(&mut request)?));
    let wanted = Wanted::of(&request, Form::Chat, &mut parameters, &state)?;
    place.merge(further_places(&state, wanted.num_choices, "n")?);
    let ask = Ask {
        prompt,
        parameters,
        stream: streamed,
        names: &Names::CHAT,
        request_id: arrival.request_id,
        received: arrival.received,
    };
    let envelope = Envelope::new("chatcmpl", state.models.resolve(request.model.as_deref()));
    let admitted = admit(&state, ask, place).await?;
    if streamed {
        let headers = headers::of_stream(&state.compute_type, admitted.ticket.characters);
        return Ok(sse::respond(Streamed { wanted, envelope }.chunks(vec![admitted]), headers));
    }
    let answer = collect(admitted, wanted.logprobs.is_some()).await?;
    let choices = answer.sequences.iter().enumerate().map(|(index, sequence)| ChatChoice {
        index,
        message: AssistantMessage { role: "assistant", content: &sequence.shown },
        logprobs: wanted.logprobs.as_ref().map(|logprobs| logprobs.chat(&sequence.tokens)),
        finish_reason: finish_reason(sequence.finished.reason),
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
    Ok((headers::of_answer(&state.compute_type, &answer.cost_of_all()), Json(completion)).into_response())
}
