//! The scheduler: who owns which sequence, and what happens to it between steps.
//!
//! | what | owner |
//! | --- | --- |
//! | a sequence | `sequences`, and the one of `waiting`, `running`, `preempted` that its state names |
//! | a row and a page table | the `Seat` of a running sequence, then `held` until no step in flight can touch them |
//! | a page without an owner | the pool's free list, with its content known as long as nobody takes it |
//! | a step sent | `in_flight`, oldest first |

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::event::{FinishReason, GenerationEvent};
use crate::fairness::Shares;
use crate::guests::{StepPart, Terms};
use crate::policy::{Gate, JoinReason};
use crate::pool::PagePool;
use crate::request::{Capacity, Config, Refused, Request, Share, Stats};
use crate::rows::Rows;
use crate::sequence::{Place, Seat, Sequence, State};
use crate::shortage::Allowance;
use crate::trials::Trials;
use crate::{PageId, SequenceId};

/// Owns every sequence and every KV page. See the crate's documentation for its four calls.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: Config,
    pub(crate) sequences: HashMap<SequenceId, Sequence>,
    pub(crate) waiting: BTreeSet<Place>,
    pub(crate) running: BTreeSet<Place>,
    pub(crate) preempted: BTreeSet<Place>,
    pub(crate) pool: PagePool,
    pub(crate) rows: Rows,
    pub(crate) held: Vec<Held>,
    pub(crate) in_flight: VecDeque<SentStep>,
    pub(crate) gate: Gate,
    pub(crate) shares: Shares,
    /// A row has been taken from somebody for this one: nobody else may have it.
    pub(crate) invited: Option<SequenceId>,
    pub(crate) terms: Terms,
    pub(crate) last_parts: Vec<StepPart>,
    pub(crate) num_steps_sent: u64,
    pub(crate) num_arrivals: u64,
    pub(crate) started: Vec<SequenceId>,
    pub(crate) last_join: Option<JoinReason>,
    /// Whether some sequence may be suspect: spares looking at all of them.
    pub(crate) has_suspects: bool,
    pub(crate) trials: Trials,
    pub(crate) allowance: Allowance,
    pub(crate) totals: Totals,
}

/// The seat of a sequence that has left, kept until step `until` is back.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) until: u64,
    pub(crate) sequence: SequenceId,
    pub(crate) seat: Seat,
}

/// What has to be remembered of a plan to understand its result.
#[derive(Debug)]
pub(crate) struct SentStep {
    pub(crate) step: u64,
    pub(crate) work: Vec<SentWork>,
    /// Pages that it copies from. They are its own too: their owner may give them back before it has run.
    pub(crate) sources: Vec<PageId>,
}

impl SentStep {
    pub(crate) fn num_tokens(&self) -> usize {
        self.work.iter().map(|work| work.end - work.start).sum()
    }
}

#[derive(Debug)]
pub(crate) struct SentWork {
    pub(crate) sequence: SequenceId,
    pub(crate) start: usize,
    /// One past its last position.
    pub(crate) end: usize,
    pub(crate) samples: bool,
    pub(crate) num_prompt_logprobs: usize,
    /// Computed from pages whose step failed: the answer means nothing.
    pub(crate) is_void: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) computed_prompt_tokens: u64,
    pub(crate) cached_prompt_tokens: u64,
    pub(crate) admissions: u64,
    pub(crate) preemptions: u64,
    pub(crate) position_switches: u64,
    pub(crate) steps: u64,
}

impl Scheduler {
    /// # Panics
    /// If a value of `config` that must be at least 1 is 0.
    pub fn new(config: Config) -> Self {
        assert!(config.max_rows > 0, "somebody must have room: {config:?}");
        assert!(config.max_step_tokens > 0 && config.max_steps_in_flight > 0, "steps must do something: {config:?}");
        Self {
            sequences: HashMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            preempted: BTreeSet::new(),
            pool: PagePool::new(config.num_pages, config.page_size, config.prefix_caching),
            rows: Rows::new(config.max_rows),
            held: Vec::new(),
            in_flight: VecDeque::new(),
            gate: Gate::new(config.waiting_served_ratio, config.max_waiting_tokens),
            shares: Shares::default(),
            invited: None,
            terms: Terms::default(),
            last_parts: Vec::new(),
            num_steps_sent: 0,
            num_arrivals: 0,
            started: Vec::new(),
            last_join: None,
            has_suspects: false,
            trials: Trials::default(),
            allowance: Allowance::new(config.max_step_tokens),
            totals: Totals::default(),
            config,
        }
    }

