//! `POST /chat_tokenize`: what the chat template makes of a conversation, token by token.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::request::OpenAiRequest;
use crate::http::admission::receive_text;
use crate::http::error::ApiError;
use crate::http::kept::until_sent;
use crate::http::state::AppState;
use crate::http::wire::{SimpleToken, json_bytes};
use crate::tokenizer::{ChatError, ChatSpans};
use crate::validation::{Names, ValidationError};

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ChatTokenized {
    tokenize_response: Vec<SimpleToken>,
    templated_text: String,
}

/// Parameters have no effect.
pub(in crate::http) async fn chat_tokenize(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (place, mut request): (_, OpenAiRequest) = receive_text(&state, request).await?;
    let may_call = request.may_call()?;
    let conversation = request.shown_conversation(&state.format, may_call)?;
    let text = Arc::clone(&state.text);
    // Written where it is encoded, as for `/tokenize`.
    let work = move || {
        let ChatSpans { text, spans } = text.chat_spans(&conversation)?;
        let tokenize_response = spans.into_iter().map(|span| SimpleToken::of(span, &text)).collect();
        Ok(json_bytes(&ChatTokenized { tokenize_response, templated_text: text }))
    };
    let written: Result<_, ChatError> = state.validator.pool().run(work).await.map_err(ValidationError::from)?;
    let written = written.map_err(|error| ValidationError::of_chat(&error, &Names::CHAT))?;
    Ok(until_sent(&state, ([(header::CONTENT_TYPE, "application/json")], written).into_response(), place))
}
