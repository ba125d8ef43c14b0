//! The engine as its callers see it: `EngineHandle::generate(ValidRequest) -> Generation`, a stream of events per request.
//!
//! Events of one request collect in a mailbox that the engine fills and the handler empties whole: many waiting tokens
//! leave in one write, a slow client slows nobody. Dropping a `Generation` cancels its sequences.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};

use crate::overload::Reservation;
use crate::request::ValidRequest;

/// What the engine's one task receives.
#[derive(Debug)]
pub enum Command {
    Submit {
        request: Box<ValidRequest>,
        /// Dropped when the engine has nothing more to do for it.
        reservation: Reservation,
        mailbox: Arc<Mailbox>,
    },
    /// The server has no time left: every request ends as incomplete.
    EndAll,
    /// The client is gone: every sequence of that mailbox is cancelled.
    Cancel { mailbox: Arc<Mailbox> },
}

/// One event of a request. `sequence` is its index in the group, 0 unless `best_of > 1`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The prompt is computed. Comes before the first token, once per request.
    Prefilled(Prefilled),
    Token {
        sequence: usize,
        token: Token,
    },
    /// Terminal for that sequence; exactly one each.
    Finished {
        sequence: usize,
        finished: Finished,
    },
    /// Terminal for the whole request; nothing follows.
    Failed(Failed),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prefilled {
    /// Prompt tokens that the prefix cache already held.
    pub cached_tokens: u32,
    /// Empty, or one per prompt token with `None` first.
    pub prompt_logprobs: Vec<Option<f32>>,
    /// Empty, or one list per prompt token, the first one empty.
    pub prompt_top_tokens: Vec<Vec<TopToken>>,
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub id: u32,
    /// Text that this token completed, special tokens kept; empty while a character is incomplete (TGI's `token.text`).
    pub text: String,
    pub logprob: f32,
    pub special: bool,
    /// Text to show under `OpenAI`'s rules: special tokens skipped, a possible stop string held back, a found one cut off.
    pub delta: String,
    pub top_tokens: Vec<TopToken>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TopToken {
    pub id: u32,
    pub text: String,
    pub logprob: f32,
    pub special: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    pub reason: FinishReason,
    /// The whole text without special tokens, a found stop string included (TGI's `generated_text`).
    pub generated_text: String,
    /// What `OpenAI`'s rules held back until now and must still be shown; empty after a found stop string.
    pub delta: String,
    pub generated_tokens: u32,
    /// `None` for greedy sequences.
    pub seed: Option<u64>,
    pub times: Times,
}

/// Why a sequence ended, as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    Length,
    EosToken,
    StopSequence,
}

/// A request that could not be finished.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// The model side failed on this request (TGI's `generation`, 424).
    #[error("Request failed during generation: {0}")]
    Generation(String),
    /// Its deadline has come first.
    #[error("Request timed out: the time that its timeout gave is over")]
    TimedOut,
    /// The server is stopping, or the client read too slowly.
    #[error("Incomplete generation")]
    Incomplete,
}

/// When things happened, for headers, metrics and the log record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Times {
    /// First scheduled.
    pub started: Instant,
    pub first_token: Instant,
    pub ended: Instant,
}

/// Tokens and top tokens that may lie unread, of one request: about a megabyte.
pub const MAX_UNREAD_TOKENS: usize = 8192;

/// Where one request's events wait for their reader.
#[derive(Debug)]
pub struct Mailbox {
    state: Mutex<MailboxState>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct MailboxState {
    events: Vec<Event>,
    /// Tokens and top tokens among them.
    num_tokens: usize,
    /// Since when the oldest event has been waiting.
    waiting_since: Option<Instant>,
}

impl Mailbox {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), filled: Notify::new() })
    }

    /// Engine side. Never blocks for long: the reader holds the lock only to swap the vector.
    pub fn push(&self, events: impl IntoIterator<Item = Event>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            if let Event::Token { token, .. } = &event {
                state.num_tokens += 1 + token.top_tokens.len();
            }
            state.events.push(event);
        }
        if !state.events.is_empty() && state.waiting_since.is_none() {
            state.waiting_since = Some(Instant::now());
        }
        drop(state);
        self.filled.notify_one();
    }

    /// How long the oldest unread event has been waiting; the engine cancels readers beyond its limit.
    pub fn unread_for(&self, now: Instant) -> Duration {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    #[cfg(test)]
    pub(super) fn take_for_tests(&self) -> Vec<Event> {
        self.take()
    }

    /// Whether more lies unread than a reader may leave, however short a time.
    pub fn is_full(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).num_tokens > MAX_UNREAD_TOKENS
    }

    fn take(&self) -> Vec<Event> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.waiting_since, state.num_tokens) = (None, 0);
        std::mem::take(&mut state.events)
    }
}

/// A request being generated, as its handler holds it. Dropping it cancels what still runs.
#[derive(Debug)]
pub struct Generation {
    mailbox: Arc<Mailbox>,
    commands: mpsc::UnboundedSender<Command>,
    finished: bool,
}

impl Generation {
    /// All events that have come since the last call; waits for at least one. Empty only when the engine is gone.
    pub async fn next(&mut self) -> Vec<Event> {
        loop {
            let events = self.mailbox.take();
            if !events.is_empty() {
                return events;
            }
            tokio::select! {
                () = self.mailbox.filled.notified() => {}
                () = self.commands.closed() => return self.mailbox.take(),
            }
        }
    }

    /// The handler has seen every terminal event: dropping cancels nothing any more.
    pub fn complete(&mut self) {
        self.finished = true;
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.finished {
            // A closed channel means that the engine is gone, and every sequence with it.
            let _ = self.commands.send(Command::Cancel { mailbox: Arc::clone(&self.mailbox) });
        }
    }
}

/// How requests reach the engine. Cheap to clone. The number of requests inside is bounded by the permits that
/// `http` takes before (`max_concurrent_requests`), so the channel itself need not be.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    commands: mpsc::UnboundedSender<Command>,
}

impl EngineHandle {
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Command>) {
        let (commands, receiver) = mpsc::unbounded_channel();
        (Self { commands }, receiver)
    }

    /// Ends every request that is inside now.
    pub fn end_all(&self) {
        // A closed channel means that the engine is gone, and every request with it.
        let _ = self.commands.send(Command::EndAll);
    }

    pub fn generate(&self, request: ValidRequest, reservation: Reservation) -> Generation {
        let mailbox = Mailbox::new();
        let submit = Command::Submit { request: Box::new(request), reservation, mailbox: Arc::clone(&mailbox) };
        // On a closed channel the generation reads as ended without a terminal event: `Incomplete`.
        let _ = self.commands.send(submit);
        Generation { mailbox, commands: self.commands.clone(), finished: false }
    }
}
