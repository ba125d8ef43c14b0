//! The step stream: the same plan to every rank, one answer per step.
//!
//! A step is answered when every rank has acknowledged it; what rank 0 said is the answer. Ranks run the same plans in
//! the same order, so an answer out of order, an error or an end on any rank means that the group has fallen apart:
//! [`WorkersLost`], at once and for good. The other ranks' streams are dropped, which tells their workers to stop.
//! So is the group of a rank that hangs: one whose process is silent, or whose step takes longer than it may.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use millrace_scheduler::{StepPlan, StepResult};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tokio_stream::Stream;
use tonic::Code;

use crate::bound::{Bound, units};
use crate::columns::Malformed;
use crate::connection::{RankStream, status_text};
use crate::convert::{self, Outline};
use crate::pulse::{Pulse, SILENCE};
use crate::v1;

/// More plans than this are never under way. The engine keeps two; the third is room for a change of mind.
pub const MAX_STEPS_IN_FLIGHT: usize = 3;
/// How often hangs are looked for.
const WATCH: Duration = Duration::from_millis(250);
/// A step may take so long and more, unless told otherwise.
const STEP_PATIENCE: Duration = Duration::from_secs(30);

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
    #[error("it hangs: {0}")]
    Hung(Hang),
    #[error("plan {actual} was to be sent where plan {expected} was due, with {in_flight} plans in flight")]
    PlanOutOfOrder { expected: u64, actual: u64, in_flight: usize },
}

/// Why a rank is taken to hang, and what was known then. No text of any request is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hang {
    /// Of its group, as the launcher counts; 0: nobody does.
    pub generation: u32,
    pub why: String,
    /// Ranks and steps in flight, a line each.
    pub report: String,
}

impl fmt::Display for Hang {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.why)
    }
}

/// The step streams of all ranks, as one.
#[derive(Debug)]
pub struct StepStream {
    ranks: Vec<Rank>,
    /// Plans sent whose answers have not been handed out, oldest first.
    in_flight: VecDeque<InFlight>,
    /// What rank 0 said about steps that another rank has not acknowledged yet.
    answers: VecDeque<v1::StepResult>,
    vocab_size: u32,
    sent: u64,
    lost: Option<WorkersLost>,
    pulse: Pulse,
    watch: Interval,
    bound: Bound,
    /// For how long the oldest step in flight has been computed.
    busy: Duration,
    busy_since: Instant,
}

/// A plan whose result has not been handed out.
#[derive(Debug)]
struct InFlight {
    outline: Outline,
    units: f64,
    num_tokens: u64,
}

#[derive(Debug)]
struct Rank {
    stream: RankStream,
    /// Steps acknowledged.
    answered: u64,
}

impl StepStream {
    pub(crate) fn new(streams: Vec<RankStream>, vocab_size: u32, pulse: Pulse) -> Self {
        let mut watch = interval(WATCH);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ranks = streams.into_iter().map(|stream| Rank { stream, answered: 0 }).collect();
        Self {
            ranks,
            in_flight: VecDeque::with_capacity(MAX_STEPS_IN_FLIGHT),
            answers: VecDeque::with_capacity(MAX_STEPS_IN_FLIGHT),
            vocab_size,
            sent: 0,
            lost: None,
            pulse,
            watch,
            bound: Bound::new(STEP_PATIENCE),
            busy: Duration::ZERO,
            busy_since: Instant::now(),
        }
    }

    /// No step counts as stuck before it has taken so long.
    pub fn set_patience(&mut self, patience: Duration) {
        self.bound.set_floor(patience);
    }

    /// What is known of how long steps take, for the workers that come next.
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// Takes what is known of how long steps take, by the workers before and by what these say of their trial.
    pub fn set_bound(&mut self, bound: Bound) {
        self.bound = bound;
    }

