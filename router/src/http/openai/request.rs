//! What `OpenAI`'s clients send, and its translation into the engine's parameters.
//!
//! Any field may be null, which means absent. Fields that this server does not know are ignored, as the original did.
//! Fields that it knows and cannot honour yet are refused by name: ignoring them would answer another question.

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::message::Message;
use super::seed::Seed;
use super::texts::{OneOrMany, Prompts};
use crate::grammar::{Grammar, response_format};
use crate::http::error::ApiError;
use crate::http::object;
use crate::validation::{Parameters, ValidationError};

/// Both routes' fields: `prompt` belongs to completions, `messages` to chat.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(expecting = "an object with `prompt` or `messages`")]
pub(in crate::http) struct OpenAiRequest {
    /// Which model. What is not served means the one that is, unless the server was started with `--strict-model-names`.
    #[schema(example = "tgi")]
    pub(super) model: Option<String>,
    /// A text, a list of texts, a list of token ids, or a list of such lists. Special tokens written out are parsed.
    #[schema(value_type = Option<Value>, example = "def fibonacci(n):")]
    pub(in crate::http) prompt: Option<Prompts>,
    /// The conversation so far, at least one message.
    #[schema(value_type = Option<Vec<Value>>, min_items = 1)]
    pub(in crate::http) messages: Option<Vec<Message>>,
    /// Answer as a stream of events, the last of which is `[DONE]`.
    #[schema(default = false)]
    pub(super) stream: Option<bool>,
    /// What a stream carries.
    #[serde(default, deserialize_with = "object::optional")]
    pub(super) stream_options: Option<StreamOptions>,
    /// Tokens to generate at most; as many as fit if absent.
    #[schema(minimum = 1, example = 32)]
    max_tokens: Option<u32>,
    /// The new name of `max_tokens`.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<u32>,
    /// 0 takes the most likely token each time; higher is more varied.
    #[schema(minimum = 0, default = 1.0, example = 0.7)]
    temperature: Option<f32>,
    /// Sample from the most likely tokens that have this share of the probability together.
    #[schema(exclusive_minimum = 0, maximum = 1, default = 1.0, example = 0.95)]
    top_p: Option<f32>,
    /// What is added to the logits of tokens, by token id.
    #[schema(value_type = Option<Value>)]
    logit_bias: Option<Value>,
    /// Generation ends before the first of these texts.
    #[schema(value_type = Option<Value>, example = "\n\n")]
    stop: Option<OneOrMany>,
    /// The same seed gives the same answer.
    #[schema(value_type = Option<i64>, example = 42)]
    seed: Option<Seed>,
    /// Subtracted from a token's logit for each time that the answer holds it.
    #[schema(minimum = -2, maximum = 2, default = 0.0)]
    frequency_penalty: Option<f32>,
    /// Subtracted from the logits of all tokens that the answer holds.
    #[schema(minimum = -2, maximum = 2, default = 0.0)]
    presence_penalty: Option<f32>,
    /// Choices to answer for each prompt.
    #[schema(minimum = 1, default = 1)]
    pub(super) n: Option<u32>,
    /// Generate so many sequences and answer the best `n` by mean logprob. Not with streams.
    #[schema(minimum = 1, default = 1)]
    pub(super) best_of: Option<u32>,
    /// Answer the prompt before the text; with `logprobs`, its tokens' too. `max_tokens` may then be 0.
    #[schema(default = false)]
    pub(super) echo: Option<bool>,
    /// Whether to answer logprobs; for completions, with how many of the most likely tokens.
    #[schema(value_type = Option<Value>)]
    pub(super) logprobs: Option<Value>,
    /// With `logprobs`: how many of the most likely tokens to answer at each position.
    #[schema(default = 0)]
    pub(super) top_logprobs: Option<u32>,

    // Chat only.
    /// Functions that the model may call.
    #[schema(value_type = Option<Vec<Value>>, max_items = 128)]
    pub(super) tools: Option<Vec<Value>>,
    /// Whether functions are called, and which.
    #[schema(value_type = Option<Value>)]
    pub(super) tool_choice: Option<Value>,
    /// Whether one answer may make several calls.
    #[schema(default = true)]
    pub(super) parallel_tool_calls: Option<bool>,
    /// Appended to the last message to tell the model how to call. If absent or empty, a built-in text, but only for models
    /// whose template knows no tools.
    pub(super) tool_prompt: Option<String>,

