//! Planning one step: running sequences first, then preempted ones, then waiting ones as the gate allows. With several
//! tenants, `fairness` says in which order.
//!
//! There is no prefill phase and no decode phase. A sequence has tokens and computed tokens, and a step computes some of
//! the difference; a step that reaches the last known (or expected) token samples the next.

use std::cell::OnceCell;

use crate::guests::{Chunk, Rations};
use crate::page_table::PageTable;
use crate::policy::{JoinReason, prefill_tokens};
use crate::scheduler::{Scheduler, SentStep, SentWork};
use crate::sequence::{Opening, Place, Seat, Sequence, State};
use crate::{Admission, Growth, PageCopy, SequenceId, StepPlan, TenantId, Work};

/// A step being planned. Nothing in it counts as computed until it is sent.
pub(crate) struct Draft {
    pub(crate) plan: StepPlan,
    /// Tokens left for sequences with more than one to compute, and for those that join.
    pub(crate) num_prefill_tokens: usize,
    /// How many of them each tenant may take at most.
    pub(crate) rations: Rations,
    pub(crate) guests: Vec<(TenantId, usize)>,
    /// Tenants, in the order of this step.
    pub(crate) lanes: Vec<TenantId>,
    /// What the gate says, once it has been asked.
    pub(crate) gate: OnceCell<Option<JoinReason>>,
    /// Why the gate was open, and how many waiting sequences have come through it, if any has.
    admitted: Option<(JoinReason, usize)>,
    /// Whether somebody could not join because its tenant's tokens were used up.
    pub(crate) is_rationed: bool,
}

/// What became of an attempt to give a sequence a row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entrance {
    Admitted,
    /// Not this one, not now: what it waits for will come.
    NotYet,
    /// Rows, tokens or pages are used up.
    Full,
}

impl Scheduler {
    /// Plans the next step. `None`: there is nothing to do before the next result, or enough steps are in flight.
    pub fn schedule(&mut self) -> Option<StepPlan> {
        if self.in_flight.len() >= self.config.max_steps_in_flight as usize {
            return None;
        }
        self.unseat_switched();
        let lanes = self.lanes();
        let mut draft = Draft {
            plan: StepPlan { step: self.num_steps_sent + 1, ..StepPlan::default() },
            num_prefill_tokens: self.num_prefill_tokens(),
            rations: Rations::default(),
            guests: Vec::new(),
            lanes,
            gate: OnceCell::new(),
            admitted: None,
            is_rationed: false,
        };
        if let Some(set) = self.on_trial() {
            self.try_alone(&set, &mut draft);
        } else if let Some(suspect) = self.suspect() {
            self.replay_alone(suspect, &mut draft);
        } else {
            self.share(true, &mut draft);
            if draft.plan.work.is_empty() && draft.rations.are_bounds() && self.in_flight.is_empty() {
                // Those whose guests they are may wait for pages that guests hold.
                self.share(false, &mut draft);
            }
        }
        (!draft.plan.work.is_empty()).then(|| self.send(draft))
    }

    /// Tokens that are left when everybody who has one to compute has got it.
    pub(crate) fn num_prefill_tokens(&self) -> usize {
        let num_decodes = self.running_sequences().filter(|sequence| sequence.num_runnable_tokens() == 1).count();
        let num_tokens = prefill_tokens(self.allowance.tokens(), num_decodes);
        self.terms.step_tokens.map_or(num_tokens, |most| num_tokens.min(most.max(1) as usize))
    }

