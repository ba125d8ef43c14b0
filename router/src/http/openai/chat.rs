//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use super::OpenAiError;
use super::request::OpenAiRequest;
use super::response::{AssistantMessage, ChatChoice, Completion, Envelope, SYSTEM_FINGERPRINT, Usage, finish_reason};
use super::stream::{Form, Streamed};
use crate::http::admission::{admit, receive};
use crate::http::collect::collect;
use crate::http::error::ApiError;
use crate::http::headers;
use crate::http::sse;
use crate::http::state::AppState;
use crate::validation::{Ask, Names, Prompt};

pub(in crate::http) async fn chat_completions(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let (arrival, place, mut request): (_, _, OpenAiRequest) = receive(&state, request).await?;
    let streamed = request.stream.unwrap_or_default();
    let ask = Ask {
        prompt: conversation(&mut request)?,
        parameters: request.parameters()?,
        stream: streamed,
        names: &Names::CHAT,
        request_id: arrival.request_id,
        received: arrival.received,
    };
    let envelope = Envelope::new("chatcmpl", state.models.resolve(request.model.as_deref()));
    let admitted = admit(&state, ask, place).await?;
    if streamed {
        let headers = headers::of_stream(&state.compute_type, admitted.ticket.characters);
        let answer = Streamed { form: Form::Chat, envelope, wants_usage: request.wants_usage() };
        return Ok(sse::respond(answer.chunks(vec![admitted]), headers));
    }
    let answer = collect(admitted, false).await?;
    let cost = answer.cost();
    let message = AssistantMessage { role: "assistant", content: &answer.best.shown };
    let reason = finish_reason(answer.best.finished.reason);
    let completion = Completion {
        id: &envelope.id,
        object: "chat.completion",
        created: envelope.created,
        model: &envelope.model,
        system_fingerprint: SYSTEM_FINGERPRINT,
        choices: vec![ChatChoice { index: 0, message, logprobs: None, finish_reason: reason }],
        usage: Usage::from(&cost),
    };
    Ok((headers::of_answer(&state.compute_type, &cost), Json(completion)).into_response())
}

fn conversation(request: &mut OpenAiRequest) -> Result<Prompt, ApiError> {
    let messages = request.messages.take().ok_or_else(|| ApiError::field("messages", "is missing; send a list"))?;
    if messages.is_empty() {
        return Err(ApiError::field("messages", "must not be empty; send at least one message"));
    }
    let messages = messages.into_iter().enumerate().map(|(index, message)| message.into_chat(index));
    Ok(Prompt::Chat(messages.collect::<Result<_, _>>()?))
}
