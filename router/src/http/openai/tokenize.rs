//! `POST /chat_tokenize`: what the chat template makes of a conversation, token by token.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::request::OpenAiRequest;
use crate::http::admission::Places;
use crate::http::body;
use crate::http::error::ApiError;
use crate::http::state::AppState;
use crate::http::wire::SimpleToken;
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
) -> Result<Json<ChatTokenized>, ApiError> {
    let _place = Places::take(&state, 1)?;
    let mut request: OpenAiRequest = body::read(request, &state).await?;
    let may_call = request.may_call()?;
    let conversation = request.shown_conversation(&state.format, may_call)?;
    let text = Arc::clone(&state.text);
    let work = move || text.chat_spans(&conversation);
    let tokenized = state.validator.pool().run(work).await.map_err(ValidationError::from)?;
    let tokenized = tokenized.map_err(|error| ValidationError::of_chat(&error, &Names::CHAT))?;
    let tokens = tokenized.spans.into_iter().map(|span| SimpleToken::of(span, &tokenized.text));
    Ok(Json(ChatTokenized { tokenize_response: tokens.collect(), templated_text: tokenized.text }))
}
