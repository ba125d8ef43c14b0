//! What a request asks for, as far as it matters to the queue.

use millrace_scheduler::TenantId;

use crate::request::ValidRequest;
use crate::tenants::Tenant;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    pub prompt_tokens: u32,
    pub num_sequences: u32,
    /// Of each sequence.
    pub max_new_tokens: u32,
    pub tenant: TenantId,
    /// Of the tenant.
    pub weight: u32,
    /// Of its prompts, so many tokens may wait.
    pub max_queued_tokens: Option<u32>,
    /// Among its tenant's: lower is sooner.
    pub priority: i32,
}

impl Demand {
    /// The least that anybody asks for.
    pub(super) fn least(tenant: &Tenant, priority: i32) -> Self {
        let Tenant { id, weight, max_queued_tokens, .. } = *tenant;
        Self { prompt_tokens: 1, num_sequences: 1, max_new_tokens: 1, tenant: id, weight, max_queued_tokens, priority }
    }

    /// Of nobody in particular, behind everybody.
    pub(super) fn anybodys() -> Self {
        Self {
            prompt_tokens: 1,
            num_sequences: 1,
            max_new_tokens: 1,
            tenant: TenantId::default(),
            weight: 1,
            max_queued_tokens: None,
            priority: i32::MAX,
        }
    }

    pub fn of(request: &ValidRequest) -> Self {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            prompt_tokens: count(request.prompt.len()),
            num_sequences: count(request.sampling.len()),
            max_new_tokens: request.stopping.max_new_tokens,
            tenant: request.tenant.id,
            weight: request.tenant.weight,
            max_queued_tokens: request.tenant.max_queued_tokens,
            priority: request.priority,
        }
    }

    /// Whether it is served after a newcomer, although it came before.
    pub(super) fn lets_past(&self, newcomer: &Self) -> bool {
        self.tenant == newcomer.tenant && self.priority > newcomer.priority
    }
}
