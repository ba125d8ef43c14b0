//! Counter-based noise, a number for each seed, position and token, and the race in which it decides.
//!
//! Tokens arrive at E / weight, E exponential noise of mean 1, and the first one wins (the same as the largest score plus
//! Gumbel noise: Gumbel 1954, Maddison et al. 2014). Here the largest `weight / E` is looked for.

use crate::simd::LANES;

/// Odd multipliers: `MurmurHash3`'s two, and the last two primes of xxHash.
const MURMUR_1: u32 = 0x85eb_ca6b;
const MURMUR_2: u32 = 0xc2b2_ae35;
const XX_4: u32 = 0x27d4_eb2f;
const XX_5: u32 = 0x1656_67b1;

/// `MurmurHash3`'s 32-bit finaliser, a bijection.
#[inline(always)]
pub(crate) fn mix(word: u32) -> u32 {
    let word = (word ^ word >> 16).wrapping_mul(MURMUR_1);
    let word = (word ^ word >> 13).wrapping_mul(MURMUR_2);
    word ^ word >> 16
}

/// A uniform draw above 0 and below 1 of a token under a row's keys: (x + 1/2) / 2^31 of 31 random bits x, in float32.
#[inline(always)]
pub(crate) fn uniform(token: u32, keys: [u32; 2]) -> f32 {
    /// One step of float32 less than 2^-31: the largest draw stays below 1.
    const FACTOR: f32 = (1.0 / 2_147_483_648.0) * (1.0 - 1.0 / 16_777_216.0);
    const HALF: f32 = 1.0 / 4_294_967_296.0;
    let word = (mix(token) ^ keys[0]).wrapping_mul(MURMUR_1);
    let word = (word ^ word >> 15).wrapping_add(keys[1]).wrapping_mul(MURMUR_2);
    let word = (word ^ word >> 16).wrapping_mul(XX_4);
    let word = (word ^ word >> 15).wrapping_mul(XX_5);
    (word & (u32::MAX >> 1)).cast_signed() as f32 * FACTOR + HALF
}

/// `uniform` of sixteen tokens that follow each other.
#[inline(always)]
pub(crate) fn uniforms(first: u32, keys: [u32; 2]) -> [f32; LANES] {
    let mut draws = [0.0; LANES];
    for (token, draw) in (first..).zip(&mut draws) {
        *draw = uniform(token, keys);
    }
    draws
}

/// The fastest token so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Race {
    pub(crate) winner: usize,
    pub(crate) speed: f32,
}

impl Race {
    /// The exponential draw -log(1 - u) is at least u: a token that would not win with u need not be computed.
    #[inline(always)]
    pub(crate) fn enter(&mut self, token: usize, weight: f32, uniform: f32) {
        if weight / uniform > self.speed {
            let speed = weight / -f64::from(-uniform).ln_1p() as f32;
            if speed > self.speed {
                *self = Self { winner: token, speed };
            }
        }
    }
}
