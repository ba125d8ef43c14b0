//! What a client asked for, checked: made by `validation`, consumed by `engine`, trusted by both.

use std::sync::Arc;
use std::time::Instant;

use millrace_scheduler::Sampling;

use crate::tenants::Tenant;

/// One generation, for one prompt. `best_of > 1` makes it a group of sequences that share the prompt's pages.
#[derive(Clone, Debug)]
pub struct ValidRequest {
    /// `x-request-id`, or made here; in logs and error records.
    pub request_id: Arc<str>,
    /// Whom it is for: their share, and whose prefixes it may find.
    pub tenant: Arc<Tenant>,
    /// Lower is sooner, among the tenant's own requests.
    pub priority: i32,
    /// Sets its prefixes apart from those of requests without it.
    pub cache_salt: Option<Arc<str>>,
    /// Token ids after truncation, special tokens included; never empty.
    pub prompt: Vec<u32>,
    /// One entry per sequence: the same parameters with different seeds.
    pub sampling: Vec<Arc<Sampling>>,
    pub stopping: Stopping,
    /// Control tokens whose text is shown: what reads the output knows them.
    pub shown: Arc<[u32]>,
    /// Answer the logprob of each prompt token.
    pub prompt_logprobs: bool,
    /// When the request reached the server, and when it had been checked.
    pub received: Instant,
    /// When the client wants no answer any more, wherever the request is then.
    pub deadline: Option<Instant>,
    pub validated: Instant,
}

/// When a sequence ends, beside its end-of-sequence token.
#[derive(Clone, Debug)]
pub struct Stopping {
    /// At least 1; `prompt + max_new_tokens <= max_total_tokens`.
    pub max_new_tokens: u32,
    /// Searched in the decoded text, special tokens included.
    pub stop: Vec<String>,
    pub ignore_eos: bool,
}
