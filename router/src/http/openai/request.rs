//! What `OpenAI`'s clients send, and its translation into the engine's parameters.
//!
//! Any field may be null, which means absent. Fields that this server does not know are ignored, as the original did.
//! Fields that it knows and cannot honour yet are refused by name: ignoring them would answer another question.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::Value;

use crate::http::error::ApiError;
use crate::tokenizer::ChatMessage;
use crate::validation::Parameters;

/// Both routes' fields: `prompt` belongs to completions, `messages` to chat.
#[derive(Clone, Debug, Deserialize)]
#[serde(expecting = "an object with `prompt` or `messages`")]
pub(super) struct OpenAiRequest {
    pub(super) model: Option<String>,
    pub(super) prompt: Option<OneOrMany>,
    pub(super) messages: Option<Vec<Message>>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    stop: Option<OneOrMany>,
    seed: Option<u64>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    /// Not `OpenAI`'s; benchmarks of other servers send it.
    ignore_eos: Option<bool>,

    // Features that do not exist yet: only the values that ask for nothing are taken.
    n: Option<u32>,
    best_of: Option<u32>,
    echo: Option<bool>,
    suffix: Option<String>,
    logprobs: Option<Value>,
    top_logprobs: Option<u32>,
    logit_bias: Option<Value>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    functions: Option<Vec<Value>>,
    function_call: Option<Value>,
    response_format: Option<Value>,
    modalities: Option<Vec<String>>,
    audio: Option<Value>,
    prediction: Option<Value>,
    web_search_options: Option<Value>,
    reasoning_effort: Option<Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: Option<bool>,
}

/// A string, or a list of strings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OneOrMany(pub(super) Vec<String>);

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Message {
    role: String,
    content: Option<Content>,
    name: Option<String>,
    tool_call_id: Option<String>,
    tool_calls: Option<Vec<Value>>,
}

/// A string, or a list of parts.
#[derive(Clone, Debug)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Clone, Debug, Deserialize)]
struct Part {
    r#type: String,
    text: Option<String>,
}

impl OpenAiRequest {
    pub(super) fn wants_usage(&self) -> bool {
        self.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or_default()
    }

    pub(super) fn parameters(&self) -> Result<Parameters, ApiError> {
        self.refuse_later_features()?;
        let max_new_tokens = match (self.max_tokens, self.max_completion_tokens) {
            (Some(old), Some(new)) if old != new => {
                return Err(ApiError::field("max_completion_tokens", "contradicts `max_tokens`; send one of them"));
            }
            (old, new) => new.or(old),
        };
        let is_greedy = self.temperature == Some(0.0);
        // 1 keeps every token; greedy decoding keeps the first, whatever the share.
        let keeps_all = |top_p: f32| (top_p - 1.0).abs() < f32::EPSILON || (is_greedy && top_p > 0.0 && top_p < 1.0);
        Ok(Parameters {
            do_sample: Some(!is_greedy),
            temperature: self.temperature.filter(|_| !is_greedy),
            top_p: self.top_p.filter(|top_p| !keeps_all(*top_p)),
            max_new_tokens,
            stop: self.stop.clone().map(|stop| stop.0),
            seed: self.seed,
            repetition_penalty: self.repetition_penalty,
            count_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            ignore_eos: self.ignore_eos.unwrap_or_default(),
            ..Parameters::default()
        })
    }

    fn refuse_later_features(&self) -> Result<(), ApiError> {
        if self.suffix.is_some() {
            let problem = "is not supported; leave it out".to_owned();
            return Err(ApiError::Special { kind: "suffix not supported", field: "suffix", problem });
        }
        let asks: [(&'static str, bool); 16] = [
            ("n", self.n.is_some_and(|n| n != 1)),
            ("best_of", self.best_of.is_some_and(|best_of| best_of > 1)),
            ("echo", self.echo == Some(true)),
            ("logprobs", says_something(self.logprobs.as_ref())),
            ("top_logprobs", self.top_logprobs.is_some_and(|top| top > 0)),
            ("logit_bias", says_something(self.logit_bias.as_ref())),
            ("tools", self.tools.as_ref().is_some_and(|tools| !tools.is_empty())),
            ("tool_choice", !is_one_of(self.tool_choice.as_ref(), &["none", "auto"])),
            ("functions", self.functions.as_ref().is_some_and(|functions| !functions.is_empty())),
            ("function_call", !is_one_of(self.function_call.as_ref(), &["none", "auto"])),
            ("response_format", !is_plain_format(self.response_format.as_ref())),
            ("modalities", self.modalities.as_ref().is_some_and(|asked| asked.iter().any(|one| one != "text"))),
            ("audio", self.audio.is_some()),
            ("prediction", self.prediction.is_some()),
            ("web_search_options", self.web_search_options.is_some()),
            ("reasoning_effort", self.reasoning_effort.is_some()),
        ];
        match asks.into_iter().find(|(_, asks)| *asks) {
            Some((field, _)) => {
                Err(ApiError::field(field, "is not supported by this version of the server; leave it out"))
            }
            None => Ok(()),
        }
    }
}

/// Whether a value asks for more than its neutral form: false, 0, an empty list or object.
fn says_something(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(entries)) => !entries.is_empty(),
        Some(Value::Bool(true) | Value::String(_)) => true,
    }
}

fn is_one_of(value: Option<&Value>, neutral: &[&str]) -> bool {
    value.is_none_or(|value| value.as_str().is_some_and(|text| neutral.contains(&text)))
}

fn is_plain_format(format: Option<&Value>) -> bool {
    format.is_none_or(|format| is_one_of(format.get("type"), &["text"]) && format.get("type").is_some())
}

impl Message {
    /// A message as templates see it; `index` is its place, for errors.
    pub(super) fn into_chat(self, index: usize) -> Result<ChatMessage, ApiError> {
        if self.tool_calls.is_some_and(|calls| !calls.is_empty()) {
            let problem = "is not supported by this version of the server; send text only";
            return Err(ApiError::field(format!("messages[{index}].tool_calls"), problem));
        }
        let content = match self.content {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => joined(parts, index)?,
            None => {
                let problem = "is missing; send a string or a list of text parts";
                return Err(ApiError::field(format!("messages[{index}].content"), problem));
            }
        };
        Ok(ChatMessage { role: self.role, content, name: self.name, tool_call_id: self.tool_call_id })
    }
}

/// The text of message `index`, without anything between its parts.
fn joined(parts: Vec<Part>, index: usize) -> Result<String, ApiError> {
    let mut whole = String::new();
    for (place, part) in parts.into_iter().enumerate() {
        let field = format!("messages[{index}].content[{place}]");
        match (part.r#type.as_str(), part.text) {
            ("text", Some(text)) => whole.push_str(&text),
            ("text", None) => return Err(ApiError::field(field, "has no `text`")),
            (kind, _) => {
                return Err(ApiError::field(field, format!("has type {kind}, but this model takes text only")));
            }
        }
    }
    Ok(whole)
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = OneOrMany;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string or a list of strings (token ids are not supported)")
            }

            fn visit_str<E>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<OneOrMany, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = items.next_element()? {
                    texts.push(text);
                }
                Ok(OneOrMany(texts))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Content;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string or a list of parts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
                let mut parts = Vec::new();
                while let Some(part) = items.next_element()? {
                    parts.push(part);
                }
                Ok(Content::Parts(parts))
            }
        }
        deserializer.deserialize_any(Either)
    }
}
