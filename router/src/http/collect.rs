//! A whole answer: every event of a request, gathered until its last sequence has ended.

use super::admission::Admitted;
use super::error::ApiError;
use super::headers::Cost;
use super::ticket::{Ticket, Timing};
use crate::engine::api::{Event, Failed, Finished, Prefilled, Token};

/// What a request produced.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) prefilled: Prefilled,
    /// In their order.
    pub(super) sequences: Vec<Sequence>,
    /// Which of them has the highest mean logprob.
    best: usize,
    pub(super) timing: Timing,
    pub(super) ticket: Ticket,
    pub(super) prompt: String,
    pub(super) prompt_ids: Vec<u32>,
}

#[derive(Debug)]
pub(super) struct Sequence {
    /// Empty unless they were to be kept.
    pub(super) tokens: Vec<Token>,
    /// The text by `OpenAI`'s rules.
    pub(super) shown: String,
    pub(super) finished: Finished,
    mean_logprob: f64,
}

#[derive(Debug, Default)]
struct Growing {
    tokens: Vec<Token>,
    shown: String,
    logprob_sum: f64,
    num_tokens: u32,
    finished: Option<Finished>,
}

/// Waits for the end. Dropped before, it cancels the request.
pub(super) async fn collect(admitted: Admitted, keep_tokens: bool) -> Result<Answer, ApiError> {
    let Admitted { mut generation, mut ticket, prompt, num_sequences, prompt_ids } = admitted;
    let mut prefilled = Prefilled::default();
    let mut growing: Vec<Growing> = (0..num_sequences).map(|_| Growing::default()).collect();
    while growing.iter().any(|sequence| sequence.finished.is_none()) {
        let events = generation.next().await;
        if events.is_empty() {
            return Err(fail(&mut ticket, Failed::Incomplete));
        }
        for event in events {
            match event {
                Event::Prefilled(done) => prefilled = done,
                Event::Token { sequence, token } => growing[sequence].push(token, keep_tokens),
                Event::Finished { sequence, finished } => growing[sequence].finish(finished),
                Event::Failed(failed) => {
                    generation.complete();
                    return Err(fail(&mut ticket, failed));
                }
            }
        }
    }
    generation.complete();
    let sequences: Vec<Sequence> = growing.into_iter().filter_map(Growing::done).collect();
    let best = index_of_best(&sequences);
    let timing = ticket.succeeded(&sequences[best].finished);
    Ok(Answer { prefilled, sequences, best, timing, ticket, prompt, prompt_ids })
}

impl Answer {
    pub(super) fn best(&self) -> &Sequence {
        &self.sequences[self.best]
    }

    /// All but the best, in their order.
    pub(super) fn others(&self) -> impl Iterator<Item = &Sequence> {
        self.sequences.iter().enumerate().filter(|(index, _)| *index != self.best).map(|(_, sequence)| sequence)
    }

    /// The `count` best, the best first; all of them in their order if none is left out.
    pub(super) fn ranked(&self, count: usize) -> Vec<&Sequence> {
        let mut ranked: Vec<&Sequence> = self.sequences.iter().collect();
        if count < ranked.len() {
            ranked.sort_by(|a, b| b.mean_logprob.total_cmp(&a.mean_logprob));
            ranked.truncate(count);
        }
        ranked
    }

    /// What it cost; of several sequences the best one counts.
    pub(super) fn cost(&self) -> Cost {
        Cost {
            characters: self.ticket.characters,
            prompt_tokens: self.ticket.prompt_tokens,
            generated_tokens: self.best().finished.generated_tokens,
            timing: self.timing,
        }
    }

    /// As `cost`, with the tokens of every sequence.
    pub(super) fn cost_of_all(&self) -> Cost {
        let generated = self.sequences.iter().map(|sequence| sequence.finished.generated_tokens);
        Cost { generated_tokens: generated.sum(), ..self.cost() }
    }
}

fn fail(ticket: &mut Ticket, failed: Failed) -> ApiError {
    ticket.failed(&failed);
    ApiError::Failed(failed)
}

/// The first of the best.
fn index_of_best(sequences: &[Sequence]) -> usize {
    let mut best = 0;
    for (index, sequence) in sequences.iter().enumerate() {
        if sequence.mean_logprob > sequences[best].mean_logprob {
            best = index;
        }
    }
    best
}

impl Growing {
    fn push(&mut self, token: Token, keep: bool) {
        self.logprob_sum += f64::from(token.logprob);
        self.num_tokens += 1;
        self.shown.push_str(&token.delta);
        if keep {
            self.tokens.push(token);
        }
    }

    fn finish(&mut self, finished: Finished) {
        self.shown.push_str(&finished.delta);
        self.finished = Some(finished);
    }

    fn done(self) -> Option<Sequence> {
        let mean_logprob = self.logprob_sum / f64::from(self.num_tokens.max(1));
        Some(Sequence { tokens: self.tokens, shown: self.shown, finished: self.finished?, mean_logprob })
    }
}
