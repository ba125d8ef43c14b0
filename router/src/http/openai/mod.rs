//! `OpenAI`'s routes: text in, text out.

mod calling;
mod chat;
mod completions;
mod logprobs;
mod message;
mod models;
mod request;
mod response;
mod seed;
mod stream;
mod texts;
mod tokenize;
mod voice;
mod wanted;

pub(super) use calling::{Chat, EFFORTS};
pub(super) use chat::{chat_answer, chat_completions};
pub(super) use completions::{completions, completions_answer};
pub(super) use models::{LONGEST_NAME, ModelNames, list, one};
pub(super) use request::OpenAiRequest;
pub(super) use tokenize::chat_tokenize;

use axum::response::{IntoResponse, Response};

use super::error::{ApiError, Dialect};
use super::openapi::{Schemas, add, add_as};

/// An error in this family's form.
#[derive(Debug)]
pub(super) struct OpenAiError(ApiError);

impl<E: Into<ApiError>> From<E> for OpenAiError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        self.0.into_response(Dialect::OpenAi)
    }
}

/// What these routes read and write.
pub(super) fn add_schemas(schemas: &mut Schemas) {
    add::<request::OpenAiRequest>(schemas);
    add::<response::ChatChoice>(schemas);
    add_as::<response::ChatCompletion<'_>>(schemas, "ChatCompletion");
    add::<response::TextChoice<'_>>(schemas);
    add_as::<response::TextCompletion<'_>>(schemas, "TextCompletion");
    add::<models::ModelList>(schemas);
    add::<tokenize::ChatTokenized>(schemas);
}
