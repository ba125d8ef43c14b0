//! Applying a step's result: tokens in, events out.

use crate::event::{FinishReason, GenerationEvent, WrongResult};
use crate::scheduler::{Scheduler, SentStep};
use crate::sequence::{PromptLogprobs, Seat, State};
use crate::{Failure, NO_TOKEN, PromptLogprob, Sampled, SequenceId, StepResult};

impl Scheduler {
    /// Applies the result of the oldest step in flight. Answers for sequences that have ended meanwhile are dropped.
    ///
    /// An error means that nothing was applied and that the workers cannot be trusted any more.
    pub fn apply(&mut self, result: StepResult) -> Result<Vec<GenerationEvent>, WrongResult> {
        let mut step = self.take_answered_step(&result)?;
        let mut events = Vec::with_capacity(result.sampled.len() + 1);
        if !self.retry(&mut step, &result) {
            for failure in result.failed {
                self.fail(&step, failure, &mut events);
            }
        }
        for answer in result.prompt_logprobs {
            let work = &step.work[answer.work as usize];
            if !work.is_void {
                self.collect(work.sequence, work.start, answer.logprobs);
            }
        }
        let sampling = step.work.iter().filter(|work| work.samples);
        for (work, sampled) in sampling.zip(result.sampled) {
            if !work.is_void {
                self.append(work.sequence, sampled, &mut events);
            }
        }
        self.release_held(step.step);
        self.return_unseen_pages(&step);
        for &source in &step.sources {
            self.pool.release(source);
        }
        Ok(events)
    }

    /// Has the sequences of a step that failed as a whole tried again. `false`: it did not, or it is known of whom.
    fn retry(&mut self, step: &mut SentStep, result: &StepResult) -> bool {
        if !result.whole_step {
            // Behind a failed step its sequences take no part in the one that was sent already: that shows nothing.
            let has_failed = |id| result.failed.iter().any(|failure| failure.sequence == id);
            if step.work.iter().any(|work| !work.is_void && !has_failed(work.sequence)) {
                self.allowance.step_done(self.config.max_rows);
                self.trials.step_done();
            }
            return false;
        }
        if result.out_of_memory { self.retry_smaller(step) } else { self.retry_in_halves(step) }
    }

    fn take_answered_step(&mut self, result: &StepResult) -> Result<SentStep, WrongResult> {
        let oldest = self.in_flight.front().ok_or(WrongResult::NothingInFlight { step: result.step })?;
        check_answer(oldest, result)?;
        let fails_as_a_whole = result.whole_step && !result.out_of_memory;
        if fails_as_a_whole && self.is_one_too_many(oldest) {
            return Err(WrongResult::EverybodyFails { step: result.step });
        }
        self.in_flight.pop_front().ok_or(WrongResult::NothingInFlight { step: result.step })
    }

    /// Ends the sequence of a failed work entry, and undoes what others built on it.
    fn fail(&mut self, step: &SentStep, failure: Failure, events: &mut Vec<GenerationEvent>) {
        let Some(work) = step.work.iter().find(|work| work.sequence == failure.sequence && !work.is_void) else {
            return;
        };
        self.forget_pages(work.sequence, work.start);
        self.restart_readers(step.step);
        events.extend(self.finish(work.sequence, FinishReason::Failed(failure.message)));
    }

    /// What a sequence computed from position `start` on is not to be found by others.
    pub(crate) fn forget_pages(&mut self, id: SequenceId, start: usize) {
        let first_page = self.pool.paging().num_full_pages(start);
        let running = self.sequences.get(&id).and_then(|sequence| sequence.seat());
        let held = self.held.iter().find(|held| held.sequence == id).map(|held| &held.seat);
        if let Some(seat) = running.or(held) {
            seat.table.forget_from(&mut self.pool, first_page);
        }
    }

    /// Starts again every sequence that joined after `step` with pages of others: some may have been filled by `step`,
    /// which has failed. What they made since is not to be found, what they sampled since is void. Rare, hence not picky.
    pub(crate) fn restart_readers(&mut self, step: u64) {
        let is_reader = |seat: &Seat| seat.first_step > step && seat.num_shared_tokens > 0;
        let mut readers: Vec<SequenceId> = Vec::new();
        let paging = self.pool.paging();
        let running = self.running.iter().filter_map(|place| Some((place.id, self.sequences.get(&place.id)?.seat()?)));
        let held = self.held.iter().map(|held| (held.sequence, &held.seat));
        for (id, seat) in running.chain(held).filter(|(_, seat)| is_reader(seat)) {
            seat.table.forget_from(&mut self.pool, paging.num_full_pages(seat.num_shared_tokens));
            readers.push(id);
        }
        for id in readers {
            self.restart(id);
        }
    }

