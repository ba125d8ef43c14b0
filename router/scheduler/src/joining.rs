//! Who joins a step, one after the other: always the next of the tenant with the least service, what it gets in this step
//! included. Of one tenant: what comes back after a preemption before what is new, unless that has a sooner priority.

use crate::TenantId;
use crate::lanes::{Part, after, lane};
use crate::planning::{Draft, Entrance};
use crate::policy::JoinReason;
use crate::scheduler::Scheduler;
use crate::sequence::Place;

/// Where a tenant's queue stands, in this order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Prompts that run already, as far as they had to wait for others.
    Prompts,
    /// New ones that go before what comes back.
    Sooner,
    Back,
    New,
    Over,
}

/// What one tenant has to do in this step.
pub(crate) struct Queue {
    tenant: TenantId,
    /// What its tenant has used lately, and its service, of this step included.
    turn: (u128, u128),
    stage: Stage,
    /// The last one looked at in this stage.
    last: Option<Place>,
}

impl Queue {
    pub(crate) fn new(tenant: TenantId, turn: (u128, u128), prompts_wait: bool) -> Self {
        let stage = if prompts_wait { Stage::Prompts } else { Stage::Sooner };
        Self { tenant, turn, stage, last: None }
    }

    fn go_on(&mut self, stage: Stage) {
        (self.stage, self.last) = (stage, None);
    }
}

impl Scheduler {
    /// Lets sequences join up to the first that does not fit: what it needs must not go to others. Prompts that run already go
    /// on in any case.
    pub(crate) fn join(&mut self, mut queues: Vec<Queue>, mut may_join: bool, draft: &mut Draft) {
        let is_over = |queue: &&mut Queue| queue.stage == Stage::Over;
        while let Some(queue) = queues.iter_mut().filter(|queue| !is_over(queue)).min_by_key(|queue| queue.turn) {
            let num_tokens = draft.num_prefill_tokens;
            if queue.stage == Stage::Prompts {
                self.advance_lane(queue.tenant, Part::Prompts, draft);
                queue.go_on(Stage::Sooner);
            } else if let Some(place) = self.next_to_join(queue, draft).filter(|_| may_join) {
                if self.has_tokens(place, draft) {
                    may_join = self.admit(place, draft) != Entrance::Full;
                } else {
                    draft.is_rationed = true;
                    // What comes back needs no ration.
                    queue.go_on(if queue.stage == Stage::Sooner { Stage::Back } else { Stage::Over });
                }
            } else {
                queue.stage = Stage::Over;
            }
            queue.turn.1 += self.shares.cost(queue.tenant, num_tokens - draft.num_prefill_tokens);
        }
    }

    /// Whether it is of use to look at it. What comes back has been computed before, mostly.
    fn has_tokens(&self, place: Place, draft: &Draft) -> bool {
        draft.rations.left(place.tenant) > 0 || self.preempted.contains(&place)
    }

    fn next_to_join(&self, queue: &mut Queue, draft: &Draft) -> Option<Place> {
        loop {
            let (tenant, last) = (queue.tenant, queue.last);
            let (found, next) = match queue.stage {
                Stage::Sooner => {
                    let than = self.preempted.range(lane(tenant)).next().map_or(i32::MIN, |first| first.priority);
                    let found = after(&self.waiting, tenant, last).filter(|place| place.priority < than);
                    (found.filter(|_| self.gate_reason(draft).is_some()), Stage::Back)
                }
                // Of those that are held, row and pages of before are still in flight, and with them their last results.
                Stage::Back => {
                    let is_held = |place: &Place| self.held.iter().any(|held| held.sequence == place.id);
                    let mut found = after(&self.preempted, tenant, last);
                    while let Some(held) = found.filter(is_held) {
                        found = after(&self.preempted, tenant, Some(held));
                    }
                    (found, Stage::New)
                }
                Stage::New if self.preempted.range(lane(tenant)).next().is_some() => (None, Stage::Over),
                Stage::New => {
                    let found = after(&self.waiting, tenant, last);
                    (found.filter(|_| self.gate_reason(draft).is_some()), Stage::Over)
                }
                Stage::Prompts | Stage::Over => return None,
            };
            if found.is_some() {
                queue.last = found;
                return found;
            }
            queue.go_on(next);
        }
    }

    /// Why waiting sequences may join in this step, if they may: decided once, before the first of them does.
    pub(crate) fn gate_reason(&self, draft: &Draft) -> Option<JoinReason> {
        *draft.gate.get_or_init(|| self.gate.open(self.waiting.len(), self.running.len()))
    }
}
