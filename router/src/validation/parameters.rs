//! What a client may ask of the engine, and the rules for each field.

use std::sync::Arc;
use std::time::Duration;

use millrace_scheduler::Sampling;
use rand::Rng;
use serde::Deserialize;
use utoipa::ToSchema;

use super::{Limits, Prompt, ValidationError};
use crate::grammar::Grammar;
use crate::tenants::{PRIORITIES, Tenant};

/// The `parameters` of `/generate`, in the original's order. Every field may be absent or null. Other routes fill in the
/// same, and the fields at the end that `/generate` has no name for.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(default, expecting = "an object of parameters")]
#[schema(as = GenerateParameters)]
pub struct Parameters {
    /// Generate so many sequences and answer the one with the highest mean logprob. More than 1 needs sampling, no `seed`,
    /// and no stream.
    #[schema(default = 1, example = 1)]
    pub best_of: Option<usize>,
    /// Divides the logits before sampling; anything but 1 turns sampling on.
    #[schema(exclusive_minimum = 0, default = 1.0, example = 0.7)]
    pub temperature: Option<f32>,
    /// Divides the positive logits of tokens that the prompt or the answer holds, and multiplies the negative ones; 1 is
    /// none.
    #[schema(exclusive_minimum = 0, default = 1.0, example = 1.03)]
    pub repetition_penalty: Option<f32>,
    /// Lowers the logits of tokens by how often they have come; 0 is none.
    #[schema(minimum = -2, maximum = 2, default = 0.0, example = 0.1)]
    pub frequency_penalty: Option<f32>,
    /// Sample from so many of the most likely tokens; all of them if absent.
    #[schema(minimum = 1, example = 10)]
    pub top_k: Option<i32>,
    /// Sample from the most likely tokens that have this share of the probability together; all of them if absent.
    #[schema(exclusive_minimum = 0, exclusive_maximum = 1, example = 0.95)]
    pub top_p: Option<f32>,
    /// Sample from the tokens of typical information that have this share together (arXiv 2202.00666); all if absent.
    #[schema(exclusive_minimum = 0, exclusive_maximum = 1, example = 0.95)]
    pub typical_p: Option<f32>,
    /// Sample instead of taking the most likely token. True without any `parameters`, else false unless another parameter
    /// shapes the distribution.
    #[schema(default = false, example = true)]
    pub do_sample: Option<bool>,
    /// Tokens to generate at most; as many as fit into `max_total_tokens` if absent.
    #[schema(minimum = 1, example = 20)]
    pub max_new_tokens: Option<u32>,
    /// Put the prompt before the answer. At `/` the default is true.
    #[schema(default = false, example = false)]
    pub return_full_text: Option<bool>,
    /// Generation ends behind the first of these texts, which stays in the answer.
    #[schema(example = json!(["photographer"]))]
    pub stop: Option<Vec<String>>,
    /// Keep so many tokens from the end of the prompt; at most `max_input_tokens`.
    #[schema(minimum = 1, example = json!(null))]
    pub truncate: Option<usize>,
    /// Mark the text as generated (arXiv 2301.10226).
    #[schema(default = false, example = false)]
    pub watermark: Option<bool>,
    /// Answer `details`: tokens, logprobs, why generation ended.
    #[schema(default = false, example = true)]
    pub details: Option<bool>,
    /// Answer the tokens of the prompt with their logprobs. Not with streams.
    #[schema(default = false, example = false)]
    pub decoder_input_details: Option<bool>,
    /// The same seed gives the same answer; a fresh one for every request if absent.
    #[schema(example = json!(null))]
    pub seed: Option<u64>,
    /// Answer so many of the most likely tokens at each position; more where they tie.
    #[schema(default = 0, example = 5)]
    pub top_n_tokens: Option<u32>,
    /// What the answer must conform to.
    #[schema(value_type = Option<Object>)]
    pub grammar: Option<Grammar>,
    /// Seconds after which no answer is wanted any more: the request ends with an error then, wherever it is. The header
    /// `x-request-timeout` says the same; the shorter one counts.
    #[schema(exclusive_minimum = 0, example = 60.0)]
    pub timeout: Option<f64>,
    /// There are no adapters; as with the original, an unknown one means the base model.
    #[schema(example = json!(null))]
    pub adapter_id: Option<String>,

