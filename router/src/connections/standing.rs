//! What one connection is at: its requests, their bodies, the answers that are due.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::answer::{Answer, UntilWritten, Watched};
use super::coming::Coming;

/// How often answers are looked at in the time that a client has for them.
const CHECKS: u32 = 8;

/// What a connection is at.
#[derive(Debug)]
pub(super) struct Standing {
    state: Mutex<State>,
    answers: Mutex<Vec<Watched<Kept>>>,
    evicted: CancellationToken,
    /// Its bodies are cut short.
    cut: CancellationToken,
    /// Told when it asks for nothing any more.
    left: Arc<Notify>,
}

#[derive(Clone, Debug)]
struct State {
    /// Requests that have no whole answer yet.
    requests: usize,
    idle_since: Instant,
    /// When those of their bodies began that are coming, the oldest first.
    bodies: Vec<Instant>,
}

impl Standing {
    pub(super) fn new(left: Arc<Notify>) -> Self {
        Self {
            state: Mutex::new(State { requests: 0, idle_since: Instant::now(), bodies: Vec::new() }),
            answers: Mutex::default(),
            evicted: CancellationToken::new(),
            cut: CancellationToken::new(),
            left,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who makes room before whom: those that ask for nothing, the longest idle first; then those of which there is
    /// nothing but bodies, one of which has been coming for long, the longest first. `None`: it stays.
    pub(super) fn rank(&self, slow: Duration) -> Option<(bool, Instant)> {
        let state = self.lock();
        if state.requests == 0 {
            return Some((false, state.idle_since));
        }
        let oldest = state.bodies.first().filter(|_| state.bodies.len() == state.requests)?;
        (oldest.elapsed() >= slow).then_some((true, *oldest))
    }

    /// Whether no answer is due.
    pub(super) fn is_idle(&self) -> bool {
        self.lock().requests == 0
    }

    /// It has to make room.
    pub(super) fn evict(&self) {
        self.evicted.cancel();
    }

    /// It has to make room, and its bodies end here.
    pub(super) fn cut(&self) {
        self.cut.cancel();
        self.evict();
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.is_cancelled()
    }

    #[cfg(test)]
    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.is_cancelled()
    }

    /// Completes when this connection has to make room.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }

    /// Completes when there has been no request for so long.
    pub(super) async fn idle_for(&self, patience: Duration) {
        loop {
            let State { requests, idle_since, .. } = *self.lock();
            if requests == 0 && idle_since.elapsed() >= patience {
                return;
            }
            let since = if requests == 0 { idle_since } else { Instant::now() };
            sleep_until(since + patience).await;
        }
    }

    fn answers(&self) -> MutexGuard<'_, Vec<Watched<Kept>>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes answers away from a client that does not take them; never completes.
    pub(super) async fn hold_to_time(&self, patience: Duration) -> Infallible {
        loop {
            sleep(patience / CHECKS).await;
            self.answers().iter().for_each(Watched::check);
        }
    }

    /// A request's body, which may have to make room.
    pub(super) fn coming<B: HttpBody>(self: &Arc<Self>, body: B) -> Coming<B> {
        Coming::new(body, self, self.cut.clone())
    }

    /// Since when it has been coming, by which `body_has_come` knows it.
    pub(super) fn body_is_coming(&self) -> Instant {
        let mut state = self.lock();
        let now = Instant::now();
        state.bodies.push(now);
        now
    }

    pub(super) fn body_has_come(&self, since: Instant) {
        let mut state = self.lock();
        if let Some(at) = state.bodies.iter().position(|began| *began == since) {
            state.bodies.remove(at);
        }
    }

    /// A request has come, but for its body. Who was cut short and asks again is answered, but not waited for.
    pub(super) fn request(self: &Arc<Self>) -> Asking {
        let counts = !self.is_cut();
        self.lock().requests += usize::from(counts);
        Asking { standing: Arc::clone(self), counts }
    }
}

/// What is kept until the last byte of an answer has been written.
type Kept = (Asking, Option<UntilWritten>);

/// A request that has no whole answer yet.
#[derive(Debug)]
pub(super) struct Asking {
    standing: Arc<Standing>,
    counts: bool,
}

impl Asking {
    /// Lasts as long as this answer, which its client has to take within its time.
    pub(super) fn until_over(self, response: Response, patience: Duration) -> Response {
        let (mut head, body) = response.into_parts();
        let standing = Arc::clone(&self.standing);
        let kept = (self, head.extensions.remove::<UntilWritten>());
        let (answer, watched) = Answer::new(body, kept, patience);
        let mut answers = standing.answers();
        answers.retain(|answer| !answer.is_over());
        answers.push(watched);
        drop(answers);
        Response::from_parts(head, Body::new(answer))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if !self.counts {
            return;
        }
        let mut state = self.standing.lock();
        state.requests -= 1;
        state.idle_since = Instant::now();
        let is_idle = state.requests == 0;
        drop(state);
        if is_idle {
            self.standing.left.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use futures::stream;
    use tokio::time::advance;

    use super::*;

    const SLOW: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn of_several_bodies_the_oldest_that_still_comes_counts() {
        let standing = Arc::new(Standing::new(Arc::default()));
        let body = || Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        let old = (standing.request(), standing.coming(body()));
        advance(SLOW).await;
        let _new = (standing.request(), standing.coming(body()));
        assert!(standing.rank(SLOW).is_some_and(|(is_slow, _)| is_slow), "a new one does not hide it");
        drop(old);
        assert_eq!(standing.rank(SLOW), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_cut_short_and_asks_again_is_not_waited_for() {
        let standing = Arc::new(Standing::new(Arc::default()));
        let before = standing.request();
        standing.cut();
        let _after = standing.request();
        assert!(!standing.is_idle());
        drop(before);
        assert!(standing.is_idle());
    }
}
