//! What `OpenAI`'s clients send, and its translation into the engine's parameters.
//!
//! Any field may be null, which means absent. Fields that this server does not know are ignored, as the original did.
//! Fields that it knows and cannot honour yet are refused by name: ignoring them would answer another question.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::message::Message;
use crate::grammar::{Grammar, response_format};
use crate::http::error::ApiError;
use crate::validation::{Parameters, Prompt, ValidationError};

/// Both routes' fields: `prompt` belongs to completions, `messages` to chat.
#[derive(Clone, Debug, Deserialize)]
#[serde(expecting = "an object with `prompt` or `messages`")]
pub(in crate::http) struct OpenAiRequest {
    pub(super) model: Option<String>,
    pub(in crate::http) prompt: Option<Prompts>,
    pub(in crate::http) messages: Option<Vec<Message>>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    logit_bias: Option<Value>,
    stop: Option<OneOrMany>,
    seed: Option<u64>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    pub(super) n: Option<u32>,
    /// Completions only.
    pub(super) best_of: Option<u32>,
    pub(super) echo: Option<bool>,
    /// Chat: a boolean; completions: a number.
    pub(super) logprobs: Option<Value>,
    pub(super) top_logprobs: Option<u32>,

    // Not `OpenAI`'s; other servers take them under these names.
    /// Further variables of the chat template.
    pub(super) chat_template_kwargs: Option<Map<String, Value>>,
    /// One of the model's templates by name.
    pub(super) chat_template: Option<String>,
    pub(super) documents: Option<Vec<Value>>,
    pub(super) add_generation_prompt: Option<bool>,
    pub(super) continue_final_message: Option<bool>,
    repetition_penalty: Option<f32>,
    top_k: Option<i32>,
    min_p: Option<f32>,
    min_tokens: Option<u32>,
    typical_p: Option<f32>,
    ignore_eos: Option<bool>,

    // Features that do not exist yet: only the values that ask for nothing are taken.
    suffix: Option<String>,
    pub(super) tools: Option<Vec<Value>>,
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

/// One or several prompts, as text or as token ids.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::http) struct Prompts(pub(super) Vec<Prompt>);

impl OpenAiRequest {
    pub(super) fn wants_usage(&self) -> bool {
        self.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or_default()
    }

    pub(in crate::http) fn parameters(&self) -> Result<Parameters, ApiError> {
        self.refuse_later_features()?;
        let max_new_tokens = match (self.max_tokens, self.max_completion_tokens) {
            (Some(old), Some(new)) if old != new => {
                return Err(ApiError::field("max_completion_tokens", "contradicts `max_tokens`; send one of them"));
            }
            (old, new) => new.or(old),
        };
        let is_greedy = self.temperature == Some(0.0);
        // 1 keeps every token; greedy decoding keeps the first, whatever the share.
        let keeps_all = |share: f32| (share - 1.0).abs() < f32::EPSILON || (is_greedy && share > 0.0 && share < 1.0);
        Ok(Parameters {
            do_sample: Some(!is_greedy),
            temperature: self.temperature.filter(|_| !is_greedy),
            top_p: self.top_p.filter(|top_p| !keeps_all(*top_p)),
            max_new_tokens,
            stop: self.stop.clone().map(|stop| stop.0),
            seed: self.seed,
            repetition_penalty: self.repetition_penalty,
            // Other servers write "all of them" as 0 or -1.
            top_k: self.top_k.filter(|top_k| !(matches!(top_k, -1 | 0) || is_greedy && *top_k > 0)),
            min_p: self.min_p.filter(|min_p| !(is_greedy && (0.0..=1.0).contains(min_p))),
            logit_bias: logit_bias(self.logit_bias.as_ref())?,
            min_new_tokens: self.min_tokens,
            typical_p: self.typical_p.filter(|typical_p| !keeps_all(*typical_p)),
            count_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            ignore_eos: self.ignore_eos.unwrap_or_default(),
            grammar: self.grammar()?,
            ..Parameters::default()
        })
    }