    /// Lower is sooner, among the waiting requests of one API key. Not of the original.
    #[schema(minimum = -1000, maximum = 1000, default = 0, example = 0)]
    pub priority: Option<i64>,
    /// Only requests with the same text here share computed prompts. Not of the original.
    #[schema(min_length = 1, max_length = 256, example = json!(null))]
    pub cache_salt: Option<String>,

    /// `OpenAI`'s, subtracted once per distinct output token.
    #[serde(skip)]
    pub presence_penalty: Option<f32>,
    /// `OpenAI`'s `frequency_penalty`, subtracted per occurrence in the output.
    #[serde(skip)]
    pub count_penalty: Option<f32>,
    /// Whether to go on after an end-of-sequence token.
    #[serde(skip)]
    pub ignore_eos: bool,
    #[serde(skip)]
    pub min_p: Option<f32>,
    /// Added to the scores of single tokens.
    #[serde(skip)]
    pub logit_bias: Vec<(u32, f32)>,
    /// No end-of-sequence token before so many others, and no end at stop strings within them.
    #[serde(skip)]
    pub min_new_tokens: Option<u32>,
    /// Answers wanted; unlike `best_of`, all of them are shown. Routes that have it take `best_of` as `OpenAI` does, also
    /// with a seed and without sampling.
    #[serde(skip)]
    pub num_choices: Option<usize>,
    /// As `decoder_input_details`, also when streaming.
    #[serde(skip)]
    pub prompt_logprobs: bool,
    /// The same beside each logprob of the prompt as `top_n_tokens` beside those of the output.
    #[serde(skip)]
    pub prompt_top_tokens: bool,
    /// Control tokens whose text is shown; others never are.
    #[serde(skip)]
    pub shown: Arc<[u32]>,
}

/// A route family's names for the fields that are called differently elsewhere.
#[derive(Debug)]
pub struct Names {
    pub prompt: &'static str,
    pub max_new_tokens: &'static str,
    pub grammar: &'static str,
    /// What asks for logprobs of the prompt.
    pub prompt_logprobs: &'static str,
    /// What helps when the prompt is too long.
    pub shorten: &'static str,
}

impl Names {
    pub const GENERATE: Self = Self {
        prompt: "inputs",
        max_new_tokens: "max_new_tokens",
        grammar: "grammar",
        prompt_logprobs: "decoder_input_details",
        shorten: "shorten it or set `truncate`",
    };
    pub const COMPLETIONS: Self = Self {
        prompt: "prompt",
        max_new_tokens: "max_tokens",
        grammar: "response_format",
        prompt_logprobs: "echo",
        shorten: "shorten it",
    };
    pub const CHAT: Self = Self { prompt: "messages", shorten: "shorten them", ..Self::COMPLETIONS };
    /// A chat that must call a tool.
    pub const CALLS: Self = Self { grammar: "tools", ..Self::CHAT };
}

/// Bytes of a `cache_salt`: as many as a long digest has.
const MAX_SALT: usize = 256;

/// 2^64 divided by the golden ratio: multiples of it lie far apart (Knuth 1973, multiplicative hashing).
const GOLDEN_RATIO: u64 = 0x9E37_79B9_7F4A_7C15;

/// The operator's bounds.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_field_names, reason = "the flags' own names")]
pub(super) struct Rules {
    pub(super) max_best_of: usize,
    pub(super) max_stop_sequences: usize,
    pub(super) max_top_n_tokens: u32,
}

impl Rules {
    /// Every rule that needs neither the prompt nor its length.
    pub(super) fn check(&self, parameters: &Parameters, stream: bool, names: &Names) -> Result<(), ValidationError> {
        self.check_best_of(parameters, stream)?;
        check_numbers(parameters)?;
        if parameters.max_new_tokens == Some(0) {
            return refuse(names.max_new_tokens, "must be at least 1; leave it out to fill what fits");
        }
        if parameters.timeout.is_some_and(|seconds| !is_timeout(seconds)) {
            return refuse("timeout", "must be a number of seconds above 0");
        }
        let num_stops = parameters.stop.as_ref().map_or(0, Vec::len);
        if num_stops > self.max_stop_sequences {
            let allowed = self.max_stop_sequences;
            return refuse("stop", format!("has {num_stops} entries, but at most {allowed} are allowed"));
        }
        let most = parameters.max_new_tokens.unwrap_or(u32::MAX);
        if parameters.min_new_tokens.is_some_and(|least| least > most) {
            return refuse("min_tokens", format!("must be at most `{}` ({most})", names.max_new_tokens));
        }
        let is_best_of_many = parameters.best_of.is_some_and(|best_of| best_of > 1);
        if is_best_of_many && parameters.seed.is_some() && parameters.num_choices.is_none() {
            return refuse("seed", "must be left out with `best_of` > 1: each sequence needs its own");
        }
        if parameters.top_n_tokens.is_some_and(|asked| asked > self.max_top_n_tokens) {
            let allowed = self.max_top_n_tokens;
            return refuse("top_n_tokens", format!("must be at most {allowed} (max_top_n_tokens)"));
        }
        Ok(())
    }

