//! The bodies of the original's routes.

use serde::{Deserialize, Serialize};

use crate::engine::api::{FinishReason, Token, TopToken};
use crate::tokenizer::TokenSpan;
use crate::validation::Parameters;

/// `/generate`, `/generate_stream`, `/tokenize`.
#[derive(Clone, Debug, Deserialize)]
#[serde(expecting = "an object with `inputs`")]
pub(super) struct GenerateRequest {
    pub(super) inputs: String,
    #[serde(default)]
    pub(super) parameters: Option<Parameters>,
}

/// `POST /`.
#[derive(Clone, Debug, Deserialize)]
#[serde(expecting = "an object with `inputs`")]
pub(super) struct CompatRequest {
    pub(super) inputs: String,
    #[serde(default)]
    pub(super) parameters: Option<Parameters>,
    #[serde(default)]
    pub(super) stream: Option<bool>,
}

impl GenerateRequest {
    /// Without any `parameters` the original samples; with an empty object it is greedy.
    pub(super) fn into_parts(self) -> (String, Parameters) {
        let parameters =
            self.parameters.unwrap_or_else(|| Parameters { do_sample: Some(true), ..Parameters::default() });
        (self.inputs, parameters)
    }
}

#[derive(Debug, Serialize)]
pub(super) struct GenerateResponse<'a> {
    pub(super) generated_text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) details: Option<Details<'a>>,
}

#[derive(Debug, Serialize)]
pub(super) struct Details<'a> {
    pub(super) finish_reason: &'static str,
    pub(super) generated_tokens: u32,
    pub(super) seed: Option<u64>,
    pub(super) prefill: &'a [PrefillToken],
    pub(super) tokens: Vec<WireToken<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) best_of_sequences: Vec<BestOfSequence<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) top_tokens: Vec<Vec<WireToken<'a>>>,
}

/// A sequence that was not the best.
#[derive(Debug, Serialize)]
pub(super) struct BestOfSequence<'a> {
    pub(super) generated_text: String,
    pub(super) finish_reason: &'static str,
    pub(super) generated_tokens: u32,
    pub(super) seed: Option<u64>,
    pub(super) prefill: &'a [PrefillToken],
    pub(super) tokens: Vec<WireToken<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) top_tokens: Vec<Vec<WireToken<'a>>>,
}

/// The first has no logprob.
#[derive(Debug, Serialize)]
pub(super) struct PrefillToken {
    pub(super) id: u32,
    pub(super) text: String,
    pub(super) logprob: Option<f32>,
}

/// A logprob that is not finite is written as null.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct WireToken<'a> {
    id: u32,
    text: &'a str,
    logprob: f32,
    special: bool,
}

impl<'a> From<&'a Token> for WireToken<'a> {
    fn from(token: &'a Token) -> Self {
        Self { id: token.id, text: &token.text, logprob: token.logprob, special: token.special }
    }
}

impl<'a> From<&'a TopToken> for WireToken<'a> {
    fn from(token: &'a TopToken) -> Self {
        Self { id: token.id, text: &token.text, logprob: token.logprob, special: token.special }
    }
}

/// One event of a stream.
#[derive(Debug, Serialize)]
pub(super) struct StreamEvent<'a> {
    /// From 1.
    pub(super) index: u32,
    pub(super) token: WireToken<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) top_tokens: Vec<WireToken<'a>>,
    /// The last event has it.
    pub(super) generated_text: Option<&'a str>,
    /// The last event has them, if they were asked for.
    pub(super) details: Option<StreamDetails>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct StreamDetails {
    pub(super) finish_reason: &'static str,
    pub(super) generated_tokens: u32,
    pub(super) seed: Option<u64>,
    pub(super) input_length: u32,
}

/// An error in the middle of a stream.
#[derive(Debug, Serialize)]
pub(super) struct StreamError<'a> {
    pub(super) error: &'a str,
    pub(super) error_type: &'static str,
}

/// One token of `/tokenize`; `start` and `stop` are bytes of `inputs`.
#[derive(Debug, Serialize)]
pub(super) struct SimpleToken {
    pub(super) id: u32,
    pub(super) text: String,
    pub(super) start: usize,
    pub(super) stop: usize,
}

impl SimpleToken {
    pub(super) fn of(span: TokenSpan, whole: &str) -> Self {
        let TokenSpan { id, start, stop } = span;
        Self { id, text: whole.get(start..stop).unwrap_or_default().to_owned(), start, stop }
    }
}

pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::EosToken => "eos_token",
        FinishReason::StopSequence => "stop_sequence",
    }
}
