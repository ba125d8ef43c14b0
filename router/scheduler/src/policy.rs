//! When waiting sequences may join, and how one step's tokens are divided.

/// Why sequences were let into a step beside those that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinReason {
    /// Enough of them waited: `waiting_served_ratio` was reached.
    Backpressure,
    /// `max_waiting_tokens` steps had let nobody in.
    WaitExceeded,
    /// Neither was asked for: they come back after a preemption, or nothing ran that they could slow down when it opened.
    Chunking,
}

/// TGI's meaning of `waiting_served_ratio` and `max_waiting_tokens`, on top of chunked prefill: joining costs those that
/// run slower steps, so it is done for several at once, or after a bounded wait. As many as wait when it opens come in, in
/// the usual order, over as many steps as their prompts take: later the rest of them would cost those that run the same.
#[derive(Debug)]
pub(crate) struct Gate {
    waiting_served_ratio: f32,
    max_waiting_tokens: u32,
    steps_since_admission: u32,
    /// Why it stands open, and for how many more.
    opened: Option<(JoinReason, usize)>,
}

impl Gate {
    pub(crate) fn new(waiting_served_ratio: f32, max_waiting_tokens: u32) -> Self {
        Self { waiting_served_ratio, max_waiting_tokens, steps_since_admission: 0, opened: None }
    }

    /// Why waiting sequences may join now; `None` if they may not. It may stand open from an earlier step. As in TGI the
    /// product is rounded down, and a wait that has been long enough counts before the ratio.
    pub(crate) fn open(&self, num_waiting: usize, num_running: usize) -> Option<JoinReason> {
        if let Some((reason, _)) = self.opened {
            Some(reason)
        } else if num_running == 0 {
            Some(JoinReason::Chunking)
        } else if self.steps_since_admission >= self.max_waiting_tokens {
            Some(JoinReason::WaitExceeded)
        } else {
            let enough = (num_running as f32 * self.waiting_served_ratio).floor();
            (num_waiting as f32 >= enough).then_some(JoinReason::Backpressure)
        }
    }

    /// `joined`: why some came in, and how many. `num_waiting`: those who are left outside; `for_tokens`: because
    /// the step had no tokens left, or none for them.
    pub(crate) fn step_sent(&mut self, joined: Option<(JoinReason, usize)>, num_waiting: usize, for_tokens: bool) {
        self.steps_since_admission = if joined.is_some() { 0 } else { self.steps_since_admission.saturating_add(1) };
        let still_open = match (self.opened, joined) {
            (Some((reason, left)), _) => Some((reason, left - joined.map_or(0, |(_, count)| count.min(left)))),
            (None, Some((reason, _))) => Some((reason, num_waiting)),
            (None, None) => None,
        };
        self.opened = still_open
            .map(|(reason, left)| (reason, left.min(num_waiting)))
            .filter(|(_, left)| for_tokens && *left > 0);
    }
}

/// Tokens of a step left for prefills after every decode has got its own. Never 0: a step full of decodes still takes
/// one more token, so that the oldest prefill does not starve.
pub(crate) fn prefill_tokens(max_step_tokens: u32, num_decodes: usize) -> usize {
    (max_step_tokens as usize).saturating_sub(num_decodes).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_batch_lets_everybody_in() {
        assert_eq!(Gate::new(1000.0, 1000).open(1, 0), Some(JoinReason::Chunking));
    }

    #[test]
    fn the_ratio_is_rounded_down() {
        let gate = Gate::new(0.3, 20);
        assert_eq!(gate.open(1, 6), Some(JoinReason::Backpressure)); // floor(1.8) = 1
        assert_eq!(gate.open(1, 7), None); // floor(2.1) = 2
        assert_eq!(gate.open(2, 7), Some(JoinReason::Backpressure));
    }

    #[test]
    fn all_who_waited_when_it_opened_come_in() {
        let mut gate = Gate::new(2.0, 100);
        gate.step_sent(Some((JoinReason::Backpressure, 2)), 3, true);
        for (joined, num_waiting) in [(Some((JoinReason::Backpressure, 1)), 4), (None, 5)] {
            assert_eq!(gate.open(num_waiting, 50), Some(JoinReason::Backpressure));
            gate.step_sent(joined, num_waiting, true);
        }
        assert_eq!(gate.open(5, 50), Some(JoinReason::Backpressure), "two of three are left");
        gate.step_sent(Some((JoinReason::Backpressure, 2)), 3, true);
        assert_eq!(gate.open(3, 50), None, "these have come later");
    }

    #[test]
    fn it_closes_when_something_else_than_tokens_keeps_them_out_or_nobody_is_left() {
        for (num_waiting, for_tokens) in [(3, false), (0, true)] {
            let mut gate = Gate::new(2.0, 100);
            gate.step_sent(Some((JoinReason::Backpressure, 2)), 3, true);
            gate.step_sent(None, num_waiting, for_tokens);
            assert_eq!(gate.open(3, 50), None);
        }
    }

    #[test]
    fn a_bounded_number_of_steps_opens_the_gate() {
        let mut gate = Gate::new(10.0, 2);
        gate.step_sent(None, 1, false);
        assert_eq!(gate.open(1, 1), None);
        gate.step_sent(None, 1, false);
        assert_eq!(gate.open(1, 1), Some(JoinReason::WaitExceeded));
        assert_eq!(gate.open(100, 1), Some(JoinReason::WaitExceeded));
        gate.step_sent(Some((JoinReason::WaitExceeded, 1)), 0, false);
        assert_eq!(gate.open(1, 1), None);
    }

    #[test]
    fn prefills_get_what_decodes_leave_and_never_nothing() {
        assert_eq!(prefill_tokens(8, 3), 5);
        assert_eq!(prefill_tokens(8, 8), 1);
        assert_eq!(prefill_tokens(8, 20), 1);
    }
}
