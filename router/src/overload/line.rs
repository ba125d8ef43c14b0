//! The line for seats: after how many steps the next newcomer gets one. Pure.
//!
//! Whoever runs holds rows and memory, and leaves after some steps. Whoever waits takes, in order, the first seat that is large
//! enough: what is free and what those give back who leave first. So the line is played through to its end once, and a
//! newcomer needs only a look behind it.

/// What a request holds while it runs, and for how many steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) rows: u64,
    /// Of the KV memory.
    pub(super) tokens: u64,
    pub(super) steps: u64,
}

#[derive(Clone, Copy, Debug)]
struct Leaving {
    after: u64,
    rows: u64,
    tokens: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Line {
    free_rows: i64,
    free_tokens: i64,
    /// Who has a seat, the first to leave first.
    leaving: Vec<Leaving>,
    /// Steps until the last one who waits has a seat.
    tail: u64,
}

impl Line {
    /// `running`: with the steps that each still needs.
    pub(super) fn new(free_rows: u64, free_tokens: u64, running: impl Iterator<Item = Seat>) -> Self {
        let leaves = |seat: Seat| Leaving { after: seat.steps, rows: seat.rows, tokens: seat.tokens };
        let mut leaving: Vec<Leaving> = running.map(leaves).collect();
        leaving.sort_unstable_by_key(|one| one.after);
        Self { free_rows: signed(free_rows), free_tokens: signed(free_tokens), leaving, tail: 0 }
    }

    /// Steps until whoever comes next gets a seat; 0: at once.
    pub(super) fn steps_until(&self, seat: Seat) -> u64 {
        self.look(seat).0
    }

    /// Steps until the first of those who run leaves.
    pub(super) fn first_leaves_after(&self) -> u64 {
        self.leaving.first().map_or(0, |first| first.after)
    }

    /// One more waits. Who needs more than there is at all gets all there is.
    pub(super) fn join(&mut self, seat: Seat) {
        let (after, num_left) = self.look(seat);
        for left in self.leaving.drain(..num_left) {
            self.free_rows = self.free_rows.saturating_add(signed(left.rows));
            self.free_tokens = self.free_tokens.saturating_add(signed(left.tokens));
        }
        self.free_rows = self.free_rows.saturating_sub(signed(seat.rows));
        self.free_tokens = self.free_tokens.saturating_sub(signed(seat.tokens));
        self.tail = after;
        let leaving = Leaving { after: after.saturating_add(seat.steps), rows: seat.rows, tokens: seat.tokens };
        let place = self.leaving.partition_point(|one| one.after <= leaving.after);
        self.leaving.insert(place, leaving);
    }

    /// When the seat is there, and how many must have left by then.
    fn look(&self, seat: Seat) -> (u64, usize) {
        let (mut rows, mut tokens, mut after) = (self.free_rows, self.free_tokens, self.tail);
        let mut num_left = 0;
        while rows < signed(seat.rows) || tokens < signed(seat.tokens) {
            let Some(next) = self.leaving.get(num_left) else { break };
            rows = rows.saturating_add(signed(next.rows));
            tokens = tokens.saturating_add(signed(next.tokens));
            after = after.max(next.after);
            num_left += 1;
        }
        (after, num_left)
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seat(steps: u64) -> Seat {
        Seat { rows: 1, tokens: 10, steps }
    }

    #[test]
    fn who_finds_a_free_seat_does_not_wait() {
        let mut line = Line::new(2, 100, [seat(50)].into_iter());
        assert_eq!(line.steps_until(seat(5)), 0);
        line.join(seat(5));
        line.join(seat(7));
        assert_eq!(line.steps_until(seat(5)), 5, "the first of the three leaves");
    }

    #[test]
    fn seats_are_given_in_order_of_arrival_to_whoever_leaves_first() {
        let mut line = Line::new(0, 0, [seat(30), seat(10)].into_iter());
        assert_eq!((line.first_leaves_after(), line.steps_until(seat(1))), (10, 10));
        line.join(seat(5)); // from 10 to 15
        assert_eq!(line.steps_until(seat(1)), 15);
        line.join(seat(100)); // from 15 to 115
        assert_eq!(line.steps_until(seat(1)), 30);
    }

    #[test]
    fn memory_makes_wait_as_rows_do() {
        let line = Line::new(100, 15, [seat(30), seat(10)].into_iter());
        assert_eq!(line.steps_until(Seat { rows: 1, tokens: 15, steps: 1 }), 0);
        assert_eq!(line.steps_until(Seat { rows: 1, tokens: 25, steps: 1 }), 10);
        assert_eq!(line.steps_until(Seat { rows: 1, tokens: 26, steps: 1 }), 30);
        assert_eq!(line.steps_until(Seat { rows: 1, tokens: 1000, steps: 1 }), 30, "all that there is");
    }

    proptest! {
        #[test]
        fn nobody_is_seated_sooner_because_more_people_wait(
            rows in 0_u64..8, tokens in 0_u64..200,
            running in prop::collection::vec((1_u64..4, 0_u64..50, 0_u64..100), 0..8),
            waiting in prop::collection::vec((1_u64..4, 0_u64..50, 0_u64..100), 0..30),
        ) {
            let of = |(rows, tokens, steps)| Seat { rows, tokens, steps };
            let mut line = Line::new(rows, tokens, running.into_iter().map(of));
            let newcomer = Seat { rows: 1, tokens: 5, steps: 10 };
            let mut before = 0;
            for seat in waiting.into_iter().map(of) {
                let own = line.steps_until(seat);
                prop_assert!(own >= line.tail);
                line.join(seat);
                prop_assert!(line.leaving.is_sorted_by_key(|one| one.after));
                let after = line.steps_until(newcomer);
                prop_assert!(after >= before);
                before = after;
            }
        }
    }
}
