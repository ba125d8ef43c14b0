//! What an answer has to show: how many choices, which logprobs, the prompt itself.

use std::sync::Arc;

use serde_json::Value;

use super::logprobs::Logprobs;
use super::request::OpenAiRequest;
use super::voice::Voice;
use crate::http::error::ApiError;
use crate::http::state::AppState;
use crate::tools::Reading;
use crate::validation::Parameters;

/// How the two routes differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Chat,
}

#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) form: Form,
    /// Of each prompt; at least 1.
    pub(super) num_choices: usize,
    pub(super) logprobs: Option<Logprobs>,
    /// The prompt stands before the text.
    pub(super) echo: bool,
    /// Nothing but the prompt is wanted: `max_tokens` was 0.
    pub(super) is_prompt_only: bool,
    /// Whether a stream ends with a chunk of usage.
    pub(super) usage: bool,
    /// How to read the output; plain unless a chat says otherwise.
    pub(super) reading: Reading,
}

impl Wanted {
    /// Reads what concerns the answer, and adds to `parameters` what the engine must know of it.
    pub(super) fn of(
        request: &OpenAiRequest,
        form: Form,
        parameters: &mut Parameters,
        state: &AppState,
    ) -> Result<Self, ApiError> {
        if request.stream_options.is_some() && request.stream != Some(true) {
            return Err(ApiError::field("stream_options", "is only allowed with `stream: true`; leave it out"));
        }
        let num_choices = choices(request, parameters)?;
        let num_top = logprobs(request, form, state.config.max_top_n_tokens)?;
        let echo = form == Form::Text && request.echo.unwrap_or_default();
        let is_prompt_only = echo && parameters.max_new_tokens == Some(0);
        if is_prompt_only {
            // The engine computes a prompt for the sake of a token: it is made and not shown.
            parameters.max_new_tokens = Some(1);
        }
        parameters.top_n_tokens = num_top;
        parameters.prompt_logprobs = echo && num_top.is_some();
        parameters.prompt_top_tokens = parameters.prompt_logprobs;
        let logprobs =
            num_top.map(|top| Logprobs { num_top: top as usize, detokenizer: Arc::clone(&state.detokenizer) });
        Ok(Self {
            form,
            num_choices,
            logprobs,
            echo,
            is_prompt_only,
            usage: request.wants_usage(),
            reading: Reading::default(),
        })
    }
}

impl Wanted {
    /// What reads the output of one choice; none where the output is the answer.
    pub(super) fn voice(&self, prompt: &str) -> Option<Voice> {
        (!self.reading.is_plain()).then(|| Voice::new(&self.reading, prompt))
    }
}

/// How many choices to show; with `best_of`, of how many.
fn choices(request: &OpenAiRequest, parameters: &mut Parameters) -> Result<usize, ApiError> {
    let num_choices = request.n.unwrap_or(1) as usize;
    if num_choices == 0 {
        return Err(ApiError::field("n", "must be at least 1"));
    }
    match request.best_of.map(|best_of| best_of as usize) {
        Some(best_of) if best_of < num_choices => {
            return Err(ApiError::field(
                "best_of",
                format!("must be at least `n` ({num_choices}): the best of them are shown"),
            ));
        }
        Some(best_of) if best_of > num_choices => parameters.best_of = Some(best_of),
        _ => {}
    }
    parameters.num_choices = Some(num_choices);
    Ok(num_choices)
}

/// How many top tokens go with each logprob; `None` where no logprobs are wanted.
fn logprobs(request: &OpenAiRequest, form: Form, allowed: u32) -> Result<Option<u32>, ApiError> {
    let is_told = request.logprobs.as_ref().is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)));
    if form == Form::Chat && !is_told && request.top_logprobs.is_some_and(|top| top > 0) {
        return Err(ApiError::field("top_logprobs", "is only allowed with `logprobs: true`"));
    }
    let (field, asked) = match (form, &request.logprobs) {
        (_, None | Some(Value::Null | Value::Bool(false))) => return Ok(None),
        (Form::Chat, Some(Value::Bool(true))) => ("top_logprobs", request.top_logprobs.unwrap_or_default()),
        (Form::Chat, Some(_)) => {
            return Err(ApiError::field("logprobs", "must be true or false; the number goes into `top_logprobs`"));
        }
        (Form::Text, Some(Value::Bool(true))) => ("logprobs", 1),
        (Form::Text, Some(value)) => {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            ("logprobs", number.ok_or_else(|| ApiError::field("logprobs", "must be a whole number, 0 or more"))?)
        }
    };
    if asked > allowed {
        return Err(ApiError::field(field, format!("must be at most {allowed} (max_top_n_tokens)")));
    }
    Ok(Some(asked))
}
