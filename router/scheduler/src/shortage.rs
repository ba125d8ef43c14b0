//! A step that failed for want of memory is tried again smaller. What a step may hold, in tokens and in sequences, falls to
//! half of what the failed one held; the newest sequences wait, the others are tried in halves (`trials`), so that one
//! that takes too much soon stands alone. It fails if it finds no memory in the smallest steps either, and then the others
//! get back what they had: it was not they who took too much.
//!
//! What was lowered is raised again after a while without a shortage: memory that others took may be free again, and a server
//! that stays slow until somebody restarts it breaks its promise too. A shortage right after doubles the wait.

use crate::scheduler::{Scheduler, SentStep};

/// Prompts advance by so many tokens at least: smaller steps would hardly take less memory.
const MIN_TOKENS: u32 = 16;
/// Failures of a sequence, alone and in the smallest steps, without a token in between, after which it is given up. More than
/// one: it may have been others' doing that there was no memory.
const MAX_SHORTAGES: u32 = 32;
/// Steps without a shortage before more is dared again: at first, and at most.
const PATIENCE: std::ops::RangeInclusive<u32> = 16..=1024;

/// What steps may hold now.
#[derive(Debug)]
pub(crate) struct Allowance {
    configured_tokens: u32,
    tokens: u32,
    /// `None`: as many as there are rows.
    sequences: Option<u32>,
    num_good_steps: u32,
    patience: u32,
    /// Raised since the last shortage.
    is_raised: bool,
    num_shortages: u64,
}

impl Allowance {
    pub(crate) fn new(max_step_tokens: u32) -> Self {
        Self {
            configured_tokens: max_step_tokens,
            tokens: max_step_tokens,
            sequences: None,
            num_good_steps: 0,
            patience: *PATIENCE.start(),
            is_raised: false,
            num_shortages: 0,
        }
    }

    /// Tokens of one step, as `Config::max_step_tokens`.
    pub(crate) fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Sequences that run at once, of `max_rows`.
    pub(crate) fn sequences(&self, max_rows: u32) -> u32 {
        self.sequences.map_or(max_rows, |sequences| sequences.min(max_rows))
    }

    pub(crate) fn num_shortages(&self) -> u64 {
        self.num_shortages
    }

    fn is_whole(&self) -> bool {
        self.tokens == self.configured_tokens && self.sequences.is_none()
    }

    /// As configured: others than those who ran short compute from now on.
    pub(crate) fn restore(&mut self) {
        *self = Self { num_shortages: self.num_shortages, ..Self::new(self.configured_tokens) };
    }

    /// A step of so many tokens of so many sequences was too much.
    fn lower(&mut self, tokens: usize, sequences: usize) {
        let tokens = u32::try_from(tokens / 2).unwrap_or(u32::MAX);
        self.tokens = self.tokens.min(tokens.max(MIN_TOKENS));
        if sequences > 1 {
            let sequences = u32::try_from(sequences / 2).unwrap_or(u32::MAX);
            self.sequences = Some(self.sequences.map_or(sequences, |before| before.min(sequences)));
        }
        if std::mem::take(&mut self.is_raised) {
            self.patience = (2 * self.patience).min(*PATIENCE.end());
        }
        self.num_good_steps = 0;
    }

    /// A step has found its memory.
    pub(crate) fn step_done(&mut self, max_rows: u32) {
        self.num_good_steps += 1;
        if self.num_good_steps < self.patience {
            return;
        }
        self.num_good_steps = 0;
        if self.is_whole() {
            self.patience = *PATIENCE.start();
            return;
        }
        self.is_raised = true;
        self.tokens = self.tokens.saturating_mul(2).min(self.configured_tokens);
        self.sequences =
            self.sequences.map(|sequences| sequences.saturating_mul(2)).filter(|sequences| *sequences < max_rows);
    }
}

impl Scheduler {
    /// Every sequence of a step that ran out of memory starts again, in smaller steps. `false`: it was one alone, in the
    /// smallest of steps, again and again.
    pub(crate) fn retry_smaller(&mut self, step: &mut SentStep) -> bool {
        self.allowance.num_shortages += 1;
        let (num_tokens, num_sequences) = (step.num_tokens(), step.work.len());
        let alone = step.work.first().filter(|work| num_sequences == 1 && !work.is_void).map(|work| work.sequence);
        if let Some(sequence) = alone.and_then(|id| self.sequences.get_mut(&id))
            && num_tokens <= MIN_TOKENS as usize
        {
            sequence.num_shortages += 1;
            if sequence.num_shortages >= MAX_SHORTAGES {
                self.allowance.restore();
                return false;
            }
        }
        self.allowance.lower(num_tokens, num_sequences);
        let suspects = self.start_again(step);
        if suspects.len() > 1 {
            self.trials.split(suspects);
        }
        while self.running.len() > self.max_running()
            && let Some(newest) = self.last_running()
        {
            self.preempt(newest);
        }
        true
    }

    /// Sequences that may have a row at once.
    pub(crate) fn max_running(&self) -> usize {
        self.allowance.sequences(self.config.max_rows) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good(allowance: &mut Allowance, num_steps: u32) {
        (0..num_steps).for_each(|_| allowance.step_done(64));
    }

    #[test]
    fn half_of_what_was_too_much_and_never_less_than_the_least() {
        let mut allowance = Allowance::new(4096);
        allowance.lower(1000, 9);
        assert_eq!((allowance.tokens(), allowance.sequences(64)), (500, 4));
        allowance.lower(800, 1);
        assert_eq!((allowance.tokens(), allowance.sequences(64)), (400, 4));
        allowance.lower(2, 2);
        assert_eq!((allowance.tokens(), allowance.sequences(64)), (MIN_TOKENS, 1));
        let mut small = Allowance::new(8);
        small.lower(8, 1);
        assert_eq!(small.tokens(), 8);
    }

    #[test]
    fn what_was_lowered_comes_back_later_each_time_it_was_too_early() {
        let mut allowance = Allowance::new(100);
        allowance.lower(100, 40);
        good(&mut allowance, 15);
        assert_eq!((allowance.tokens(), allowance.sequences(64)), (50, 20));
        good(&mut allowance, 1);
        assert_eq!((allowance.tokens(), allowance.sequences(64)), (100, 40));
        allowance.lower(100, 40);
        good(&mut allowance, 31);
        assert_eq!(allowance.tokens(), 50);
        good(&mut allowance, 1 + 32);
        assert!(allowance.is_whole());
        good(&mut allowance, 32);
        assert_eq!(allowance.patience, 16);
    }
}
