//! Every refusal and failure, and how each family of routes says it.

use std::borrow::Cow;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::api::Failed;
use crate::health::Health;
use crate::overload::Refusal;
use crate::validation::ValidationError;

/// Bytes of an error's words, and of the name of the field at fault.
const MOST_OF_MESSAGE: usize = 1 << 10;
const MOST_OF_FIELD: usize = 256;

/// What a client may get instead of an answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum ApiError {
    #[error(transparent)]
    Validation(#[from] ValidationError),
    /// A field that this server knows and cannot honour; ignoring it would answer another question.
    #[error("Input validation error: `{field}` {problem}")]
    Field { field: Cow<'static, str>, problem: String },
    /// A field that other servers know and this one does not.
    #[error("Input validation error: `{field}` {problem}")]
    Unsupported { field: Cow<'static, str>, problem: String },
    /// `kind` is the original's `error_type`, for the two rules that have one of their own.
    #[error("`{field}` {problem}")]
    Special { kind: &'static str, field: &'static str, problem: String },
    /// For now.
    #[error("Model is overloaded: {0}")]
    Overloaded(#[from] Refusal),
    #[error("{0}")]
    Unavailable(Cow<'static, str>),
    #[error(transparent)]
    Failed(#[from] Failed),
    /// A body that is no request; `place` is where in it.
    #[error("{reason}")]
    Body { status: StatusCode, kind: &'static str, place: Option<String>, reason: String },
    #[error("the API key is missing or wrong; send it as `Authorization: Bearer <key>`")]
    Unauthorized,
    #[error("this API key may not use this route; the key of a tenant with `admin = true` may")]
    Forbidden,
    #[error("the model `{0}` does not exist; GET /v1/models lists what is served")]
    UnknownModel(String),
    #[error("there is no route {0}")]
    UnknownRoute(String),
    #[error("{0} does not take this method")]
    WrongMethod(String),
    #[error("the server failed on this request; its log says why under this request id")]
    Internal,
}

/// A route family's way of writing errors down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `{error, error_type}`; the original's empty bodies stay empty.
    Tgi,
    /// `{error: {message, type, param, code}}`, and beside it the original's `error_type`, which its clients look for.
    OpenAi,
}

impl Dialect {
    pub(super) fn of(path: &str) -> Self {
        if path.starts_with("/v1/") { Self::OpenAi } else { Self::Tgi }
    }
}

/// Travels with an error response to where it is logged.
#[derive(Clone, Debug)]
pub(super) enum ErrorNote {
    /// The server's own words.
    Own(String),
    /// What is wrong with a request, which may quote it; beside it, what does not.
    Quoting { kind: &'static str, field: Option<&'static str>, error: String },
}

#[derive(Serialize, ToSchema)]
#[schema(as = ErrorResponse)]
pub(super) struct TgiError<'a> {
    /// What is wrong, in words.
    #[schema(example = "Input validation error: `max_new_tokens` must be at least 1; leave it out to fill what fits")]
    error: &'a str,
    /// `validation`, `overloaded`, `generation`, `incomplete_generation`, `template_error`, `tool_error` and others.
    #[schema(example = "validation")]
    error_type: &'a str,
}

#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiErrorResponse)]
pub(super) struct OpenAiError<'a> {
    error: OpenAiErrorBody<'a>,
    /// The same kind of error in the words of `/generate`.
    #[schema(example = "validation")]
    error_type: &'a str,
}

#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiErrorObject)]
struct OpenAiErrorBody<'a> {
    /// What is wrong, in words.
    message: &'a str,
    /// `invalid_request_error`, `authentication_error`, `rate_limit_error` or `server_error`.
    #[schema(example = "invalid_request_error")]
    r#type: &'a str,
    /// The field at fault, if it is one.
    #[schema(required, example = "max_tokens")]
    param: Option<&'a str>,
    /// `context_length_exceeded`, `model_not_found`, `invalid_api_key`, `unsupported_parameter` and others.
    #[schema(example = "invalid_value")]
    code: &'a str,
}

impl ApiError {
    pub(super) const STOPPING: Self = Self::Unavailable(Cow::Borrowed("the server is stopping; ask another one"));

    /// Nothing can be computed yet; says what the start is at.
    pub(super) fn loading(health: &Health) -> Self {
        let words = health.progress().words;
        Self::Unavailable(format!("the model is not ready yet; try again ({words})").into())
    }

    pub(super) fn field(field: impl Into<Cow<'static, str>>, problem: impl Into<String>) -> Self {
        Self::Field { field: field.into(), problem: problem.into() }
    }

    pub(super) fn unsupported(field: impl Into<Cow<'static, str>>, problem: impl Into<String>) -> Self {
        Self::Unsupported { field: field.into(), problem: problem.into() }
    }

    /// A request that breaks a rule is 422 to the original's clients and 400 to `OpenAI`'s, whose libraries have an error
    /// class for each status.
    pub(super) fn status(&self, dialect: Dialect) -> StatusCode {
        match self.originals_status() {
            StatusCode::UNPROCESSABLE_ENTITY if dialect == Dialect::OpenAi => StatusCode::BAD_REQUEST,
            status => status,
        }
    }

    fn originals_status(&self) -> StatusCode {
        match self {
            Self::Validation(ValidationError::NotReady) | Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Validation(_) | Self::Field { .. } | Self::Unsupported { .. } | Self::Special { .. } => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::Overloaded(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Failed(Failed::Generation(_)) => StatusCode::FAILED_DEPENDENCY,
            Self::Failed(Failed::TimedOut) => StatusCode::GATEWAY_TIMEOUT,
            Self::Failed(Failed::Incomplete) | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Body { status, .. } => *status,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::UnknownRoute(_) | Self::UnknownModel(_) => StatusCode::NOT_FOUND,
            Self::WrongMethod(_) => StatusCode::METHOD_NOT_ALLOWED,
        }
    }

    /// The original's `error_type`, which its clients compare.
    fn kind(&self) -> &'static str {
        match self {
            Self::Validation(ValidationError::Template(_)) => "template_error",
            Self::Validation(ValidationError::NotReady) | Self::Unavailable(_) => "unavailable",
            Self::Validation(_) | Self::Field { .. } | Self::Unsupported { .. } => "validation",
            Self::Special { kind, .. } | Self::Body { kind, .. } => kind,
            Self::Overloaded(_) => "overloaded",
            Self::Failed(Failed::Generation(_)) => "generation",
            Self::Failed(Failed::TimedOut) => "timeout",
            Self::Failed(Failed::Incomplete) => "incomplete_generation",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::UnknownRoute(_) => "not_found",
            Self::WrongMethod(_) => "method_not_allowed",
            Self::UnknownModel(_) => "model_not_found",
            Self::Internal => "internal",
        }
    }

    /// `OpenAI`'s `code`, which its clients compare.
    fn code(&self) -> &'static str {
        match self {
            Self::Validation(ValidationError::TooLong { .. }) => "context_length_exceeded",
            Self::Unsupported { .. } | Self::Special { kind: "suffix not supported", .. } => "unsupported_parameter",
            Self::Validation(ValidationError::Field { .. } | ValidationError::Grammar { .. })
            | Self::Field { .. }
            | Self::Special { .. } => "invalid_value",
            Self::Body { kind: "validation", .. } => "invalid_type",
            Self::Overloaded(_) => "rate_limit_exceeded",
            Self::Unauthorized => "invalid_api_key",
            Self::UnknownRoute(_) => "unknown_url",
            _ => self.kind(),
        }
    }

    /// When to ask again, where that is the answer.
    fn pause_seconds(&self) -> u64 {
        match self {
            Self::Overloaded(refusal) => refusal.pause_seconds(),
            _ => 1,
        }
    }

    fn culprit(&self) -> Option<&str> {
        match self {
            Self::Validation(error) => error.culprit(),
            Self::Field { field, .. } | Self::Unsupported { field, .. } => Some(field),
            Self::Special { field, .. } => Some(field),
            Self::Body { place, .. } => place.as_deref(),
            Self::UnknownModel(_) => Some("model"),
            _ => None,
        }
    }

    /// The body as JSON. It holds no place, and can quote what a client wrote: nobody needs all of that back.
    pub(super) fn to_json(&self, dialect: Dialect) -> Vec<u8> {
        let message = cut(self.to_string(), MOST_OF_MESSAGE);
        let culprit = self.culprit().map(|field| cut(field.to_owned(), MOST_OF_FIELD));
        let body = match dialect {
            Dialect::Tgi => serde_json::to_vec(&TgiError { error: &message, error_type: self.kind() }),
            Dialect::OpenAi => serde_json::to_vec(&OpenAiError {
                error: OpenAiErrorBody {
                    message: &message,
                    r#type: openai_type(self.status(dialect)),
                    param: culprit.as_deref(),
                    code: self.code(),
                },
                error_type: self.kind(),
            }),
        };
        body.expect("structs of strings have no keys that JSON could not write")
    }

    pub(super) fn into_response(self, dialect: Dialect) -> Response {
        let status = self.status(dialect);
        // The original's clients see nothing here, and nothing is what they know.
        let is_empty = dialect == Dialect::Tgi
            && matches!(self, Self::Unauthorized | Self::UnknownRoute(_) | Self::WrongMethod(_));
        let mut response = if is_empty {
            status.into_response()
        } else {
            let json = [(header::CONTENT_TYPE, "application/json")];
            (status, json, Body::from(self.to_json(dialect))).into_response()
        };
        let headers = response.headers_mut();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(self.pause_seconds()));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self.note());
        response
    }

    fn note(&self) -> ErrorNote {
        let field = match self {
            Self::Validation(ValidationError::NotReady | ValidationError::Busy)
            | Self::Overloaded(_)
            | Self::Unavailable(_)
            | Self::Failed(_)
            | Self::Unauthorized
            | Self::Forbidden
            | Self::Internal => return ErrorNote::Own(self.to_string()),
            Self::Validation(
                ValidationError::Field { field, .. }
                | ValidationError::TooLong { field, .. }
                | ValidationError::Grammar { field, .. },
            )
            | Self::Field { field: Cow::Borrowed(field), .. }
            | Self::Unsupported { field: Cow::Borrowed(field), .. }
            | Self::Special { field, .. } => Some(*field),
            // Where it is, is told in names that the client has chosen.
            _ => None,
        };
        ErrorNote::Quoting { kind: self.kind(), field, error: self.to_string() }
    }
}

/// At most about so many bytes of a text.
fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate((0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default());
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

fn openai_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        424 | 500.. => "server_error",
        _ => "invalid_request_error",
    }
}

/// Errors of the original's routes.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.into_response(Dialect::Tgi)
    }
}

/// The answer to `/health` while it is 503.
pub(super) fn unhealthy() -> Response {
    let body = TgiError { error: "unhealthy", error_type: "healthcheck" };
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}
