//! What the ranks of one machine tell each other: sums, one rank's values, all ranks' columns, through memory that they
//! share.
//!
//! Every exchange is a round, or several when there is more to tell than a slot holds. Each rank has two slots, used in
//! turn, and a number: the last round that it has entered. To enter round n a rank waits until all have entered n - 1,
//! writes its slot, and says n. Whoever reads a slot of round n first waits until its rank has said n. A rank that says
//! n + 1 has read all it wanted of round n, so a slot is free again two rounds later. Ranks take the same rounds in the
//! same order, as they compute the same steps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of a slot: what one round carries of each rank. Small enough to stay in a cache that cores share.
pub const SLOT_BYTES: usize = 256 * 1024;
/// A rank's number has this many bytes to itself, so that writing one disturbs nobody who waits for another.
const NUMBER_BYTES: usize = 128;

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
        Self { memory, rank, size }
    }

    /// `x` becomes the sum over the ranks, which adds up in their order: all get the same bits.
    ///
    /// # Errors
    /// What `alive` answers, which is asked now and then while others are late: it ends the exchange for good.
    ///
    /// # Safety
    /// `x` is readable and writable for `count` values.
    pub unsafe fn sum<E>(&mut self, x: *mut f32, count: usize, alive: &dyn Fn() -> Result<(), E>) -> Result<(), E> {
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
    ) -> Result<(), E> {
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
    pub unsafe fn gather<E>(&mut self, call: Gather, alive: &dyn Fn() -> Result<(), E>) -> Result<(), E> {
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
    fn enter<E>(&self, alive: &dyn Fn() -> Result<(), E>) -> Result<u64, E> {
        let last = self.number(self.rank).load(Ordering::Relaxed);
        for rank in 0..self.size {
            self.wait_for(rank, last, alive)?;
        }
        Ok(last + 1)
    }

    fn say(&self, round: u64) {
        self.number(self.rank).store(round, Ordering::Release);
    }

    fn wait_for<E>(&self, rank: usize, round: u64, alive: &dyn Fn() -> Result<(), E>) -> Result<(), E> {
        let said = || self.number(rank).load(Ordering::Acquire) >= round;
        for _ in 0..SPINS {
            if said() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        let began = Instant::now();
        let mut asked = began;
        while !said() {
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

    fn number(&self, rank: usize) -> &AtomicU64 {
        // SAFETY: the memory begins with the numbers of all ranks, aligned; they are only used as atomics.
        unsafe { &*self.memory.add(rank * NUMBER_BYTES).cast::<AtomicU64>() }
    }

    fn slot(&self, rank: usize, round: u64) -> *mut u8 {
        let index = 2 * rank + (round % 2) as usize;
        self.memory.wrapping_add(self.size * NUMBER_BYTES + index * SLOT_BYTES)
    }
}

/// What `gather` moves: `rows` of `row_bytes` from `x` of every rank to `out` of rank 0.
#[derive(Clone, Copy, Debug)]
pub struct Gather {
    pub x: *const u8,
    pub rows: usize,
    pub row_bytes: usize,
    pub out: *mut u8,
}
