//! What the ranks of one machine tell each other: sums, one rank's values, all ranks' columns, through memory that they
//! share.
//!
//! Every exchange is a round, or several when there is more to tell than a slot holds. Each rank has two slots, used in
//! turn, and a number: the last round that it has entered. To enter round n a rank waits until all have entered n - 1,
//! writes its slot, and says n. Whoever reads a slot of round n first waits until its rank has said n. A rank that says
//! n + 1 has read all it wanted of round n, so a slot is free again two rounds later. Ranks take the same rounds in the
//! same order, as they compute the same steps.
//!
//! A step that fails on one rank fails on all, and they go on together. A rank says that it has ended the step, with an
//! outcome, whether it has come through it or not. Whoever waits within the step for a round that such a rank never
//! entered leaves too. When all have ended, each knows the worst outcome. If it is a bad one, ranks have stopped at different
//! rounds: all take the highest number that any of them had said by then as theirs, which nobody waits for any more. What
//! a rank says of step s has a place of its own until it ends step s + 2, when all others have read it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of a slot: what one round carries of each rank. Small enough to stay in a cache that cores share.
pub const SLOT_BYTES: usize = 256 * 1024;
/// A rank's number has this many bytes to itself, so that writing one disturbs nobody who waits for another.
const NUMBER_BYTES: usize = 128;

/// Where in them the ends of steps stand: for even and for odd ones, each the step with its outcome, and the rank's number.
const ENDS_AT: usize = 64;
const END_BYTES: usize = 16;
/// An outcome takes so many bits beside the number of its step.
const OUTCOME_BITS: u32 = 8;

/// How often a waiting rank looks before it lets others run, and how long it looks often.
const SPINS: u32 = 4000;
const HURRY: Duration = Duration::from_millis(2);
/// How long it then rests between two looks, and how often it asks whether the others live.
const REST: Duration = Duration::from_micros(50);
const PATIENCE: Duration = Duration::from_millis(100);

/// Bytes of the shared memory of `size` ranks. It starts as zeros.
pub const fn shared_bytes(size: usize) -> usize {
    size * (NUMBER_BYTES + 2 * SLOT_BYTES)
}

/// One rank's end.
#[derive(Debug)]
pub struct Exchange {
    memory: *mut u8,
    rank: usize,
    size: usize,
    /// Steps begun.
    step: u64,
    is_in_step: bool,
}

/// Why an exchange ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended<E> {
    /// This rank has ended the step without the round that was waited for. The next step finds the exchange in order.
    Left(usize),
    /// What `alive` answered. The exchange is over for good.
    Gone(E),
}

/// How a step ended: the worst outcome, and the first rank that had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub outcome: u8,
    pub rank: usize,
}

// SAFETY: what is shared are atomics, and slots that the rounds guard.
unsafe impl Send for Exchange {}
// SAFETY: as above; `&mut self` keeps rounds of one end apart.
unsafe impl Sync for Exchange {}

impl Exchange {
    /// # Safety
    /// `memory` is shared by `size` ranks, has `shared_bytes(size)` bytes aligned to 128, all zero before the first of
    /// them starts, and outlives this. No other end of it is `rank`.
    pub unsafe fn new(memory: *mut u8, rank: usize, size: usize) -> Self {
        Self { memory, rank, size, step: 0, is_in_step: false }
    }

    /// Until `end_step`, exchanges end with `Ended::Left` when another rank ends the step early. All ranks take the same
    /// steps in the same order.
    pub fn begin_step(&mut self) {
        self.step += 1;
        self.is_in_step = true;
    }

