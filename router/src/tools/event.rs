//! What a model's output says, piece by piece, and where parsers write it.

use serde::de::IgnoredAny;

/// One piece of an answer. Pieces of one kind, put together, are the same however the output came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Words for the user.
    Content(String),
    /// What the model thinks before it answers.
    Reasoning(String),
    /// A call begins. Calls are counted from 0.
    Call { index: usize, name: String },
    /// More of a call's arguments, as JSON text.
    Arguments { index: usize, fragment: String },
}

/// How the calls of an answer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub calls: usize,
    /// Calls whose arguments are whole: one JSON object.
    pub complete: usize,
}

impl Outcome {
    /// Whether there are calls, and all of them may be made.
    pub fn is_callable(self) -> bool {
        self.calls > 0 && self.calls == self.complete
    }
}

/// Collects events, joins neighbours of one kind, and leaves out the blanks around calls and thoughts.
#[derive(Debug, Default)]
pub(super) struct Sink {
    events: Vec<Event>,
    content: Trim,
    reasoning: Trim,
    outcome: Outcome,
    /// Calls that may be told; further ones are left out.
    most_calls: usize,
    /// Inside a call that is left out.
    is_muted: bool,
    /// The arguments of the call that began last.
    latest: String,
}

/// Blanks that stand until something follows them.
#[derive(Debug, Default)]
struct Trim {
    /// Whether blanks at the beginning are left out.
    strips: bool,
    /// Whether blanks at the end wait for what follows.
    holds: bool,
    held: String,
}

impl Trim {
    fn push(&mut self, text: &str) -> String {
        let text = if self.strips { text.trim_start() } else { text };
        if text.is_empty() {
            return String::new();
        }
        let body = if self.holds { text.trim_end() } else { text };
        if body.is_empty() {
            self.held.push_str(text);
            return String::new();
        }
        self.strips = false;
        let mut out = std::mem::take(&mut self.held);
        out.push_str(body);
        self.held.push_str(&text[body.len()..]);
        out
    }
}

impl Sink {
    /// `holds`: blanks of the content that a call may follow wait.
    pub(super) fn new(holds: bool, most_calls: usize) -> Self {
        let reasoning = Trim { strips: true, holds: true, held: String::new() };
        Self { content: Trim { holds, ..Trim::default() }, reasoning, most_calls, ..Self::default() }
    }

    pub(super) fn content(&mut self, text: &str) {
        let text = self.content.push(text);
        self.put_content(&text);
    }

    pub(super) fn reasoning(&mut self, text: &str) {
        let text = self.reasoning.push(text);
        match self.events.last_mut() {
            _ if text.is_empty() => {}
            Some(Event::Reasoning(last)) => last.push_str(&text),
            _ => self.events.push(Event::Reasoning(text)),
        }
    }

    /// Thoughts are over for now: what follows begins without blanks.
    pub(super) fn end_reasoning(&mut self) {
        self.reasoning.held.clear();
        self.content.strips = true;
    }

    /// Further thoughts stand on a line of their own.
    pub(super) fn begin_reasoning(&mut self, has_thought: bool) {
        if has_thought {
            self.reasoning.held.push('\n');
        }
    }

    pub(super) fn begin(&mut self, name: String) {
        self.content.held.clear();
        self.content.strips = true;
        self.latest.clear();
        self.is_muted = self.outcome.calls == self.most_calls;
        if self.is_muted {
            return;
        }
        self.events.push(Event::Call { index: self.outcome.calls, name });
        self.outcome.calls += 1;
    }

    /// Something that would have been a call is missing: the blanks before it are none of the content.
    pub(super) fn leave_out(&mut self) {
        self.content.held.clear();
    }

    /// Of the call that began last.
    pub(super) fn arguments(&mut self, text: &str) {
        let index = self.outcome.calls.saturating_sub(1);
        if !self.is_muted {
            self.latest.push_str(text);
        }
        match self.events.last_mut() {
            _ if text.is_empty() || self.is_muted => {}
            Some(Event::Arguments { index: last, fragment }) if *last == index => fragment.push_str(text),
            _ => self.events.push(Event::Arguments { index, fragment: text.to_owned() }),
        }
    }

    /// The arguments of the call that began last are over. Models also write what is no JSON; then nobody can make the call.
    pub(super) fn end(&mut self) {
        let is_object = || {
            let arguments = self.latest.trim_start();
            arguments.starts_with('{') && serde_json::from_str::<IgnoredAny>(arguments).is_ok()
        };
        self.outcome.complete += usize::from(!self.is_muted && is_object());
        self.latest.clear();
    }

    pub(super) fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Nothing more comes.
    pub(super) fn finish(&mut self) {
        let held = std::mem::take(&mut self.content.held);
        self.put_content(&held);
    }

    pub(super) fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn put_content(&mut self, text: &str) {
        match self.events.last_mut() {
            _ if text.is_empty() => {}
            Some(Event::Content(last)) => last.push_str(text),
            _ => self.events.push(Event::Content(text.to_owned())),
        }
    }
}