    // Not `OpenAI`'s; other servers take them under these names.
    /// Further variables of the chat template.
    #[schema(value_type = Option<Object>)]
    pub(super) chat_template_kwargs: Option<Map<String, Value>>,
    /// One of the model's templates by name.
    pub(super) chat_template: Option<String>,
    /// Documents for templates that show some.
    #[schema(value_type = Option<Vec<Object>>)]
    pub(super) documents: Option<Vec<Value>>,
    /// Whether the prompt ends with the beginning of an answer. By default: unless the last message is the assistant's.
    pub(super) add_generation_prompt: Option<bool>,
    /// Whether the answer goes on with the last message. By default: if that is the assistant's.
    pub(super) continue_final_message: Option<bool>,
    /// Divides the positive logits of tokens that were there before, and multiplies the negative ones; 1 is none.
    #[schema(exclusive_minimum = 0, default = 1.0)]
    repetition_penalty: Option<f32>,
    /// Sample from so many of the most likely tokens; 0 or -1 means all.
    #[schema(minimum = -1, default = -1)]
    top_k: Option<i32>,
    /// Sample from tokens that are at least this likely relative to the likeliest; 0 means all.
    #[schema(minimum = 0, maximum = 1, default = 0.0)]
    min_p: Option<f32>,
    /// No end-of-sequence token before so many others, and no end at what of `stop` is complete within them.
    #[schema(default = 0)]
    min_tokens: Option<u32>,
    /// Sample from the tokens of typical information that have this share together (arXiv 2202.00666).
    #[schema(exclusive_minimum = 0, maximum = 1, default = 1.0)]
    typical_p: Option<f32>,
    /// Seconds after which no answer is wanted any more: the request ends with an error then, wherever it is.
    #[schema(exclusive_minimum = 0, example = 60.0)]
    timeout: Option<f64>,
    /// Go on after an end-of-sequence token.
    #[schema(default = false)]
    ignore_eos: Option<bool>,

    /// Lower is sooner, among the waiting requests of one API key.
    #[schema(minimum = -1000, maximum = 1000, default = 0)]
    priority: Option<i64>,
    /// Only requests with the same text here share computed prompts.
    #[schema(min_length = 1, max_length = 256)]
    cache_salt: Option<String>,

    // Features that do not exist yet: only the values that ask for nothing are taken.
    /// Not supported: leave it out.
    suffix: Option<String>,
    /// Not supported: the old form of `tools`.
    #[schema(value_type = Option<Vec<Object>>)]
    functions: Option<Vec<Value>>,
    /// Not supported: the old form of `tool_choice`.
    #[schema(value_type = Option<Value>)]
    function_call: Option<Value>,
    /// What the answer must conform to.
    #[schema(value_type = Option<Value>)]
    response_format: Option<Value>,
    /// `["text"]`, or absent: nothing else is generated.
    modalities: Option<Vec<String>>,
    /// Not supported: leave it out.
    #[schema(value_type = Option<Value>)]
    audio: Option<Value>,
    /// Not supported: leave it out.
    #[schema(value_type = Option<Value>)]
    prediction: Option<Value>,
    /// Not supported: leave it out.
    #[schema(value_type = Option<Value>)]
    web_search_options: Option<Value>,
    /// How much the model thinks, for models whose template can tell it; refused by others.
    #[schema(value_type = Option<Value>)]
    pub(super) reasoning_effort: Option<Value>,
}

/// What a stream carries beside the answer.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub(super) struct StreamOptions {
    /// Whether a chunk with the usage of the whole request comes before `[DONE]`.
    #[schema(default = false)]
    pub(super) include_usage: Option<bool>,
}

impl OpenAiRequest {
    /// Whether more than one choice is wanted for a prompt.
    pub(in crate::http) fn wants_several(&self) -> bool {
        self.n.is_some_and(|n| n > 1)
    }

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
            seed: self.seed.map(|seed| seed.0),
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
            priority: self.priority,
            cache_salt: self.cache_salt.clone(),
            grammar: self.grammar()?,
            timeout: self.timeout,
            ..Parameters::default()
        })
    }

    fn grammar(&self) -> Result<Option<Grammar>, ApiError> {
        let Some(format) = &self.response_format else { return Ok(None) };
        let refused = |error| ValidationError::Grammar { field: "response_format", error };
        Ok(response_format(format).map_err(refused)?)
    }

    fn refuse_later_features(&self) -> Result<(), ApiError> {
        if self.suffix.is_some() {
            let problem = "is not supported; leave it out".to_owned();
            return Err(ApiError::Special { kind: "suffix not supported", field: "suffix", problem });
        }
        let asks: [(&'static str, bool); 7] = [
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
    let listed = asked.and_then(Value::as_array).map(|listed| by_position(listed));
    let entries = match (asked, &listed) {
        (None | Some(Value::Null), _) => return Ok(Vec::new()),
        (_, Some(entries)) | (Some(Value::Object(entries)), _) => entries,
        (Some(_), _) => {
            return refused("must be a map from token ids to numbers, such as {\"50256\": -100}".to_owned());
        }
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

/// The original took a list, which it ignored: entry `i` is for token `i`.
fn by_position(biases: &[Value]) -> Map<String, Value> {
    let said = biases.iter().enumerate().filter(|(_, bias)| bias.as_f64() != Some(0.0));
    said.map(|(id, bias)| (id.to_string(), bias.clone())).collect()
}

fn is_one_of(value: Option<&Value>, neutral: &[&str]) -> bool {
    value.is_none_or(|value| value.as_str().is_some_and(|text| neutral.contains(&text)))
}