    fn grammar(&self) -> Result<Option<Grammar>, ApiError> {
        let Some(format) = &self.response_format else { return Ok(None) };
        let refused = |error| ValidationError::Grammar { field: "response_format", error };
        Ok(response_format(format).map_err(refused)?)
    }

    fn forbids_calls(&self) -> bool {
        self.tool_choice.as_ref().is_some_and(|choice| choice == "none")
    }

    fn refuse_later_features(&self) -> Result<(), ApiError> {
        if self.suffix.is_some() {
            let problem = "is not supported; leave it out".to_owned();
            return Err(ApiError::Special { kind: "suffix not supported", field: "suffix", problem });
        }
        let asks: [(&'static str, bool); 9] = [
            // Without a choice there is nothing to call: the template shows the tools all the same.
            ("tools", self.tools.as_ref().is_some_and(|tools| !tools.is_empty()) && !self.forbids_calls()),
            ("tool_choice", !is_one_of(self.tool_choice.as_ref(), &["none", "auto"])),
            ("functions", self.functions.as_ref().is_some_and(|functions| !functions.is_empty())),
            ("function_call", !is_one_of(self.function_call.as_ref(), &["none", "auto"])),
            ("modalities", self.modalities.as_ref().is_some_and(|asked| asked.iter().any(|one| one != "text"))),
            ("audio", self.audio.is_some()),
            ("prediction", self.prediction.is_some()),
            ("web_search_options", self.web_search_options.is_some()),
            ("reasoning_effort", self.reasoning_effort.is_some()),
        ];
        match asks.into_iter().find(|(_, asks)| *asks) {
            Some((field, _)) => {
                Err(ApiError::unsupported(field, "is not supported by this version of the server; leave it out"))
            }
            None => Ok(()),
        }
    }
}

/// Entries of a `logit_bias`: each costs the worker a moment at every token.
const MAX_BIASES: usize = 1024;

/// A map from token ids, which are keys and therefore text, to what is added to their scores.
fn logit_bias(asked: Option<&Value>) -> Result<Vec<(u32, f32)>, ApiError> {
    let refused = |problem: String| Err(ApiError::field("logit_bias", problem));
    let entries = match asked {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(_) => return refused("must be a map from token ids to numbers, such as {\"50256\": -100}".to_owned()),
    };
    if entries.len() > MAX_BIASES {
        return refused(format!("has {} entries, but at most {MAX_BIASES} are allowed", entries.len()));
    }
    let mut biases = Vec::with_capacity(entries.len());
    for (token, bias) in entries {
        let Ok(id) = token.parse() else { return refused(format!("has the key {token:?}, which is no token id")) };
        match bias.as_f64() {
            Some(bias) if (-100.0..=100.0).contains(&bias) => biases.push((id, bias as f32)),
            _ => return refused(format!("gives token {id} the bias {bias}; it must be a number from -100 to 100")),
        }
    }
    Ok(biases)
}

fn is_one_of(value: Option<&Value>, neutral: &[&str]) -> bool {
    value.is_none_or(|value| value.as_str().is_some_and(|text| neutral.contains(&text)))
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = OneOrMany;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string or a list of strings")
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

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Ids(Vec<u32>),
            Texts(Vec<String>),
            Lists(Vec<Vec<u32>>),
        }
        let expected = "a string, a list of strings, a list of token ids, or a list of lists of token ids";
        Ok(Self(
            match Form::deserialize(deserializer).map_err(|_| de::Error::custom(format!("expected {expected}")))? {
                Form::Text(text) => vec![Prompt::Text(text)],
                // An empty list is a list of no prompts.
                Form::Ids(ids) if ids.is_empty() => Vec::new(),
                Form::Ids(ids) => vec![Prompt::Ids(ids)],
                Form::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
                Form::Lists(lists) => lists.into_iter().map(Prompt::Ids).collect(),
            },
        ))
    }
}
