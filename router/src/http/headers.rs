//! The original's `x-` headers.

use std::fmt::Display;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::ticket::Timing;

const COMPUTE_TYPE: HeaderName = HeaderName::from_static("x-compute-type");
const COMPUTE_TIME: HeaderName = HeaderName::from_static("x-compute-time");
const COMPUTE_CHARACTERS: HeaderName = HeaderName::from_static("x-compute-characters");
const TOTAL_TIME: HeaderName = HeaderName::from_static("x-total-time");
const VALIDATION_TIME: HeaderName = HeaderName::from_static("x-validation-time");
const QUEUE_TIME: HeaderName = HeaderName::from_static("x-queue-time");
const INFERENCE_TIME: HeaderName = HeaderName::from_static("x-inference-time");
const TIME_PER_TOKEN: HeaderName = HeaderName::from_static("x-time-per-token");
const PROMPT_TOKENS: HeaderName = HeaderName::from_static("x-prompt-tokens");
const GENERATED_TOKENS: HeaderName = HeaderName::from_static("x-generated-tokens");
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What one request, or all prompts of one, cost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    pub(super) characters: usize,
    pub(super) prompt_tokens: u32,
    pub(super) generated_tokens: u32,
    pub(super) timing: Timing,
}

impl Cost {
    pub(super) fn add(&mut self, other: &Self) {
        self.characters += other.characters;
        self.prompt_tokens += other.prompt_tokens;
        self.generated_tokens += other.generated_tokens;
        self.timing.total += other.timing.total;
        self.timing.validation += other.timing.validation;
        self.timing.queue += other.timing.queue;
        self.timing.inference += other.timing.inference;
        self.timing.per_token += other.timing.per_token;
    }
}

/// Of a whole answer: seconds in one header, milliseconds in the others.
pub(super) fn of_answer(compute_type: &HeaderValue, cost: &Cost) -> HeaderMap {
    let timing = &cost.timing;
    let mut headers = HeaderMap::with_capacity(10);
    headers.insert(COMPUTE_TYPE, compute_type.clone());
    headers.insert(COMPUTE_TIME, number(timing.total.as_secs_f64()));
    headers.insert(COMPUTE_CHARACTERS, number(cost.characters));
    headers.insert(TOTAL_TIME, number(timing.total.as_millis()));
    headers.insert(VALIDATION_TIME, number(timing.validation.as_millis()));
    headers.insert(QUEUE_TIME, number(timing.queue.as_millis()));
    headers.insert(INFERENCE_TIME, number(timing.inference.as_millis()));
    headers.insert(TIME_PER_TOKEN, number(timing.per_token.as_millis()));
    headers.insert(PROMPT_TOKENS, number(cost.prompt_tokens));
    headers.insert(GENERATED_TOKENS, number(cost.generated_tokens));
    headers
}

/// Of a stream, whose times are not known when it begins.
pub(super) fn of_stream(compute_type: &HeaderValue, characters: usize) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(5);
    headers.insert(COMPUTE_TYPE, compute_type.clone());
    headers.insert(COMPUTE_CHARACTERS, number(characters));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    headers
}

fn number(value: impl Display) -> HeaderValue {
    HeaderValue::try_from(value.to_string()).expect("digits and a point are visible ASCII")
}
