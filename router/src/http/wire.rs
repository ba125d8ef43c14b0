//! The bodies of the original's routes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::object;
use crate::engine::api::{FinishReason, Token, TopToken};
use crate::tokenizer::TokenSpan;
use crate::validation::Parameters;

/// What `/generate`, `/generate_stream` and `/tokenize` take.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(expecting = "an object with `inputs`")]
pub(super) struct GenerateRequest {
    /// The prompt. Special tokens written out in it are parsed.
    #[schema(min_length = 1, example = "My name is Olivier and I")]
    pub(super) inputs: String,
    /// How to generate. Without this key the answer is sampled.
    #[serde(default, deserialize_with = "object::optional")]
    pub(super) parameters: Option<Parameters>,
}

/// What `POST /` takes.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(expecting = "an object with `inputs`")]
pub(super) struct CompatRequest {
    /// The prompt. Special tokens written out in it are parsed.
    #[schema(min_length = 1, example = "My name is Olivier and I")]
    pub(super) inputs: String,
    /// How to generate. Without this key the answer is sampled.
    #[serde(default, deserialize_with = "object::optional")]
    pub(super) parameters: Option<Parameters>,
    /// Answer as a stream of events, as `/generate_stream` does.
    #[serde(default)]
    #[schema(default = false)]
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

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GenerateResponse<'a> {
    #[schema(example = " am a photographer")]
    pub(super) generated_text: &'a str,
    /// If they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) details: Option<Details<'a>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Details<'a> {
    /// `length`, `eos_token` or `stop_sequence`.
    #[schema(example = "length")]
    pub(super) finish_reason: &'static str,
    #[schema(example = 1)]
    pub(super) generated_tokens: u32,
    /// Null if the answer is greedy.
    #[schema(example = 42)]
    pub(super) seed: Option<u64>,
    /// The tokens of the prompt, if `decoder_input_details` asked for them.
    pub(super) prefill: &'a [PrefillToken],
    pub(super) tokens: Vec<WireToken<'a>>,
    /// The other sequences of `best_of`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) best_of_sequences: Vec<BestOfSequence<'a>>,
    /// At each position the most likely tokens, if `top_n_tokens` asked for them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) top_tokens: Vec<Vec<WireToken<'a>>>,
}

/// A sequence that was not the best.
#[derive(Debug, Serialize, ToSchema)]
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

/// A token of the prompt; the first has no logprob.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PrefillToken {
    pub(super) id: u32,
    pub(super) text: String,
    pub(super) logprob: Option<f32>,
}

/// A generated token. A logprob that is not finite is written as null.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(super) struct WireToken<'a> {
    #[schema(example = 319)]
    id: u32,
    #[schema(example = " am")]
    text: &'a str,
    #[schema(value_type = Option<f32>, required, example = -0.34)]
    logprob: f32,
    /// Whether it is a control token, which the text leaves out.
    #[schema(example = false)]
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
#[derive(Debug, Serialize, ToSchema)]
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

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(super) struct StreamDetails {
    pub(super) finish_reason: &'static str,
    pub(super) generated_tokens: u32,
    pub(super) seed: Option<u64>,
    pub(super) input_length: u32,
}

/// An error in the middle of a stream.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StreamError<'a> {
    pub(super) error: &'a str,
    pub(super) error_type: &'static str,
}

/// One token of `/tokenize`; `start` and `stop` are bytes of `inputs`.
#[derive(Debug, Serialize, ToSchema)]
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

/// An answer of many parts, made ready to be sent.
pub(super) fn json_bytes(answer: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(answer).expect("structs of strings and numbers have no keys that JSON could not write")
}

pub(super) fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::EosToken => "eos_token",
        FinishReason::StopSequence => "stop_sequence",
    }
}
