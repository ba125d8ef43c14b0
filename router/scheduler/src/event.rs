//! What the scheduler tells the engine: events of sequences, and why a result was not believed.

use std::fmt;

use crate::{PromptLogprob, Sampled, SequenceId};

/// News of one sequence. `Prefilled` comes at most once and before the first `Token`; exactly one `Finished` ends it.
#[derive(Clone, Debug, PartialEq)]
pub enum GenerationEvent {
    Prefilled {
        sequence: SequenceId,
        /// Prompt tokens whose K/V existed already when the sequence was first scheduled.
        cached_tokens: u32,
        /// One value per prompt token but the first, or empty when not asked for.
        prompt_logprobs: Vec<PromptLogprob>,
    },
    Token {
        sequence: SequenceId,
        sampled: Sampled,
    },
    Finished {
        sequence: SequenceId,
        reason: FinishReason,
    },
}

/// Why a sequence ended. On the last allowed token `Length` wins over `EosToken`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    Length,
    EosToken,
    StopSequence,
    Cancelled,
    Failed(String),
}

/// A step result that does not answer the oldest step in flight, or that cannot be its sequences' fault. Nothing was applied. The workers can no longer be
/// trusted to agree with the scheduler: the engine treats it as [`crate::Scheduler::workers_lost`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WrongResult {
    NothingInFlight { step: u64 },
    Step { expected: u64, got: u64 },
    Sampled { step: u64, expected: usize, got: usize },
    PromptLogprobs { step: u64, work: usize, expected: usize, got: usize },
    EverybodyFails { step: u64 },
}

impl fmt::Display for WrongResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingInFlight { step } => write!(f, "result of step {step}, but no step is in flight"),
            Self::Step { expected, got } => {
                write!(f, "result of step {got}, but step {expected} is the oldest in flight")
            }
            Self::Sampled { step, expected, got } => {
                write!(f, "result of step {step} has {got} sampled tokens instead of {expected}")
            }
            Self::EverybodyFails { step } => {
                write!(f, "one sequence after the other fails alone, up to step {step}: it is the workers' fault")
            }
            Self::PromptLogprobs { step, work, expected, got } => {
                write!(f, "result of step {step} has {got} prompt logprobs for work {work} instead of {expected}")
            }
        }
    }
}

impl std::error::Error for WrongResult {}
