//! An answer on its way to its client, which may be taken from a client that does not take it.
//!
//! A connection of HTTP/2 carries many answers, and each client says how much of which it will take. One that says nothing
//! would keep its request for ever while the connection looks well.
//!
//! What stands behind an answer, such as its request's place, ends when all of it has been handed over to the connection:
//! before its client can know its end, and ask again. It is handed over in small pieces, each with memory of its own, so
//! that little is left then. A stream of HTTP/2 keeps its last piece until its client takes it or ends it, also when the
//! answer has been given up.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::credit::Credit;

/// Bytes that are handed over at once.
pub(super) const PIECE: usize = 2 << 10;

/// Among the extensions of a response: kept until its last byte has been written to the client's socket.
#[derive(Clone, Debug)]
pub(crate) struct UntilWritten(#[expect(dead_code, reason = "only its end is waited for")] Arc<OwnedSemaphorePermit>);

impl UntilWritten {
    pub(crate) fn new(permit: OwnedSemaphorePermit) -> Self {
        Self(Arc::new(permit))
    }
}

/// The body of an answer, and something that is kept until its last byte has been written to the client's socket.
pub(super) struct Answer<K>(Arc<Shared<K>>);

/// An answer as others know it.
#[derive(Debug)]
pub(super) struct Watched<K>(Weak<Shared<K>>);

#[derive(Debug)]
struct Shared<K>(Mutex<State<K>>);

#[derive(Debug)]
struct State<K> {
    /// `None` at its end, or when it has been taken away.
    body: Option<Body>,
    /// `None` when it has been taken away.
    kept: Option<K>,
    /// Of the body's last frame, what has not been handed over.
    rest: Bytes,
    /// Bytes that have been handed over and not been written.
    unsent: usize,
    /// Nothing more is there to be handed over, for now or for ever.
    is_dry: bool,
    /// All of it has been handed over.
    has_ended: bool,
    credit: Credit,
    /// Since when the client could have had more; `None` while there is nothing more.
    ready_since: Option<Instant>,
}

/// Bytes that have been handed over; dropped when they have been written, or will never be.
struct Piece<K> {
    bytes: Box<[u8]>,
    answer: Arc<Shared<K>>,
}

impl<K> Answer<K> {
    pub(super) fn new(body: Body, kept: K, patience: Duration) -> (Self, Watched<K>) {
        let state = State {
            body: Some(body),
            kept: Some(kept),
            rest: Bytes::new(),
            unsent: 0,
            is_dry: false,
            has_ended: false,
            credit: Credit::new(patience),
            ready_since: Some(Instant::now()),
        };
        let shared = Arc::new(Shared(Mutex::new(state)));
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
        let late = state.credit.is_spent_by(waited).then(|| state.take()).flatten();
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

impl<K> State<K> {
    /// All that is held: to be dropped when nobody waits for this state. `None`: it has been taken.
    fn take(&mut self) -> Option<(Option<Body>, K, Bytes)> {
        let rest = std::mem::take(&mut self.rest);
        let body = self.body.take();
        self.kept.take().map(|kept| (body, kept, rest))
    }

    /// All of it has been handed over, if that is so.
    fn note_end(&mut self) {
        if self.rest.is_empty() && self.body.as_ref().is_some_and(HttpBody::is_end_stream) {
            (self.has_ended, self.is_dry) = (true, true);
            self.body = None;
        }
    }

    /// What the client waited for something is charged, if it was the client that waited.
    fn stop_clock(&mut self) {
        if let Some(since) = self.ready_since.take() {
            self.credit.spend(since.elapsed());
        }
    }

    fn start_clock(&mut self) {
        let is_ready = self.kept.is_some() && (self.unsent > 0 || !self.is_dry);
        self.ready_since = is_ready.then(Instant::now);
    }

    /// What is to be handed over next.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let Some(body) = &mut self.body else {
            let late = io::Error::new(io::ErrorKind::TimedOut, "the client takes its answer too slowly");
            return Poll::Ready(Some(Err(axum::Error::new(late))));
        };
        if self.rest.is_empty() {
            self.is_dry = true;
            let Some(frame) = ready!(Pin::new(body).poll_frame(context)).transpose()? else {
                self.has_ended = true;
                self.body = None;
                return Poll::Ready(None);
            };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            }
        }
        self.is_dry = false;
        let piece = self.rest.split_to(PIECE.min(self.rest.len()));
        self.note_end();
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl<K: Send + 'static> Shared<K> {
    /// `bytes` with memory of their own.
    fn piece(self: &Arc<Self>, state: &mut State<K>, bytes: &Bytes) -> Bytes {
        state.unsent += bytes.len();
        Bytes::from_owner(Piece { bytes: Box::from(&bytes[..]), answer: Arc::clone(self) })
    }
}

impl<K> AsRef<[u8]> for Piece<K> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<K> Drop for Piece<K> {
    fn drop(&mut self) {
        let mut state = self.answer.lock();
        state.stop_clock();
        state.credit.earn(self.bytes.len());
        state.unsent -= self.bytes.len();
        state.start_clock();
    }
}

impl<K> Drop for Answer<K> {
    /// Nobody asks for more. What has been handed over to its end is kept until it has been written; who has left before
    /// gets nothing any more.
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.stop_clock();
        state.is_dry = true;
        state.note_end();
        let unwanted = if state.has_ended { None } else { state.take() };
        state.start_clock();
        drop(state);
        drop(unwanted);
    }
}

