//! What prompts may take of steps while several tenants are there. Pure; learned from the steps.
//!
//! **Steps are short** while there is more than one tenant, or one was there within the last minute: all prompts together get so
//! many tokens of a step that it takes 50 ms, or twice as long as one without prompts. So whoever comes waits for two such steps
//! at most, and outputs never pause for longer. A tenant alone has steps as long as they may be.
//!
//! **Who has used by a quarter more of the time is a guest** beside the other's output (`visitors`). A guest has a share of the
//! time: what a step with it took longer than one without is its debt, which steps without it work off, as far as somebody else
//! decodes in them, a part of their own time each, divided among all who are in debt. So outputs beside guests take by that part
//! longer in the long run, whatever a step with guests costs and however that grows with their tokens; and who comes seldom
//! finds no debt of others before it. Debts are bounded: a step that was slow for other reasons must not shut guests out. A tenant
//! has one step with its guests in flight at a time, or debts would be known too late.
//!
//! How many tokens they are at once bounds how uneven outputs are: such a step should take about twice as long as one without.
//! A step with other prompts in it says nothing about that. As long as no step without prompts has been seen, one with few
//! prompt tokens stands for it: what it takes is mostly the step's own.

mod portion;
mod visitors;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use millrace_scheduler::{Scheduler, StepPart, TenantId, Terms};

use portion::{LEAST, Portion};
use visitors::Visitors;

/// Of the time of steps without guests, what works off debts.
const SHARE: f64 = 0.3;
/// Steps without guests after which any debt is worked off, for each tenant that is in debt.
const MOST_STEPS: f64 = 32.0;
/// How much the newest step without guests counts in their mean.
const WEIGHT: f64 = 0.2;
/// Seconds of a step, if one without prompts does not take half as long.
const SHORT: f64 = 0.05;

#[derive(Debug, Default)]
pub(super) struct Guests {
    visitors: Visitors,
    /// All prompts of a step.
    in_a_step: Portion,
    /// A guest's, of the weight of who decodes.
    at_once: Portion,
    /// Seconds of a step without prompts.
    without: Option<f64>,
    /// Of one with the least portion of them, seen before one without.
    with_least: Option<f64>,
    debts: BTreeMap<TenantId, Debt>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Debt {
    seconds: f64,
    num_in_flight: u32,
}

impl Guests {
    /// For the next step. As long as there has only ever been one tenant, that one is remembered, and nothing else done.
    pub(super) fn terms(&mut self, scheduler: &Scheduler, now: Instant) -> Terms {
        self.visitors.see(scheduler.tenants(), now);
        if !scheduler.has_tenants() {
            return Terms::default();
        }
        Terms {
            step_tokens: self.step_tokens(),
            guest_tokens: Some(self.at_once.tokens()),
            shut_out: self.debts.keys().copied().collect(),
            used: self.visitors.used(now),
        }
    }

    /// Tokens of all prompts in a step. `None`: as many as there is room for.
    pub(super) fn step_tokens(&self) -> Option<u32> {
        self.visitors.are_several().then(|| self.in_a_step.tokens())
    }

    pub(super) fn sent(&mut self, parts: &[StepPart]) {
        for part in parts.iter().filter(|part| part.guest_tokens > 0) {
            self.debts.entry(part.tenant).or_default().num_in_flight += 1;
        }
    }

    pub(super) fn answered(&mut self, parts: &[StepPart], took: Duration, now: Instant) {
        if parts.is_empty() {
            return;
        }
        let took = took.as_secs_f64();
        let num_prompt_tokens: usize = parts.iter().map(|part| part.prompt_tokens).sum();
        self.work_off(parts, self.without.map_or(took, |without| took.min(without)));
        let known = match num_prompt_tokens {
            0 => Some(&mut self.without),
            few if few <= LEAST as usize => Some(&mut self.with_least),
            _ => None,
        };
        if let Some(known) = known {
            let mean = known.unwrap_or(took);
            *known = Some(mean + WEIGHT * (took - mean));
        }
        let longer = self.without.map_or(0.0, |without| (took - without).max(0.0));
        self.book(parts, num_prompt_tokens, took, now);
        let most = MOST_STEPS * SHARE * self.without.unwrap_or(0.0);
        for guest in parts.iter().filter(|part| part.guest_tokens > 0) {
            let debt = self.debts.entry(guest.tenant).or_default();
            let part = guest.guest_tokens as f64 / num_prompt_tokens.max(1) as f64;
            debt.seconds = (debt.seconds + longer * part).min(most);
            debt.num_in_flight = debt.num_in_flight.saturating_sub(1);
        }
        self.debts.retain(|_, debt| debt.seconds > 0.0 || debt.num_in_flight > 0);
        self.learn(parts, num_prompt_tokens, took);
    }

    fn work_off(&mut self, parts: &[StepPart], seconds: f64) {
        let is_guest = |tenant: &TenantId| parts.iter().any(|part| part.tenant == *tenant && part.guest_tokens > 0);
        let has_host = |tenant: &TenantId| parts.iter().any(|part| part.tenant != *tenant && part.outputs > 0);
        let due = self.debts.iter_mut().filter(|(tenant, _)| !is_guest(tenant) && has_host(tenant));
        let others: Vec<&mut Debt> = due.map(|(_, debt)| debt).collect();
        let part = SHARE * seconds / others.len().max(1) as f64;
        for debt in others {
            debt.seconds = (debt.seconds - part).max(0.0);
        }
    }

    /// Who has used the time of a step: of what it took longer for prompts, each by its prompts; of the rest, by its outputs.
    fn book(&mut self, parts: &[StepPart], num_prompt_tokens: usize, took: f64, now: Instant) {
        let outputs: usize = parts.iter().map(|part| part.outputs).sum();
        let rest = match (outputs, num_prompt_tokens) {
            (0, _) => 0.0,
            (_, 0) => took,
            _ => self.without.map_or(took / 2.0, |without| took.min(without)),
        };
        for part in parts {
            let of_prompts = (took - rest) * part.prompt_tokens as f64 / num_prompt_tokens.max(1) as f64;
            let of_outputs = rest * part.outputs as f64 / outputs.max(1) as f64;
            self.visitors.add(part.tenant, of_prompts + of_outputs, now);
        }
    }

    fn learn(&mut self, parts: &[StepPart], num_prompt_tokens: usize, took: f64) {
        let own = self.without.or(self.with_least).unwrap_or(0.0);
        if num_prompt_tokens > 0 {
            self.in_a_step.learn(num_prompt_tokens, took, SHORT.max(2.0 * own));
        }
        let mut guests = parts.iter().filter(|part| part.guest_tokens > 0);
        if let (Some(guest), None) = (guests.next(), guests.next())
            && guest.guest_tokens >= num_prompt_tokens
            && let Some(without) = self.without.filter(|without| *without > 0.0)
        {
            self.at_once.learn(guest.of_terms, took, 2.0 * without);
        }
    }

    /// Steps in flight will not be answered.
    pub(super) fn workers_lost(&mut self) {
        self.debts.clear();
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
