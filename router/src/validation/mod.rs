//! From what a client asked to what the engine trusts: one form of request for every route, checked in one place.
//!
//! The order of checks is the original's, and the first failure wins: parameters, tokenizing, lengths, grammar.

mod error;
mod grammars;
mod lengths;
mod parameters;
mod pool;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use error::ValidationError;
pub use parameters::{Names, Parameters};
pub use pool::{PoolFault, TokenizerPool};

use grammars::Grammars;

use crate::config::Config;
use crate::health::{Health, Limits};
use crate::request::{Stopping, ValidRequest};
use crate::tenants::Tenant;
use crate::tokenizer::{ChatError, Conversation, TextModel};
use parameters::Rules;

/// One generation for one prompt, as any route asks for it.
#[derive(Clone, Debug)]
pub struct Ask {
    pub prompt: Prompt,
    pub parameters: Parameters,
    /// Events are wanted one by one, so nothing may depend on the end.
    pub stream: bool,
    /// What the client calls the fields, for errors.
    pub names: &'static Names,
    pub request_id: Arc<str>,
    pub tenant: Arc<Tenant>,
    pub received: Instant,
    /// When the client wants no answer any more.
    pub deadline: Option<Instant>,
}

impl Ask {
    /// The `priority` that it has if it passes.
    pub fn priority(&self) -> i32 {
        let asked = self.parameters.priority.unwrap_or_default();
        i32::try_from(asked).unwrap_or(i32::MAX).max(self.tenant.min_priority)
    }

    /// The sooner of the deadline that came with the request and of its own `timeout`.
    pub fn deadline(&self) -> Option<Instant> {
        let timeout = self.parameters.timeout.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let own = timeout.and_then(|timeout| self.received.checked_add(timeout));
        self.deadline.into_iter().chain(own).min()
    }
}

/// Where the prompt's ids come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Special tokens written out in the text are parsed: callers format prompts by hand.
    Text(String),
    /// Ids as they are: nothing is added.
    Ids(Vec<u32>),
    /// Rendered by the model's template; nothing in a message becomes a control token.
    Chat(Box<Conversation>),
}

/// A request that passed, and its prompt as text.
#[derive(Clone, Debug)]
pub struct Checked {
    pub request: ValidRequest,
    pub prompt: String,
}

/// Checks requests. Tokenizing runs on threads of its own, so that a long prompt delays no event of anybody's stream.
#[derive(Debug)]
pub struct Validator {
    text: Arc<TextModel>,
    pool: TokenizerPool,
    grammars: Grammars,
    rules: Rules,
}

impl Validator {
    pub fn new(config: &Config, text: Arc<TextModel>) -> Self {
        let rules = Rules {
            max_best_of: config.max_best_of,
            max_stop_sequences: config.max_stop_sequences,
            max_top_n_tokens: config.max_top_n_tokens,
        };
        let pool = TokenizerPool::new("tokenizer", config.validation_workers, None);
        let grammars = Grammars::new(&text, config.disable_grammar_support);
        Self { text, pool, grammars, rules }
    }

    /// The threads, for other work on text.
    pub fn pool(&self) -> &TokenizerPool {
        &self.pool
    }

    /// Checks one request under the limits in force.
    pub async fn check(&self, ask: Ask, health: &Health) -> Result<Checked, ValidationError> {
        let limits = health.limits().ok_or(ValidationError::NotReady)?;
        let Ask { prompt, mut parameters, stream, names, request_id, tenant, received, deadline } = ask;
        self.rules.check(&parameters, stream, names)?;
        let priority = parameters::priority(&parameters, &tenant)?;
        let cache_salt = parameters::cache_salt(&mut parameters)?;
        let truncate = Rules::truncate(&parameters, &prompt, names, limits)?;
        if let (Prompt::Text(text), None) = (&prompt, parameters.truncate) {
            lengths::check_fewest(self.text.fewest_tokens(text), parameters.max_new_tokens, names, limits)?;
        }
        let most = Most { max_new_tokens: parameters.max_new_tokens, names, limits };
        let (prompt, mut tokens) = self.tokenize(prompt, most).await?;
        tokens.drain(..tokens.len().saturating_sub(truncate));
        let max_new_tokens = lengths::check(&tokens, parameters.max_new_tokens, names, limits)?;
        if let Some((id, _)) = parameters.logit_bias.iter().find(|(id, _)| *id >= limits.vocab_size) {
            let problem = format!("names token {id}, but this model has {} (from 0 on)", limits.vocab_size);
            return Err(ValidationError::field("logit_bias", problem));
        }
        let grammar = self.grammars.check(&mut parameters, names, health).await?;
        let request = ValidRequest {
            request_id,
            priority,
            cache_salt,
            tenant,
            prompt: tokens,
            sampling: parameters.sampling(self.text.eos_token_ids(), grammar),
            stopping: Stopping {
                max_new_tokens,
                stop: parameters.stop.unwrap_or_default(),
                ignore_eos: parameters.ignore_eos,
            },
            shown: parameters.shown,
            prompt_logprobs: parameters.decoder_input_details == Some(true) || parameters.prompt_logprobs,
            received,
            deadline,
            validated: Instant::now(),
        };
        Ok(Checked { request, prompt })
    }

    /// The prompt as text and as ids.
    async fn tokenize(&self, prompt: Prompt, most: Most) -> Result<(String, Vec<u32>), ValidationError> {
        let text = Arc::clone(&self.text);
        let work = move || match prompt {
            Prompt::Text(prompt) => {
                let refused = |error| ValidationError::of_chat(&ChatError::Encode(error), most.names);
                let tokens = text.encode(&prompt).map_err(refused)?;
                Ok((prompt, tokens))
            }
            Prompt::Ids(ids) => Ok((text.decode(&ids, false), ids)),
            Prompt::Chat(conversation) => {
                let refused = |error: ChatError| ValidationError::of_chat(&error, most.names);
                let rendered = text.render(&conversation).map_err(refused)?;
                most.check(text.fewest_tokens(rendered.text()))?;
                rendered.encode().map(|prompt| (prompt.text, prompt.ids)).map_err(refused)
            }
        };
        self.pool.run(work).await?
    }
}

/// What a prompt has to leave room for.
#[derive(Clone, Copy, Debug)]
struct Most {
    max_new_tokens: Option<u32>,
    names: &'static Names,
    limits: Limits,
}

impl Most {
    fn check(self, fewest_tokens: usize) -> Result<(), ValidationError> {
        lengths::check_fewest(fewest_tokens, self.max_new_tokens, self.names, self.limits)
    }
}

#[cfg(test)]
mod tests;