    /// How many plans have been sent whose results have not been taken.
    pub fn num_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Sends a plan to every rank. Never waits: what is in flight is bounded, and each rank's queue holds as much.
    /// Plans must be numbered 1, 2, 3, …, with at most [`MAX_STEPS_IN_FLIGHT`] in flight. Whether it arrives is what
    /// [`Self::next`] says.
    pub fn send(&mut self, plan: &StepPlan) {
        let (expected, in_flight) = (self.sent + 1, self.in_flight.len());
        if self.lost.is_none() && (plan.step != expected || in_flight == MAX_STEPS_IN_FLIGHT) {
            let reason = LostReason::PlanOutOfOrder { expected, actual: plan.step, in_flight };
            self.lose(WorkersLost { rank: 0, reason });
        }
        if self.lost.is_some() {
            return;
        }
        let encoded = convert::encode_plan(plan);
        for rank in &self.ranks {
            // A queue is closed when its rank is gone: `next` says so, and why.
            let _ = rank.stream.plans.try_send(encoded.clone());
        }
        self.sent = expected;
        if self.in_flight.is_empty() {
            self.restart_clock();
        }
        self.in_flight.push_back(InFlight {
            outline: Outline::of(plan, self.vocab_size),
            units: units(plan),
            num_tokens: plan.work.iter().map(|work| u64::from(work.count)).sum(),
        });
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
        while self.watch.poll_tick(context).is_ready() {
            if let Some(lost) = self.find_hang() {
                return Poll::Ready(Err(self.lose(lost)));
            }
        }
        let oldest = self.sent - self.in_flight.len() as u64 + 1;
        if self.in_flight.is_empty() || self.ranks.iter().any(|rank| rank.answered < oldest) {
            return Poll::Pending;
        }
        let InFlight { outline, units, .. } = self.in_flight.pop_front().expect("checked: a step is in flight");
        self.bound.learn(units, self.busy_since.elapsed());
        self.restart_clock();
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
            self.pulse.vitals.heard(rank);
            if rank == 0 {
                self.answers.push_back(answer);
            }
        }
        Ok(())
    }

    /// One tick has passed. Time is counted in ticks, so that a pause of this process counts as one.
    fn find_hang(&mut self) -> Option<WorkersLost> {
        if let Some(rank) = self.pulse.vitals.silent(SILENCE) {
            return Some(self.hung(rank, format!("its process has not answered for {:.1} s", SILENCE.as_secs_f64())));
        }
        let oldest = self.in_flight.front()?;
        self.busy += WATCH;
        let limit = self.bound.limit(oldest.units);
        if self.busy < limit {
            return None;
        }
        // Ranks that have answered wait for nobody; among the others the one behind is the one that hangs.
        let due = self.sent - self.in_flight.len() as u64 + 1;
        let waiting = (0..self.ranks.len()).filter(|&rank| self.ranks[rank].answered < due);
        let rank = self.pulse.vitals.slowest(waiting)?;
        let seconds = self.busy.as_secs_f64();
        Some(self.hung(rank, format!("step {due} has taken {seconds:.1} s, and was to take {limit:.1?} at most")))
    }

    fn hung(&self, rank: usize, why: String) -> WorkersLost {
        let generation = self.pulse.vitals.generation(rank);
        let hang = Hang { generation, why, report: self.report() };
        WorkersLost { rank, reason: LostReason::Hung(hang) }
    }

    fn report(&self) -> String {
        let first = self.sent - self.in_flight.len() as u64 + 1;
        let steps = (first..).zip(&self.in_flight).map(|(step, plan)| {
            let InFlight { outline, num_tokens, .. } = plan;
            format!("step {step}: {num_tokens} tokens of {} sequences\n", outline.num_sequences())
        });
        let vitals = self.pulse.vitals.all();
        let ranks = self.ranks.iter().zip(vitals).enumerate().map(|(rank, (stream, vital))| {
            let answered = stream.answered;
            format!("rank {rank}: answered step {answered}; last heard: {vital:?}\n")
        });
        steps.chain(ranks).collect()
    }

    fn restart_clock(&mut self) {
        (self.busy, self.busy_since) = (Duration::ZERO, Instant::now());
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