impl<K: Send + 'static> HttpBody for Answer<K> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut state = self.0.lock();
        state.stop_clock();
        let polled = state.poll_next(context);
        let polled = polled.map_ok(|frame| frame.map_data(|bytes| self.0.piece(&mut state, &bytes)));
        state.start_clock();
        polled
    }

    fn is_end_stream(&self) -> bool {
        let mut state = self.0.lock();
        state.note_end();
        state.has_ended && state.kept.is_some()
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.0.lock();
        let Some(body) = &state.body else {
            return if state.has_ended { SizeHint::with_exact(0) } else { SizeHint::default() };
        };
        let (rest, mut hint) = (state.rest.len() as u64, body.size_hint());
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
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
            for _ in 0..size.div_ceil(PIECE) {
                if answer.frame().await.is_none_or(|frame| frame.is_err()) {
                    return false;
                }
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

    /// Whose clones are counted.
    type Kept = Arc<()>;

    /// An answer of two pieces and a half, and what is kept beside it and behind its bytes.
    fn whole() -> (Answer<Kept>, Watched<Kept>, [Kept; 2]) {
        struct Owner(Vec<u8>, #[expect(dead_code, reason = "only its end is looked at")] Kept);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let kept = [Arc::new(()), Arc::new(())];
        let bytes = Bytes::from_owner(Owner(vec![b'a'; PIECE * 5 / 2], Arc::clone(&kept[1])));
        let (answer, watched) = Answer::new(Body::from(bytes), Arc::clone(&kept[0]), PATIENCE);
        (answer, watched, kept)
    }

    fn are_kept(kept: &[Kept; 2]) -> [bool; 2] {
        kept.each_ref().map(|kept| Arc::strong_count(kept) == 2)
    }

    async fn next(answer: &mut Answer<Kept>) -> Bytes {
        answer.frame().await.unwrap().unwrap().into_data().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_stands_behind_an_answer_lasts_until_it_has_been_handed_over_and_some_until_it_is_written() {
        let (mut answer, _watched, kept) = whole();
        assert_eq!(answer.size_hint().exact(), Some(PIECE as u64 * 5 / 2));
        let mut pieces = Vec::new();
        while !answer.is_end_stream() {
            assert_eq!(are_kept(&kept), [true, true]);
            pieces.push(next(&mut answer).await);
        }
        assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [PIECE, PIECE, PIECE / 2]);
        drop(answer);
        while let Some(piece) = pieces.pop() {
            assert_eq!(are_kept(&kept), [true, false]);
            drop(piece);
        }
        assert_eq!(are_kept(&kept), [false, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_kept_for_who_leaves_before_the_end() {
        let (mut answer, _watched, kept) = whole();
        let _piece = next(&mut answer).await;
        assert_eq!(answer.size_hint().exact(), Some(PIECE as u64 * 3 / 2));
        drop(answer);
        assert_eq!(are_kept(&kept), [false, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_that_are_not_written_in_time_keep_nothing_but_themselves() {
        for taken in 1..=3 {
            let (mut answer, watched, kept) = whole();
            let mut pieces = Vec::new();
            for _ in 0..taken {
                pieces.push(next(&mut answer).await);
            }
            // At the end of an answer nobody asks for more.
            let _answer = (taken < 3).then_some(answer);
            advance(PATIENCE / 2).await;
            watched.check();
            assert_eq!(are_kept(&kept), [true, taken < 3]);
            advance(PATIENCE / 2).await;
            watched.check();
            assert_eq!(are_kept(&kept), [false, false]);
        }
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
