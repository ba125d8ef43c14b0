//! When waiting sequences may join, and how one step's tokens are divided.

/// TGI's meaning of `waiting_served_ratio` and `max_waiting_tokens`, on top of chunked prefill: joining costs those that
/// run a slower step, so it is done for several at once, or after a bounded wait.
#[derive(Debug)]
pub(crate) struct Gate {
    waiting_served_ratio: f32,
    max_waiting_tokens: u32,
    steps_since_admission: u32,
}

impl Gate {
    pub(crate) fn new(waiting_served_ratio: f32, max_waiting_tokens: u32) -> Self {
        Self { waiting_served_ratio, max_waiting_tokens, steps_since_admission: 0 }
    }

    /// Whether waiting sequences may join now. As in TGI the product is rounded down.
    pub(crate) fn is_open(&self, num_waiting: usize, num_running: usize) -> bool {
        num_running == 0
            || self.steps_since_admission >= self.max_waiting_tokens
            || num_waiting as f32 >= (num_running as f32 * self.waiting_served_ratio).floor()
    }

    pub(crate) fn step_sent(&mut self, admitted: bool) {
        self.steps_since_admission = if admitted { 0 } else { self.steps_since_admission.saturating_add(1) };
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
        assert!(Gate::new(1000.0, 1000).is_open(1, 0));
    }

    #[test]
    fn the_ratio_is_rounded_down() {
        let gate = Gate::new(0.3, 20);
        assert!(gate.is_open(1, 6)); // floor(1.8) = 1
        assert!(!gate.is_open(1, 7)); // floor(2.1) = 2
        assert!(gate.is_open(2, 7));
    }

    #[test]
    fn a_bounded_number_of_steps_opens_the_gate() {
        let mut gate = Gate::new(10.0, 2);
        gate.step_sent(false);
        assert!(!gate.is_open(1, 1));
        gate.step_sent(false);
        assert!(gate.is_open(1, 1));
        gate.step_sent(true);
        assert!(!gate.is_open(1, 1));
    }

    #[test]
    fn prefills_get_what_decodes_leave_and_never_nothing() {
        assert_eq!(prefill_tokens(8, 3), 5);
        assert_eq!(prefill_tokens(8, 8), 1);
        assert_eq!(prefill_tokens(8, 20), 1);
    }
}
