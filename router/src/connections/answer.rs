//! An answer on its way to its client, which may be taken from a client that does not take it.
//!
//! A connection of HTTP/2 carries many answers, and each client says how much of which it will take. One that says nothing
//! would keep its request for ever while the connection looks well.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;

use super::credit::Credit;

/// The body of an answer, and something that is kept as long.
pub(super) struct Answer<K>(Arc<Shared<K>>);

/// An answer as others know it.
#[derive(Debug)]
pub(super) struct Watched<K>(Weak<Shared<K>>);

#[derive(Debug)]
struct Shared<K>(Mutex<State<K>>);

#[derive(Debug)]
struct State<K> {
    /// `None` when it has been taken away.
    body: Option<(Body, K)>,
    credit: Credit,
    /// Since when the client could have had more; `None` while there is nothing more.
    ready_since: Option<Instant>,
}

impl<K> Answer<K> {
    pub(super) fn new(body: Body, kept: K, patience: Duration) -> (Self, Watched<K>) {
        let (credit, ready_since) = (Credit::new(patience), Some(Instant::now()));
        let shared = Arc::new(Shared(Mutex::new(State { body: Some((body, kept)), credit, ready_since })));
        let watched = Watched(Arc::downgrade(&shared));
        (Self(shared), watched)
    }
}

impl<K> Watched<K> {
    pub(super) fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }

    /// Takes the answer away if its client has been taking too little of it.
    pub(super) fn check(&self) {
        let Some(shared) = self.0.upgrade() else { return };
        let mut state = shared.lock();
        let waited = state.ready_since.map_or(Duration::ZERO, |since| since.elapsed());
        let late = state.credit.is_spent_by(waited).then(|| state.body.take()).flatten();
        drop(state);
        if late.is_some() {
            tracing::debug!("an answer that is not taken is given up");
        }
    }
}

impl<K> Shared<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> HttpBody for Answer<K> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut state = self.0.lock();
        let state = &mut *state;
        let Some((body, _)) = &mut state.body else {
            let late = io::Error::new(io::ErrorKind::TimedOut, "the client takes its answer too slowly");
            return Poll::Ready(Some(Err(axum::Error::new(late))));
        };
        let polled = Pin::new(body).poll_frame(context);
        if let Some(since) = state.ready_since.take() {
            state.credit.spend(since.elapsed());
        }
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            state.credit.earn(frame.data_ref().map_or(0, Bytes::len));
            state.ready_since = Some(Instant::now());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().body.as_ref().is_some_and(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().body.as_ref().map_or_else(SizeHint::default, |(body, _)| body.size_hint())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::{StreamExt, stream};
    use http_body_util::BodyExt;
    use tokio::time::{advance, sleep};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A body of pieces that come at these intervals.
    fn pieces(size: usize, interval: Duration) -> Body {
        let piece = Bytes::from(vec![b'a'; size]);
        Body::from_stream(stream::repeat(()).then(move |()| {
            let piece = piece.clone();
            async move {
                sleep(interval).await;
                Ok::<_, Infallible>(piece)
            }
        }))
    }

    /// Whether a client may go on that takes a piece, then nothing for so long, again and again.
    async fn is_served(size: usize, interval: Duration, pause: Duration) -> bool {
        let (mut answer, watched) = Answer::new(pieces(size, interval), (), PATIENCE);
        for _ in 0..100 {
            if answer.frame().await.is_none_or(|frame| frame.is_err()) {
                return false;
            }
            advance(pause).await;
            watched.check();
        }
        true
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_taken_from_who_takes_none_or_little_of_it() {
        let second = Duration::from_secs(1);
        assert!(is_served(10, Duration::ZERO, Duration::ZERO).await);
        assert!(is_served(40 << 10, Duration::ZERO, 30 * second).await);
        assert!(!is_served(40 << 10, Duration::ZERO, 61 * second).await);
        assert!(!is_served(100, Duration::ZERO, second).await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_the_server_spends_nothing() {
        assert!(is_served(10, 10 * PATIENCE, Duration::ZERO).await);
        // Nor does the server's silence count while it is looked at.
        let (mut answer, watched) = Answer::new(pieces(10, 10 * PATIENCE), (), PATIENCE);
        assert!(futures::poll!(answer.frame()).is_pending());
        advance(5 * PATIENCE).await;
        watched.check();
        assert!(answer.frame().await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_away_is_dropped_at_once() {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, Infallible>>(1);
        let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver));
        let kept = Arc::new(());
        let (answer, watched) = Answer::new(body, Arc::clone(&kept), PATIENCE);
        advance(PATIENCE / 2).await;
        watched.check();
        assert!(!sender.is_closed());
        advance(PATIENCE / 2).await;
        watched.check();
        assert!(sender.is_closed() && Arc::strong_count(&kept) == 1 && !watched.is_over());
        drop(answer);
        assert!(watched.is_over());
    }
}
