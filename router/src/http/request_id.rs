//! `x-request-id`: taken from the client or made here, answered, and written beside every error in the log.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
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
    let (method, uri) = (request.method().clone(), request.uri().clone());
    request.extensions_mut().insert(id.clone());
    let mut response = next.run(request).await;
    if let Some(note) = response.extensions().get::<ErrorNote>() {
        log_error(&id, &method, &uri, response.status(), note);
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

fn log_error(id: &RequestId, method: &Method, uri: &Uri, status: StatusCode, note: &ErrorNote) {
    let (request_id, path, status, error) = (&*id.0, uri.path(), status.as_u16(), note.0.as_str());
    if status >= 500 {
        tracing::error!(request_id, %method, path, status, "{error}");
    } else {
        tracing::warn!(request_id, %method, path, status, "{error}");
    }
}
