//! From steps and tokens in front to seconds: the mathematics of the module's head. Pure.

use std::time::Duration;

use super::StepCost;

/// No estimate goes further.
const LONGEST: f64 = 1e6;

/// What lies before a newcomer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Wait {
    pub(super) cost: StepCost,
    /// `S`.
    pub(super) steps: u64,
    /// `u P`.
    pub(super) prompt_tokens: f64,
    /// `A`.
    pub(super) active_rows: u64,
    /// `B`.
    pub(super) step_tokens: u64,
    /// `p`, as far as the prefix cache is not expected to hold it.
    pub(super) own_tokens: f64,
    /// `R`.
    pub(super) recovery: Duration,
    /// Steps until the first of those who run leaves.
    pub(super) departure_steps: u64,
    /// Where other tenants decode.
    pub(super) guests: Option<Guests>,
}

/// What its tenant's prompts are held to beside the outputs of others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Guests {
    /// `u P`, of the tenant's own.
    pub(super) prompt_tokens: f64,
    /// `g`.
    pub(super) step_tokens: f64,
}

impl Wait {
    /// `W`.
    pub(super) fn in_front(&self) -> Duration {
        let as_guests = self.guests.map_or(0, |guests| guests.steps(guests.prompt_tokens));
        self.recovery.saturating_add(self.time(self.steps.max(as_guests), self.prompt_tokens))
    }

    /// From the begin of its prompt to its first token.
    pub(super) fn own(&self) -> Duration {
        self.time(self.guests.map_or(0, |guests| guests.steps(self.own_tokens)), self.own_tokens)
    }

    pub(super) fn until_departure(&self) -> Duration {
        self.recovery.saturating_add(self.time(self.departure_steps, 0.0))
    }

    /// Until so many prompt tokens more are computed, by such a part of the server.
    pub(super) fn until_computed(&self, num_tokens: u64, share: f64) -> Duration {
        let as_guests = self.guests.filter(|_| share < 1.0).map_or(0, |guests| guests.steps(num_tokens as f64));
        self.recovery.saturating_add(self.time(as_guests, num_tokens as f64 / share))
    }

    fn time(&self, steps: u64, prompt_tokens: f64) -> Duration {
        let beside_rows = self.step_tokens.saturating_sub(self.active_rows).max(1);
        let steps = (steps as f64).max((prompt_tokens / beside_rows as f64).ceil());
        let StepCost { step, token } = self.cost;
        let seconds = step * steps + token * (self.active_rows as f64 * steps + prompt_tokens);
        Duration::try_from_secs_f64(seconds.clamp(0.0, LONGEST)).unwrap_or_default()
    }
}

impl Guests {
    fn steps(self, num_tokens: f64) -> u64 {
        (num_tokens / self.step_tokens.max(1.0)).ceil() as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wait(steps: u64, prompt_tokens: u64) -> Wait {
        Wait {
            cost: StepCost { step: 0.1, token: 0.001 },
            steps,
            prompt_tokens: prompt_tokens as f64,
            active_rows: 10,
            step_tokens: 110,
            own_tokens: 250.0,
            recovery: Duration::ZERO,
            departure_steps: 3,
            guests: None,
        }
    }

    fn close(time: Duration, seconds: f64) {
        assert!((time.as_secs_f64() - seconds).abs() < 1e-9, "{time:?} {seconds}");
    }

    #[test]
    fn nothing_in_front_is_no_wait() {
        assert_eq!(wait(0, 0).in_front(), Duration::ZERO);
    }

    #[test]
    fn steps_cost_what_they_cost_and_prompts_come_with_them() {
        // 5 steps of 10 rows, and 300 tokens of prompts in them.
        close(wait(5, 300).in_front(), 0.5 + 0.001 * (50.0 + 300.0));
        // The prompts need 7 steps beside the rows.
        close(wait(5, 700).in_front(), 0.7 + 0.001 * (70.0 + 700.0));
        close(wait(5, 300).own(), 0.3 + 0.001 * (30.0 + 250.0));
        close(wait(5, 300).until_departure(), 0.3 + 0.001 * 30.0);
    }

    #[test]
    fn guests_need_as_many_steps_as_their_tokens_allow() {
        let guests = Some(Guests { prompt_tokens: 300.0, step_tokens: 20.0 });
        let wait = Wait { guests, ..wait(5, 300) };
        close(wait.in_front(), 1.5 + 0.001 * (150.0 + 300.0));
        close(wait.own(), 1.3 + 0.001 * (130.0 + 250.0));
        close(wait.until_computed(40, 0.5), 0.2 + 0.001 * (20.0 + 80.0));
        close(wait.until_computed(40, 1.0), 0.1 + 0.001 * (10.0 + 40.0));
    }

    #[test]
    fn a_replacement_of_the_workers_comes_before_all() {
        let recovering = Wait { recovery: Duration::from_secs(9), ..wait(0, 0) };
        assert_eq!(recovering.in_front(), Duration::from_secs(9));
    }

    proptest! {
        #[test]
        fn more_in_front_is_never_less_wait(
            (step, token) in (0.0_f64..10.0, 0.0_f64..1.0), (steps, tokens) in any::<(u64, u64)>(),
            (rows, budget) in (0_u64..1000, 0_u64..10_000), more in 0_u64..1000,
        ) {
            let one = Wait {
                cost: StepCost { step, token },
                active_rows: rows,
                step_tokens: budget,
                ..wait(steps, tokens)
            };
            let two = Wait { steps: steps.saturating_add(more), ..one };
            let three = Wait { prompt_tokens: one.prompt_tokens + more as f64, ..one };
            let four = Wait { active_rows: rows + more, ..one };
            for worse in [two, three, four] {
                prop_assert!(worse.in_front() >= one.in_front());
            }
        }
    }
}