    fn check_best_of(&self, parameters: &Parameters, stream: bool) -> Result<(), ValidationError> {
        let best_of = parameters.best_of.unwrap_or(1);
        if stream && best_of != 1 {
            return refuse("best_of", "must be 1 (or left out) when streaming: the best is known only at the end");
        }
        if stream && parameters.decoder_input_details == Some(true) {
            return refuse("decoder_input_details", "is not available when streaming; set it to false");
        }
        if best_of > 1 && self.max_best_of == 1 {
            return refuse("best_of", "is disabled on this server (max_best_of is 1); leave it out");
        }
        if best_of > self.max_best_of.max(1) {
            return refuse("best_of", format!("must be at most {} (max_best_of)", self.max_best_of));
        }
        let asks_for_sampling = parameters.do_sample == Some(true)
            || parameters.temperature.is_some()
            || parameters.top_k.is_some()
            || parameters.top_p.is_some()
            || parameters.typical_p.is_some();
        if best_of > 1 && !asks_for_sampling && parameters.num_choices.is_none() {
            return refuse("best_of", "needs sampling: all greedy sequences are the same; set `do_sample` to true");
        }
        Ok(())
    }

    /// How many tokens to keep from the end of the prompt.
    pub(super) fn truncate(
        parameters: &Parameters,
        prompt: &Prompt,
        names: &Names,
        limits: Limits,
    ) -> Result<usize, ValidationError> {
        if matches!(prompt, Prompt::Text(text) if text.is_empty()) {
            return refuse(names.prompt, "must not be empty; send some text");
        }
        if matches!(prompt, Prompt::Ids(ids) if ids.is_empty()) {
            return refuse(names.prompt, "must not be empty; send at least one token id");
        }
        let allowed = limits.max_input_tokens as usize;
        match parameters.truncate {
            None => Ok(usize::MAX),
            Some(length) if (1..=allowed).contains(&length) => Ok(length),
            Some(_) => refuse("truncate", format!("must be between 1 and {allowed} (max_input_tokens)")),
        }
    }
}

fn is_timeout(seconds: f64) -> bool {
    seconds > 0.0 && Duration::try_from_secs_f64(seconds).is_ok()
}

/// Which `priority` a tenant's request has.
pub(super) fn priority(parameters: &Parameters, tenant: &Tenant) -> Result<i32, ValidationError> {
    let asked = parameters.priority.unwrap_or_default();
    let (least, most) = PRIORITIES.into_inner();
    match i32::try_from(asked) {
        Ok(priority) if PRIORITIES.contains(&asked) => {
            let least = tenant.min_priority;
            if priority >= least || parameters.priority.is_none() {
                return Ok(priority.max(least));
            }
            refuse(
                "priority",
                format!("must be at least {least}: less needs an API key that allows it; lower is sooner"),
            )
        }
        _ => refuse("priority", format!("must be between {least} and {most}; lower is sooner")),
    }
}

/// The text that sets a request's prefixes apart.
pub(super) fn cache_salt(parameters: &mut Parameters) -> Result<Option<Arc<str>>, ValidationError> {
    match parameters.cache_salt.take() {
        Some(salt) if !(1..=MAX_SALT).contains(&salt.len()) => refuse(
            "cache_salt",
            format!("must have between 1 and {MAX_SALT} bytes; leave it out to share computed prompts"),
        ),
        salt => Ok(salt.map(Arc::from)),
    }
}

