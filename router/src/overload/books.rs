//! Who is inside, in order of arrival: who waits, and who has run for how many steps.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use millrace_scheduler::TenantId;

use super::lengths::Lengths;
use super::line::{Line, Seat};
use super::party::{Party, Played, Running, Scope};
use super::wait::Guests;
use super::{Demand, Progress, Room, Wait};

/// How much the prompt that was computed last counts in the share of new tokens.
const SHARE_WEIGHT: f64 = 0.05;
/// Memory that a sequence holds, as a multiple of what it is reckoned to need: shared prompts make it less, sequences that are
/// nearly over more.
const SCALES: std::ops::RangeInclusive<f64> = 0.05..=2.0;

#[derive(Debug)]
pub(super) struct Books {
    last_id: u64,
    waiting: BTreeMap<u64, Demand>,
    running: HashMap<u64, Running>,
    everybody: Party,
    /// Those with somebody inside.
    tenants: HashMap<TenantId, Party>,
    lengths: Lengths,
    /// Of prompt tokens, those that the prefix cache did not hold.
    new_share: f64,
    room: Room,
    /// See [`super::Backlog::set_guest`].
    guest_tokens: f64,
    guest: Option<TenantId>,
    /// Since when there are no workers.
    away_since: Option<Instant>,
    /// How long there were none the last time.
    last_absence: Duration,
}