    /// Tells the others how the step went here, 0 being well, and waits until all have ended it.
    ///
    /// # Errors
    /// What `alive` answers: the exchange is over for good.
    pub fn end_step<E>(&mut self, outcome: u8, alive: &dyn Fn() -> Result<(), E>) -> Result<Verdict, E> {
        self.is_in_step = false;
        let (end, number) = self.end(self.rank, self.step);
        number.store(self.number(self.rank).load(Ordering::Relaxed), Ordering::Relaxed);
        end.store(self.step << OUTCOME_BITS | u64::from(outcome), Ordering::Release);
        let (mut verdict, mut highest) = (Verdict { outcome: 0, rank: 0 }, 0);
        for rank in 0..self.size {
            let (end, number) = self.end(rank, self.step);
            wait_until(|| self.has_ended(rank), || Ok(()), alive)?;
            let outcome = (end.load(Ordering::Acquire) & ((1 << OUTCOME_BITS) - 1)) as u8;
            if outcome > verdict.outcome {
                verdict = Verdict { outcome, rank };
            }
            highest = highest.max(number.load(Ordering::Relaxed));
        }
        if verdict.outcome > 0 {
            self.say(highest);
        }
        Ok(verdict)
    }

    fn has_ended(&self, rank: usize) -> bool {
        self.end(rank, self.step).0.load(Ordering::Acquire) >> OUTCOME_BITS == self.step
    }

    /// `x` becomes the sum over the ranks, which adds up in their order: all get the same bits.
    ///
    /// # Errors
    /// `Ended::Left` within a step; else what `alive` answers, which is asked now and then while others are late.
    ///
    /// # Safety
    /// `x` is readable and writable for `count` values.
    pub unsafe fn sum<E>(
        &mut self,
        x: *mut f32,
        count: usize,
        alive: &dyn Fn() -> Result<(), E>,
    ) -> Result<(), Ended<E>> {
        let part = SLOT_BYTES / 4;
        for first in (0..count).step_by(part) {
            let (count, round) = (part.min(count - first), self.enter(alive)?);
            // SAFETY: the part lies within `x` and within a slot; the slot is this rank's in this round.
            let x = unsafe {
                let x = x.add(first);
                self.slot(self.rank, round).cast::<f32>().copy_from_nonoverlapping(x, count);
                std::slice::from_raw_parts_mut(x, count)
            };
            self.say(round);
            for rank in 0..self.size {
                self.wait_for(rank, round, alive)?;
                // SAFETY: the rank has said the round, and writes this slot again only two rounds later.
                let theirs = unsafe { std::slice::from_raw_parts(self.slot(rank, round).cast::<f32>(), count) };
                if rank == 0 {
                    x.copy_from_slice(theirs);
                } else {
                    x.iter_mut().zip(theirs).for_each(|(x, theirs)| *x += theirs);
                }
            }
        }
        Ok(())
    }

    /// `x` becomes that of rank 0.
    ///
    /// # Errors
    /// As `sum`.
    ///
    /// # Safety
    /// `x` is readable and writable for `bytes`.
    pub unsafe fn broadcast<E>(
        &mut self,
        x: *mut u8,
        bytes: usize,
        alive: &dyn Fn() -> Result<(), E>,
    ) -> Result<(), Ended<E>> {
        for first in (0..bytes).step_by(SLOT_BYTES) {
            let (bytes, round) = (SLOT_BYTES.min(bytes - first), self.enter(alive)?);
            let (x, slot) = (x.wrapping_add(first), self.slot(0, round));
            if self.rank == 0 {
                // SAFETY: as in `sum`.
                unsafe { slot.copy_from_nonoverlapping(x, bytes) };
                self.say(round);
            } else {
                self.say(round);
                self.wait_for(0, round, alive)?;
                // SAFETY: as in `sum`.
                unsafe { x.copy_from_nonoverlapping(slot, bytes) };
            }
        }
        Ok(())
    }

