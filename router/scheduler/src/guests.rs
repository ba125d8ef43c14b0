//! Prompts beside another tenant's sequences. A step lasts as long as all that is in it, so the long prompts of one tenant
//! would slow down every other, and whoever comes would wait for steps as long as can be.
//!
//! Who has used by more than a quarter more of the workers lately than another, per weight, is its *guest*. While that one decodes,
//! the guest's prompts get a bounded number of tokens of a step; and none of a step in which that one computes a prompt itself,
//! or will as soon as steps in flight are back: it would get its first token later. One that waits for anything else, a prefix
//! that another computes, pages, the gate, stops nobody. Who has used less is nobody's guest, and those between
//! whom there is less are equals: their prompts share a step's tokens in order. Beside that, the
//! prompts of all tenants together are bounded in a step. How many tokens these are, and who has used how much, is the
//! engine's to say: it knows how long steps take. It shuts a guest out as long as that has had its time.
//!
//! What has been computed before is no guest: who comes back after a fault or a preemption has been charged for it. A tenant
//! alone is nobody's guest, and whoever is a guest for long has used less in the end, so nobody starves.

use crate::TenantId;
use crate::lanes::lane;
use crate::planning::{Draft, Entrance};
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;

/// However light a tenant is, so many of the guests' tokens are its own.
const LEAST_BY_WEIGHT: u32 = 16;
/// A guest has used more than so many parts for so many of its host's. Equals that always wait stay closer together than this,
/// because the order is by what they have used; who uses half of what another does should find no prompts beside its outputs.
const GUESTS_HAVE: (u128, u128) = (5, 4);

/// What prompts may take of the next steps.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// Tokens of all prompts in a step. `None`: as many as a step may hold.
    pub step_tokens: Option<u32>,
    /// Tokens of one guest's prompts in a step in which another tenant of its weight decodes. `None`: nobody is a guest.
    pub guest_tokens: Option<u32>,
    /// Guests of whom there may be none now.
    pub shut_out: Vec<TenantId>,
    /// What tenants have used lately, in whatever unit and the order of their ids. Who is not among them has used nothing.
    pub used: Vec<(TenantId, u64)>,
}

impl Terms {
    pub(crate) fn used(&self, tenant: TenantId) -> u64 {
        let index = self.used.binary_search_by_key(&tenant, |(other, _)| *other);
        index.map_or(0, |index| self.used[index].1)
    }
}

/// What a tenant has of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepPart {
    pub tenant: TenantId,
    /// Tokens of its prompts.
    pub prompt_tokens: usize,
    /// Of them, those that it has as a guest.
    pub guest_tokens: usize,
    /// What these are of [`Terms::guest_tokens`]: a guest lighter than its host gets fewer, a heavier one more.
    pub of_terms: usize,
    /// Sequences in the midst of their output.
    pub outputs: usize,
}

/// Whom a tenant's prompts meet in a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Host {
    Decodes,
    /// It computes prompts, or will as soon as steps in flight are back.
    Begins,
}

#[derive(Clone, Copy, Debug)]
struct Ration {
    tenant: TenantId,
    tokens: usize,
    left: usize,
}

/// Prompt tokens that are left for each tenant in a step. Who is not in it may have all.
#[derive(Debug, Default)]
pub(crate) struct Rations {
    /// Of a guest as heavy as its host.
    allowed: usize,
    guests: Vec<Ration>,
}

impl Rations {
    pub(crate) fn are_bounds(&self) -> bool {
        !self.guests.is_empty()
    }

    pub(crate) fn left(&self, tenant: TenantId) -> usize {
        self.guests.iter().find(|guest| guest.tenant == tenant).map_or(usize::MAX, |guest| guest.left)
    }

    /// How many of `count` prompt tokens are guests' tokens, which are taken from the ration.
    fn take(&mut self, tenant: TenantId, count: usize) -> usize {
        let Some(guest) = self.guests.iter_mut().find(|guest| guest.tenant == tenant) else { return 0 };
        guest.left = guest.left.saturating_sub(count);
        count
    }

    /// So many of a guest's tokens, for one as heavy as its host.
    fn of_terms(&self, tenant: TenantId, count: usize) -> usize {
        let ration = self.guests.iter().find(|guest| guest.tenant == tenant && guest.tokens > 0);
        ration.map_or(count, |ration| count * self.allowed / ration.tokens)
    }
}

/// Of a sequence's next tokens, those that have been computed before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    tenant: TenantId,
    num_again: usize,
}

impl Chunk {
    pub(crate) fn of(sequence: &Sequence, start: usize) -> Self {
        Self { tenant: sequence.place.tenant, num_again: sequence.num_charged_tokens.saturating_sub(start) }
    }
}

impl Draft {
    /// How long a sequence's chunk may be.
    pub(crate) fn num_tokens_left(&self, chunk: Chunk) -> usize {
        self.num_prefill_tokens.min(self.rations.left(chunk.tenant).saturating_add(chunk.num_again))
    }

    pub(crate) fn take_tokens(&mut self, chunk: Chunk, count: usize) {
        self.num_prefill_tokens -= count;
        let num_guest_tokens = self.rations.take(chunk.tenant, count.saturating_sub(chunk.num_again));
        if num_guest_tokens > 0 {
            match self.guests.iter_mut().find(|(tenant, _)| *tenant == chunk.tenant) {
                Some((_, known)) => *known += num_guest_tokens,
                None => self.guests.push((chunk.tenant, num_guest_tokens)),
            }
        }
    }

