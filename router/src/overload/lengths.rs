//! How long an output will be, from what it may be and from how outputs have ended. Pure.
//!
//! An output of at most `k` tokens ends before with the same chance `h` at every token. Then it is expected to have
//! `(1 - (1 - h)^k) / h` tokens, which is `k` for `h = 0`. The likeliest `h`, when outputs that reached their limit say only
//! that they had not ended yet, is the number of those that ended by themselves over the tokens of all (the exponential
//! distribution under censoring). Both counts fade. Before anything has ended, outputs are expected to be as long as they may.

/// What an older output counts, when one more has ended.
const FADING: f64 = 0.99;

#[derive(Clone, Debug, Default)]
pub(super) struct Lengths {
    ends: f64,
    tokens: f64,
}

impl Lengths {
    /// An output is over after so many tokens; `by_itself`: before it had to.
    pub(super) fn learn(&mut self, num_tokens: u32, by_itself: bool) {
        self.ends = self.ends * FADING + f64::from(u8::from(by_itself));
        self.tokens = self.tokens * FADING + f64::from(num_tokens.max(1));
    }

    /// Tokens to expect of an output that may have `limit` more: from 0 to `limit`, and the more the larger `limit` is.
    pub(super) fn expected(&self, limit: u32) -> f64 {
        let limit = f64::from(limit);
        let chance = if self.tokens > 0.0 { (self.ends / self.tokens).min(1.0) } else { 0.0 };
        if chance <= 1e-9 {
            return limit;
        }
        if chance >= 1.0 {
            return limit.min(1.0);
        }
        (-(limit * (-chance).ln_1p()).exp_m1() / chance).clamp(0.0, limit)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn unknown_outputs_are_as_long_as_they_may_be() {
        let mut lengths = Lengths::default();
        assert!((lengths.expected(4096) - 4096.0).abs() < 1e-9);
        lengths.learn(100, false);
        assert!((lengths.expected(4096) - 4096.0).abs() < 1e-9);
    }

    #[test]
    fn outputs_that_end_by_themselves_tell_how_long_others_will_be() {
        let mut lengths = Lengths::default();
        for _ in 0..100 {
            lengths.learn(200, true);
        }
        assert!((lengths.expected(100_000) - 200.0).abs() < 1.0, "{}", lengths.expected(100_000));
        assert!(lengths.expected(10) > 9.0, "a short limit is nearly always reached");
        for _ in 0..1000 {
            lengths.learn(200, false);
        }
        assert!(lengths.expected(1000) > 900.0, "old ends fade");
    }

    proptest! {
        #[test]
        fn an_expectation_lies_within_its_limit_and_grows_with_it(
            outputs in prop::collection::vec((0_u32..10_000, any::<bool>()), 0..50), limit in 0_u32..100_000,
        ) {
            let mut lengths = Lengths::default();
            for (num_tokens, by_itself) in outputs {
                lengths.learn(num_tokens, by_itself);
            }
            let (less, more) = (lengths.expected(limit), lengths.expected(limit + 1));
            prop_assert!(0.0 <= less && less <= f64::from(limit) && less <= more);
            prop_assert!(limit == 0 || less >= 0.99, "at least one token comes: {}", less);
        }
    }
}
