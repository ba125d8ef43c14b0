//! The best tokens of a row, in order, as many as are asked for: shell by shell, each of the gaps up to a limit.

use super::gaps::{BLOCK, weights};
use crate::simd::{LANES, Simd};

/// How thick shells are at first: most tokens are far away.
const THICKNESS: f32 = 2.0;
/// From here on each one's limit is twice the one before it.
const FAR: f32 = 16.0;
/// From here on no token weighs anything: what is left is the last shell.
const LAST_LIMIT: f32 = 128.0;
/// Shells of so many tokens are sorted digit by digit.
const MANY: usize = 2048;
/// Bits of a digit.
const DIGIT: u32 = 11;

/// What is known of a row.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Scores, later gaps: whole blocks, the tokens that there are not being infinitely far.
    pub(crate) values: Vec<f32>,
    /// The smallest gap of each lane of each block.
    pub(crate) least: Vec<f32>,
    /// All tokens up to the limit, by gap and id.
    pub(crate) ids: Vec<usize>,
    pub(crate) gaps: Vec<f32>,
    pub(crate) weights: Vec<f32>,
    /// Of the first 0, 1, .. weights.
    pub(crate) sums: Vec<f64>,
    pub(crate) limit: f32,
    /// Of all tokens' weights.
    pub(crate) total: f64,
    shell: Vec<u64>,
    spare: Vec<u64>,
    shell_weights: Vec<f32>,
}

impl Found {
    /// Whether every token of finite gap is there.
    pub(crate) fn is_complete(&self) -> bool {
        self.limit >= f32::MAX
    }

    /// Nothing is known of the order yet.
    pub(crate) fn clear(&mut self) {
        self.ids.clear();
        self.gaps.clear();
        self.weights.clear();
        self.sums.clear();
        self.sums.push(0.0);
        self.limit = -1.0;
    }

    /// Adds the next shell.
    #[inline(always)]
    pub(crate) fn grow<S: Simd>(&mut self) {
        let limit = match self.limit {
            limit if limit < FAR => limit.max(0.0) + THICKNESS,
            limit if limit < LAST_LIMIT => 2.0 * limit,
            _ => f32::MAX,
        };
        self.grow_to::<S>(limit);
    }

    /// Adds all tokens with gaps above the old limit and up to a new one.
    #[inline(always)]
    pub(crate) fn grow_to<S: Simd>(&mut self, limit: f32) {
        self.shell.clear();
        for (at, low) in self.least.iter().enumerate() {
            if *low > limit {
                continue;
            }
            let first = at / LANES * BLOCK + at % LANES;
            for id in (first..first + BLOCK).step_by(LANES) {
                let gap = self.values[id];
                if gap > self.limit && gap <= limit {
                    // No gap is negative: their bits are in the same order.
                    self.shell.push(u64::from(gap.to_bits()) << 32 | id as u64);
                }
            }
        }
        self.limit = limit;
        sort(&mut self.shell, &mut self.spare);
        let before = self.gaps.len();
        self.ids.extend(self.shell.iter().map(|each| *each as u32 as usize));
        self.gaps.extend(self.shell.iter().map(|each| f32::from_bits((each >> 32) as u32)));
        weights::<S>(&self.gaps[before..], &mut self.shell_weights);
        let mut sum = *self.sums.last().expect("there is a sum of no weights");
        for weight in &self.shell_weights {
            sum += f64::from(*weight);
            self.sums.push(sum);
        }
        self.weights.extend_from_slice(&self.shell_weights);
    }
}

/// Sorts by all bits; many keys from their last digit to their first, those with one value for all left out.
fn sort(keys: &mut Vec<u64>, spare: &mut Vec<u64>) {
    if keys.len() < MANY {
        return keys.sort_unstable();
    }
    for shift in (0..u64::BITS).step_by(DIGIT as usize) {
        let digit = |key: u64| (key >> shift) as usize & ((1 << DIGIT) - 1);
        let mut places = [0_usize; 1 << DIGIT];
        for key in keys.iter() {
            places[digit(*key)] += 1;
        }
        if places.contains(&keys.len()) {
            continue;
        }
        let mut before = 0;
        for place in &mut places {
            before += std::mem::replace(place, before);
        }
        spare.clear();
        spare.resize(keys.len(), 0);
        for key in keys.iter() {
            let place = &mut places[digit(*key)];
            spare[*place] = *key;
            *place += 1;
        }
        std::mem::swap(keys, spare);
    }
}
