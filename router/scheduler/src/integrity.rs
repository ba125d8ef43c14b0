//! Recounts everything that is counted twice for speed. For tests and for debugging a live scheduler.

use std::collections::BTreeSet;

use crate::Row;
use crate::scheduler::Scheduler;
use crate::sequence::{Seat, Sequence, State};

impl Scheduler {
    /// Whether every page, row and sequence is where it should be, exactly once. Costs time in proportion to all of them.
    pub fn check_integrity(&self) -> Result<(), String> {
        self.check_states()?;
        self.check_rows()?;
        self.check_pages()?;
        self.check_flight()?;
        self.check_shares()
    }

    fn seats(&self) -> impl Iterator<Item = &Seat> {
        let running = self.sequences.values().filter_map(Sequence::seat);
        running.chain(self.held.iter().map(|held| &held.seat))
    }

    fn check_states(&self) -> Result<(), String> {
        for (id, sequence) in &self.sequences {
            let expected = match sequence.state {
                State::Waiting => (true, false, false),
                State::Running(_) => (false, true, false),
                State::Preempted => (false, false, true),
            };
            let place = &sequence.place;
            let found = (self.waiting.contains(place), self.running.contains(place), self.preempted.contains(place));
            if found != expected || place.id != *id {
                return Err(format!("sequence {}: waiting, running, preempted = {found:?}, not {expected:?}", id.0));
            }
        }
        let num_queued = self.waiting.len() + self.running.len() + self.preempted.len();
        if num_queued != self.sequences.len() {
            return Err(format!("{num_queued} sequences are queued, {} exist", self.sequences.len()));
        }
        Ok(())
    }

    fn check_rows(&self) -> Result<(), String> {
        let mut rows: Vec<Row> = self.seats().map(|seat| seat.row).chain(self.rows.iter_free()).collect();
        rows.sort_unstable();
        if !rows.iter().copied().eq((0..self.config.max_rows).map(Row)) {
            return Err(format!("rows free, running and held are {rows:?} of {}", self.config.max_rows));
        }
        Ok(())
    }

    fn check_pages(&self) -> Result<(), String> {
        let paging = self.pool.paging();
        let mut num_owners = vec![0; self.pool.num_pages()];
        for page in self.seats().flat_map(|seat| seat.table.held()) {
            num_owners[page.0 as usize] += 1;
        }
        for (id, sequence) in &self.sequences {
            let Some(seat) = sequence.seat() else { continue };
            let pages = seat.table.pages();
            // A page that is still written belongs to its writer alone.
            let written = pages.iter().skip(paging.num_full_pages(seat.num_computed_tokens));
            if let Some(page) = written.into_iter().find(|page| num_owners[page.0 as usize] != 1) {
                return Err(format!("sequence {} writes page {}, which others own too", id.0, page.0));
            }
            let held = seat.table.held();
            let num_distinct = held.iter().map(|page| page.0).collect::<BTreeSet<_>>().len();
            if paging.room(pages.len()) < seat.num_computed_tokens || num_distinct != held.len() {
                return Err(format!("sequence {} has computed {} in {pages:?}", id.0, seat.num_computed_tokens));
            }
            if seat.num_computed_tokens >= sequence.tokens.len() && seat.table.num_promises(&self.pool) > 0 {
                return Err(format!("sequence {} promises pages but has no tokens left to fill them", id.0));
            }
        }
        for source in self.in_flight.iter().flat_map(|step| &step.sources) {
            num_owners[source.0 as usize] += 1;
        }
        self.check_windows()?;
        self.pool.check(&num_owners, self.seats().map(|seat| seat.table.num_promises(&self.pool)).sum())
    }

    /// Whatever is computed next, or again by a step in flight, finds the pages of its window.
    fn check_windows(&self) -> Result<(), String> {
        let seated = self.sequences.iter().filter_map(|(id, sequence)| Some((*id, sequence.seat()?)));
        for (id, seat) in seated.chain(self.held.iter().map(|held| (held.sequence, &held.seat))) {
            let in_flight =
                self.in_flight.iter().filter(|step| step.step >= seat.first_step).flat_map(|step| &step.work);
            let starts = in_flight.filter(|work| work.sequence == id).map(|work| work.start);
            let next = starts.min().unwrap_or(seat.num_computed_tokens);
            let (num_released, num_unseen) = (seat.table.num_released(), self.window().num_unseen_pages(next));
            if num_released > num_unseen || (self.in_flight.is_empty() && num_released < num_unseen) {
                return Err(format!("sequence {} has given back {num_released} pages, {num_unseen} are unseen", id.0));
            }
        }
        Ok(())
    }

    fn check_flight(&self) -> Result<(), String> {
        for (id, sequence) in &self.sequences {
            let in_flight = self.in_flight.iter().flat_map(|step| &step.work);
            let num_sampling = in_flight.filter(|work| work.sequence == *id && work.samples && !work.is_void).count();
            if num_sampling != sequence.num_pending_tokens {
                return Err(format!(
                    "sequence {} expects {} tokens of {num_sampling}",
                    id.0, sequence.num_pending_tokens
                ));
            }
        }
        let oldest = self.in_flight.front().map_or(self.num_steps_sent + 1, |step| step.step);
        let is_in_order = self.in_flight.iter().map(|step| step.step).eq(oldest..=self.num_steps_sent);
        let is_overdue = |until| until < oldest || until > self.num_steps_sent;
        if !is_in_order || self.held.iter().any(|held| is_overdue(held.until)) {
            return Err(format!("steps {oldest} to {} are in flight, held: {:?}", self.num_steps_sent, self.held));
        }
        Ok(())
    }
}