    /// What a sequence does in steps in flight is void; it is to be computed again from what it had before.
    pub(crate) fn restart(&mut self, id: SequenceId) {
        let in_flight = self.in_flight.iter_mut().flat_map(|step| &mut step.work);
        in_flight.filter(|work| work.sequence == id).for_each(|work| work.is_void = true);
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.num_pending_tokens = 0;
        let place = sequence.place;
        self.preempt(place);
    }

    fn collect(&mut self, id: SequenceId, start: usize, logprobs: Vec<PromptLogprob>) {
        if let Some(sequence) = self.sequences.get_mut(&id)
            && let PromptLogprobs::Collecting(all) = &mut sequence.prompt_logprobs
            && let Some(place) = all.get_mut(start..start + logprobs.len())
        {
            for (place, logprob) in place.iter_mut().zip(logprobs) {
                *place = logprob;
            }
        }
    }

    /// A sequence has got its next token.
    fn append(&mut self, id: SequenceId, sampled: Sampled, events: &mut Vec<GenerationEvent>) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.num_pending_tokens -= 1;
        (sequence.num_losses, sequence.num_shortages) = (0, 0);
        self.trials.clear(id);
        if sampled.token_id == NO_TOKEN {
            let reason = FinishReason::Failed("the worker sampled no token".to_owned());
            events.extend(self.finish(id, reason));
            return;
        }
        sequence.tokens.push(sampled.token_id);
        let finish_reason = sequence.finish_reason();
        if let State::Running(seat) = &mut sequence.state {
            seat.publish(&mut self.pool, &sequence.tokens);
        }
        if !sequence.is_prefilled {
            events.extend(self.prefilled(id));
        }
        events.push(GenerationEvent::Token { sequence: id, sampled });
        if let Some(reason) = finish_reason {
            events.extend(self.finish(id, reason));
        }
    }

    /// A sequence's prompt is computed. Its logprobs are those of its group: who has not started needs not compute them.
    fn prefilled(&mut self, id: SequenceId) -> Option<GenerationEvent> {
        let sequence = self.sequences.get_mut(&id)?;
        sequence.is_prefilled = true;
        let cached_tokens = sequence.num_cached_tokens.unwrap_or(0) as u32;
        let prompt_logprobs = match std::mem::replace(&mut sequence.prompt_logprobs, PromptLogprobs::NotAsked) {
            PromptLogprobs::NotAsked => Vec::new(),
            PromptLogprobs::Collecting(all) | PromptLogprobs::Complete(all) => all,
        };
        for other in sequence.group.clone().iter() {
            if let Some(other) = self.sequences.get_mut(other)
                && matches!(other.state, State::Waiting)
                && other.collects_prompt_logprobs()
            {
                other.prompt_logprobs = PromptLogprobs::Complete(prompt_logprobs.clone());
            }
        }
        Some(GenerationEvent::Prefilled { sequence: id, cached_tokens, prompt_logprobs })
    }
}

/// Whether `result` is a whole answer to `step`.
fn check_answer(step: &SentStep, result: &StepResult) -> Result<(), WrongResult> {
    if result.step != step.step {
        return Err(WrongResult::Step { expected: step.step, got: result.step });
    }
    let (expected, got) = (step.work.iter().filter(|work| work.samples).count(), result.sampled.len());
    if expected != got {
        return Err(WrongResult::Sampled { step: step.step, expected, got });
    }
    check_prompt_logprobs(step, result)
}

/// Every work entry that has to answer prompt logprobs does, unless its sequence failed; no other does.
fn check_prompt_logprobs(step: &SentStep, result: &StepResult) -> Result<(), WrongResult> {
    let has_failed = |id| result.failed.iter().any(|failure| failure.sequence == id);
    let wrong = |work, expected, got| Err(WrongResult::PromptLogprobs { step: step.step, work, expected, got });
    for answer in &result.prompt_logprobs {
        let work = answer.work as usize;
        let expected = step.work.get(work).map_or(0, |work| work.num_prompt_logprobs);
        if answer.logprobs.len() != expected {
            return wrong(work, expected, answer.logprobs.len());
        }
    }
    for (index, work) in step.work.iter().enumerate().filter(|(_, work)| work.num_prompt_logprobs > 0) {
        let num_answers = result.prompt_logprobs.iter().filter(|answer| answer.work as usize == index).count();
        if num_answers != 1 && !has_failed(work.sequence) {
            return wrong(index, work.num_prompt_logprobs, num_answers * work.num_prompt_logprobs);
        }
    }
    Ok(())
}
