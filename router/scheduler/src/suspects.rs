//! A request that kills its workers must not do so for ever. A sequence that took part in steps that never came back, twice
//! in a row and without a token in between, is suspect: it is replayed alone. If the workers die again it fails, and nobody
//! else does; with its next token it is cleared.

use std::collections::HashSet;

use crate::SequenceId;
use crate::planning::Draft;
use crate::scheduler::Scheduler;
use crate::sequence::{Place, Sequence};

/// Deaths in a row after which a sequence is replayed alone; one more and it fails.
const MAX_LOSSES: u32 = 2;

impl Sequence {
    fn is_suspect(&self) -> bool {
        self.num_losses >= MAX_LOSSES
    }

    pub(crate) fn is_convicted(&self) -> bool {
        self.num_losses > MAX_LOSSES
    }
}

impl Scheduler {
    /// The workers have died: whose work was in flight may have been the reason.
    pub(crate) fn note_losses(&mut self) {
        let work = self.in_flight.iter().flat_map(|step| &step.work);
        let involved: HashSet<SequenceId> = work.map(|work| work.sequence).collect();
        for id in involved {
            if let Some(sequence) = self.sequences.get_mut(&id) {
                sequence.num_losses += 1;
                self.has_suspects |= sequence.is_suspect();
            }
        }
    }

    /// The sequence that has to be alone now, if any: the one that is already, or else the oldest.
    pub(crate) fn suspect(&mut self) -> Option<Place> {
        if !self.has_suspects {
            return None;
        }
        let is_suspect = |place: &&Place| self.sequences.get(&place.id).is_some_and(Sequence::is_suspect);
        let suspect = self.running.iter().chain(&self.preempted).find(is_suspect).copied();
        self.has_suspects = suspect.is_some();
        suspect
    }

    /// Plans a step of `suspect` and nobody else, as soon as nobody else's is in flight.
    pub(crate) fn replay_alone(&mut self, suspect: Place, draft: &mut Draft) {
        if self.running.contains(&suspect) {
            return self.advance(suspect, draft);
        }
        while let Some(&cleared) = self.running.last() {
            self.preempt(cleared);
        }
        if self.in_flight.is_empty() {
            self.admit(suspect, draft);
        }
    }
}
