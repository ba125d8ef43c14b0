//! Answers that hold their request's places until they have been handed over to their connection: a client that reads
//! slowly, or not at all, holds an answer's memory as long.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use super::state::AppState;
use crate::connections::UntilWritten;

/// An answer's body, and what is held as long as that.
struct Kept<P> {
    body: Body,
    _places: P,
}

/// The same answer; `places` are given back when it has been sent, or will never be. A server that stops waits until it
/// has been written to its end.
pub(super) fn until_sent<P: Send + Unpin + 'static>(state: &AppState, response: Response, places: P) -> Response {
    let mut response = response.map(|body| Body::new(Kept { body, _places: places }));
    // There are more permits than answers.
    if let Ok(unwritten) = Arc::clone(&state.unwritten).try_acquire_owned() {
        response.extensions_mut().insert(UntilWritten::new(unwritten));
    }
    response
}

impl<P: Unpin> HttpBody for Kept<P> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
