//! How long a step may take before it counts as stuck. Pure; learned from the steps before it, so that a slow machine
//! gets the time that it needs and a fast one is found out soon.

use std::time::Duration;

use millrace_scheduler::StepPlan;

/// A step may take so many times what steps like it took.
const FACTOR: f64 = 10.0;
/// Steps of fewer units cost what any step costs; larger ones tell what a unit costs.
const LARGE: f64 = 64.0;
/// What a slow step has taught is forgotten by so much with every step of its kind.
const DECAY: f64 = 0.99;
/// Before any step has been seen: seconds per step and per unit, slower than any machine that is of use.
const UNKNOWN_STEP: f64 = 3.0;
const UNKNOWN_UNIT: f64 = 1.0;
/// Attention to so many positions counts as much as the rest of a token. Rather too few: then long contexts get more time.
const CONTEXT_OF_A_UNIT: f64 = 1024.0;

/// Work of a step: its tokens, each with what it attends to.
pub(crate) fn units(plan: &StepPlan) -> f64 {
    let of_work = |work: &millrace_scheduler::Work| {
        let (start, count) = (f64::from(work.start), f64::from(work.count));
        count * (1.0 + (start + count) / CONTEXT_OF_A_UNIT)
    };
    plan.work.iter().map(of_work).sum()
}

/// Seconds that steps took lately, the slowest counting most.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    floor: Duration,
    step: Option<f64>,
    unit: Option<f64>,
}

impl Bound {
    /// No step counts as stuck before `floor`, whatever was learned.
    pub(crate) fn new(floor: Duration) -> Self {
        Self { floor, step: None, unit: None }
    }

    pub(crate) fn set_floor(&mut self, floor: Duration) {
        self.floor = floor;
    }

    pub(crate) fn learn(&mut self, units: f64, took: Duration) {
        let took = took.as_secs_f64();
        let slowest = |known: Option<f64>, now: f64| Some(known.map_or(now, |known| now.max(known * DECAY)));
        if units < LARGE {
            self.step = slowest(self.step, took);
        } else {
            self.unit = slowest(self.unit, (took - self.step.unwrap_or(0.0)).max(0.0) / units);
        }
    }

    pub(crate) fn limit(&self, units: f64) -> Duration {
        let unknown = if units < LARGE { 0.0 } else { UNKNOWN_UNIT };
        let expected = self.step.unwrap_or(UNKNOWN_STEP) + self.unit.unwrap_or(unknown) * units;
        self.floor.saturating_add(Duration::try_from_secs_f64(FACTOR * expected).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use millrace_scheduler::{Row, SequenceId, Work};

    use super::*;

    const FLOOR: Duration = Duration::from_secs(30);

    fn chunk(start: u32, count: u32) -> f64 {
        let work = vec![Work { sequence: SequenceId(1), row: Row(0), start, count, samples: false }];
        units(&StepPlan { work, ..StepPlan::default() })
    }

    #[test]
    fn an_honest_step_is_never_over_its_bound_on_a_machine_of_any_speed() {
        // Seconds of a decode step and of one prompt token without context, from an accelerator to a bad laptop.
        for (step, token) in [(0.01, 1e-6), (0.05, 1e-3), (2.0, 0.1), (30.0, 2.0)] {
            let mut bound = Bound::new(FLOOR);
            let took = |start: u32, count: u32| {
                let attention = 1.0 + f64::from(start + count) / 4096.0;
                Duration::from_secs_f64(step + token * f64::from(count) * attention)
            };
            for _ in 0..20 {
                for start in (0..64).map(|chunk| chunk * 2048) {
                    assert!(took(start, 2048) < bound.limit(chunk(start, 2048)), "{step} {token} {start}");
                    bound.learn(chunk(start, 2048), took(start, 2048));
                }
                for context in 131_072..131_200 {
                    assert!(took(context, 1) < bound.limit(chunk(context, 1)) + FLOOR);
                    bound.learn(1.0, took(0, 1));
                }
            }
        }
    }

    #[test]
    fn what_was_learned_makes_a_fast_machine_strict() {
        let mut bound = Bound::new(FLOOR);
        assert!(bound.limit(4096.0) > Duration::from_secs(3600), "nothing is known yet");
        bound.learn(1.0, Duration::from_millis(20));
        bound.learn(4096.0, Duration::from_millis(500));
        assert!(bound.limit(1.0) < FLOOR + Duration::from_secs(1));
        assert!(bound.limit(4096.0) < FLOOR + Duration::from_secs(6));
    }

    #[test]
    fn a_bound_beyond_all_time_is_the_longest_there_is() {
        assert_eq!(Bound::new(FLOOR).limit(f64::MAX), Duration::MAX);
        assert_eq!(Bound::new(Duration::from_secs(u64::MAX)).limit(1.0), Duration::MAX);
    }

    #[test]
    fn one_slow_step_is_forgotten() {
        let mut bound = Bound::new(FLOOR);
        bound.learn(1.0, Duration::from_secs(100));
        assert!(bound.limit(1.0) > Duration::from_secs(1000));
        for _ in 0..1000 {
            bound.learn(1.0, Duration::from_millis(10));
        }
        assert!(bound.limit(1.0) < FLOOR + Duration::from_secs(11));
    }
}
