//! Chooses the next token of every row of a step: penalties, temperature, what narrows the distribution, noise, logprobs.
//!
//! The numbers are those of `millrace_worker.sampling`, of which this is the form for CPUs: the same order of features,
//! the same counter-based noise, the same rule for equal scores. A row is computed by one thread, from its own values
//! alone. What costs is done in passes over vectors: scores to gaps and weights, and a race among all tokens only where
//! nothing narrows them; else the few best are collected shell by shell, until it is certain where to cut.

mod choice;
mod gaps;
mod narrowing;
mod noise;
mod scores;
mod shells;

use std::sync::{Mutex, PoisonError};

use choice::Choose;
pub use narrowing::Limits;
pub use scores::{Penalties, Watermark};
use shells::Found;

use crate::level::Level;
use crate::team::Team;

/// Up to this many scores the caller's thread does all of them: waking the others would cost more.
const SERIAL_SCORES: usize = 16 * 1024;

/// What a row asks for.
#[derive(Clone, Copy, Debug)]
pub struct Parameters {
    pub watermark: bool,
    /// None: no token is penalized.
    pub penalties: Option<Penalties>,
    pub temperature: f32,
    /// None: all tokens are kept.
    pub limits: Option<Limits>,
    /// Whether the token is drawn; else the best one is taken.
    pub draws: bool,
    /// How many of the best tokens are reported; more where some are as good as the last one.
    pub top: usize,
}

impl Parameters {
    /// Whether the row takes the token of the best score, and that is all.
    fn is_plain(&self) -> bool {
        let changes = self.watermark || self.penalties.is_some() || self.temperature.to_bits() != 1.0_f32.to_bits();
        !changes && self.limits.is_none() && !self.draws && self.top == 0
    }
}

/// One row of a step.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub parameters: Parameters,
    /// Two words that name the noise of its seed and position.
    pub keys: [u32; 2],
    /// The token before the one that is chosen.
    pub previous: u32,
    /// How many tokens it has.
    pub length: usize,
    /// How often it has each token, in all and in what was generated; not read without penalties.
    pub counts: *const f32,
    pub output_counts: *const f32,
}

/// The rows of a step.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// [rows, vocabulary]
    pub scores: *const f32,
    pub vocabulary: usize,
    pub rows: &'a [Row],
    /// Receive a token of each row, and the logarithm of its probability among those that were kept: NaN where scores
    /// are not numbers, or none is above minus infinity.
    pub ids: *mut i64,
    pub logprobs: *mut f32,
}

// SAFETY: plain addresses; threads have different rows.
unsafe impl Sync for Step<'_> {}

impl Step<'_> {
    fn scores(&self, row: usize) -> *const f32 {
        self.scores.wrapping_add(row * self.vocabulary)
    }

    /// # Safety
    /// `ids` and `logprobs` have such a row.
    unsafe fn write(&self, row: usize, id: usize, logprob: f32) {
        // SAFETY: the caller's promise.
        unsafe {
            self.ids.add(row).write(id.cast_signed() as i64);
            self.logprobs.add(row).write(logprob);
        }
    }
}

/// One of a row's best tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Top {
    pub row: usize,
    pub id: usize,
    pub logprob: f32,
}

/// Chooses tokens. Keeps what its threads work in from one step to the next.
#[derive(Debug)]
pub struct Sampler {
    level: Level,
    team: Team,
    watermark: Watermark,
    spaces: Mutex<Vec<Found>>,
}

/// What a thread works in; given back when the thread is done.
struct Own<'a> {
    found: Found,
    to: &'a Mutex<Vec<Found>>,
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        self.to.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.found));
    }
}

impl Sampler {
    pub fn new(level: Level, team: Team, watermark: Watermark) -> Self {
        Self { level, team, watermark, spaces: Mutex::new(Vec::new()) }
    }

    /// Chooses a token of each row, and answers the best ones of those that ask, row by row, best first, equal ones by id.
    ///
    /// # Safety
    /// The pointers of the step and its rows are good for what is said at each.
    pub unsafe fn sample(&self, step: Step<'_>) -> Vec<Top> {
        let team = if step.rows.len() * step.vocabulary <= SERIAL_SCORES { Team::new(None, 1) } else { self.team };
        let tops = Mutex::new(Vec::new());
        let own = || {
            let kept = self.spaces.lock().unwrap_or_else(PoisonError::into_inner).pop();
            Own { found: kept.unwrap_or_default(), to: &self.spaces }
        };
        team.share_with(step.rows.len(), &own, &|own, row| {
            let choose = Choose { step: &step, row, watermark: self.watermark, found: &mut own.found };
            // SAFETY: the caller's promise; a row is one thread's.
            let found = unsafe { self.level.run(choose) };
            if !found.is_empty() {
                tops.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
            }
        });
        let mut tops = tops.into_inner().unwrap_or_else(PoisonError::into_inner);
        tops.sort_by(|a, b| {
            let order = a.row.cmp(&b.row).then(b.logprob.total_cmp(&a.logprob));
            order.then(a.id.cmp(&b.id))
        });
        tops
    }
}
