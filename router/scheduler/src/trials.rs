//! A step that failed as a whole blames nobody. Its sequences are tried again in halves, each half by itself, until one
//! fails alone: that is the culprit, and the only one to fail. A sequence that has got a token since is cleared.
//!
//! The halves are a stack: the last is tried, the others wait. With n sequences the culprit is found in about log2 n failed
//! steps, and the others lose those and nothing else.
//!
//! Where one after the other fails alone and no step succeeds between them, it is not they: a device can be broken and say
//! so like any error of a model. Then nobody more is blamed, and the workers count as lost. Only different prompts say
//! that: one that has failed alone does so again when it is asked again, on the best of devices.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use crate::SequenceId;
use crate::planning::{Draft, Entrance};
use crate::scheduler::{Scheduler, SentStep};
use crate::sequence::{Place, Sequence};

/// Prompts that may fail alone, one after the other, before it is taken to be somebody else's fault.
const MAX_CULPRITS: u32 = 3;
/// So many of those that have failed alone are known again. Few groups of workers are tried, and each adds one.
const MAX_KNOWN: usize = 64;

/// Sets of sequences that are to be computed with nobody else, the next one last.
#[derive(Debug, Default)]
pub(crate) struct Trials {
    sets: Vec<Vec<SequenceId>>,
    /// How many have failed alone since a step succeeded, as far as workers were not replaced for them.
    num_culprits: u32,
    /// The prompts of all of these, by their hashes.
    culprits: VecDeque<u64>,
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

    /// Whoever fails alone now is not to blame, unless it is for the same prompt as before.
    fn has_too_many_culprits(&self, prompt: &[u32]) -> bool {
        self.num_culprits >= MAX_CULPRITS && !self.culprits.contains(&hash(prompt))
    }

    /// The sequence of this prompt has failed alone.
    fn blame(&mut self, prompt: &[u32]) {
        let culprit = hash(prompt);
        if self.culprits.contains(&culprit) {
            return;
        }
        if self.culprits.len() == MAX_KNOWN {
            self.culprits.pop_front();
        }
        self.culprits.push_back(culprit);
        self.num_culprits += 1;
    }

    /// A step has succeeded.
    pub(crate) fn step_done(&mut self) {
        self.num_culprits = 0;
        self.culprits.clear();
    }
}

fn hash(prompt: &[u32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    prompt.hash(&mut hasher);
    hasher.finish()
}

impl Scheduler {
    /// Every sequence of a failed step starts again, as far as it has not ended, and is tried in one of two halves. `false`:
    /// it was one alone, which is to blame.
    pub(crate) fn retry_in_halves(&mut self, step: &mut SentStep) -> bool {
        // Who has ended meanwhile, or is void, was computed all the same and may have been the reason.
        if step.work.len() < 2 {
            if let Some(sequence) = self.one_alone(step) {
                let prompt = sequence.prompt().to_vec();
                self.trials.blame(&prompt);
            }
            return false;
        }
        let suspects = self.start_again(step);
        self.trials.split(suspects);
        true
    }

    /// The one sequence of a step that is nobody else's, if it has not ended: if the step fails, that one is to blame.
    fn one_alone(&self, step: &SentStep) -> Option<&Sequence> {
        match &step.work[..] {
            [work] if !work.is_void => self.sequences.get(&work.sequence),
            _ => None,
        }
    }

    /// Whether a step that fails is one sequence's that is not to blame: too many others have failed alone before it.
    pub(crate) fn is_one_too_many(&self, step: &SentStep) -> bool {
        self.one_alone(step).is_some_and(|sequence| self.trials.has_too_many_culprits(sequence.prompt()))
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
