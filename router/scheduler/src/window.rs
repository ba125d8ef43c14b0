//! Sliding windows: when no layer reads further back than so many positions, the pages before them go back while the
//! sequence runs. Its page table keeps their places, so that position p is still in entry p / page size.

use crate::paging::Paging;
use crate::scheduler::{Scheduler, SentStep};
use crate::sequence::{Seat, State};

/// How far back a model reads. A query sees `size` positions, its own included; 0: all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    paging: Paging,
    size: usize,
}

impl Window {
    /// Pages at the beginning of a sequence that nobody reads any more when `next` is the first position still to be computed.
    pub(crate) fn num_unseen_pages(self, next: usize) -> usize {
        match self.size {
            0 => 0,
            size => self.paging.num_full_pages(next.saturating_sub(size - 1)),
        }
    }

    /// Pages that a sequence of `num_tokens` must be able to hold at once, if it computes up to `step_tokens` in a step.
    pub(crate) fn num_pages_at_once(self, num_tokens: usize, step_tokens: usize) -> usize {
        let all = self.paging.num_pages(num_tokens);
        match self.size {
            0 => all,
            // The positions before the step may begin and end anywhere in a page.
            size => all.min(self.paging.num_pages(size - 1 + step_tokens - 1) + 1),
        }
    }
}

impl Scheduler {
    pub(crate) fn window(&self) -> Window {
        Window { paging: self.pool.paging(), size: self.config.attention_window as usize }
    }

    /// A step is back: no step in flight or to come reads what lies before the window of the tokens after it.
    pub(crate) fn return_unseen_pages(&mut self, step: &SentStep) {
        if self.config.attention_window == 0 {
            return;
        }
        let window = self.window();
        for work in &step.work {
            if let Some(sequence) = self.sequences.get_mut(&work.sequence)
                && let State::Running(seat) = &mut sequence.state
                && seat.first_step <= step.step
            {
                seat.table.release_before(&mut self.pool, window.num_unseen_pages(work.end));
            }
        }
    }

    /// Whether pages of running sequences will go back as soon as the steps in flight do.
    pub(crate) fn windows_will_move(&self) -> bool {
        let window = self.window();
        let moves = |seat: &Seat| seat.table.num_released() < window.num_unseen_pages(seat.num_computed_tokens);
        self.config.attention_window > 0 && self.running_sequences().filter_map(|sequence| sequence.seat()).any(moves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_unseen_when_the_window_of_the_next_token_begins_after_it() {
        let window = Window { paging: Paging::of(4), size: 6 };
        // Position 9 sees 4 to 9, position 8 sees 3 to 8.
        assert_eq!((window.num_unseen_pages(8), window.num_unseen_pages(9)), (0, 1));
        assert_eq!((window.num_unseen_pages(12), window.num_unseen_pages(13)), (1, 2));
        let all = Window { paging: Paging::of(4), size: 0 };
        assert_eq!((all.num_unseen_pages(1000), all.num_pages_at_once(1000, 1)), (0, 250));
    }

    #[test]
    fn what_is_held_at_once_is_the_most_that_any_position_needs() {
        for page_size in 1..6 {
            for size in 1..12 {
                let window = Window { paging: Paging::of(page_size as u32), size };
                let held = |position: usize| position / page_size + 1 - window.num_unseen_pages(position);
                let most = (0..60).map(held).max();
                assert_eq!(most, Some(window.num_pages_at_once(60, 1)), "{page_size} {size}");
                assert_eq!(window.num_pages_at_once(1, 1), 1);
            }
        }
    }
}
