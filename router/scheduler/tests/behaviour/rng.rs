//! A small random number generator, and the hash that stands for a model.
use std::hash::{BuildHasher, Hasher, RandomState};

/// Marsaglia's xorshift64* ("Xorshift RNGs", 2003; multiplier from Vigna, 2016).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed, 0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Uniform in `range`, both ends included.
    pub(crate) fn between(&mut self, range: std::ops::RangeInclusive<usize>) -> usize {
        let width = (range.end() - range.start() + 1) as u64;
        range.start() + ((self.next() >> 33) % width) as usize
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.between(1..=n) == 1
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.between(0..=of.len() - 1)]
    }
}

/// A seed that differs from run to run.
pub(crate) fn fresh_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// One round of `SplitMix64` over both inputs.
pub(crate) fn mix(state: u64, value: u64) -> u64 {
    let mut z = state.wrapping_add(value.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
