//! The step stream: the same plan to every rank, one answer per step.
//!
//! A step is answered when every rank has acknowledged it; what rank 0 said is the answer. Ranks run the same plans in
//! the same order, so an answer out of order, an error or an end on any rank means that the group has fallen apart:
//! [`WorkersLost`], at once and for good. The other ranks' streams are dropped, which tells their workers to stop.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use millrace_scheduler::{StepPlan, StepResult};
use tokio_stream::Stream;
use tonic::Code;

use crate::columns::Malformed;
use crate::connection::{RankStream, status_text};
use crate::convert::{self, Outline};
use crate::v1;

/// More plans than this are never under way. The engine keeps two; the third is room for a change of mind.
pub const MAX_STEPS_IN_FLIGHT: usize = 3;

/// The group cannot go on: connect again. The rank is the one that was seen to fail first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("worker of rank {rank} lost: {reason}")]
pub struct WorkersLost {
    pub rank: usize,
    pub reason: LostReason,
}

/// What was seen of a lost rank.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LostReason {
    #[error("it ended the step stream")]
    Ended,
    #[error("{message} ({code:?})")]
    Failed { code: Code, message: String },
    #[error("it answered step {actual} where the answer to step {expected} was due")]
    OutOfOrder { expected: u64, actual: u64 },
    #[error("its answer is malformed: {0}")]
    Malformed(#[from] Malformed),
    #[error("plan {actual} was to be sent where plan {expected} was due, with {in_flight} plans in flight")]
    PlanOutOfOrder { expected: u64, actual: u64, in_flight: usize },
}

/// The step streams of all ranks, as one.
#[derive(Debug)]
pub struct StepStream {
    ranks: Vec<Rank>,
    /// Plans sent whose answers have not been handed out, oldest first.
    in_flight: VecDeque<Outline>,
    /// What rank 0 said about steps that another rank has not acknowledged yet.
    answers: VecDeque<v1::StepResult>,
    vocab_size: u32,
    sent: u64,
    lost: Option<WorkersLost>,
}

#[derive(Debug)]
struct Rank {
    stream: RankStream,
    /// Steps acknowledged.
    answered: u64,
}

impl StepStream {
    pub(crate) fn new(streams: Vec<RankStream>, vocab_size: u32) -> Self {
        let ranks = streams.into_iter().map(|stream| Rank { stream, answered: 0 }).collect();
        Self {
            ranks,
            in_flight: VecDeque::with_capacity(MAX_STEPS_IN_FLIGHT),
            answers: VecDeque::with_capacity(MAX_STEPS_IN_FLIGHT),
            vocab_size,
            sent: 0,
            lost: None,
        }
    }

    /// How many plans have been sent whose results have not been taken.
    pub fn num_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Sends a plan to every rank. Never waits: what is in flight is bounded, and each rank's queue holds as much.
    /// Plans must be numbered 1, 2, 3, …, with at most [`MAX_STEPS_IN_FLIGHT`] in flight.
    pub fn send(&mut self, plan: &StepPlan) -> Result<(), WorkersLost> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        let (expected, in_flight) = (self.sent + 1, self.in_flight.len());
        if plan.step != expected || in_flight == MAX_STEPS_IN_FLIGHT {
            let reason = LostReason::PlanOutOfOrder { expected, actual: plan.step, in_flight };
            return Err(self.lose(WorkersLost { rank: 0, reason }));
        }
        let encoded = convert::encode_plan(plan);
        for rank in &self.ranks {
            // A queue is closed when its rank is gone: `next` says so, and why.
            let _ = rank.stream.plans.try_send(encoded.clone());
        }
        self.sent = expected;
        self.in_flight.push_back(Outline::of(plan, self.vocab_size));
        Ok(())
    }

    /// The result of the oldest step in flight. Waits for it; with none in flight, waits for a loss. Cancel-safe.
    pub async fn next(&mut self) -> Result<StepResult, WorkersLost> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<StepResult, WorkersLost>> {
        if let Some(lost) = &self.lost {
            return Poll::Ready(Err(lost.clone()));
        }
        for rank in 0..self.ranks.len() {
            if let Err(reason) = self.receive(rank, context) {
                return Poll::Ready(Err(self.lose(WorkersLost { rank, reason })));
            }
        }
        let oldest = self.sent - self.in_flight.len() as u64 + 1;
        if self.in_flight.is_empty() || self.ranks.iter().any(|rank| rank.answered < oldest) {
            return Poll::Pending;
        }
        let outline = self.in_flight.pop_front().expect("checked: a step is in flight");
        let answer = self.answers.pop_front().expect("rank 0 has acknowledged this step");
        match convert::result_from_proto(&outline, &answer) {
            Ok(result) => Poll::Ready(Ok(result)),
            Err(malformed) => Poll::Ready(Err(self.lose(WorkersLost { rank: 0, reason: malformed.into() }))),
        }
    }

    /// Takes every answer that has come from one rank. Polls until there is none, so that the task is woken by the next.
    fn receive(&mut self, rank: usize, context: &mut Context<'_>) -> Result<(), LostReason> {
        let Rank { stream, answered } = &mut self.ranks[rank];
        while let Poll::Ready(answer) = Pin::new(&mut stream.answers).poll_next(context) {
            let answer = answer.ok_or(LostReason::Ended)?.map_err(|status| failed(&status))?;
            let expected = *answered + 1;
            if answer.step != expected || expected > self.sent {
                return Err(LostReason::OutOfOrder { expected, actual: answer.step });
            }
            *answered = expected;
            if rank == 0 {
                self.answers.push_back(answer);
            }
        }
        Ok(())
    }

    fn lose(&mut self, lost: WorkersLost) -> WorkersLost {
        self.ranks.clear();
        self.in_flight.clear();
        self.answers.clear();
        self.lost = Some(lost.clone());
        lost
    }
}

fn failed(status: &tonic::Status) -> LostReason {
    LostReason::Failed { code: status.code(), message: status_text(status) }
}
