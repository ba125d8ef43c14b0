//! A step, in order: receive, schedule, send, await, apply, emit.

#[cfg(test)]
mod interleavings;

use std::time::{Duration, Instant};

use millrace_client::{LostReason, StepStream, WorkersLost};
use millrace_scheduler::{
    Capacity, FinishReason as Reason, GenerationEvent, Scheduler, SequenceId, Stats, StepPlan, StepResult, WrongResult,
};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::api::{Command, FinishReason};
use super::meters::{Meters, Planned};
use super::requests::{Requests, Verdict};
use crate::health::{Health, Hung};
use crate::overload::Backlog;

/// How often slow readers and requests that are late are looked for.
pub(super) const TICK: Duration = Duration::from_millis(200);

/// The scheduler and all that hangs on it. Outlives the workers.
#[derive(Debug)]
pub(super) struct Core {
    scheduler: Scheduler,
    requests: Requests,
    meters: Meters,
    backlog: Backlog,
    commands: mpsc::UnboundedReceiver<Command>,
    /// Every handle is dropped: no command will come.
    closed: bool,
    /// The server has no time left: who was still being checked then has none either.
    all_ended: bool,
    ticks: Interval,
    /// When slow readers and late requests have been looked for last.
    tended: Instant,
    patience: Duration,
}

/// Why serving ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Nobody is left to ask for anything.
    Over,
    /// With the rank that hangs, if that is why.
    Lost { reason: String, hung: Option<Hung> },
}

impl Core {
    pub(super) fn new(
        scheduler: Scheduler,
        requests: Requests,
        meters: Meters,
        backlog: Backlog,
        commands: mpsc::UnboundedReceiver<Command>,
        patience: Duration,
    ) -> Self {
        let mut ticks = interval(TICK.min(patience));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (closed, all_ended, tended) = (false, false, Instant::now());
        Self { scheduler, requests, meters, backlog, commands, closed, all_ended, ticks, tended, patience }
    }

    /// Steps until there is nothing more to do or the workers are lost.
    pub(super) async fn serve(&mut self, steps: &mut StepStream, health: &Health) -> Ended {
        loop {
            health.beat();
            self.receive();
            self.send(steps);
            if self.is_over() {
                return Ended::Over;
            }
            self.requests.show_served(self.scheduler.served_tokens());
            self.meters.show(&self.scheduler.stats());
            tokio::select! {
                biased;
                result = steps.next() => match result {
                    Ok(result) => if let Err(wrong) = self.take(result) { return self.disbelieved(&wrong, health) },
                    Err(lost) => return self.lost(lost),
                },
                () = self.wait_for_commands() => {}
            }
        }
    }

    /// Workers that answer nonsense are connected to anew; those whose every step fails have to be replaced.
    fn disbelieved(&self, wrong: &WrongResult, health: &Health) -> Ended {
        let reason = wrong.to_string();
        let hung = matches!(wrong, WrongResult::EverybodyFails { .. }).then(|| Hung {
            rank: 0,
            generation: health.generation(0),
            reason: reason.clone(),
            report: format!("scheduler: {:?}\n", self.scheduler.stats()),
            every_step_fails: true,
        });
        Ended::Lost { reason, hung }
    }

    fn lost(&self, lost: WorkersLost) -> Ended {
        let reason = lost.to_string();
        let hung = match lost.reason {
            LostReason::Hung(hang) => Some(Hung {
                rank: lost.rank,
                generation: hang.generation,
                reason: hang.why,
                report: format!("{}scheduler: {:?}\n", hang.report, self.scheduler.stats()),
                every_step_fails: false,
            }),
            _ => None,
        };
        Ended::Lost { reason, hung }
    }

