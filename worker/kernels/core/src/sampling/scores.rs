//! What changes scores before they are compared: a watermark, and penalties on tokens that a row has.

use super::gaps::best;
use super::noise::mix;
use crate::simd::Simd;

/// How many tokens are looked at together.
const PART: usize = 64;

/// The watermark of Kirchenbauer et al. (ICML 2023): a bias on the green tokens, which the token before names.
#[derive(Clone, Copy, Debug)]
pub struct Watermark {
    /// A token is green when its word, as a signed number after its highest bit is flipped, is at most this.
    pub largest: i32,
    /// What its score gains.
    pub delta: f32,
}

const HASH_KEY: u32 = 15_485_863;
const SIGN: u32 = 1 << 31;

impl Watermark {
    /// Adds the bias to a row's scores.
    #[inline(always)]
    pub(crate) fn add(self, scores: &mut [f32], previous: u32) {
        let key = mix(previous.wrapping_mul(HASH_KEY));
        for (token, score) in (0_u32..).zip(scores) {
            let word = mix(mix(token) ^ key) ^ SIGN;
            *score += if word.cast_signed() <= self.largest { self.delta } else { 0.0 };
        }
    }
}

/// What seen tokens lose.
#[derive(Clone, Copy, Debug)]
pub struct Penalties {
    /// Keskar et al. 2019: scores are divided by it, multiplied if negative. 1: none.
    pub repetition: f32,
    /// Text Generation Inference's: times the share of the row's tokens. 0: none.
    pub frequency: f32,
    /// `OpenAI`'s: for each token of the output, and for each time it occurs there. 0: none.
    pub presence: f32,
    pub count: f32,
}

impl Penalties {
    /// `length`: how many tokens the row has. Most tokens are not among them, and are passed over many at a time.
    #[inline(always)]
    pub(crate) fn subtract<S: Simd>(self, scores: &mut [f32], counts: &[f32], output_counts: &[f32], length: usize) {
        let share = self.frequency / length as f32;
        let parts = scores.chunks_mut(PART).zip(counts.chunks(PART)).zip(output_counts.chunks(PART));
        for ((scores, counts), output_counts) in parts {
            if best::<S>(counts) > 0.0 {
                self.subtract_each(share, scores, counts, output_counts);
            }
        }
    }

    #[inline(always)]
    fn subtract_each(self, share: f32, scores: &mut [f32], counts: &[f32], output_counts: &[f32]) {
        for ((score, count), output) in scores.iter_mut().zip(counts).zip(output_counts) {
            if *count == 0.0 {
                continue;
            }
            *score = if *score > 0.0 { *score / self.repetition } else { *score * self.repetition };
            *score -= *count * share;
            *score -= output.min(1.0) * self.presence;
            *score -= *output * self.count;
        }
    }
}
