//! `POST /invocations`, `SageMaker`'s one route: the body's form says which other route is meant.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::http::admission::receive;
use crate::http::body;
use crate::http::error::ApiError;
use crate::http::generate;
use crate::http::openai::{self, OpenAiError, OpenAiRequest};
use crate::http::state::AppState;
use crate::http::wire::CompatRequest;

/// The first of `/` (by `inputs`), chat (by `messages`) and completions (by `prompt`) whose form the body has.
pub(in crate::http) async fn invocations(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, ApiError> {
    let (arrival, place, body): (_, _, Value) = receive(&state, request).await?;
    let why_not = match body::shape::<CompatRequest>(&body, None) {
        Ok(compat) => return generate::compat_answer(&state, compat, arrival, place).await,
        Err(error) => error,
    };
    let meant_as_compat = body.get("inputs").is_some();
    match body::shape::<OpenAiRequest>(body, None) {
        Ok(request) if request.messages.is_some() => {
            Ok(in_openais_form(openai::chat_answer(&state, request, arrival, place).await))
        }
        Ok(request) if request.prompt.is_some() => {
            Ok(in_openais_form(openai::completions_answer(&state, request, arrival, place).await))
        }
        _ if meant_as_compat => Err(why_not),
        Err(error) => Err(error),
        Ok(_) => Err(ApiError::field("inputs", "is missing; send `inputs`, `messages` or `prompt`")),
    }
}

fn in_openais_form(answer: Result<Response, OpenAiError>) -> Response {
    answer.unwrap_or_else(IntoResponse::into_response)
}