impl Books {
    /// `now`: since when the workers are expected.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            last_id: 0,
            waiting: BTreeMap::new(),
            running: HashMap::new(),
            everybody: Party::default(),
            tenants: HashMap::new(),
            lengths: Lengths::default(),
            new_share: 1.0,
            room: Room { rows: 1, step_tokens: 1 },
            guest_tokens: f64::INFINITY,
            guest: None,
            away_since: Some(now),
            last_absence: Duration::ZERO,
        }
    }

    pub(super) fn enter(&mut self, demand: Demand) -> u64 {
        self.last_id += 1;
        self.waiting.insert(self.last_id, demand);
        let is_new = !self.tenants.contains_key(&demand.tenant);
        self.tenants.entry(demand.tenant).or_default().weight = demand.weight.max(1);
        if is_new {
            self.forget_shares();
        }
        let scale = self.everybody.played.as_ref().map(|played| played.scale);
        let seat = scale.map(|scale| self.seat(demand, 0, scale));
        self.for_both(demand, |party| {
            party.num_inside += 1;
            party.waiting_tokens += u64::from(demand.prompt_tokens);
            party.waiting_rows += u64::from(demand.num_sequences);
            match (&mut party.played, seat) {
                (Some(played), Some(seat)) => played.line.join(seat),
                (played, _) => *played = None,
            }
        });
        self.last_id
    }

    pub(super) fn started(&mut self, id: u64, step: u64) {
        let Some(demand) = self.take_waiting(id) else { return };
        self.running.insert(id, Running { demand, since: step, is_prefilled: false });
        self.for_both(demand, |party| {
            party.running_rows += u64::from(demand.num_sequences);
            party.unprefilled_tokens += u64::from(demand.prompt_tokens);
        });
    }

    pub(super) fn prefilled(&mut self, id: u64, cached_tokens: u32) {
        let Some(Running { demand, is_prefilled, .. }) = self.running.get_mut(&id) else { return };
        if std::mem::replace(is_prefilled, true) {
            return;
        }
        let demand = *demand;
        let cached = f64::from(cached_tokens) / f64::from(demand.prompt_tokens.max(1));
        self.new_share += SHARE_WEIGHT * ((1.0 - cached).clamp(0.0, 1.0) - self.new_share);
        self.for_both(demand, |party| {
            party.unprefilled_tokens -= u64::from(demand.prompt_tokens);
            party.num_decoding += 1;
        });
    }

    pub(super) fn ended(&mut self, num_tokens: u32, by_itself: bool) {
        self.lengths.learn(num_tokens, by_itself);
    }

    pub(super) fn leave(&mut self, id: u64) {
        let demand = if let Some(demand) = self.take_waiting(id) {
            demand
        } else if let Some(Running { demand, is_prefilled, .. }) = self.running.remove(&id) {
            self.for_both(demand, |party| {
                party.played = None;
                party.running_rows -= u64::from(demand.num_sequences);
                party.unprefilled_tokens -= if is_prefilled { 0 } else { u64::from(demand.prompt_tokens) };
                party.num_decoding -= usize::from(is_prefilled);
            });
            demand
        } else {
            return;
        };
        self.for_both(demand, |party| party.num_inside -= 1);
        if self.tenants.get(&demand.tenant).is_some_and(|party| party.num_inside == 0) {
            self.tenants.remove(&demand.tenant);
            self.forget_shares();
        }
    }

    fn take_waiting(&mut self, id: u64) -> Option<Demand> {
        let demand = self.waiting.remove(&id)?;
        self.for_both(demand, |party| {
            party.played = None;
            party.waiting_tokens -= u64::from(demand.prompt_tokens);
            party.waiting_rows -= u64::from(demand.num_sequences);
        });
        Some(demand)
    }

    fn for_both(&mut self, demand: Demand, mut change: impl FnMut(&mut Party)) {
        change(&mut self.everybody);
        if let Some(party) = self.tenants.get_mut(&demand.tenant) {
            change(party);
        }
    }

    /// Tenants came or went: everybody's part of the server is another.
    fn forget_shares(&mut self) {
        self.tenants.values_mut().for_each(|party| party.played = None);
    }

    pub(super) fn workers_lost(&mut self, now: Instant) {
        self.away_since.get_or_insert(now);
    }

    pub(super) fn workers_ready(&mut self, room: Room, now: Instant) {
        if let Some(since) = self.away_since.take() {
            self.last_absence = now.saturating_duration_since(since);
        }
        self.room = room;
        self.everybody.played = None;
        self.forget_shares();
    }

    pub(super) fn set_guest(&mut self, tenant: Option<TenantId>, tokens: f64) {
        (self.guest, self.guest_tokens) = (tenant, tokens);
    }

    #[cfg(test)]
    pub(super) fn num_inside(&self) -> usize {
        self.everybody.num_inside
    }

    /// `P`.
    pub(super) fn queued_tokens(&self, progress: &Progress) -> u64 {
        self.everybody.waiting_tokens + progress.uncomputed_tokens
    }

    /// Of what waits, a tenant's.
    pub(super) fn waiting_tokens(&self, tenant: TenantId) -> u64 {
        self.tenants.get(&tenant).map_or(0, |party| party.waiting_tokens)
    }

    /// What of `P` is its tenant's own, and the part of the server that is its own while others are inside.
    pub(super) fn own_queued_tokens(&self, demand: Demand, progress: &Progress) -> (u64, f64) {
        let scope = self.scope(demand);
        match (scope.tenant, self.tenants.get(&demand.tenant)) {
            (None, _) => (self.queued_tokens(progress), 1.0),
            (_, Some(party)) => (party.waiting_tokens + party.unprefilled_tokens, scope.share),
            (_, None) => (0, scope.share),
        }
    }

    /// What lies before such a newcomer: all who came before it, or, if that is less, those of its tenant, with the part of
    /// the server that is theirs.
    pub(super) fn wait(&mut self, progress: &Progress, demand: Demand, now: Instant) -> Wait {
        let behind_all = self.wait_behind_all(progress, demand, now);
        let scope = self.scope(demand);
        if scope.tenant.is_none() {
            return behind_all;
        }
        let behind_own = self.wait_in(scope, progress, demand, now);
        let guests = self.guests(demand);
        // Whichever it is, its own prompts get no more of a step.
        let [own, all] = [behind_own, behind_all].map(|wait| Wait { guests, ..wait });
        if own.in_front() < all.in_front() { own } else { all }
    }

    /// `None`: nobody else is in the midst of an output, or its tenant has used no more than they.
    fn guests(&self, demand: Demand) -> Option<Guests> {
        if self.guest != Some(demand.tenant) {
            return None;
        }
        let hosts = self.tenants.iter().filter(|(tenant, party)| **tenant != demand.tenant && party.num_decoding > 0);
        let weight = hosts.map(|(_, party)| party.weight.max(1)).max()?;
        let step_tokens = self.guest_tokens * f64::from(demand.weight.max(1)) / f64::from(weight);
        let own = self.tenants.get(&demand.tenant);
        let waiting = |own: &Party| self.new_share * (own.waiting_tokens - self.tokens_behind(demand)) as f64;
        let prompt_tokens = own.map_or(0.0, |own| waiting(own) + own.unprefilled_tokens as f64);
        Some(Guests { prompt_tokens, step_tokens })
    }

    pub(super) fn wait_behind_all(&mut self, progress: &Progress, demand: Demand, now: Instant) -> Wait {
        self.wait_in(Scope::EVERYBODY, progress, demand, now)
    }

    /// A tenant is alone, or shares with others by weight.
    fn scope(&self, demand: Demand) -> Scope {
        let others = self.tenants.iter().filter(|(tenant, _)| **tenant != demand.tenant);
        let weights: u64 = others.map(|(_, party)| u64::from(party.weight)).sum();
        if weights == 0 {
            return Scope::EVERYBODY;
        }
        let own = f64::from(demand.weight.max(1));
        Scope { tenant: Some(demand.tenant), share: own / (own + weights as f64) }
    }

    fn wait_in(&mut self, scope: Scope, progress: &Progress, demand: Demand, now: Instant) -> Wait {
        let known = self.party_mut(scope).and_then(|party| party.played.take());
        let played = match known {
            Some(played) if played.step == progress.steps => played,
            _ => self.play(scope, progress, None),
        };
        let tokens_behind = self.tokens_behind(demand);
        let shorter = (tokens_behind > 0).then(|| self.play(scope, progress, Some(demand)).line);
        let line = shorter.as_ref().unwrap_or(&played.line);
        let empty = Party::default();
        let party = self.party(scope).unwrap_or(&empty);
        let begun = if scope.tenant.is_none() { progress.uncomputed_tokens } else { party.unprefilled_tokens };
        let rows = self.everybody.running_rows + self.everybody.waiting_rows;
        let wait = Wait {
            cost: progress.cost,
            steps: line.steps_until(self.seat(demand, 0, played.scale)),
            prompt_tokens: (self.new_share * (party.waiting_tokens - tokens_behind) as f64 + begun as f64)
                / scope.share,
            active_rows: rows.min(self.room.rows.into()),
            step_tokens: self.step_tokens(progress),
            own_tokens: self.new_share * f64::from(demand.prompt_tokens),
            recovery: self.recovery(now),
            departure_steps: played.line.first_leaves_after(),
            guests: None,
        };
        if let Some(party) = self.party_mut(scope) {
            party.played = Some(played);
        }
        wait
    }

    fn step_tokens(&self, progress: &Progress) -> u64 {
        let beside_rows = u64::from(progress.prompt_tokens) + u64::from(self.room.rows);
        u64::from(self.room.step_tokens).min(beside_rows)
    }

    fn party(&self, scope: Scope) -> Option<&Party> {
        match scope.tenant {
            None => Some(&self.everybody),
            Some(tenant) => self.tenants.get(&tenant),
        }
    }

    fn party_mut(&mut self, scope: Scope) -> Option<&mut Party> {
        match scope.tenant {
            None => Some(&mut self.everybody),
            Some(tenant) => self.tenants.get_mut(&tenant),
        }
    }

    /// `R`.
    fn recovery(&self, now: Instant) -> Duration {
        let Some(since) = self.away_since else { return Duration::ZERO };
        let passed = now.saturating_duration_since(since);
        self.last_absence.saturating_sub(passed).max(passed / 2)
    }

    /// Prompt tokens of those who wait and whom such a newcomer passes: each has one at least.
    fn tokens_behind(&self, newcomer: Demand) -> u64 {
        let behind = self.waiting.values().filter(|waiting| waiting.lets_past(&newcomer));
        behind.map(|waiting| u64::from(waiting.prompt_tokens)).sum()
    }

    /// Everybody in their places, but whom a newcomer passes. Those who were preempted stand before all who wait.
    fn play(&self, scope: Scope, progress: &Progress, newcomer: Option<Demand>) -> Played {
        let scale = self.scale(progress);
        let running = self.running.values().filter(|running| scope.holds(&running.demand));
        let steps = |running: &Running| progress.steps.saturating_sub(running.since);
        let seats: Vec<Seat> = running.map(|running| self.seat(running.demand, steps(running), scale)).collect();
        let running_rows = self.party(scope).map_or(0, |party| party.running_rows);
        let num_preempted = if scope.tenant.is_none() { progress.num_preempted.min(running_rows) } else { 0 };
        let rows = ((f64::from(self.room.rows) * scope.share) as u64).max(1);
        let held: u64 = seats.iter().map(|seat| seat.tokens).sum();
        let free_tokens = match (scope.tenant, progress.free_tokens) {
            (None, free) | (_, free @ u64::MAX) => free,
            (Some(_), free) => part(free.saturating_add(progress.used_tokens), scope.share).saturating_sub(held),
        };
        let mean = mean(&seats);
        let mut line = Line::new(rows.saturating_sub(running_rows - num_preempted), free_tokens, seats.into_iter());
        for _ in 0..num_preempted {
            line.join(mean);
        }
        let lets_past = |demand: &Demand| newcomer.is_some_and(|newcomer| demand.lets_past(&newcomer));
        let in_line = self.waiting.values().filter(|demand| scope.holds(demand) && !lets_past(demand));
        in_line.for_each(|demand| line.join(self.seat(*demand, 0, scale)));
        Played { step: progress.steps, scale, line }
    }

    /// What those who run hold really, of what they are reckoned to hold.
    fn scale(&self, progress: &Progress) -> f64 {
        let reckoned: f64 = self.running.values().map(|running| self.tokens(running.demand)).sum();
        if reckoned > 0.0 {
            (progress.used_tokens as f64 / reckoned).clamp(*SCALES.start(), *SCALES.end())
        } else {
            1.0
        }
    }

    /// The memory of a request, half through its outputs.
    fn tokens(&self, demand: Demand) -> f64 {
        let outputs = f64::from(demand.num_sequences) * self.lengths.expected(demand.max_new_tokens);
        f64::from(demand.prompt_tokens) + outputs / 2.0
    }

    /// What a request holds, and for how long still, when it has run for so many steps.
    fn seat(&self, demand: Demand, num_steps: u64, scale: f64) -> Seat {
        let prompt_steps = u64::from(demand.prompt_tokens.div_ceil(self.room.step_tokens.max(1)));
        let num_outputs = u32::try_from(num_steps.saturating_sub(prompt_steps)).unwrap_or(u32::MAX);
        let to_come = self.lengths.expected(demand.max_new_tokens.saturating_sub(num_outputs)).ceil() as u64;
        Seat {
            rows: demand.num_sequences.into(),
            tokens: (scale * self.tokens(demand)) as u64,
            steps: prompt_steps.saturating_sub(num_steps) + to_come.max(1),
        }
    }
}

fn mean(seats: &[Seat]) -> Seat {
    let count = (seats.len() as u64).max(1);
    let tokens = seats.iter().map(|seat| seat.tokens).sum::<u64>() / count;
    Seat { rows: 1, tokens, steps: seats.iter().map(|seat| seat.steps).sum::<u64>() / count }
}

fn part(whole: u64, share: f64) -> u64 {
    (whole as f64 * share) as u64
}
