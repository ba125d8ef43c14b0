//! Server-sent events, written by hand: every event that waits leaves in one chunk.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, BytesMut};
use futures::stream::{self, Stream, StreamExt};
use serde::Serialize;

use super::admission::Admitted;
use super::kept::until_sent;
use super::state::AppState;
use super::ticket::Ticket;
use crate::engine::api::{Event, Failed, Finished, Generation, Prefilled, Token};

/// A comment after this long without an event, so that nobody on the way closes the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const KEEP_ALIVE_COMMENT: &[u8] = b":\n\n";

pub(super) const DONE: &[u8] = b"data: [DONE]\n\n";

/// How a route writes the events of a request. `sequence` is its place in the group, 0 unless several were asked for.
pub(super) trait Encode: Send + 'static {
    fn prefilled(&mut self, prefilled: &Prefilled, out: &mut BytesMut);
    /// `end` comes with the sequence's last token.
    fn token(&mut self, sequence: usize, token: &Token, end: Option<&Finished>, out: &mut BytesMut);
    fn failed(&mut self, failed: &Failed, out: &mut BytesMut);
}

/// One event: its JSON on one line.
pub(super) fn write_event(out: &mut BytesMut, event: &impl Serialize) {
    out.put_slice(b"data: ");
    // Strings, numbers and lists of them: nothing that JSON could refuse, and memory does not fail to be written.
    let written = serde_json::to_writer(out.writer(), event);
    debug_assert!(written.is_ok());
    out.put_slice(b"\n\n");
}

/// The chunks of one generation. Dropped before its end, it cancels the request.
pub(super) fn chunks(admitted: Admitted, encoder: impl Encode) -> impl Stream<Item = Bytes> + Send + 'static {
    let Admitted { generation, ticket, num_sequences, .. } = admitted;
    let state =
        Running { generation, ticket, encoder, buffer: BytesMut::new(), num_open: num_sequences, is_over: false };
    stream::unfold(state, |mut state| async move {
        while !state.is_over {
            let events = state.generation.next().await;
            state.write(events);
            if !state.buffer.is_empty() {
                return Some((state.buffer.split().freeze(), state));
            }
        }
        None
    })
}

struct Running<E> {
    generation: Generation,
    ticket: Ticket,
    encoder: E,
    buffer: BytesMut,
    /// Sequences that have not ended.
    num_open: usize,
    is_over: bool,
}

impl<E: Encode> Running<E> {
    fn write(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            self.fail(&Failed::Incomplete);
        }
        let mut events = events.into_iter().peekable();
        while let Some(event) = events.next() {
            match event {
                Event::Prefilled(prefilled) => self.encoder.prefilled(&prefilled, &mut self.buffer),
                Event::Token { sequence, token } => {
                    let end = events.next_if(|next| matches!(next, Event::Finished { .. }));
                    self.write_token(sequence, &token, end);
                }
                // The engine puts a sequence's end into the mailbox together with its last token.
                Event::Finished { .. } => self.fail(&Failed::Incomplete),
                Event::Failed(failed) => self.fail(&failed),
            }
        }
    }

    fn write_token(&mut self, sequence: usize, token: &Token, end: Option<Event>) {
        let Some(Event::Finished { finished, .. }) = end else {
            return self.encoder.token(sequence, token, None, &mut self.buffer);
        };
        self.encoder.token(sequence, token, Some(&finished), &mut self.buffer);
        self.num_open -= 1;
        if self.num_open == 0 {
            self.ticket.succeeded(&finished);
            self.end();
        }
    }

    fn fail(&mut self, failed: &Failed) {
        tracing::error!(request_id = &*self.ticket.request_id, "{failed}");
        self.encoder.failed(failed, &mut self.buffer);
        self.ticket.failed(failed);
        self.end();
    }

    fn end(&mut self) {
        self.generation.complete();
        self.is_over = true;
    }
}

/// A streaming response of these chunks, kept alive while none comes. `places` are held until the last one has been sent.
pub(super) fn respond(
    state: &AppState,
    chunks: impl Stream<Item = Bytes> + Send + 'static,
    headers: HeaderMap,
    places: impl Send + Unpin + 'static,
) -> Response {
    let fixed = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    let chunks = kept_alive(chunks, KEEP_ALIVE).map(Ok::<_, Infallible>);
    until_sent(state, (fixed, headers, Body::from_stream(chunks)).into_response(), places)
}

/// The same chunks with a comment after each `interval` without one.
fn kept_alive(chunks: impl Stream<Item = Bytes> + Send + 'static, interval: Duration) -> impl Stream<Item = Bytes> {
    stream::unfold(Box::pin(chunks), move |mut chunks| async move {
        let chunk = match tokio::time::timeout(interval, chunks.next()).await {
            Ok(chunk) => chunk?,
            Err(_) => Bytes::from_static(KEEP_ALIVE_COMMENT),
        };
        Some((chunk, chunks))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_quiet_stream_is_kept_alive_with_comments_and_loses_nothing() {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        let source = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
        let mut chunks = Box::pin(kept_alive(source, Duration::from_millis(1)));
        let comment = Some(Bytes::from_static(b":\n\n"));
        assert_eq!((chunks.next().await, chunks.next().await), (comment.clone(), comment));
        sender.send(Bytes::from_static(b"data: 1\n\n")).unwrap();
        drop(sender);
        assert_eq!(chunks.next().await, Some(Bytes::from_static(b"data: 1\n\n")));
        assert_eq!(chunks.next().await, None);
    }
}
