//! A toy language model: the next token is a pure function of the tokens before it, so that a test can say what a
//! request must answer, however it was scheduled.

use std::collections::BTreeMap;
use std::ops::Range;

use millrace_scheduler::{Sampled, Sampling, TopToken};

/// Everything the model knows about a prefix: a hash of its tokens, in order. It stands for the K/V of the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix(u64);

impl Prefix {
    pub const EMPTY: Self = Self(0x6d69_6c6c_7261_6365);
    /// What a slot holds that was never written. No prefix is likely to hash to it.
    pub const POISON: Self = Self(u64::MAX);

    /// The prefix that has one more token.
    #[must_use]
    pub fn then(self, token_id: u32) -> Self {
        Self(mix(self.0 ^ mix(token_id.into())))
    }
}

/// The output function of `SplitMix64` (Steele, Lea, Flood 2014): a bijection that spreads every bit.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A number in 0..1 with 24 bits.
fn fraction(drawn: u64) -> f32 {
    (drawn >> 40) as f32 / (1_u64 << 24) as f32
}

/// What the fake worker says.
///
/// With h = the hash of all tokens before, the next token is `token_ids[mix(h) mod n]` when greedy, and
/// `token_ids[mix(h ^ mix(seed ^ mix(position))) mod n]` when `do_sample`; other sampling parameters do not matter.
/// Two scripts override it, so that tests can end or steer an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToyModel {
    /// Ordinary tokens, from which the model draws. Not empty.
    pub token_ids: Range<u32>,
    /// Position in the sequence, prompt included and counted from 0: the token that is always there.
    pub at_position: BTreeMap<u32, u32>,
    /// Index in the output, counted from 0: the token that is always there. Wins over `at_position`.
    pub at_output: BTreeMap<u32, u32>,
}

impl Default for ToyModel {
    /// Draws from 16..1000, no script.
    fn default() -> Self {
        Self { token_ids: 16..1000, at_position: BTreeMap::new(), at_output: BTreeMap::new() }
    }
}

impl ToyModel {
    /// The token at `position` after the tokens of `prefix`, of which the client sent `num_prompt_tokens`.
    pub fn sample(&self, prefix: Prefix, position: u32, num_prompt_tokens: u32, sampling: &Sampling) -> Sampled {
        let noise = if sampling.do_sample { mix(sampling.seed ^ mix(position.into())) } else { 0 };
        let drawn = mix(prefix.0 ^ noise);
        let output = position - num_prompt_tokens;
        let scripted = self.at_output.get(&output).or_else(|| self.at_position.get(&position));
        let token_id = scripted.copied().unwrap_or_else(|| self.token(drawn));
        let logprob = -4.0 * fraction(drawn) - 0.001;
        let top_tokens = self.top_tokens(token_id, logprob, drawn, sampling.top_n_tokens as usize);
        Sampled { token_id, logprob, top_tokens }
    }

    /// The log probability that a prompt token is given after its prefix: below 0, as real ones are.
    pub fn prompt_logprob(prefix: Prefix, token_id: u32) -> f32 {
        -8.0 * fraction(prefix.then(token_id).0) - 0.001
    }

    /// The likeliest tokens in a prompt token's place.
    pub fn prompt_top(&self, prefix: Prefix, token_id: u32, n: usize) -> Vec<TopToken> {
        let drawn = mix(prefix.0);
        self.top_tokens(token_id, Self::prompt_logprob(prefix, token_id), drawn, n)
    }

    /// The first `n` tokens that follow a prompt. Knows no end of sequence: the caller cuts.
    pub fn generate(&self, prompt: &[u32], sampling: &Sampling, n: usize) -> Vec<Sampled> {
        let mut prefix = prompt.iter().fold(Prefix::EMPTY, |prefix, token| prefix.then(*token));
        let num_prompt_tokens = prompt.len() as u32;
        let one = |position: u32| {
            let sampled = self.sample(prefix, position, num_prompt_tokens, sampling);
            prefix = prefix.then(sampled.token_id);
            sampled
        };
        (num_prompt_tokens..).take(n).map(one).collect()
    }

    /// Logprobs of every prompt token but the first.
    pub fn prompt_logprobs(prompt: &[u32]) -> Vec<f32> {
        let mut prefix = Prefix::EMPTY;
        let one = |token: &u32| {
            let logprob = Self::prompt_logprob(prefix, *token);
            prefix = prefix.then(*token);
            logprob
        };
        prompt.iter().map(one).skip(1).collect()
    }

    /// The token itself, then its neighbours, each half as likely again (in nats, -0.5).
    fn top_tokens(&self, token_id: u32, logprob: f32, drawn: u64, n: usize) -> Vec<TopToken> {
        let neighbours = (1..=self.token_ids.len() as u64).map(|distance| self.token(drawn.wrapping_add(distance)));
        let others = neighbours.filter(|neighbour| *neighbour != token_id);
        let ids = std::iter::once(token_id).chain(others).take(n);
        ids.enumerate().map(|(rank, token_id)| TopToken { token_id, logprob: logprob - 0.5 * rank as f32 }).collect()
    }

    fn token(&self, drawn: u64) -> u32 {
        self.token_ids.start + (drawn % self.token_ids.len() as u64) as u32
    }
}
