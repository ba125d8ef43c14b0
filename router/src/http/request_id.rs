//! `x-request-id`: taken from the client or made here, answered, and written beside every error in the log.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use uuid::Uuid;

use super::error::ErrorNote;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longer ones are replaced: an id goes into every log line of its request.
const MAX_LENGTH: usize = 128;

#[derive(Clone, Debug)]
pub(super) struct RequestId(pub(super) Arc<str>);

/// The outermost layer.
pub(super) async fn stamp(mut request: Request, next: Next) -> Response {
    let id = RequestId::of(&request);
    let (method, path) = (request.method().clone(), request.extensions().get::<MatchedPath>().cloned());
    request.extensions_mut().insert(id.clone());
    let mut response = next.run(request).await;
    if let Some(note) = response.extensions().get::<ErrorNote>() {
        let path = path.as_ref().map_or("unknown", MatchedPath::as_str);
        log_error(&id, &method, path, response.status(), note);
    }
    let value = HeaderValue::from_str(&id.0).expect("taken from a header or written in hexadecimal");
    response.headers_mut().insert(REQUEST_ID, value);
    response
}

impl RequestId {
    fn of(request: &Request) -> Self {
        let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok());
        let usable = given.filter(|id| !id.is_empty() && id.len() <= MAX_LENGTH);
        Self(usable.map_or_else(|| Uuid::new_v4().to_string().into(), Arc::from))
    }
}

/// `path` is the route's own, with names for what is a client's. What an error says about a request may quote it, so
/// that only level `debug` says it.
fn log_error(id: &RequestId, method: &Method, path: &str, status: StatusCode, note: &ErrorNote) {
    let (request_id, status, method) = (&*id.0, status.as_u16(), known(method));
    match note {
        ErrorNote::Own(error) if status >= 500 => tracing::error!(request_id, method, path, status, "{error}"),
        ErrorNote::Own(error) => tracing::warn!(request_id, method, path, status, "{error}"),
        ErrorNote::Quoting { kind, field, error } => {
            tracing::warn!(request_id, method, path, status, kind, field, "refused");
            tracing::debug!(request_id, "{error}");
        }
    }
}

/// Clients can make methods up.
fn known(method: &Method) -> &str {
    let all = [Method::GET, Method::POST, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE, Method::PATCH];
    if all.contains(method) { method.as_str() } else { "other" }
}