    /// On rank 0, `out` receives the ranks' rows side by side: row i is row i of rank 0, of rank 1, and so on.
    ///
    /// # Errors
    /// As `sum`.
    ///
    /// # Safety
    /// `x` is readable for `rows * row_bytes`; on rank 0 `out` is writable for as much of every rank.
    pub unsafe fn gather<E>(&mut self, call: Gather, alive: &dyn Fn() -> Result<(), E>) -> Result<(), Ended<E>> {
        let bytes = call.rows * call.row_bytes;
        for first in (0..bytes).step_by(SLOT_BYTES) {
            let (end, round) = (bytes.min(first + SLOT_BYTES), self.enter(alive)?);
            // SAFETY: as in `sum`.
            unsafe {
                self.slot(self.rank, round).copy_from_nonoverlapping(call.x.add(first), end - first);
            }
            self.say(round);
            if self.rank > 0 {
                continue;
            }
            for rank in 0..self.size {
                self.wait_for(rank, round, alive)?;
                let mut at = first;
                while at < end {
                    let (row, column) = (at / call.row_bytes, at % call.row_bytes);
                    let run = (call.row_bytes - column).min(end - at);
                    // SAFETY: the run lies within one row of `out` and within the slot.
                    unsafe {
                        let to = call.out.add((row * self.size + rank) * call.row_bytes + column);
                        to.copy_from_nonoverlapping(self.slot(rank, round).add(at - first), run);
                    }
                    at += run;
                }
            }
        }
        Ok(())
    }

    /// The next round; this rank's slot in it is free.
    fn enter<E>(&self, alive: &dyn Fn() -> Result<(), E>) -> Result<u64, Ended<E>> {
        let last = self.number(self.rank).load(Ordering::Relaxed);
        for rank in 0..self.size {
            self.wait_for(rank, last, alive)?;
        }
        Ok(last + 1)
    }

    fn say(&self, round: u64) {
        self.number(self.rank).store(round, Ordering::Release);
    }

    fn wait_for<E>(&self, rank: usize, round: u64, alive: &dyn Fn() -> Result<(), E>) -> Result<(), Ended<E>> {
        let said = || self.number(rank).load(Ordering::Acquire) >= round;
        // It may have said the round between the two looks: then it ended the step after that.
        let present =
            || if self.is_in_step && self.has_ended(rank) && !said() { Err(Ended::Left(rank)) } else { Ok(()) };
        wait_until(said, present, &|| alive().map_err(Ended::Gone))
    }

    fn number(&self, rank: usize) -> &AtomicU64 {
        // SAFETY: the memory begins with the numbers of all ranks, aligned; they are only used as atomics.
        unsafe { &*self.memory.add(rank * NUMBER_BYTES).cast::<AtomicU64>() }
    }

    /// What `rank` says of the end of a step, and its number then.
    fn end(&self, rank: usize, step: u64) -> (&AtomicU64, &AtomicU64) {
        let at = rank * NUMBER_BYTES + ENDS_AT + (step % 2) as usize * END_BYTES;
        // SAFETY: both lie in the rank's line, aligned; they are only used as atomics.
        unsafe { (&*self.memory.add(at).cast(), &*self.memory.add(at + 8).cast()) }
    }

    fn slot(&self, rank: usize, round: u64) -> *mut u8 {
        let index = 2 * rank + (round % 2) as usize;
        self.memory.wrapping_add(self.size * NUMBER_BYTES + index * SLOT_BYTES)
    }
}

/// Looks until `done`; while it is not, `present` and, now and then, `alive` may end the wait.
fn wait_until<E>(
    done: impl Fn() -> bool,
    present: impl Fn() -> Result<(), E>,
    alive: &dyn Fn() -> Result<(), E>,
) -> Result<(), E> {
    for _ in 0..SPINS {
        if done() {
            return Ok(());
        }
        std::hint::spin_loop();
    }
    let began = Instant::now();
    let mut asked = began;
    while !done() {
        present()?;
        let now = Instant::now();
        if now - began < HURRY {
            std::thread::yield_now();
        } else {
            std::thread::sleep(REST);
        }
        if now - asked > PATIENCE {
            asked = now;
            alive()?;
        }
    }
    Ok(())
}

/// What `gather` moves: `rows` of `row_bytes` from `x` of every rank to `out` of rank 0.
#[derive(Clone, Copy, Debug)]
pub struct Gather {
    pub x: *const u8,
    pub rows: usize,
    pub row_bytes: usize,
    pub out: *mut u8,
}