/// The rules of single numbers, in the original's order. JSON has no NaN, so comparisons say it all.
fn check_numbers(parameters: &Parameters) -> Result<(), ValidationError> {
    let not = |value: Option<f32>, holds: fn(f32) -> bool| value.is_some_and(|value| !holds(value));
    if not(parameters.temperature, |value| value > 0.0) {
        return refuse("temperature", "must be greater than 0; for greedy decoding leave it out");
    }
    if not(parameters.repetition_penalty, |value| value > 0.0) {
        return refuse("repetition_penalty", "must be greater than 0; 1 turns it off");
    }
    let within_two = |value: f32| (-2.0..=2.0).contains(&value);
    if not(parameters.frequency_penalty, within_two) || not(parameters.count_penalty, within_two) {
        return refuse("frequency_penalty", "must be between -2 and 2; 0 turns it off");
    }
    if not(parameters.presence_penalty, within_two) {
        return refuse("presence_penalty", "must be between -2 and 2; 0 turns it off");
    }
    let open_unit = |value: f32| value > 0.0 && value < 1.0;
    if not(parameters.top_p, open_unit) {
        return refuse("top_p", "must be greater than 0 and less than 1; leave it out to turn it off");
    }
    if not(parameters.typical_p, open_unit) {
        return refuse("typical_p", "must be greater than 0 and less than 1; leave it out to turn it off");
    }
    if not(parameters.min_p, |value| (0.0..=1.0).contains(&value)) {
        return refuse("min_p", "must be between 0 and 1; 0 turns it off");
    }
    if parameters.top_k.is_some_and(|value| value <= 0) {
        return refuse("top_k", "must be greater than 0; leave it out to turn it off");
    }
    Ok(())
}

fn refuse<T>(field: &'static str, problem: impl Into<String>) -> Result<T, ValidationError> {
    Err(ValidationError::field(field, problem))
}

impl Parameters {
    /// Sequences for this prompt; 0 counts as 1.
    pub(super) fn num_sequences(&self) -> usize {
        self.best_of.unwrap_or(1).max(self.num_choices.unwrap_or(1)).max(1)
    }

    /// One per sequence, alike but for their seeds. Any parameter that shapes the distribution turns sampling on.
    /// `eos_token_ids` are what a minimum length keeps away, and what ends a grammar's text.
    pub(super) fn sampling(&self, eos_token_ids: Arc<[u32]>, grammar: Option<Arc<str>>) -> Vec<Arc<Sampling>> {
        let min_new_tokens = self.min_new_tokens.unwrap_or_default();
        let mut common = Sampling {
            do_sample: false,
            seed: self.seed.unwrap_or_default(),
            // A number beyond f32 reads as infinite; the largest finite one does the same without making NaN.
            temperature: self.temperature.unwrap_or(1.0).min(f32::MAX),
            top_k: self.top_k.unwrap_or_default().unsigned_abs(),
            top_p: self.top_p.unwrap_or(1.0),
            typical_p: self.typical_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or_default(),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0).min(f32::MAX),
            frequency_penalty: self.frequency_penalty.unwrap_or_default(),
            presence_penalty: self.presence_penalty.unwrap_or_default(),
            count_penalty: self.count_penalty.unwrap_or_default(),
            watermark: self.watermark.unwrap_or_default(),
            top_n_tokens: self.top_n_tokens.unwrap_or_default(),
            prompt_top_tokens: if self.prompt_top_tokens { self.top_n_tokens.unwrap_or_default() } else { 0 },
            logit_bias: self.logit_bias.clone(),
            end_tokens: if min_new_tokens > 0 || grammar.is_some() { eos_token_ids } else { Arc::from([]) },
            min_new_tokens,
            grammar,
        };
        let is_shaped = common.top_k > 0 || common.top_p < 1.0 || common.typical_p < 1.0 || common.min_p > 0.0;
        let is_heated = self.temperature.is_some_and(|temperature| (temperature - 1.0).abs() > 0.0);
        common.do_sample = self.do_sample.unwrap_or_default() || is_shaped || is_heated;
        let is_seeded = self.seed.is_some() || !common.do_sample;
        (0..self.num_sequences() as u64)
            .map(|index| {
                // The first choice is what the seed alone would give; each further one has a seed of its own.
                let own = common.seed.wrapping_add(index.wrapping_mul(GOLDEN_RATIO));
                let seed = if is_seeded { own } else { rand::rng().random() };
                Arc::new(Sampling { seed, ..common.clone() })
            })
            .collect()
    }
}
