//! What the engine knows of the requests inside: whose sequence is whose, their texts, their times.
//!
//! The scheduler decides when a sequence ends; this is where its news becomes a client's events. Every request in here
//! gets its terminal events: from the scheduler, or, if the engine itself ends, when this is dropped.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_scheduler::{PromptLogprob, Request, Sampled, Scheduler, SequenceId, Share, TenantId};

use super::api::{Event, Failed, FinishReason, Finished, Mailbox, Prefilled, Times, Token, TopToken};
use super::namespaces::Namespaces;
use crate::detokenize::{Detokenizer, SequenceText, StopStrings};
use crate::overload::Reservation;
use crate::request::ValidRequest;
use crate::tenants::Tenant;

/// A request's mailbox is its name: one each, alive as long as the request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct GroupId(usize);

impl GroupId {
    fn of(mailbox: &Arc<Mailbox>) -> Self {
        Self(Arc::as_ptr(mailbox).addr())
    }
}

/// The sequences of one request.
#[derive(Debug)]
struct Group {
    mailbox: Arc<Mailbox>,
    /// Those that have not ended.
    sequences: Vec<SequenceId>,
    prefilled: bool,
    deadline: Option<Instant>,
    reservation: Reservation,
}

#[derive(Debug)]
struct Entry {
    group: GroupId,
    /// Place in the group.
    index: usize,
    text: SequenceText,
    seed: Option<u64>,
    num_generated: u32,
    started: Option<Instant>,
    first_token: Option<Instant>,
}

/// All requests that have not got their last event.
#[derive(Debug)]
pub(super) struct Requests {
    detokenizer: Arc<Detokenizer>,
    eos_token_ids: Arc<[u32]>,
    groups: HashMap<GroupId, Group>,
    entries: HashMap<SequenceId, Entry>,
    last_id: u64,
    namespaces: Namespaces,
    /// All that have ever come.
    tenants: HashMap<TenantId, Arc<Tenant>>,
    outbox: Outbox,
}

/// Events on their way, kept while they go to the same mailbox: one push per request and step.
#[derive(Debug, Default)]
struct Outbox {
    mailbox: Option<Arc<Mailbox>>,
    events: Vec<Event>,
}

impl Outbox {
    fn put(&mut self, mailbox: &Arc<Mailbox>, event: Event) {
        if !self.mailbox.as_ref().is_some_and(|current| Arc::ptr_eq(current, mailbox)) {
            self.send();
            self.mailbox = Some(Arc::clone(mailbox));
        }
        self.events.push(event);
    }

    fn send(&mut self) {
        if let Some(mailbox) = self.mailbox.take() {
            mailbox.push(self.events.drain(..));
        }
    }
}

/// What to do with a sequence after its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    GoOn,
    /// A stop string is complete.
    Stop,
}