    /// Every command that has come; never waits.
    fn receive(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            self.handle(Some(command));
        }
    }

    /// Plans and sends as many steps as may be in flight.
    fn send(&mut self, steps: &mut StepStream) {
        while let Some(plan) = self.plan() {
            let now = Instant::now();
            for sequence in self.scheduler.take_started() {
                self.requests.started(sequence, now);
            }
            self.meters.sent(&plan, Planned::last(&self.scheduler), now);
            steps.send(&plan);
        }
    }

    fn plan(&mut self) -> Option<StepPlan> {
        let terms = self.meters.terms(&self.scheduler, Instant::now());
        let guest_tokens = terms.guest_tokens.map(|tokens| if terms.shut_out.is_empty() { tokens } else { 0 });
        self.scheduler.set_terms(terms);
        let plan = self.scheduler.schedule()?;
        if let Some(tokens) = guest_tokens {
            self.backlog.set_guest(self.scheduler.foremost_guest(), tokens);
        }
        Some(plan)
    }

    /// The answer to the oldest step in flight.
    fn take(&mut self, result: StepResult) -> Result<(), WrongResult> {
        let now = Instant::now();
        let answered = self.meters.answered(&result, now);
        let ran_out = result.out_of_memory.then_some(result.step);
        let events = self.scheduler.apply(result)?;
        if let Some(step) = ran_out {
            let Stats { step_tokens, step_sequences, .. } = self.scheduler.stats();
            tracing::warn!(step, step_tokens, step_sequences, "a step ran out of memory: it is tried again, smaller");
        }
        self.emit(events, now);
        self.meters.emitted(answered, now.elapsed());
        // Where a result is always ready, the tick's turn never comes.
        if now.saturating_duration_since(self.tended) >= TICK {
            self.tend(now);
        }
        Ok(())
    }

    /// The next command or tick.
    pub(super) async fn wait_for_commands(&mut self) {
        tokio::select! {
            command = self.commands.recv(), if !self.closed => self.handle(command),
            _ = self.ticks.tick() => self.tend(Instant::now()),
        }
    }

    /// Ends what nobody reads and what is late.
    fn tend(&mut self, now: Instant) {
        self.tended = now;
        let dropped = self.requests.cancel_unread(now, self.patience);
        self.drop_sequences(dropped);
        let late = self.requests.end_late(now);
        self.drop_sequences(late);
    }

    pub(super) fn handle(&mut self, command: Option<Command>) {
        match command {
            Some(Command::Submit { request, reservation, mailbox }) => {
                self.requests.submit(*request, reservation, mailbox, &mut self.scheduler);
                if self.all_ended {
                    self.end_all();
                }
            }
            Some(Command::Cancel { mailbox }) => {
                let dropped = self.requests.cancel(&mailbox);
                self.drop_sequences(dropped);
            }
            Some(Command::EndAll) => {
                self.all_ended = true;
                self.end_all();
            }
            None => self.closed = true,
        }
    }

    fn end_all(&mut self) {
        let dropped = self.requests.end_all();
        self.drop_sequences(dropped);
    }

    pub(super) fn is_over(&self) -> bool {
        self.closed && self.requests.is_empty()
    }

    pub(super) fn workers_lost(&mut self) {
        self.scheduler.workers_lost();
        self.meters.workers_lost();
        self.meters.show(&self.scheduler.stats());
    }

    /// New workers may have less room: what fits no more fails.
    pub(super) fn set_capacity(&mut self, capacity: Capacity) {
        let events = self.scheduler.set_capacity(capacity);
        self.emit(events, Instant::now());
    }

    fn emit(&mut self, events: Vec<GenerationEvent>, now: Instant) {
        for event in events {
            match event {
                GenerationEvent::Prefilled { sequence, cached_tokens, prompt_logprobs } => {
                    self.requests.prefilled(sequence, cached_tokens, &prompt_logprobs);
                }
                GenerationEvent::Token { sequence, sampled } => {
                    let verdict = self.requests.token(sequence, &sampled, now);
                    // The scheduler says nothing if it has ended the sequence itself: on the last allowed token the
                    // length, and before any stop string the end-of-sequence token, is the reason.
                    if verdict == Verdict::Stop
                        && let Some(GenerationEvent::Finished { reason, .. }) = self.scheduler.stop(sequence)
                    {
                        self.end(sequence, reason, now);
                    }
                }
                GenerationEvent::Finished { sequence, reason } => self.end(sequence, reason, now),
            }
        }
        self.requests.send();
    }

    fn end(&mut self, sequence: SequenceId, reason: Reason, now: Instant) {
        let reason = match reason {
            Reason::Length => FinishReason::Length,
            Reason::EosToken => FinishReason::EosToken,
            Reason::StopSequence => FinishReason::StopSequence,
            Reason::Failed(message) => {
                // What is wrong with a step as a whole, its worker has logged as an error; this may be a client's grammar.
                tracing::warn!(sequence = sequence.0, message, "sequence failed");
                let siblings = self.requests.failed(sequence, message);
                return self.drop_sequences(siblings);
            }
            // Only this engine cancels, and it has forgotten the sequence then.
            Reason::Cancelled => return,
        };
        self.requests.finished(sequence, reason, now);
    }

    fn drop_sequences(&mut self, sequences: Vec<SequenceId>) {
        for sequence in sequences {
            // Its terminal event has no reader any more.
            let _ = self.scheduler.cancel(sequence);
        }
    }
}
