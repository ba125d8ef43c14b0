//! What `OpenAI`'s clients get: whole answers and the pieces of streamed ones.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use uuid::Uuid;

use crate::engine::api::FinishReason;
use crate::http::headers::Cost;

/// In every answer: which build of the server gave it.
pub(super) const SYSTEM_FINGERPRINT: &str = concat!(env!("CARGO_PKG_VERSION"), "-native");

/// What all parts of one answer have in common.
#[derive(Clone, Debug)]
pub(super) struct Envelope {
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) model: Arc<str>,
}

impl Envelope {
    pub(super) fn new(prefix: &str, model: Arc<str>) -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { id: format!("{prefix}-{}", Uuid::new_v4().simple()), created: since_1970.as_secs(), model }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Completion<'a, C> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    pub(super) system_fingerprint: &'static str,
    pub(super) choices: Vec<C>,
    pub(super) usage: Usage,
}

#[derive(Debug, Serialize)]
pub(super) struct TextChoice<'a> {
    pub(super) index: usize,
    pub(super) text: &'a str,
    pub(super) logprobs: Option<()>,
    pub(super) finish_reason: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct ChatChoice<'a> {
    pub(super) index: usize,
    pub(super) message: AssistantMessage<'a>,
    pub(super) logprobs: Option<()>,
    pub(super) finish_reason: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct AssistantMessage<'a> {
    pub(super) role: &'static str,
    pub(super) content: &'a str,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_field_names, reason = "the keys on the wire")]
pub(super) struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
}

impl Usage {
    pub(super) fn new(prompt_tokens: u32, completion_tokens: u32) -> Self {
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }

    pub(super) fn add(&mut self, other: Self) {
        *self = Self::new(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens);
    }
}

impl From<&Cost> for Usage {
    fn from(cost: &Cost) -> Self {
        Self::new(cost.prompt_tokens, cost.generated_tokens)
    }
}

pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::EosToken | FinishReason::StopSequence => "stop",
    }
}
