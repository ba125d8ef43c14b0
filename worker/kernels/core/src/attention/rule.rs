//! What happens to a score between the product and the softmax.

use super::layout::PAGE;
use crate::simd::{Simd, Vector, exp};

/// What a layer does to its scores. A query sees the keys at its own position and before, with a window only the last
/// `window` of them.
#[derive(Clone, Debug)]
pub struct Rule {
    pub scale: f32,
    pub window: Option<usize>,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f32>,
    /// `ALiBi` (Press et al. 2021), for each query head: minus this times the distance is added. Empty: none.
    pub slopes: Vec<f32>,
    /// For each query head the score of a key without a value, which every query sees. Empty: none.
    pub sinks: Vec<f32>,
}

impl Rule {
    pub(crate) fn slope(&self, head: usize) -> Option<f32> {
        self.slopes.get(head).copied()
    }

    pub(crate) fn sink(&self, head: usize) -> Option<f32> {
        self.sinks.get(head).copied()
    }
}

/// The numbers of the lanes.
static INDEX: [f32; PAGE] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// Upper bounds of scores: read from `PAGE - n` on, the first n lanes are not seen; from `2 * PAGE - n` on, only the
/// first n are.
static LIMITS: [f32; 3 * PAGE] = {
    let mut limits = [f32::NEG_INFINITY; 3 * PAGE];
    let mut i = PAGE;
    while i < 2 * PAGE {
        limits[i] = f32::INFINITY;
        i += 1;
    }
    limits
};

/// What one query row sees, and how: `first .. end` are the positions of its keys, `end - 1` is its own.
#[derive(Clone, Copy)]
pub(crate) struct Sight {
    pub(crate) first: usize,
    pub(crate) end: usize,
    pub(crate) softcap: Option<f32>,
    pub(crate) slope: Option<f32>,
}

impl Sight {
    /// Whether the rule does anything to the scores of the sixteen keys from position `at` on.
    #[inline(always)]
    pub(crate) fn changes(&self, at: usize) -> bool {
        self.softcap.is_some() || self.slope.is_some() || self.first > at || self.end < at + PAGE
    }

    /// The scaled scores of the sixteen keys from position `at` on, by the rule: minus infinity for what is not seen,
    /// whatever stood there.
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(self, mut scores: S::V, at: usize) -> S::V {
        if let Some(cap) = self.softcap {
            scores = tanh(scores.mul(S::V::splat(1.0 / cap))).mul(S::V::splat(cap));
        }
        if let Some(slope) = self.slope {
            // SAFETY: sixteen numbers.
            let index = unsafe { S::V::load(INDEX.as_ptr()) };
            let distance = S::V::splat(self.end as f32 - 1.0 - at as f32).sub(index);
            scores = distance.mul_add(S::V::splat(-slope), scores);
        }
        if self.first > at {
            // SAFETY: at most the lanes are hidden, so sixteen limits follow.
            scores = scores.min(unsafe { S::V::load(LIMITS.as_ptr().add(PAGE - (self.first - at).min(PAGE))) });
        }
        if self.end < at + PAGE {
            // SAFETY: at most the lanes are seen.
            scores = scores.min(unsafe { S::V::load(LIMITS.as_ptr().add(2 * PAGE - self.end.saturating_sub(at))) });
        }
        scores
    }
}

/// By e^2x, with an absolute error of some 1e-7.
#[inline(always)]
fn tanh<V: Vector>(x: V) -> V {
    let one = V::splat(1.0);
    one.sub(V::splat(2.0).div(exp(x.add(x)).add(one)))
}
