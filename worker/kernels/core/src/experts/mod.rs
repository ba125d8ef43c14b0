//! The experts of a mixture (Shazeer et al. 2017): each token of a step goes through the few that it has chosen.
//!
//! A token's choice of an expert is a row. Rows are sorted by expert, so that those of one expert are rows of one product,
//! and the products of all experts are one list of tasks, which the threads share. A row's result depends neither on the
//! other rows nor on the number of threads, and a token's rows are added up in the order in which it names its experts.

mod layer;
mod order;
mod rows;
mod tasks;

use std::fmt;
use std::slice;

pub(crate) use layer::Form;
pub use layer::Layer;
use order::Order;
pub use order::UnknownExpert;
use rows::Step;

use crate::Dtype;
use crate::level::Level;
use crate::linear::strip::BLOCK_ROWS;
use crate::team::Team;

/// One expert: what goes up, with its activation, and what comes down, in float32.
#[derive(Clone, Debug)]
pub struct Expert {
    pub up: Layer,
    pub down: Layer,
}

/// All experts of a layer. Their products have the same shapes and dtypes.
#[derive(Debug)]
pub struct Experts {
    level: Level,
    team: Team,
    all: Vec<Expert>,
    /// Whether a token's weights scale what its experts take; else they scale what these give.
    weigh_input: bool,
}

/// What one call computes: contiguous rows in, contiguous rows out.
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    /// `count` rows of the dtype that the experts take.
    pub x: *const u8,
    pub count: usize,
    /// How many experts each token has chosen, at least one.
    pub choices: usize,
    /// [count, choices]
    pub chosen: *const i64,
    /// [count, choices]
    pub weights: *const f32,
    /// Receives `count` rows, as wide as those of `x`.
    pub out: *mut f32,
}

/// Memory for what lies between: `Experts::scratch_rows` rows of each.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// As wide as `x`, and of its dtype.
    pub sorted: *mut u8,
    /// What goes up, in the dtype that it is given in.
    pub hidden: *mut u8,
    /// As wide as `out`.
    pub results: *mut f32,
}

/// The number of an expert that does not go with the first one, or none at all.
#[derive(Debug, PartialEq, Eq)]
pub struct Unlike(usize);

impl fmt::Display for Unlike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expert {} is not of the kind that a layer needs: all alike, down as wide as what goes up", self.0)
    }
}

impl std::error::Error for Unlike {}

impl Experts {
    /// # Errors
    /// For an expert that differs from the first one.
    pub fn new(level: Level, team: Team, experts: Vec<Expert>, weigh_input: bool) -> Result<Self, Unlike> {
        let first = experts.first().ok_or(Unlike(0))?;
        let (up, down) = (first.up.form(), first.down.form());
        let fits = down.inputs == up.columns && down.columns == up.inputs;
        if !fits || down.input != up.output || down.output != Dtype::F32 {
            return Err(Unlike(0));
        }
        match experts.iter().position(|each| each.up.form() != up || each.down.form() != down) {
            Some(other) => Err(Unlike(other)),
            None => Ok(Self { level, team, all: experts, weigh_input }),
        }
    }

    /// How many rows of scratch a call for so many tokens needs.
    pub fn scratch_rows(&self, tokens: usize, choices: usize) -> usize {
        tokens.min(self.tokens_at_once(choices)) * choices
    }

    /// So many that experts see full blocks of rows: more would only take memory.
    fn tokens_at_once(&self, choices: usize) -> usize {
        (BLOCK_ROWS * self.all.len()).div_ceil(choices)
    }

    /// Writes the weighted sums of what the tokens' experts give.
    ///
    /// # Errors
    /// For a token that names an expert that there is not: then not all is computed.
    ///
    /// # Safety
    /// The pointers are good for what is said at each, and do not overlap.
    pub unsafe fn apply(&self, tokens: Tokens, scratch: Scratch) -> Result<(), UnknownExpert> {
        let form = self.all[0].up.form();
        let at_once = self.tokens_at_once(tokens.choices);
        for first in (0..tokens.count).step_by(at_once) {
            let part = Tokens {
                x: tokens.x.wrapping_add(first * form.inputs * form.input.bytes()),
                count: at_once.min(tokens.count - first),
                choices: tokens.choices,
                chosen: tokens.chosen.wrapping_add(first * tokens.choices),
                weights: tokens.weights.wrapping_add(first * tokens.choices),
                out: tokens.out.wrapping_add(first * form.inputs),
            };
            // SAFETY: the caller's promise.
            let chosen = unsafe { slice::from_raw_parts(part.chosen, part.count * part.choices) };
            let order = Order::new(chosen, self.all.len())?;
            // SAFETY: the caller's promise, for these tokens; the order is that of their choices.
            unsafe { Step { experts: self, tokens: part, scratch, order }.run() };
        }
        Ok(())
    }
}