    pub(crate) fn running_sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.running.iter().filter_map(|place| self.sequences.get(&place.id))
    }

    /// Gives a running sequence its tokens of this step: one if that is all it has, else what the budget and the pages allow.
    pub(crate) fn advance(&mut self, place: Place, draft: &mut Draft) {
        let Some(sequence) = self.sequences.get(&place.id) else { return };
        let num_runnable = sequence.num_runnable_tokens();
        let is_decode = num_runnable == 1;
        let chunk = Chunk::of(sequence, sequence.seat().map_or(0, |seat| seat.num_computed_tokens));
        let wanted = if is_decode { 1 } else { num_runnable.min(draft.num_tokens_left(chunk)) };
        let count = if wanted == 0 { 0 } else { self.make_room(place, wanted, draft) };
        if count == 0 {
            return;
        }
        if !is_decode {
            draft.take_tokens(chunk, count);
        }
        self.add_work(place.id, count, draft);
    }

    /// Takes pages for up to `wanted` more tokens and returns for how many there is room. When there is none, newer
    /// sequences are preempted for the first page, but not while pages are about to come back.
    fn make_room(&mut self, place: Place, wanted: usize, draft: &mut Draft) -> usize {
        loop {
            let Some(seat) = self.sequences.get_mut(&place.id).and_then(Sequence::seat_mut) else { return 0 };
            let num_pages_before = seat.table.pages().len();
            let room = seat.table.grow(&mut self.pool, seat.num_computed_tokens + wanted) - seat.num_computed_tokens;
            let grown = seat.table.pages().iter().enumerate().skip(num_pages_before);
            let row = seat.row;
            draft.plan.grown.extend(grown.map(|(index, &page)| Growth { row, index: index as u32, page }));
            if room > 0 {
                return room.min(wanted);
            }
            match self.last_to_plan(place, draft) {
                Some(last) if !self.pages_come_back() => self.preempt(last),
                _ => return 0,
            }
        }
    }

    /// Whether steps in flight hold back pages that nobody else owns, or that they are the last to read.
    fn pages_come_back(&self) -> bool {
        let mut pages = self.held.iter().flat_map(|held| held.seat.table.held());
        pages.any(|&page| self.pool.num_owners(page) == 1) || self.windows_will_move()
    }

    /// Gives a sequence a row, the pages of others that it can use, and its first chunk.
    pub(crate) fn admit(&mut self, place: Place, draft: &mut Draft) -> Entrance {
        if self.rows.is_full() || self.running.len() >= self.max_running() || draft.num_prefill_tokens == 0 {
            return Entrance::Full;
        }
        let is_new = self.waiting.contains(&place);
        let Some(opening) = self.open(place.id) else { return Entrance::NotYet };
        if !self.fits(place.id, &opening) {
            return Entrance::Full;
        }
        let start = opening.num_computed_tokens;
        let Some(sequence) = self.sequences.get(&place.id) else { return Entrance::NotYet };
        let (chunk, is_long) = (Chunk::of(sequence, start), self.is_long(sequence));
        // A row that was made free for it must not stand empty.
        let num_tokens_left = draft.num_tokens_left(chunk).max(usize::from(self.invited == Some(place.id)));
        if num_tokens_left == 0 {
            draft.is_rationed = true;
            return Entrance::NotYet;
        }
        let (Some(row), Some(sequence)) = (self.rows.take(), self.sequences.get_mut(&place.id)) else {
            return Entrance::Full;
        };
        let mut table = PageTable::share(&mut self.pool, &opening);
        let wanted = sequence.num_remaining_tokens(start).min(num_tokens_left);
        let room = table.grow(&mut self.pool, start + wanted) - start;
        let count = wanted.min(room);
        if let Some(source) = opening.copy_from {
            let target = table.pages()[opening.pages.len()];
            self.pool.share(source);
            draft.plan.copies.push(PageCopy { source, target });
        } else {
            table.promise(&mut self.pool, &sequence.tokens);
        }
        draft.plan.admitted.push(Admission {
            sequence: place.id,
            row,
            token_ids: sequence.tokens.clone(),
            num_prompt_tokens: sequence.num_prompt_tokens as u32,
            pages: table.pages().to_vec(),
            sampling: sequence.sampling.clone(),
            prompt_logprobs: sequence.collects_prompt_logprobs(),
        });
        let (first_step, num_shared_tokens) = (draft.plan.step, start);
        let seat = Seat { row, table, num_computed_tokens: start, first_step, num_shared_tokens, is_long };
        sequence.state = State::Running(seat);
        self.seated(place, start);
        draft.take_tokens(chunk, count);
        self.add_work(place.id, count, draft);
        if is_new {
            let count = draft.admitted.map_or(0, |(_, count)| count);
            draft.admitted = draft.gate.get().copied().flatten().map(|reason| (reason, count + 1));
        }
        Entrance::Admitted
    }

    /// Books the change of state of a sequence that has just got a row.
    fn seated(&mut self, place: Place, num_cached_tokens: usize) {
        self.preempted.remove(&place);
        self.waiting.remove(&place);
        self.running.insert(place);
        let Some(sequence) = self.sequences.get_mut(&place.id) else { return };
        if sequence.num_cached_tokens.is_none() {
            sequence.num_cached_tokens = Some(num_cached_tokens);
            self.started.push(place.id);
            self.totals.admissions += 1;
            self.totals.cached_prompt_tokens += num_cached_tokens as u64;
        }
    }

    /// Where a sequence could start. `None`: it should wait for what another sequence is computing.
    pub(crate) fn open(&mut self, id: SequenceId) -> Option<Opening> {
        let paging = self.pool.paging();
        let sequence = self.sequences.get(&id)?;
        let root = self.root(sequence);
        if !paging.has_pages() {
            return Some(Opening::nothing(root));
        }
        if matches!(sequence.state, State::Waiting) {
            match self.donor(sequence) {
                Donor::None => {}
                Donor::Later => return None,
                Donor::Now(seat) => return Some(self.open_as_copy(sequence, seat)),
            }
        }
        if sequence.collects_prompt_logprobs() {
            return Some(Opening::nothing(root));
        }
        if sequence.waits_for.as_ref().is_some_and(|promise| self.pool.is_promised(promise)) {
            return None;
        }
        // The last token is computed in any case: its logits are needed.
        let max_pages = paging.num_full_pages(sequence.tokens.len() - 1);
        let prefix = self.pool.find(root, &sequence.tokens, max_pages);
        let is_promised = prefix.promised.is_some();
        self.sequences.get_mut(&id)?.waits_for = prefix.promised;
        let num_published = prefix.pages.len();
        let num_computed_tokens = paging.room(num_published);
        let opening = Opening {
            pages: prefix.pages,
            num_unseen: self.window().num_unseen_pages(num_computed_tokens),
            num_published,
            tail: prefix.tail,
            copy_from: None,
            num_computed_tokens,
        };
        (!is_promised).then_some(opening)
    }

    /// An earlier sequence of the group, to copy the prompt from.
    fn donor(&self, sequence: &Sequence) -> Donor<'_> {
        let earlier = sequence.group.iter().take_while(|&&id| id != sequence.place.id);
        let mut is_expected = false;
        for other in earlier.filter_map(|id| self.sequences.get(id)) {
            match &other.state {
                // The copy comes at the start of a later step than the one that fills the page.
                // What has been given back, or computed as a longer sequence, cannot be copied.
                State::Running(seat) if seat.table.num_released() > 0 || seat.is_long != self.is_long(sequence) => {}
                State::Running(seat) if seat.num_computed_tokens >= sequence.num_prompt_tokens => {
                    // Its prompt logprobs are this one's too, as soon as they are here.
                    return if sequence.collects_prompt_logprobs() { Donor::Later } else { Donor::Now(seat) };
                }
                State::Running(_) | State::Waiting => is_expected = true,
                State::Preempted => {}
            }
        }
        if is_expected { Donor::Later } else { Donor::None }
    }

    /// Shares the full pages before the last prompt token and copies the page that holds it. A page that would begin with
    /// that token needs no copy.
    fn open_as_copy(&self, sequence: &Sequence, donor: &Seat) -> Opening {
        let (paging, start) = (self.pool.paging(), sequence.num_prompt_tokens - 1);
        let (num_shared, offset) = (paging.num_full_pages(start), paging.offset(start));
        let donated = donor.table.pages();
        Opening {
            pages: donated[..num_shared].to_vec(),
            copy_from: (offset > 0).then(|| donated[num_shared]),
            num_computed_tokens: start,
            ..Opening::nothing(self.root(sequence))
        }
    }

    /// Whether the pool has a page for the first chunk; for a preempted sequence, pages for all it knows: a second
    /// preemption on the way there would waste the work of both.
    pub(crate) fn fits(&self, id: SequenceId, opening: &Opening) -> bool {
        let Some(sequence) = self.sequences.get(&id) else { return false };
        let paging = self.pool.paging();
        if !paging.has_pages() {
            return self.is_within_budget(sequence);
        }
        let shared = opening.shared();
        let num_shared_available = shared.iter().filter(|&&page| self.pool.num_owners(page) == 0).count();
        let num_available = self.pool.num_available() - num_shared_available;
        let num_needed = match sequence.state {
            State::Preempted => {
                let (tokens, step) = (sequence.num_tokens_to_resume(), self.config.max_step_tokens as usize);
                let at_once = self.window().num_pages_at_once(tokens, step).min(self.pool.num_pages());
                at_once.min(paging.num_pages(tokens) - opening.num_unseen).saturating_sub(shared.len()).max(1)
            }
            State::Waiting | State::Running(_) => 1,
        };
        num_needed <= num_available
    }

    /// A sequence that runs alone always is.
    fn is_within_budget(&self, sequence: &Sequence) -> bool {
        let Some(budget) = self.config.max_batch_total_tokens else { return true };
        self.running.is_empty() || self.num_reserved_tokens() + sequence.max_tokens <= budget as usize
    }

    fn add_work(&mut self, id: SequenceId, count: usize, draft: &mut Draft) {
        let Some(sequence) = self.sequences.get(&id) else { return };
        let Some(seat) = sequence.seat() else { return };
        let start = seat.num_computed_tokens;
        let samples = start + count == sequence.num_tokens();
        draft.plan.work.push(Work { sequence: id, row: seat.row, start: start as u32, count: count as u32, samples });
    }

    /// From here on the step counts as computed, and pages that it fills can be found by the next plan.
    fn send(&mut self, draft: Draft) -> StepPlan {
        let tenant_of = |id| self.sequences.get(&id).map(|sequence| sequence.place.tenant);
        self.last_parts = if self.shares.num_tenants() > 1 { draft.parts(tenant_of) } else { Vec::new() };
        let Draft { mut plan, admitted, num_prefill_tokens, is_rationed, .. } = draft;
        plan.released = self.rows.take_released();
        let work = plan.work.iter().map(|work| self.commit(work)).collect();
        let sources = plan.copies.iter().map(|copy| copy.source).collect();
        self.in_flight.push_back(SentStep { step: plan.step, work, sources });
        self.num_steps_sent = plan.step;
        self.totals.steps += 1;
        self.gate.step_sent(admitted, self.waiting.len(), num_prefill_tokens == 0 || is_rationed);
        let admitted = admitted.map(|(reason, _)| reason);
        self.settle();
        self.last_join = joins(&plan).then(|| admitted.unwrap_or(JoinReason::Chunking));
        plan
    }

    fn commit(&mut self, work: &Work) -> SentWork {
        let (start, count) = (work.start as usize, work.count as usize);
        let mut num_prompt_logprobs = 0;
        if let Some(sequence) = self.sequences.get_mut(&work.sequence) {
            num_prompt_logprobs = sequence.num_prompt_logprobs(start, count);
            sequence.num_pending_tokens += usize::from(work.samples);
            let num_charged = sequence.num_charged_tokens.max(start);
            sequence.num_charged_tokens = num_charged.max(start + count);
            self.shares.charge(sequence.place.tenant, sequence.num_charged_tokens - num_charged);
            let num_prompt_tokens = (start + count).min(sequence.num_prompt_tokens).saturating_sub(start);
            self.totals.computed_prompt_tokens += num_prompt_tokens as u64;
            if let State::Running(seat) = &mut sequence.state {
                seat.num_computed_tokens = start + count;
                seat.publish(&mut self.pool, &sequence.tokens);
            }
        }
        let (sequence, end, samples) = (work.sequence, start + count, work.samples);
        SentWork { sequence, start, end, samples, num_prompt_logprobs, is_void: false }
    }
}

/// Whether some sequences of a step are new in it and others are not.
fn joins(plan: &StepPlan) -> bool {
    !plan.admitted.is_empty() && plan.work.len() > plan.admitted.len()
}

/// Whether a sequence of the same group can give its prompt pages.
enum Donor<'a> {
    Now(&'a Seat),
    /// Not yet, but it is on the way.
    Later,
    None,
}