    /// Queues a request's sequences. Refused is only what could never run.
    pub fn submit(&mut self, mut request: Request) -> Result<(), Refused> {
        self.check_request(&request)?;
        let Share { tenant, weight, priority } = request.share;
        let group: Arc<[SequenceId]> = request.sequences.iter().map(|&(id, _)| id).collect();
        let prompts = std::iter::repeat_n(std::mem::take(&mut request.tokens), group.len());
        for ((id, sampling), tokens) in request.sequences.iter().zip(prompts) {
            self.num_arrivals += 1;
            let place = Place { tenant, priority, arrival: self.num_arrivals, id: *id };
            self.shares.enter(tenant, weight);
            self.waiting.insert(place);
            let sequence = Sequence::new(&request, tokens, place, &group, sampling);
            self.sequences.insert(*id, sequence);
        }
        Ok(())
    }

    /// Ends a sequence whose client is gone. `None`: it has ended already.
    pub fn cancel(&mut self, sequence: SequenceId) -> Option<GenerationEvent> {
        self.finish(sequence, FinishReason::Cancelled)
    }

    /// Ends a sequence in whose text a stop string was found. `None`: it has ended already.
    pub fn stop(&mut self, sequence: SequenceId) -> Option<GenerationEvent> {
        self.finish(sequence, FinishReason::StopSequence)
    }

    /// The KV memory and all rows are gone. Running sequences keep their tokens and will be computed again by the next
    /// workers; what steps in flight were sampling will be sampled again. The next step is number 1.
    pub fn workers_lost(&mut self) {
        self.note_losses();
        self.trials.forget();
        self.allowance.restore();
        self.in_flight.clear();
        self.held.clear();
        self.invited = None;
        self.num_steps_sent = 0;
        self.pool = PagePool::new(self.config.num_pages, self.config.page_size, self.config.prefix_caching);
        self.rows = Rows::new(self.config.max_rows);
        self.preempted.append(&mut self.running);
        for sequence in self.sequences.values_mut() {
            sequence.num_pending_tokens = 0;
            sequence.waits_for = None;
            if let State::Running(_) = sequence.state {
                sequence.state = State::Preempted;
            }
        }
    }

    /// The workers have been prepared (again) and have room for so much. Implies [`Self::workers_lost`]. Sequences that
    /// can never fit any more fail, and so does one that the workers have died of again and again, at last alone.
    ///
    /// # Panics
    /// If there is no row.
    pub fn set_capacity(&mut self, capacity: Capacity) -> Vec<GenerationEvent> {
        assert!(capacity.max_rows > 0, "somebody must have room: {capacity:?}");
        (self.config.num_pages, self.config.max_rows) = (capacity.num_pages, capacity.max_rows);
        self.workers_lost();
        let mut failing: Vec<(Place, String)> =
            self.sequences.values().filter_map(|sequence| Some((sequence.place, self.hopeless(sequence)?))).collect();
        failing.sort_unstable();
        failing.into_iter().filter_map(|(place, why)| self.finish(place.id, FinishReason::Failed(why))).collect()
    }

    /// Why a sequence cannot go on with the new workers, if so.
    fn hopeless(&self, sequence: &Sequence) -> Option<String> {
        let (pages_needed, num_pages) = (self.num_pages_for(sequence.max_tokens), self.pool.num_pages());
        if pages_needed > num_pages {
            Some(format!("needs {pages_needed} KV pages, but the restarted workers have {num_pages}"))
        } else if sequence.is_convicted() {
            Some(format!("the workers died {} times in a row while computing it", sequence.num_losses))
        } else {
            None
        }
    }

    /// Sequences scheduled for the first time since the last call.
    pub fn take_started(&mut self) -> Vec<SequenceId> {
        std::mem::take(&mut self.started)
    }

    /// Why sequences joined others in the step planned last; `None` if none did.
    pub fn last_join(&self) -> Option<JoinReason> {
        self.last_join
    }

