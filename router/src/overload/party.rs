//! Those whose line is looked at: everybody, or one tenant.

use millrace_scheduler::TenantId;

use super::Demand;
use super::line::Line;

#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    pub(super) demand: Demand,
    /// Steps answered when it started.
    pub(super) since: u64,
    pub(super) is_prefilled: bool,
}

/// A tenant's requests, or everybody's.
#[derive(Debug, Default)]
pub(super) struct Party {
    pub(super) weight: u32,
    pub(super) num_inside: usize,
    pub(super) waiting_tokens: u64,
    pub(super) waiting_rows: u64,
    pub(super) running_rows: u64,
    /// Prompts of those who run and have no token yet.
    pub(super) unprefilled_tokens: u64,
    /// In the midst of their output.
    pub(super) num_decoding: usize,
    /// None when somebody started or left since it was played.
    pub(super) played: Option<Played>,
}

/// A line as it is after a step.
#[derive(Debug)]
pub(super) struct Played {
    pub(super) step: u64,
    /// Of memory.
    pub(super) scale: f64,
    pub(super) line: Line,
}

/// Whose line is played, and the part of the server that is theirs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope {
    pub(super) tenant: Option<TenantId>,
    pub(super) share: f64,
}

impl Scope {
    pub(super) const EVERYBODY: Self = Self { tenant: None, share: 1.0 };

    pub(super) fn holds(self, demand: &Demand) -> bool {
        self.tenant.is_none_or(|tenant| tenant == demand.tenant)
    }
}
