//! Weighted fair queueing among tenants.
//!
//! Whoever has used the least of the workers lately, divided by its weight, comes first: its prompts are computed first, its
//! sequences join first, and those of the tenant that has used the most are preempted first. How much that is, is for the
//! engine to say (`guests::Terms`), which knows the time; in the scheduler it is a number.
//!
//! Between equals, and as long as the engine says nothing, the *service* decides: the tokens that have been computed for a tenant's
//! sequences, each once, divided by its weight. So among tenants that always wait, services stay
//! together: what two of them have got per weight differs by no more than what one batch holds, because only what runs
//! already can go on while it is another's turn. This is start-time fair queueing (Goyal, Vin, Cheng 1996) with costs that
//! are known only when they arise, as in the virtual token counters of Sheng et al. (2024).
//! Who does not wait saves no service up: a request that comes raises its tenant's service to the *floor*, the least service of
//! those that wait, or, while nobody waits, the most service of all: then everybody has had what he asked for.
//!
//! Rows are shared too. If all are taken, and the tenant whose turn it is would, with one more, still not hold more rows per
//! weight than another with one less, the newest sequence of that other gives its row up; and so does one of whoever has used
//! twice as much, and a tenant's first row may be the second of another, whatever their weights. So a newcomer waits for the
//! steps in flight, not for a row to fall vacant; and no row goes to and fro, since the exchange backwards would break the
//! rule, or is for later, when the other has used less.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::TenantId;
use crate::guests::Rations;
use crate::joining::Queue;
use crate::lanes::{Part, lane};
use crate::planning::{Draft, Entrance};
use crate::scheduler::Scheduler;
use crate::sequence::Place;

/// Service of one token at weight 1. Divided by a weight it is rounded, by less than a millionth of a token.
const TOKEN: u128 = 1 << 32;

#[derive(Clone, Copy, Debug)]
struct Account {
    weight: u32,
    service: u128,
    num_sequences: usize,
    num_tokens: u64,
}

/// All tenants that have ever come.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    accounts: BTreeMap<TenantId, Account>,
    floor: u128,
}

impl Shares {
    /// One more sequence of a tenant waits.
    pub(crate) fn enter(&mut self, tenant: TenantId, weight: u32) {
        let new = Account { weight, service: 0, num_sequences: 0, num_tokens: 0 };
        let account = self.accounts.entry(tenant).or_insert(new);
        account.weight = weight.max(1);
        account.service = account.service.max(self.floor);
        account.num_sequences += 1;
    }

    /// A sequence has ended.
    pub(crate) fn leave(&mut self, tenant: TenantId) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.num_sequences -= 1;
        }
    }

    pub(crate) fn charge(&mut self, tenant: TenantId, num_tokens: usize) {
        let cost = self.cost(tenant, num_tokens);
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.num_tokens += num_tokens as u64;
            account.service += cost;
        }
    }

    /// What so many tokens are to a tenant.
    pub(crate) fn cost(&self, tenant: TenantId, num_tokens: usize) -> u128 {
        num_tokens as u128 * TOKEN / self.weight(tenant) as u128
    }

    pub(crate) fn service(&self, tenant: TenantId) -> u128 {
        self.accounts.get(&tenant).map_or(0, |account| account.service)
    }

    pub(crate) fn num_tenants(&self) -> usize {
        self.accounts.len()
    }

    pub(crate) fn weight(&self, tenant: TenantId) -> usize {
        self.accounts.get(&tenant).map_or(1, |account| account.weight as usize)
    }

    /// Tenants with sequences, the first to be served first.
    fn lanes<K: Ord>(&self, key: impl Fn(TenantId) -> K) -> Vec<TenantId> {
        let present = self.accounts.iter().filter(|(_, account)| account.num_sequences > 0);
        let mut lanes: Vec<TenantId> = present.map(|(tenant, _)| *tenant).collect();
        if lanes.len() > 1 {
            lanes.sort_by_cached_key(|tenant| key(*tenant));
        }
        lanes
    }

    /// To be called after each step.
    fn raise_floor(&mut self, waits: impl Fn(TenantId) -> bool) {
        let present = self.accounts.iter().filter(|(_, account)| account.num_sequences > 0);
        let least = present.filter(|(tenant, _)| waits(**tenant)).map(|(_, account)| account.service).min();
        let most = || self.accounts.values().map(|account| account.service).max();
        self.floor = self.floor.max(least.or_else(most).unwrap_or(0));
    }
}

impl Scheduler {
    pub(crate) fn check_shares(&self) -> Result<(), String> {
        for (tenant, account) in &self.shares.accounts {
            let num_sequences = self.sequences.values().filter(|sequence| sequence.place.tenant == *tenant).count();
            if num_sequences != account.num_sequences {
                return Err(format!("{tenant:?} has {num_sequences} sequences, not {}", account.num_sequences));
            }
        }
        Ok(())
    }

    /// Tokens computed so far for each tenant that has ever come, each token once.
    pub fn served_tokens(&self) -> impl Iterator<Item = (TenantId, u64)> {
        self.shares.accounts.iter().map(|(tenant, account)| (*tenant, account.num_tokens))
    }

