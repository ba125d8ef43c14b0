//! The original's way to refuse a stream for overload: status 200, and the refusal as its only event
//! (`--refuse-in-stream`). For clients that read nothing but events.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::Deserialize;

use super::body;
use super::error::{ApiError, Dialect, ErrorNote};
use super::sse::DONE;
use super::state::AppState;

/// Around routes that may stream. Whether a request asks for a stream stands in its body, so that this reads bodies also
/// of those who are refused: within the limits of bodies.
pub(super) async fn layer(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    if !state.config.refuse_in_stream {
        return next.run(request).await;
    }
    let dialect = Dialect::of(request.uri().path());
    let (request, is_stream) = match look(request, &state).await {
        Ok(looked) => looked,
        Err(error) => return error.into_response(dialect),
    };
    let response = next.run(request).await;
    if is_stream && response.status() == StatusCode::TOO_MANY_REQUESTS { as_event(response).await } else { response }
}

/// The request with its body beside it, and whether it asks for a stream.
pub(super) async fn look(request: Request, state: &AppState) -> Result<(Request, bool), ApiError> {
    if request.uri().path() == "/generate_stream" {
        return Ok((request, true));
    }
    let head = request.headers().clone();
    let (uri, method, extensions) = (request.uri().clone(), request.method().clone(), request.extensions().clone());
    let body = body::whole(request, state).await?;
    let is_stream = serde_json::from_slice::<Streamed>(body.bytes()).is_ok_and(|body| body.stream.unwrap_or_default());
    let mut request = Request::new(Body::empty());
    (*request.headers_mut(), *request.uri_mut()) = (head, uri);
    (*request.method_mut(), *request.extensions_mut()) = (method, extensions);
    // Not as bytes that would be read again: it counts among the bodies under way until it has become a request.
    request.extensions_mut().insert(Arc::new(body));
    Ok((request, is_stream))
}

#[derive(Deserialize)]
struct Streamed {
    stream: Option<bool>,
}

/// The refusal as a stream of one event; `OpenAI`'s streams end as all of them do.
async fn as_event(response: Response) -> Response {
    let note = response.extensions().get::<ErrorNote>().cloned();
    // Its own body, of one piece.
    let error = response.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut event = BytesMut::new();
    event.put_slice(b"data: ");
    event.put_slice(&error);
    event.put_slice(b"\n\n");
    if is_openais(&error) {
        event.put_slice(DONE);
    }
    let fixed = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    let mut response = (fixed, Body::from(event.freeze())).into_response();
    if let Some(note) = note {
        response.extensions_mut().insert(note);
    }
    response
}

fn is_openais(error: &Bytes) -> bool {
    error.starts_with(b"{\"error\":{")
}
