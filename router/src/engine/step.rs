//! A step, in order: receive, schedule, send, await, apply, emit.

use std::time::{Duration, Instant};

use millrace_client::{LostReason, StepStream, WorkersLost};
use millrace_scheduler::{Capacity, FinishReason as Reason, GenerationEvent, Scheduler, SequenceId, StepResult};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::api::{Command, FinishReason};
use super::meters::Meters;
use super::requests::{Requests, Verdict};
use crate::health::Hung;

/// How often slow readers and requests that are late are looked for.
const TICK: Duration = Duration::from_millis(200);

/// The scheduler and all that hangs on it. Outlives the workers.
#[derive(Debug)]
pub(super) struct Core {
    scheduler: Scheduler,
    requests: Requests,
    meters: Meters,
    commands: mpsc::UnboundedReceiver<Command>,
    /// Every handle is dropped: no command will come.
    closed: bool,
    ticks: Interval,
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
        commands: mpsc::UnboundedReceiver<Command>,
        patience: Duration,
    ) -> Self {
        let mut ticks = interval(TICK.min(patience));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { scheduler, requests, meters, commands, closed: false, ticks, patience }
    }

    /// Steps until there is nothing more to do or the workers are lost.
    pub(super) async fn serve(&mut self, steps: &mut StepStream) -> Ended {
        loop {
            self.receive();
            if let Err(lost) = self.send(steps) {
                return self.lost(lost);
            }
            if self.is_over() {
                return Ended::Over;
            }
            self.meters.show(&self.scheduler.stats());
            tokio::select! {
                biased;
                result = steps.next() => match result {
                    Ok(result) => if let Err(reason) = self.take(result) { return Ended::Lost { reason, hung: None } },
                    Err(lost) => return self.lost(lost),
                },
                () = self.wait_for_commands() => {}
            }
        }
    }

    fn lost(&self, lost: WorkersLost) -> Ended {
        let reason = lost.to_string();
        let hung = match lost.reason {
            LostReason::Hung(hang) => Some(Hung {
                rank: lost.rank,
                generation: hang.generation,
                reason: hang.why,
                report: format!("{}scheduler: {:?}\n", hang.report, self.scheduler.stats()),
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
    fn send(&mut self, steps: &mut StepStream) -> Result<(), WorkersLost> {
        while let Some(plan) = self.scheduler.schedule() {
            let now = Instant::now();
            for sequence in self.scheduler.take_started() {
                self.requests.started(sequence, now);
            }
            self.meters.sent(&plan, self.scheduler.last_join(), now);
            steps.send(&plan)?;
        }
        Ok(())
    }

    /// The answer to the oldest step in flight.
    fn take(&mut self, result: StepResult) -> Result<(), String> {
        let now = Instant::now();
        let answered = self.meters.answered(&result, now);
        let events = self.scheduler.apply(result).map_err(|wrong| wrong.to_string())?;
        self.emit(events, now);
        self.meters.emitted(answered, now.elapsed());
        Ok(())
    }

    /// The next command or tick.
    pub(super) async fn wait_for_commands(&mut self) {
        tokio::select! {
            command = self.commands.recv(), if !self.closed => self.handle(command),
            _ = self.ticks.tick() => {
                let now = Instant::now();
                let dropped = self.requests.cancel_unread(now, self.patience);
                self.drop_sequences(dropped);
                let late = self.requests.end_late(now);
                self.drop_sequences(late);
            }
        }
    }

    pub(super) fn handle(&mut self, command: Option<Command>) {
        match command {
            Some(Command::Submit { request, mailbox }) => self.requests.submit(request, mailbox, &mut self.scheduler),
            Some(Command::Cancel { mailbox }) => {
                let dropped = self.requests.cancel(&mailbox);
                self.drop_sequences(dropped);
            }
            Some(Command::EndAll) => {
                let dropped = self.requests.end_all();
                self.drop_sequences(dropped);
            }
            None => self.closed = true,
        }
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
                tracing::error!(sequence = sequence.0, message, "sequence failed");
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
