//! What `OpenAI`'s clients get: whole answers and the pieces of streamed ones.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::logprobs::{ChatLogprobs, TextLogprobs};
use super::voice::AssistantMessage;
use crate::engine::api::FinishReason;
use crate::http::collect::Answer;

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

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Completion<'a, C> {
    #[schema(example = "chatcmpl-0123456789abcdef0123456789abcdef")]
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    /// Seconds since 1970.
    #[schema(example = 1_750_000_000)]
    pub(super) created: u64,
    /// As the request named it.
    pub(super) model: &'a str,
    /// Which build of the server answered.
    pub(super) system_fingerprint: &'static str,
    pub(super) choices: Vec<C>,
    pub(super) usage: Usage,
}

pub(super) type ChatCompletion<'a> = Completion<'a, ChatChoice>;
pub(super) type TextCompletion<'a> = Completion<'a, TextChoice<'a>>;

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TextChoice<'a> {
    pub(super) index: usize,
    pub(super) text: Cow<'a, str>,
    pub(super) logprobs: Option<TextLogprobs>,
    /// `stop` or `length`; with tools also `tool_calls`.
    #[schema(example = "stop")]
    pub(super) finish_reason: &'static str,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChatChoice {
    pub(super) index: usize,
    pub(super) message: AssistantMessage,
    pub(super) logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`; with tools also `tool_calls`.
    #[schema(example = "stop")]
    pub(super) finish_reason: &'static str,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptTokensDetails,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
struct PromptTokensDetails {
    /// Of the prompt's tokens: how many had been computed for somebody before.
    cached_tokens: u32,
}

impl Usage {
    pub(super) fn new(prompt_tokens: u32, completion_tokens: u32) -> Self {
        let total_tokens = prompt_tokens + completion_tokens;
        Self { prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details: PromptTokensDetails::default() }
    }

    pub(super) fn with_cached(self, cached_tokens: u32) -> Self {
        Self { prompt_tokens_details: PromptTokensDetails { cached_tokens }, ..self }
    }

    /// Where nothing of what was generated is shown.
    pub(super) fn of_prompt(self) -> Self {
        Self { completion_tokens: 0, total_tokens: self.prompt_tokens, ..self }
    }

    pub(super) fn add(&mut self, other: Self) {
        let cached = self.prompt_tokens_details.cached_tokens + other.prompt_tokens_details.cached_tokens;
        *self = Self::new(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)
            .with_cached(cached);
    }
}

/// Of all sequences of one prompt, those that were not shown included.
pub(super) fn usage(answer: &Answer) -> Usage {
    let cost = answer.cost_of_all();
    Usage::new(cost.prompt_tokens, cost.generated_tokens).with_cached(answer.prefilled.cached_tokens)
}

pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::EosToken | FinishReason::StopSequence => "stop",
    }
}
