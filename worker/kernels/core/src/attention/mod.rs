//! Attention over pages in one call per layer: normalizes and rotates q and k, writes k and v to their pages, attends.
//!
//! Rows that compute one token and chunks of prompts are mixed in one step. The keys of a sequence are read page by page
//! where they lie ([`layout`]); a softmax is computed online, block by block ([`sums`]).

mod call;
mod head;
mod layout;
mod number;
mod rule;
mod step;
mod sums;
mod tile;

use std::fmt;
use std::sync::Arc;

pub use call::Tensors;
pub use head::{HeadNorm, MAX_HEAD_DIM, Pairs};
pub use layout::PAGE;
pub use rule::Rule;
pub use step::{BadStep, PageTable, Plan, Shape, Step};

use crate::Dtype;
use crate::level::Level;
use crate::simd::LANES;
use crate::team::Team;

/// The attention of a layer.
#[derive(Clone, Debug)]
pub struct Attention {
    level: Level,
    team: Team,
    config: Config,
}

/// What a layer's attention is.
#[derive(Clone, Debug)]
pub struct Config {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rule: Rule,
    pub pairs: Pairs,
    pub norm: Option<HeadNorm>,
    /// Of the projected q, k, v.
    pub qkv_dtype: Dtype,
    /// Of the pages and of the result.
    pub kv_dtype: Dtype,
}

/// A layer that there is no kernel for, or that cannot be.
#[derive(Debug, PartialEq)]
pub enum Unsupported {
    Heads { heads: usize, kv_heads: usize },
    HeadDim(usize),
    PerHead { what: &'static str, expected: usize, found: usize },
    Scale(f32),
    Softcap(f32),
    Window,
    Rotated { rotated: usize, head_dim: usize },
    OtherPlan { plan: Shape, layer: Shape },
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Heads { heads, kv_heads } => write!(f, "{heads} query heads cannot share {kv_heads} KV heads evenly"),
            Self::HeadDim(size) => {
                write!(f, "heads of {size} dimensions: there are kernels for multiples of {LANES} up to {MAX_HEAD_DIM}")
            }
            Self::PerHead { what, expected, found } => write!(f, "{what} has {found} values, not {expected}"),
            Self::Scale(scale) => write!(f, "scores cannot be scaled by {scale}"),
            Self::Softcap(cap) => write!(f, "scores cannot be capped at {cap}: a cap is a positive number"),
            Self::Window => write!(f, "a window of 0 positions shows nothing"),
            Self::Rotated { rotated, head_dim } => {
                write!(f, "{rotated} of {head_dim} dimensions cannot be rotated in pairs")
            }
            Self::OtherPlan { plan, layer } => write!(f, "a plan for {plan:?} does not fit a layer with {layer:?}"),
        }
    }
}

impl std::error::Error for Unsupported {}

impl Config {
    pub const fn shape(&self) -> Shape {
        Shape { heads: self.heads, kv_heads: self.kv_heads, head_dim: self.head_dim, window: self.rule.window }
    }

    fn check(&self) -> Result<(), Unsupported> {
        if self.kv_heads == 0 || self.heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Unsupported::Heads { heads: self.heads, kv_heads: self.kv_heads });
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(LANES) || self.head_dim > MAX_HEAD_DIM {
            return Err(Unsupported::HeadDim(self.head_dim));
        }
        for (what, values) in [("ALiBi's slopes", &self.rule.slopes), ("sinks", &self.rule.sinks)] {
            if !values.is_empty() && values.len() != self.heads {
                return Err(Unsupported::PerHead { what, expected: self.heads, found: values.len() });
            }
        }
        let normalized = (self.heads + self.kv_heads) * self.head_dim;
        if let Some(norm) = self.norm.as_ref().filter(|norm| norm.weight.len() != normalized) {
            return Err(Unsupported::PerHead {
                what: "the norm of q and k",
                expected: normalized,
                found: norm.weight.len(),
            });
        }
        if !self.rule.scale.is_finite() {
            return Err(Unsupported::Scale(self.rule.scale));
        }
        if let Some(cap) = self.rule.softcap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
            return Err(Unsupported::Softcap(cap));
        }
        if self.rule.window == Some(0) { Err(Unsupported::Window) } else { Ok(()) }
    }
}

impl Attention {
    /// # Errors
    /// For a layer that there is no kernel for.
    pub fn new(level: Level, team: Team, config: Config) -> Result<Self, Unsupported> {
        config.check()?;
        Ok(Self { level, team, config })
    }

    /// Splits a step into tasks for this team: good for every layer of the same shape.
    pub fn plan(&self, step: &Arc<Step>) -> Plan {
        Plan::new(step, self.config.shape(), self.team.threads())
    }

    /// Computes a step's attention: `tensors.out` is `[tokens, heads * head_dim]`.
    ///
    /// # Errors
    /// For a plan of another shape, and for rotated dimensions that a head does not have.
    ///
    /// # Safety
    /// The tensors are what [`Tensors`] says, for the step and the pool that the plan was made for; nobody else uses them
    /// during the call. No page of the pool is written by one sequence of the step and read by another.
    pub unsafe fn attend(&self, plan: &Plan, tensors: Tensors) -> Result<(), Unsupported> {
        if plan.shape != self.config.shape() {
            return Err(Unsupported::OtherPlan { plan: plan.shape, layer: self.config.shape() });
        }
        if !tensors.rotated.is_multiple_of(2) || tensors.rotated > self.config.head_dim {
            return Err(Unsupported::Rotated { rotated: tensors.rotated, head_dim: self.config.head_dim });
        }
        let call = call::Call { config: &self.config, plan, tensors };
        // SAFETY: the caller's promise.
        unsafe { call.run(self.level, self.team) }
        Ok(())
    }
}
