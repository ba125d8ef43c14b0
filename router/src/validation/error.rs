//! Why a request is refused.

use super::pool::PoolFault;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValidationError {
    /// The original's fixed prefix, then the field and what to do.
    #[error("Input validation error: `{field}` {problem}")]
    Field { field: &'static str, problem: String },
    #[error("Template error: {0}")]
    Template(String),
    /// A tokenizer thread failed on this text; the others live on.
    #[error("Input validation error: {0}")]
    Tokenizer(#[from] PoolFault),
    /// The workers have never been ready, so that no limit is known.
    #[error("the model is still being loaded; try again")]
    NotReady,
}

impl ValidationError {
    pub(super) fn field(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Field { field, problem: problem.into() }
    }

    /// The field at fault, if it is one.
    pub fn culprit(&self) -> Option<&'static str> {
        match self {
            Self::Field { field, .. } => Some(field),
            Self::Template(_) => Some("messages"),
            Self::Tokenizer(_) | Self::NotReady => None,
        }
    }
}