    /// Whether there has ever been a second tenant.
    pub fn has_tenants(&self) -> bool {
        self.shares.num_tenants() > 1
    }

    /// Tenants with sequences.
    pub fn tenants(&self) -> impl Iterator<Item = TenantId> {
        let accounts = self.shares.accounts.iter();
        accounts.filter(|(_, account)| account.num_sequences > 0).map(|(tenant, _)| *tenant)
    }

    /// Tenants with sequences in the order of this step.
    pub(crate) fn lanes(&self) -> Vec<TenantId> {
        self.shares.lanes(|tenant| (self.used(tenant), self.shares.service(tenant), self.num_rows(tenant), tenant))
    }

    /// What a tenant has used lately, per weight, as the engine says.
    pub(crate) fn used(&self, tenant: TenantId) -> u128 {
        u128::from(self.terms.used(tenant)) * TOKEN / self.shares.weight(tenant) as u128
    }

    fn num_rows(&self, tenant: TenantId) -> usize {
        self.running.range(lane(tenant)).count()
    }

    /// The first to give up its seat.
    pub(crate) fn last_running(&self) -> Option<Place> {
        self.lanes().iter().rev().find_map(|tenant| self.running.range(lane(*tenant)).next_back().copied())
    }

    /// A step has been sent.
    pub(crate) fn settle(&mut self) {
        let waiting = &self.waiting;
        self.shares.raise_floor(|tenant| waiting.range(lane(tenant)).next().is_some());
    }

    pub(crate) fn wants_to_join(&self, tenant: TenantId) -> Option<Place> {
        let first = |set: &std::collections::BTreeSet<Place>| set.range(lane(tenant)).next().copied();
        first(&self.preempted).or_else(|| first(&self.waiting))
    }

    /// Everybody's step. Whoever runs and has one token to compute gets it; prompts that run come before those who join,
    /// but after those of a tenant that is served before.
    pub(crate) fn share(&mut self, has_guests: bool, draft: &mut Draft) {
        self.make_way(draft);
        draft.num_prefill_tokens = self.num_prefill_tokens();
        draft.rations = if has_guests { self.rations(draft) } else { Rations::default() };
        let lanes = draft.lanes.clone();
        let mut has_waiters = false;
        let mut queues = Vec::with_capacity(lanes.len());
        for tenant in lanes {
            let part = if has_waiters { Part::NextTokens } else { Part::Whole };
            self.advance_lane(tenant, part, draft);
            queues.push(Queue::new(tenant, (self.used(tenant), self.shares.service(tenant)), has_waiters));
            has_waiters |= self.wants_to_join(tenant).is_some();
        }
        let may_join = self.seat_invited(draft);
        self.join(queues, may_join, draft);
    }

    /// The one for whom a row has been made free. `false`: it still waits for it, or for pages.
    fn seat_invited(&mut self, draft: &mut Draft) -> bool {
        let Some(place) = self.invited.and_then(|id| self.sequences.get(&id)).map(|sequence| sequence.place) else {
            self.invited = None;
            return true;
        };
        let outcome = if self.running.contains(&place) { Entrance::NotYet } else { self.admit(place, draft) };
        if outcome != Entrance::Full {
            self.invited = None;
        }
        outcome != Entrance::Full
    }

    /// If all rows are taken, and none is about to be free, takes one for the tenant whose turn it is, from one that holds
    /// more than it should.
    fn make_way(&mut self, draft: &mut Draft) {
        let is_full = self.rows.is_full() || self.running.len() >= self.max_running();
        if self.invited.is_some() || draft.lanes.len() < 2 || !is_full || !self.held.is_empty() {
            return;
        }
        let next =
            draft.lanes.iter().enumerate().find_map(|(index, tenant)| Some((index, self.wants_to_join(*tenant)?)));
        let Some((index, newcomer)) = next else { return };
        let (rows, weight) = (self.num_rows(newcomer.tenant) + 1, self.shares.weight(newcomer.tenant));
        let others = draft.lanes[index + 1..]
            .iter()
            .map(|tenant| (self.num_rows(*tenant).saturating_sub(1), self.shares.weight(*tenant), *tenant));
        let used = self.used(newcomer.tenant);
        let has_used_much = |tenant: TenantId| used < self.used(tenant) / 2;
        let is_fairer = |left: usize, other: usize, tenant: TenantId| {
            left * weight >= rows * other || (left >= 1 && (rows == 1 || has_used_much(tenant)))
        };
        let richest = others
            .filter(|(left, other, tenant)| is_fairer(*left, *other, *tenant))
            .max_by_key(|(left, other, tenant)| (left * 1000 / other, Reverse(*tenant)));
        let Some((_, _, richest)) = richest else { return };
        if self.gate_reason(draft).is_none() || self.open(newcomer.id).is_none() {
            return;
        }
        if let Some(victim) = self.running.range(lane(richest)).next_back().copied() {
            self.preempt(victim);
            self.invited = Some(newcomer.id);
        }
    }
}
