//! What a step costs, learned from the steps before. Pure.
//!
//! A step over `n` tokens is taken to last `a + b n`: `a` is what any step costs (reading the weights, mostly), `b` what one
//! more token does. Two running means are kept, of steps that only continue sequences and of steps that compute
//! prompts, each of tokens and of seconds, because a long stretch of one kind must not make the other forgotten. The line
//! goes through the first mean towards the second, with a slope between 0 and the second's seconds per token.

use std::time::Duration;

/// How much the newest step counts in its mean.
const WEIGHT: f64 = 0.1;

/// Seconds of a step and of each of its tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StepCost {
    pub(crate) step: f64,
    pub(crate) token: f64,
}

impl StepCost {
    /// Before any step has been seen: slow, so that nothing is promised that a slow machine could not keep. Who need
    /// not wait for others is not concerned.
    pub(crate) const UNKNOWN: Self = Self { step: 0.1, token: 1e-3 };
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Pace {
    decode: Option<Mean>,
    prefill: Option<Mean>,
}

#[derive(Clone, Copy, Debug)]
struct Mean {
    tokens: f64,
    seconds: f64,
}

impl Mean {
    fn with(known: Option<Self>, tokens: f64, seconds: f64) -> Self {
        let Some(Self { tokens: before, seconds: took }) = known else { return Self { tokens, seconds } };
        Self { tokens: before + WEIGHT * (tokens - before), seconds: took + WEIGHT * (seconds - took) }
    }
}

impl Pace {
    /// A step over `num_tokens` has taken so long.
    pub(crate) fn learn(&mut self, is_prefill: bool, num_tokens: usize, took: Duration) {
        let mean = if is_prefill { &mut self.prefill } else { &mut self.decode };
        *mean = Some(Mean::with(*mean, num_tokens.max(1) as f64, took.as_secs_f64()));
    }

    pub(crate) fn cost(&self) -> StepCost {
        match (self.decode, self.prefill) {
            (None, None) => StepCost::UNKNOWN,
            (Some(decode), None) => StepCost { step: decode.seconds, token: 0.0 },
            (None, Some(prefill)) => StepCost { step: 0.0, token: prefill.seconds / prefill.tokens },
            (Some(decode), Some(prefill)) => {
                let steepest = prefill.seconds / prefill.tokens;
                let more = prefill.tokens - decode.tokens;
                let slope = if more >= 1.0 { (prefill.seconds - decode.seconds) / more } else { steepest };
                let token = slope.clamp(0.0, steepest);
                StepCost { step: (decode.seconds - token * decode.tokens).max(0.0), token }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn took(cost: StepCost, num_tokens: usize) -> Duration {
        Duration::from_secs_f64(cost.step + cost.token * num_tokens as f64)
    }

    #[test]
    fn steps_on_a_line_teach_the_line() {
        let truth = StepCost { step: 0.02, token: 0.0005 };
        let mut pace = Pace::default();
        for round in 0..50 {
            pace.learn(true, 100 + round, took(truth, 100 + round));
            for rows in 1..9 {
                pace.learn(false, rows, took(truth, rows));
            }
        }
        let learned = pace.cost();
        assert!((learned.step - truth.step).abs() < 1e-4 && (learned.token - truth.token).abs() < 1e-6, "{learned:?}");
    }

    #[test]
    fn a_machine_that_becomes_slower_is_followed() {
        let mut pace = Pace::default();
        for factor in [1.0, 3.0] {
            for _ in 0..60 {
                pace.learn(true, 500, took(StepCost { step: 0.01 * factor, token: 0.0 }, 500));
                pace.learn(false, 4, took(StepCost { step: 0.01 * factor, token: 0.0 }, 4));
            }
        }
        assert!((pace.cost().step - 0.03).abs() < 1e-3, "{:?}", pace.cost());
    }

    proptest! {
        #[test]
        fn costs_are_never_negative_nor_without_a_value(
            steps in prop::collection::vec((any::<bool>(), 0_usize..10_000, 0_u64..1 << 50), 0..40),
        ) {
            let mut pace = Pace::default();
            for (is_prefill, num_tokens, nanos) in steps {
                pace.learn(is_prefill, num_tokens, Duration::from_nanos(nanos));
                let cost = pace.cost();
                prop_assert!(cost.step >= 0.0 && cost.token >= 0.0 && cost.step.is_finite() && cost.token.is_finite());
            }
        }
    }
}