impl Requests {
    pub(super) fn new(detokenizer: Arc<Detokenizer>, eos_token_ids: Arc<[u32]>) -> Self {
        Self {
            detokenizer,
            eos_token_ids,
            groups: HashMap::new(),
            entries: HashMap::new(),
            last_id: 0,
            namespaces: Namespaces::default(),
            tenants: HashMap::new(),
            outbox: Outbox::default(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Takes a request in and hands it to the scheduler. One that it refuses gets its terminal event.
    pub(super) fn submit(
        &mut self,
        request: ValidRequest,
        reservation: Reservation,
        mailbox: Arc<Mailbox>,
        scheduler: &mut Scheduler,
    ) {
        let ids: Vec<SequenceId> = request.sampling.iter().map(|_| self.next_id()).collect();
        let eos_token_ids = if request.stopping.ignore_eos { Arc::from([]) } else { Arc::clone(&self.eos_token_ids) };
        let stop = StopStrings::new(&request.stopping.stop);
        let (group, deadline) = (GroupId::of(&mailbox), request.deadline);
        for (index, (id, sampling)) in ids.iter().zip(&request.sampling).enumerate() {
            let stop = stop.clone().behind(sampling.min_new_tokens);
            let text = SequenceText::showing(Arc::clone(&self.detokenizer), &request.prompt, stop, &request.shown);
            let seed = sampling.do_sample.then_some(sampling.seed);
            let entry = Entry { group, index, text, seed, num_generated: 0, started: None, first_token: None };
            self.entries.insert(*id, entry);
        }
        let (tenant, weight) = (request.tenant.id, request.tenant.weight);
        let namespace = self.namespaces.id(request.tenant.cache_group(), request.cache_salt.as_ref());
        self.tenants.insert(tenant, Arc::clone(&request.tenant));
        let share = Share { tenant, weight, priority: request.priority };
        let submitted = scheduler.submit(Request {
            sequences: ids.iter().copied().zip(request.sampling).collect(),
            tokens: request.prompt,
            max_new_tokens: request.stopping.max_new_tokens,
            eos_token_ids,
            prompt_logprobs: request.prompt_logprobs,
            namespace,
            share,
        });
        self.groups.insert(group, Group { mailbox, sequences: ids, prefilled: false, deadline, reservation });
        if let Err(refused) = submitted {
            tracing::error!(request_id = &*request.request_id, %refused, "request does not fit the workers");
            self.fail_group(group, Failed::Generation(refused.to_string()));
            self.outbox.send();
        }
    }

    /// The client is gone: forgets the request; answers the sequences that the scheduler must drop.
    pub(super) fn cancel(&mut self, mailbox: &Arc<Mailbox>) -> Vec<SequenceId> {
        self.forget(GroupId::of(mailbox)).map(|group| group.sequences).unwrap_or_default()
    }

    /// Ends every request as incomplete; answers the sequences that the scheduler must drop.
    pub(super) fn end_all(&mut self) -> Vec<SequenceId> {
        let all: Vec<GroupId> = self.groups.keys().copied().collect();
        let dropped = all.into_iter().flat_map(|group| self.fail_group(group, Failed::Incomplete)).collect();
        self.outbox.send();
        dropped
    }

    /// Ends requests whose time is over; answers the sequences that the scheduler must drop.
    pub(super) fn end_late(&mut self, now: Instant) -> Vec<SequenceId> {
        let is_late = |group: &Group| group.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<GroupId> = self.groups.iter().filter(|(_, group)| is_late(group)).map(|(id, _)| *id).collect();
        let dropped = late.into_iter().flat_map(|group| self.fail_group(group, Failed::TimedOut)).collect();
        self.outbox.send();
        dropped
    }

    /// Gives up requests whose reader has not come for `limit`, or has left too much unread; answers the sequences that the scheduler must drop.
    pub(super) fn cancel_unread(&mut self, now: Instant, limit: Duration) -> Vec<SequenceId> {
        let unread = |group: &Group| group.mailbox.unread_for(now) > limit || group.mailbox.is_full();
        let slow: Vec<GroupId> = self.groups.iter().filter(|(_, group)| unread(group)).map(|(id, _)| *id).collect();
        let dropped = slow.into_iter().flat_map(|group| self.fail_group(group, Failed::Incomplete)).collect();
        self.outbox.send();
        dropped
    }

    pub(super) fn started(&mut self, sequence: SequenceId, now: Instant) {
        let Some(entry) = self.entries.get_mut(&sequence) else { return };
        if entry.started.replace(entry.started.unwrap_or(now)).is_none()
            && let Some(group) = self.groups.get(&entry.group)
        {
            group.reservation.started();
        }
    }

    /// The first sequence of a group to be prefilled speaks for all: they share the prompt.
    pub(super) fn prefilled(&mut self, sequence: SequenceId, cached_tokens: u32, logprobs: &[PromptLogprob]) {
        let Some(entry) = self.entries.get(&sequence) else { return };
        let Some(group) = self.groups.get_mut(&entry.group) else { return };
        if std::mem::replace(&mut group.prefilled, true) {
            return;
        }
        group.reservation.prefilled(cached_tokens);
        let mut prefilled = Prefilled { cached_tokens, ..Prefilled::default() };
        if !logprobs.is_empty() {
            let values = logprobs.iter().map(|one| Some(one.logprob));
            prefilled.prompt_logprobs = std::iter::once(None).chain(values).collect();
        }
        if logprobs.iter().any(|one| !one.top_tokens.is_empty()) {
            let named = |one: &PromptLogprob| {
                one.top_tokens.iter().map(|top| top_token(*top, &self.detokenizer)).collect::<Vec<_>>()
            };
            prefilled.prompt_top_tokens = std::iter::once(Vec::new()).chain(logprobs.iter().map(named)).collect();
        }
        self.outbox.put(&group.mailbox, Event::Prefilled(prefilled));
    }

    pub(super) fn token(&mut self, sequence: SequenceId, sampled: &Sampled, now: Instant) -> Verdict {
        let Some(entry) = self.entries.get_mut(&sequence) else { return Verdict::GoOn };
        let Some(group) = self.groups.get(&entry.group) else { return Verdict::GoOn };
        entry.first_token.get_or_insert(now);
        entry.num_generated += 1;
        let piece = entry.text.push(sampled.token_id);
        let token = Token {
            id: sampled.token_id,
            text: piece.text,
            logprob: sampled.logprob,
            special: piece.special,
            delta: piece.delta,
            top_tokens: sampled.top_tokens.iter().map(|top| top_token(*top, &self.detokenizer)).collect(),
        };
        self.outbox.put(&group.mailbox, Event::Token { sequence: entry.index, token });
        if piece.stopped { Verdict::Stop } else { Verdict::GoOn }
    }

    /// A sequence ended as it should.
    pub(super) fn finished(&mut self, sequence: SequenceId, reason: FinishReason, now: Instant) {
        let Some(entry) = self.entries.remove(&sequence) else { return };
        let Some(group) = self.groups.get_mut(&entry.group) else { return };
        group.reservation.ended(entry.num_generated, reason != FinishReason::Length);
        let (generated_text, delta) = entry.text.finish();
        let started = entry.started.unwrap_or(now);
        let times = Times { started, first_token: entry.first_token.unwrap_or(now), ended: now };
        let finished =
            Finished { reason, generated_text, delta, generated_tokens: entry.num_generated, seed: entry.seed, times };
        self.outbox.put(&group.mailbox, Event::Finished { sequence: entry.index, finished });
        group.sequences.retain(|id| *id != sequence);
        if group.sequences.is_empty() {
            self.groups.remove(&entry.group);
        }
    }

    /// A sequence failed, and its request with it; answers its other sequences, which the scheduler must drop.
    pub(super) fn failed(&mut self, sequence: SequenceId, message: String) -> Vec<SequenceId> {
        let Some(entry) = self.entries.get(&sequence) else { return Vec::new() };
        let mut siblings = self.fail_group(entry.group, Failed::Generation(message));
        siblings.retain(|id| *id != sequence);
        siblings
    }

    /// What has been computed for each tenant.
    pub(super) fn show_served(&self, served: impl Iterator<Item = (TenantId, u64)>) {
        for (tenant, num_tokens) in served {
            if let Some(tenant) = self.tenants.get(&tenant) {
                tenant.usage.served(num_tokens);
            }
        }
    }

    /// Delivers what has been put together.
    pub(super) fn send(&mut self) {
        self.outbox.send();
    }

    fn next_id(&mut self) -> SequenceId {
        self.last_id += 1;
        SequenceId(self.last_id)
    }

    fn fail_group(&mut self, id: GroupId, failed: Failed) -> Vec<SequenceId> {
        let Some(group) = self.forget(id) else { return Vec::new() };
        self.outbox.put(&group.mailbox, Event::Failed(failed));
        group.sequences
    }

    fn forget(&mut self, id: GroupId) -> Option<Group> {
        let group = self.groups.remove(&id)?;
        for sequence in &group.sequences {
            self.entries.remove(sequence);
        }
        Some(group)
    }
}

impl Drop for Requests {
    /// The engine ends, perhaps in a panic: nobody is left waiting.
    fn drop(&mut self) {
        self.outbox.send();
        for group in self.groups.values() {
            group.mailbox.push([Event::Failed(Failed::Incomplete)]);
        }
    }
}

fn top_token(top: millrace_scheduler::TopToken, detokenizer: &Detokenizer) -> TopToken {
    TopToken {
        id: top.token_id,
        text: detokenizer.token_text(top.token_id),
        logprob: top.logprob,
        special: detokenizer.is_special(top.token_id),
    }
}
