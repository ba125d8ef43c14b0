//! How long a step may take before it counts as stuck. Pure; learned from the steps before it, so that a slow machine
//! gets the time that it needs and a fast one is found out soon. Outlives the workers: those that come next are as fast.
//!
//! Before any large step has been seen, a token costs what it cost in the trial that `Prepare` made. That is rather too much:
//! a trial is the first of its kind, and on a CPU it may have few tokens, of which each costs more than among many.

use std::time::Duration;

use millrace_scheduler::StepPlan;

use crate::v1::Prepared;

/// A step may take so many times what steps like it took.
const FACTOR: f64 = 10.0;
/// But no more seconds than this, or so many times what is expected, if that is more: what is expected of a step by others
/// that were much smaller can be far too much, and the more so the larger it is.
const LONG: f64 = 600.0;
const LONG_FACTOR: f64 = 5.0;
/// Steps of fewer units cost what any step costs; larger ones tell what a unit costs.
const LARGE: f64 = 64.0;
/// What a slow step has taught is forgotten by so much with every step of its kind.
const DECAY: f64 = 0.99;
/// Before any step has been seen: seconds per step and, if no trial is known either, per unit; slower than any machine that
/// is of use.
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
pub struct Bound {
    floor: Duration,
    step: Option<f64>,
    unit: Option<f64>,
    /// Per token, in the trial.
    trial: Option<f64>,
}

impl Bound {
    /// No step counts as stuck before `floor`, whatever was learned.
    pub fn new(floor: Duration) -> Self {
        Self { floor, step: None, unit: None, trial: None }
    }

    /// Takes what a rank says of the trial that it made, if it says something.
    pub fn tried(&mut self, prepared: &Prepared) {
        if prepared.trial_tokens > 0 {
            let took = Duration::from_micros(prepared.trial_us).as_secs_f64();
            self.trial = Some(took / f64::from(prepared.trial_tokens));
        }
    }

    pub(crate) fn set_floor(&mut self, floor: Duration) {
        self.floor = floor;
    }

    pub(crate) fn learn(&mut self, units: f64, took: Duration) {
        let took = took.as_secs_f64();
        let slowest = |known: Option<f64>, now: f64| Some(known.map_or(now, |known| now.max(known * DECAY)));
        if units < LARGE {
            self.step = slowest(self.step, took);
            return;
        }
        // Where most of the time is what any step takes, the rest says too little of what a unit costs.
        let (step, beyond) = (self.step.unwrap_or(0.0), took - self.step.unwrap_or(0.0));
        if beyond > step {
            self.unit = slowest(self.unit, beyond / units);
        }
    }

    pub(crate) fn limit(&self, units: f64) -> Duration {
        let known = self.unit.or(self.trial);
        let unknown = if units < LARGE { 0.0 } else { UNKNOWN_UNIT };
        let expected = self.step.unwrap_or(UNKNOWN_STEP) + known.unwrap_or(unknown) * units;
        // Many times what is not known is nothing.
        let long = LONG.max(LONG_FACTOR * (self.step.unwrap_or(0.0) + known.unwrap_or(0.0) * units));
        let seconds = (FACTOR * expected).min(long);
        self.floor.saturating_add(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
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

    fn trial(trial_tokens: u32, took: Duration) -> Prepared {
        Prepared { trial_tokens, trial_us: took.as_micros() as u64, ..Prepared::default() }
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
            bound.tried(&trial(16, took(0, 16)));
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
        assert_eq!(bound.limit(4096.0), FLOOR + Duration::from_secs(600), "nothing is known yet");
        bound.learn(1.0, Duration::from_millis(20));
        bound.learn(4096.0, Duration::from_millis(500));
        assert!(bound.limit(1.0) < FLOOR + Duration::from_secs(1));
        assert!(bound.limit(4096.0) < FLOOR + Duration::from_secs(6));
    }

    #[test]
    fn before_any_large_step_the_trial_says_what_one_takes() {
        let mut bound = Bound::new(FLOOR);
        bound.tried(&Prepared::default());
        assert_eq!(bound.limit(chunk(0, 512)), FLOOR + Duration::from_secs(600), "it says nothing");
        // An accelerator runs the largest step there is.
        bound.tried(&trial(4096, Duration::from_millis(400)));
        assert!(bound.limit(chunk(0, 512)) < FLOOR + Duration::from_secs(32));
        assert!(bound.limit(chunk(0, 4096)) < FLOOR + Duration::from_secs(60));
        // Two slow cores and a model of 7e9 weights: 16 tokens, and then a step of nearly ten minutes.
        bound.tried(&trial(16, Duration::from_millis(2300)));
        assert!(bound.limit(chunk(0, 4096)) > Duration::from_secs(10 * 600));
        // What large steps did take counts more, and no trial of the next workers changes it.
        bound.learn(chunk(0, 512), Duration::from_secs(1));
        bound.tried(&trial(16, Duration::from_secs(50)));
        assert!(bound.limit(chunk(0, 512)) < FLOOR + Duration::from_secs(41));
    }

    #[test]
    fn small_steps_that_are_slow_hide_nothing_of_what_large_ones_take() {
        let mut bound = Bound::new(FLOOR);
        bound.tried(&trial(16, Duration::from_secs(2)));
        bound.learn(52.0, Duration::from_secs(5)); // a short prompt
        for _ in 0..1000 {
            bound.learn(67.0, Duration::from_secs(4)); // forty rows decode
        }
        assert!(bound.limit(chunk(0, 2048)) > Duration::from_secs(5 * 205));
        bound.learn(chunk(0, 2048), Duration::from_secs(205));
        for _ in 0..1000 {
            bound.learn(67.0, Duration::from_secs(4));
        }
        assert!(bound.limit(chunk(2048, 2048)) > Duration::from_secs(5 * 220));
    }

    #[test]
    fn what_one_step_teaches_of_much_larger_ones_is_not_taken_ten_times() {
        let mut bound = Bound::new(FLOOR);
        bound.learn(1.0, Duration::from_millis(20));
        // A rank stood still for a moment.
        bound.learn(64.0, Duration::from_secs(2));
        let expected = 0.02 + 1.98 / 64.0 * 20_000.0;
        let limit = bound.limit(20_000.0).as_secs_f64();
        assert!((limit - FLOOR.as_secs_f64() - LONG_FACTOR * expected).abs() < 1.0, "{limit}");
        assert_eq!(bound.limit(2500.0), FLOOR + Duration::from_secs(600));
    }

    #[test]
    fn a_bound_beyond_all_time_is_the_longest_there_is() {
        let mut bound = Bound::new(FLOOR);
        bound.learn(64.0, Duration::from_secs(1));
        assert_eq!(bound.limit(f64::MAX), Duration::MAX);
        assert_eq!(Bound::new(Duration::from_secs(u64::MAX)).limit(1.0), Duration::MAX);
    }

    #[test]
    fn one_slow_step_is_forgotten() {
        let mut bound = Bound::new(FLOOR);
        bound.learn(1.0, Duration::from_secs(100));
        assert!(bound.limit(1.0) > Duration::from_secs(500));
        for _ in 0..1000 {
            bound.learn(1.0, Duration::from_millis(10));
        }
        assert!(bound.limit(1.0) < FLOOR + Duration::from_secs(11));
    }
}