    /// No sequence is left and no step is in flight.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty() && self.in_flight.is_empty()
    }

    pub fn stats(&self) -> Stats {
        Stats {
            waiting: self.waiting.len(),
            running: self.running.len(),
            preempted: self.preempted.len(),
            steps_in_flight: self.in_flight.len(),
            rows_used: self.rows.num_used(),
            pages_free: self.pool.num_available() - self.pool.num_cached(),
            pages_cached: self.pool.num_cached(),
            pages_used: self.pool.num_pages() - self.pool.num_available(),
            reserved_tokens: self.num_reserved_tokens(),
            uncomputed_tokens: self.num_uncomputed_tokens(),
            computed_prompt_tokens_total: self.totals.computed_prompt_tokens,
            cached_prompt_tokens_total: self.totals.cached_prompt_tokens,
            admissions_total: self.totals.admissions,
            preemptions_total: self.totals.preemptions,
            position_switches_total: self.totals.position_switches,
            steps_total: self.totals.steps,
            step_tokens: self.allowance.tokens(),
            step_sequences: self.allowance.sequences(self.config.max_rows),
            out_of_memory_steps_total: self.allowance.num_shortages(),
        }
    }

    /// Prompt and `max_new_tokens` of all running sequences.
    pub(crate) fn num_reserved_tokens(&self) -> usize {
        let max_tokens = |place: &Place| self.sequences.get(&place.id).map_or(0, |sequence| sequence.max_tokens);
        self.running.iter().map(max_tokens).sum()
    }

    /// Of prompts that are not computed yet, and of all that is computed again.
    fn num_uncomputed_tokens(&self) -> usize {
        let running = self.running_sequences().map(Sequence::num_runnable_tokens).filter(|count| *count > 1);
        let preempted = self.preempted.iter().filter_map(|place| self.sequences.get(&place.id));
        running.sum::<usize>() + preempted.map(Sequence::num_tokens).sum::<usize>()
    }

    fn check_request(&self, request: &Request) -> Result<(), Refused> {
        let (prompt_tokens, max_new_tokens) = (request.tokens.len(), request.max_new_tokens);
        let Config { max_sequence_tokens, num_pages, page_size, .. } = self.config;
        let max_tokens = prompt_tokens + max_new_tokens as usize;
        let pages_needed = self.num_pages_for(max_tokens);
        let mut ids: Vec<SequenceId> = request.sequences.iter().map(|&(id, _)| id).collect();
        ids.sort_unstable();
        let twice = ids.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
        let known = ids.iter().copied().find(|id| self.sequences.contains_key(id));
        match twice.or(known) {
            _ if ids.is_empty() => Err(Refused::NoSequences),
            Some(sequence) => Err(Refused::DuplicateSequence { sequence }),
            None if prompt_tokens == 0 => Err(Refused::EmptyPrompt),
            None if max_new_tokens == 0 => Err(Refused::NoNewTokens),
            None if max_tokens > max_sequence_tokens as usize => {
                Err(Refused::TooLong { prompt_tokens, max_new_tokens, max_sequence_tokens })
            }
            None if pages_needed > self.pool.num_pages() => {
                Err(Refused::NoRoom { prompt_tokens, max_new_tokens, pages_needed, num_pages, page_size })
            }
            None => Ok(()),
        }
    }

    /// Pages that a sequence at its longest needs at once. Its last token is never computed.
    fn num_pages_for(&self, max_tokens: usize) -> usize {
        self.window().num_pages_at_once(max_tokens - 1, 1)
    }

    /// The one place where sequences end.
    pub(crate) fn finish(&mut self, id: SequenceId, reason: FinishReason) -> Option<GenerationEvent> {
        let sequence = self.sequences.remove(&id)?;
        self.shares.leave(sequence.place.tenant);
        match sequence.state {
            State::Waiting => self.waiting.remove(&sequence.place),
            State::Preempted => self.preempted.remove(&sequence.place),
            State::Running(seat) => {
                self.vacate(id, seat);
                self.running.remove(&sequence.place)
            }
        };
        Some(GenerationEvent::Finished { sequence: id, reason })
    }

    /// Takes a running sequence's seat, because others need its pages or what it read is wrong.
    pub(crate) fn preempt(&mut self, place: Place) {
        self.totals.preemptions += u64::from(self.unseat(place));
    }

    /// Takes a running sequence's seat. Its tokens are kept, results in flight still come. False: it has none.
    pub(crate) fn unseat(&mut self, place: Place) -> bool {
        let Some(sequence) = self.sequences.get_mut(&place.id) else { return false };
        if !matches!(sequence.state, State::Running(_)) {
            return false;
        }
        sequence.waits_for = None;
        if let State::Running(seat) = std::mem::replace(&mut sequence.state, State::Preempted) {
            self.running.remove(&place);
            self.preempted.insert(place);
            self.vacate(place.id, seat);
        }
        true
    }

    /// Returns row and pages: at once if no step is in flight, else when the last one sent is back.
    fn vacate(&mut self, sequence: SequenceId, mut seat: Seat) {
        seat.table.withdraw(&mut self.pool);
        match self.in_flight.back() {
            Some(last) => self.held.push(Held { until: last.step, sequence, seat }),
            None => self.release(seat),
        }
    }

    /// Step `step` is back: what was held for it is free.
    pub(crate) fn release_held(&mut self, step: u64) {
        let (free, held) = std::mem::take(&mut self.held).into_iter().partition(|held| held.until <= step);
        self.held = held;
        let free: Vec<Held> = free;
        for held in free {
            self.release(held.seat);
        }
    }

    fn release(&mut self, seat: Seat) {
        self.rows.release(seat.row);
        seat.table.release(&mut self.pool);
    }
}
