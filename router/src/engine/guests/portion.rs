//! How many tokens of prompts make a step as long as it should be. Pure; learned from the steps, without a line of costs: a
//! fixed cost of steps with prompts, or a first few tokens that are free, would mislead one.

/// Few tokens cost hardly less than some: at least so many, which is where it begins.
pub(super) const LEAST: u32 = 64;
pub(super) const MOST: u32 = 1 << 20;
/// Steps that take nearly as long as they should change nothing.
const NEARLY: f64 = 1.25;

#[derive(Clone, Copy, Debug)]
pub(super) struct Portion {
    tokens: u32,
}

impl Default for Portion {
    fn default() -> Self {
        Self { tokens: LEAST }
    }
}

impl Portion {
    pub(super) fn tokens(self) -> u32 {
        self.tokens
    }

    /// A step with so many of these tokens has taken so long, and should take so long. It grows if all of it was taken, and
    /// shrinks if half of it was, by a factor of two at most: a number that little was used of says nothing, and a step with more
    /// tokens was planned by who is alone, or before the number was learned.
    pub(super) fn learn(&mut self, num_tokens: usize, took: f64, wanted: f64) {
        let factor = (wanted / took).clamp(0.5, 2.0);
        let is_short = factor > NEARLY && num_tokens >= self.tokens as usize;
        let is_of_it = (self.tokens as usize / 2..=self.tokens as usize).contains(&num_tokens);
        let is_long = factor < 1.0 / NEARLY && is_of_it;
        if is_short || is_long {
            self.tokens = ((f64::from(self.tokens) * factor) as u32).clamp(LEAST, MOST);
        }
    }
}
