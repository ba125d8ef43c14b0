//! The sequences of each tenant, in their order, and the order of the running ones in a step.

use std::collections::BTreeSet;
use std::ops::{Bound, RangeInclusive};

use crate::planning::Draft;
use crate::scheduler::Scheduler;
use crate::sequence::Place;
use crate::{SequenceId, TenantId};

/// Which of a tenant's running sequences.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    /// Those with one token to compute.
    NextTokens,
    /// The others, as far as they have not joined in this step.
    Prompts,
}

/// All places of one tenant.
pub(crate) fn lane(tenant: TenantId) -> RangeInclusive<Place> {
    let first = Place { tenant, priority: i32::MIN, arrival: 0, id: SequenceId(0) };
    first..=Place { tenant, priority: i32::MAX, arrival: u64::MAX, id: SequenceId(u64::MAX) }
}

/// The first of a tenant's places, or the one after `place`.
pub(crate) fn after(places: &BTreeSet<Place>, tenant: TenantId, place: Option<Place>) -> Option<Place> {
    let (start, end) = lane(tenant).into_inner();
    let start = place.map_or(Bound::Included(start), Bound::Excluded);
    places.range((start, Bound::Included(end))).next().copied()
}

impl Scheduler {
    /// Whoever runs, in the order of this step.
    pub(crate) fn advance_running(&mut self, draft: &mut Draft) {
        for tenant in draft.lanes.clone() {
            self.advance_lane(tenant, Part::Whole, draft);
        }
    }

    /// A tenant's running sequences, oldest first, so that only sequences not yet in the plan can be preempted.
    pub(crate) fn advance_lane(&mut self, tenant: TenantId, part: Part, draft: &mut Draft) {
        let mut next = after(&self.running, tenant, None);
        while let Some(place) = next {
            if self.is_in(part, place, draft) {
                self.advance(place, draft);
            }
            next = after(&self.running, tenant, Some(place));
        }
    }

    fn is_in(&self, part: Part, place: Place, draft: &Draft) -> bool {
        let Some(sequence) = self.sequences.get(&place.id) else { return false };
        let is_prompt = sequence.num_runnable_tokens() > 1;
        match part {
            Part::Whole => true,
            Part::NextTokens => !is_prompt,
            Part::Prompts => is_prompt && sequence.seat().is_some_and(|seat| seat.first_step < draft.plan.step),
        }
    }

    /// The last of the running sequences that come after `place` in this step and are not in its plan yet.
    pub(crate) fn last_to_plan(&self, place: Place, draft: &Draft) -> Option<Place> {
        let in_order = draft.lanes.iter().flat_map(|tenant| self.running.range(lane(*tenant)));
        let mut later = in_order.rev().take_while(|other| **other != place);
        later.find(|other| draft.plan.work.iter().all(|work| work.sequence != other.id)).copied()
    }
}
