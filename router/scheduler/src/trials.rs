//! A step that failed as a whole blames nobody. Its sequences are tried again in halves, each half by itself, until one
//! fails alone: that is the culprit, and the only one to fail. A sequence that has got a token since is cleared.
//!
//! The halves are a stack: the last is tried, the others wait. With n sequences the culprit is found in about log2 n failed
//! steps, and the others lose those and nothing else.
//!
//! Where one after the other fails alone and no step succeeds between them, it is not they: a device can be broken and say
//! so like any error of a model. Then nobody more is blamed, and the workers count as lost.

use crate::SequenceId;
use crate::planning::{Draft, Entrance};
use crate::scheduler::{Scheduler, SentStep};
use crate::sequence::{Place, Sequence};

/// Sequences that may fail alone, one after the other, before it is taken to be somebody else's fault.
const MAX_CULPRITS: u32 = 3;

/// Sets of sequences that are to be computed with nobody else, the next one last.
#[derive(Debug, Default)]
pub(crate) struct Trials {
    sets: Vec<Vec<SequenceId>>,
    /// Who has failed alone since a step succeeded.
    num_culprits: u32,
}

impl Trials {
    /// Has both halves tried, the first one first. Whoever is in them is in no other set.
    pub(crate) fn split(&mut self, mut suspects: Vec<SequenceId>) {
        for set in &mut self.sets {
            set.retain(|id| !suspects.contains(id));
        }
        let others = suspects.split_off(suspects.len() / 2);
        self.sets.extend([others, suspects]);
    }

    /// A sequence has got a token: it is not the one.
    pub(crate) fn clear(&mut self, id: SequenceId) {
        for set in &mut self.sets {
            set.retain(|other| *other != id);
        }
    }

    /// There are new workers. They may run on the same device: until a step succeeds, one that fails alone is enough.
    pub(crate) fn forget(&mut self) {
        self.sets.clear();
        self.num_culprits = self.num_culprits.min(MAX_CULPRITS - 1);
    }

    /// Whoever fails alone now is not to blame.
    pub(crate) fn has_too_many_culprits(&self) -> bool {
        self.num_culprits >= MAX_CULPRITS
    }

    /// A step has succeeded.
    pub(crate) fn step_done(&mut self) {
        self.num_culprits = 0;
    }
}

impl Scheduler {
    /// Every sequence of a failed step starts again, as far as it has not ended, and is tried in one of two halves. `false`:
    /// it was one alone, which is to blame.
    pub(crate) fn retry_in_halves(&mut self, step: &mut SentStep) -> bool {
        // Who has ended meanwhile, or is void, was computed all the same and may have been the reason.
        if step.work.len() < 2 {
            self.trials.num_culprits += u32::from(self.is_one_alone(step));
            return false;
        }
        let suspects = self.start_again(step);
        self.trials.split(suspects);
        true
    }

    /// Whether a step is one sequence's that has not ended: if it fails, that one is to blame.
    pub(crate) fn is_one_alone(&self, step: &SentStep) -> bool {
        matches!(&step.work[..], [work] if !work.is_void && self.sequences.contains_key(&work.sequence))
    }

    /// Nothing of a failed step counts; its sequences, as far as they have not ended, are to be computed again. In order of
    /// arrival.
    pub(crate) fn start_again(&mut self, step: &mut SentStep) -> Vec<SequenceId> {
        let mut suspects: Vec<Place> = Vec::new();
        for work in step.work.iter().filter(|work| !work.is_void) {
            suspects.extend(self.sequences.get(&work.sequence).map(|sequence| sequence.place));
        }
        for work in step.work.iter_mut().filter(|work| !work.is_void) {
            work.is_void = true;
            self.forget_pages(work.sequence, work.start);
        }
        self.restart_readers(step.step);
        for place in &suspects {
            self.restart(place.id);
        }
        suspects.sort_unstable();
        suspects.into_iter().map(|place| place.id).collect()
    }

    /// The sequences that have to be by themselves now, if any.
    pub(crate) fn on_trial(&mut self) -> Option<Vec<SequenceId>> {
        while let Some(set) = self.trials.sets.last_mut() {
            set.retain(|id| self.sequences.contains_key(id));
            if !set.is_empty() {
                return Some(set.clone());
            }
            self.trials.sets.pop();
        }
        None
    }

    /// Plans a step of these sequences and nobody else, as soon as nobody else's is in flight.
    pub(crate) fn try_alone(&mut self, set: &[SequenceId], draft: &mut Draft) {
        let is_other = |place: &&Place| !set.contains(&place.id);
        while let Some(&other) = self.running.iter().rev().find(is_other) {
            self.preempt(other);
        }
        self.advance_running(draft);
        let mut works = self.in_flight.iter().flat_map(|step| &step.work);
        if works.any(|work| work.is_void || !set.contains(&work.sequence)) {
            return;
        }
        let mut places: Vec<Place> = set
            .iter()
            .filter_map(|id| self.sequences.get(id))
            .filter(|one| one.seat().is_none())
            .map(Sequence::place)
            .collect();
        places.sort_unstable();
        for place in places {
            let is_held = self.held.iter().any(|held| held.sequence == place.id);
            if !is_held && self.admit(place, draft) == Entrance::Full {
                break;
            }
        }
    }
}
