//! Why a request is refused.

use super::parameters::Names;
use super::pool::PoolFault;
use crate::grammar::GrammarError;
use crate::tokenizer::ChatError;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValidationError {
    /// The original's fixed prefix, then the field and what to do.
    #[error("Input validation error: `{field}` {problem}")]
    Field { field: &'static str, problem: String },
    /// Prompt and answer together do not fit: `OpenAI`'s clients look for this one in particular.
    #[error("Input validation error: `{field}` {problem}")]
    TooLong { field: &'static str, problem: String },
    /// A grammar that cannot be used; `field` is what the route calls grammars.
    #[error("Input validation error: `{}` {error}", error.field.as_deref().unwrap_or(field))]
    Grammar { field: &'static str, error: GrammarError },
    #[error("Template error: {0}")]
    Template(String),
    /// A tokenizer thread failed on this text; the others live on.
    #[error("Input validation error: {0}")]
    Tokenizer(#[from] PoolFault),
    /// Too many grammars wait to be compiled.
    #[error("the server compiles other grammars; try again later")]
    Busy,
    /// The workers have never been ready, so that no limit is known.
    #[error("the model is still being loaded; try again")]
    NotReady,
}

impl ValidationError {
    pub(super) fn field(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Field { field, problem: problem.into() }
    }

    /// Why a conversation could not become a prompt.
    pub fn of_chat(error: &ChatError, names: &Names) -> Self {
        match error {
            ChatError::Encode(error) => Self::field(names.prompt, error.to_string()),
            ChatError::UnknownTemplate { .. } => Self::field("chat_template", error.to_string()),
            ChatError::NoTemplate | ChatError::Template(_) => Self::Template(error.to_string()),
        }
    }

    /// The field at fault, if it is one.
    pub fn culprit(&self) -> Option<&str> {
        match self {
            Self::Field { field, .. } | Self::TooLong { field, .. } => Some(field),
            Self::Grammar { field, error } => Some(error.field.as_deref().unwrap_or(field)),
            Self::Template(_) => Some("messages"),
            Self::Tokenizer(_) | Self::Busy | Self::NotReady => None,
        }
    }
}
