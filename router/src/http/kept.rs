//! Answers that hold their request's places until their last byte has been sent: a client that reads slowly, or not at
//! all, holds an answer's memory as long.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

/// An answer's body, and what is held as long as that.
struct Kept<P> {
    body: Body,
    _places: P,
}

/// The same answer; `places` are given back when it has been sent, or will never be.
pub(super) fn until_sent<P: Send + Unpin + 'static>(response: Response, places: P) -> Response {
    response.map(|body| Body::new(Kept { body, _places: places }))
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