    /// What each tenant has of it.
    pub(crate) fn parts(&self, tenant_of: impl Fn(crate::SequenceId) -> Option<TenantId>) -> Vec<StepPart> {
        let mut parts: Vec<StepPart> = Vec::new();
        for work in &self.plan.work {
            let Some(tenant) = tenant_of(work.sequence) else { continue };
            let index = parts.iter().position(|part| part.tenant == tenant).unwrap_or_else(|| {
                let guest = self.guests.iter().find(|(guest, _)| *guest == tenant);
                let guest_tokens = guest.map_or(0, |(_, count)| *count);
                let of_terms = self.rations.of_terms(tenant, guest_tokens);
                parts.push(StepPart { tenant, prompt_tokens: 0, guest_tokens, of_terms, outputs: 0 });
                parts.len() - 1
            });
            let is_new = || self.plan.admitted.iter().any(|admission| admission.sequence == work.sequence);
            if work.count == 1 && work.samples && !is_new() {
                parts[index].outputs += 1;
            } else {
                parts[index].prompt_tokens += work.count as usize;
            }
        }
        parts
    }
}

impl Scheduler {
    /// For the next steps, until others are set.
    pub fn set_terms(&mut self, terms: Terms) {
        self.terms = terms;
    }

    /// What each tenant has of the step planned last; nothing as long as there has only ever been one.
    pub fn last_parts(&self) -> &[StepPart] {
        &self.last_parts
    }

    /// The tenant that has used the most lately, per weight, if that makes it a guest of anybody who is there.
    pub fn foremost_guest(&self) -> Option<TenantId> {
        let most = self.terms.used.iter().map(|(tenant, _)| *tenant).max_by_key(|tenant| self.used(*tenant))?;
        self.tenants().any(|host| self.is_guest(most, host)).then_some(most)
    }

    fn is_guest(&self, tenant: TenantId, host: TenantId) -> bool {
        let (more, than) = GUESTS_HAVE;
        self.used(host) * more < self.used(tenant) * than
    }

    /// What guests may have. Each lane has its hosts among those before it.
    pub(crate) fn rations(&mut self, draft: &Draft) -> Rations {
        let Some(allowed) = self.terms.guest_tokens.filter(|_| draft.lanes.len() > 1) else {
            return Rations::default();
        };
        let mut rations = Rations { allowed: allowed as usize, guests: Vec::new() };
        let mut hosts = draft.lanes.iter().copied().peekable();
        let (mut heaviest, mut somebody_begins, mut is_full) = (None, false, false);
        for tenant in draft.lanes.iter().copied() {
            while !somebody_begins && let Some(host) = hosts.next_if(|host| self.is_guest(tenant, *host)) {
                match self.hosts(host, draft, &mut is_full) {
                    Some(Host::Begins) => somebody_begins = true,
                    Some(Host::Decodes) => heaviest = heaviest.max(Some(self.shares.weight(host))),
                    None => {}
                }
            }
            let tokens = match heaviest {
                _ if somebody_begins => 0,
                Some(host_weight) => self.guest_tokens(tenant, host_weight, allowed),
                None => continue,
            };
            rations.guests.push(Ration { tenant, tokens, left: tokens });
        }
        rations
    }

    /// Beside the output of a tenant of this weight.
    fn guest_tokens(&self, tenant: TenantId, host_weight: usize, allowed: u32) -> usize {
        let allowed = if self.terms.shut_out.contains(&tenant) { 0 } else { allowed };
        let by_weight = allowed as usize * self.shares.weight(tenant) / host_weight;
        by_weight.max(allowed.min(LEAST_BY_WEIGHT) as usize)
    }

    /// `is_full`: nobody can join any more in this step.
    fn hosts(&mut self, tenant: TenantId, draft: &Draft, is_full: &mut bool) -> Option<Host> {
        let running = self.running.range(lane(tenant)).filter_map(|place| self.sequences.get(&place.id));
        let mut decodes = false;
        for sequence in running {
            match sequence.num_runnable_tokens() {
                0 => {}
                1 => decodes = true,
                _ => return Some(Host::Begins),
            }
        }
        if !*is_full && !self.in_flight.is_empty() {
            match self.joins_soon(tenant, draft) {
                Entrance::Admitted => return Some(Host::Begins),
                Entrance::NotYet => {}
                Entrance::Full => *is_full = true,
            }
        }
        decodes.then_some(Host::Decodes)
    }

    /// Whether a tenant's next sequence will join in this step, or when those in flight are back.
    fn joins_soon(&mut self, tenant: TenantId, draft: &Draft) -> Entrance {
        let Some(place) = self.wants_to_join(tenant) else { return Entrance::NotYet };
        let is_behind_another = self.invited.is_some_and(|id| id != place.id);
        if is_behind_another || self.running.len() >= self.max_running() {
            return Entrance::Full;
        }
        if self.waiting.contains(&place) && self.gate_reason(draft).is_none() {
            return Entrance::NotYet;
        }
        let Some(opening) = self.open(place.id) else { return Entrance::NotYet };
        let waits_for_row = self.rows.is_full() || self.invited.is_some();
        let comes_back = waits_for_row && !self.held.is_empty();
        if comes_back || (!self.rows.is_full() && self.fits(place.id, &opening)) {
            Entrance::Admitted
        } else {
            Entrance::Full
        }
    }
}
