//! What goes into the scheduler, what it refuses, and its gauges and counters.

use std::fmt;
use std::sync::Arc;

use crate::{Sampling, SequenceId};

/// Fixed for the life of a scheduler, but for `num_pages` and `max_rows` ([`crate::Scheduler::set_capacity`]).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// Sequences that hold a row at once; at least 1.
    pub max_rows: u32,
    /// Tokens of one step. Decodes are never cut, so a step may reach `max(max_step_tokens, max_rows)`; at least 1.
    pub max_step_tokens: u32,
    /// Tokens per KV page. 0: sequences hold no pages, their state lies in their row. Then rows limit who runs,
    /// nothing is shared or copied, and `num_pages` and `prefix_caching` mean nothing.
    pub page_size: u32,
    pub num_pages: u32,
    /// No layer reads further back than so many positions, the reader's own included; 0: all are read.
    pub attention_window: u32,
    /// A sequence of more tokens than this is computed with other positions than a shorter one; 0: all are alike.
    pub position_switch: u32,
    /// Prompt and output of one sequence together.
    pub max_sequence_tokens: u32,
    /// Without pages: prompt and `max_new_tokens` of all running sequences together, however few of them that leaves.
    /// With pages the pool itself is the bound.
    pub max_batch_total_tokens: Option<u32>,
    /// Waiting sequences join when there are at least this many of them per running one …
    pub waiting_served_ratio: f32,
    /// … or when this many steps were sent since somebody joined last.
    pub max_waiting_tokens: u32,
    pub prefix_caching: bool,
    /// Steps sent but not yet applied; at least 1.
    pub max_steps_in_flight: u32,
}

/// What the workers have room for, as far as it may change when they come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub num_pages: u32,
    pub max_rows: u32,
}

/// Names whoever a request is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub u32);

/// Whom a request is for, and how it stands among that tenant's other requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub tenant: TenantId,
    /// Tenants that wait are served in proportion to their weights; at least 1. The newest request's counts.
    pub weight: u32,
    /// Lower is sooner, among the requests of one tenant.
    pub priority: i32,
}

impl Default for Share {
    fn default() -> Self {
        Self { tenant: TenantId::default(), weight: 1, priority: 0 }
    }
}

/// A prompt and the sequences that continue it. All but the first share the first one's prompt pages, if there are any.
#[derive(Clone, Debug)]
pub struct Request {
    /// At least one; each with its own parameters.
    pub sequences: Vec<(SequenceId, Arc<Sampling>)>,
    /// The prompt; at least one token.
    pub tokens: Vec<u32>,
    /// At least 1.
    pub max_new_tokens: u32,
    /// Tokens that end a sequence; empty: none does.
    pub eos_token_ids: Arc<[u32]>,
    pub prompt_logprobs: bool,
    /// Prefixes are shared only within one namespace.
    pub namespace: u64,
    pub share: Share,
}

/// Why a request can never run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    NoSequences,
    DuplicateSequence { sequence: SequenceId },
    EmptyPrompt,
    NoNewTokens,
    TooLong { prompt_tokens: usize, max_new_tokens: u32, max_sequence_tokens: u32 },
    NoRoom { prompt_tokens: usize, max_new_tokens: u32, pages_needed: usize, num_pages: u32, page_size: u32 },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSequences => write!(f, "a request needs at least one sequence"),
            Self::DuplicateSequence { sequence } => write!(f, "sequence {} exists already", sequence.0),
            Self::EmptyPrompt => write!(f, "the prompt needs at least one token"),
            Self::NoNewTokens => write!(f, "`max_new_tokens` must be at least 1"),
            Self::TooLong { prompt_tokens, max_new_tokens, max_sequence_tokens } => write!(
                f,
                "{prompt_tokens} prompt tokens and `max_new_tokens` {max_new_tokens} exceed the longest sequence of \
                 {max_sequence_tokens} tokens: shorten the prompt or lower `max_new_tokens`"
            ),
            Self::NoRoom { prompt_tokens, max_new_tokens, pages_needed, num_pages, page_size } => write!(
                f,
                "{prompt_tokens} prompt tokens and `max_new_tokens` {max_new_tokens} need {pages_needed} KV pages of \
                 {page_size} tokens, but there are {num_pages}: shorten the prompt or lower `max_new_tokens`"
            ),
        }
    }
}

impl std::error::Error for Refused {}

/// Gauges of this moment, and counters since the scheduler was made (`…_total`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub waiting: usize,
    pub running: usize,
    pub preempted: usize,
    pub steps_in_flight: usize,
    /// Rows of running sequences, and of those that left but that a step in flight may still touch.
    pub rows_used: usize,
    /// Pages without an owner and without content.
    pub pages_free: usize,
    /// Pages without an owner whose content can be hit, until it is evicted.
    pub pages_cached: usize,
    pub pages_used: usize,
    /// Prompt and `max_new_tokens` of all running sequences.
    pub reserved_tokens: usize,
    /// Tokens of running and preempted sequences that are to be computed before their next token; a running sequence's last
    /// one aside.
    pub uncomputed_tokens: usize,
    /// Prompt tokens given to steps, those that are computed again included.
    pub computed_prompt_tokens_total: u64,
    /// Prompt tokens that were there already when their sequence was first scheduled.
    pub cached_prompt_tokens_total: u64,
    pub admissions_total: u64,
    pub preemptions_total: u64,
    /// Sequences computed anew because they became longer than `position_switch`.
    pub position_switches_total: u64,
    pub steps_total: u64,
    /// What a step may hold now: less than configured after one that ran out of memory.
    pub step_tokens: u32,
    pub step_sequences: u32,
    /// Steps that ran out of memory.
    pub out_of_memory_steps_total: u64,
}
