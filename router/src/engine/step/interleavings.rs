//! Every order of results, faults, cancellations, deadlines, stop strings and the end of the server, up to a length: each
//! request ends exactly once, and everything that it held comes back.
//!
//! The engine's own code runs, step by step, without its task: two plans are in flight, as there, and what comes next is
//! chosen here. `MILLRACE_SOAK=1` takes orders that are one longer.

use std::collections::VecDeque;
use std::sync::Arc;

use millrace_scheduler::{Config as SchedulerConfig, Failure, NO_TOKEN, Sampled, Sampling, StepPlan, TenantId};

use super::*;
use crate::config::Config;
use crate::detokenize::Detokenizer;
use crate::detokenize::tests::byte_level;
use crate::engine::api::{Event, Failed, Mailbox};
use crate::overload::Demand;
use crate::request::{Stopping, ValidRequest};
use crate::tenants::Tenant;

/// In the test tokenizer these ids are the letters a to z.
const FIRST_LETTER: u32 = 66;
const LONG_AGO: Duration = Duration::from_secs(3600);

/// What can happen next. All but the first happen once at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The oldest step in flight is answered.
    Result,
    /// It is, and the first request's first sequence has failed in it.
    FailedSequence,
    /// It has failed as a whole.
    FailedStep,
    OutOfMemory,
    /// It is, with the tokens that complete the second request's stop string.
    StopString,
    /// The second request comes.
    Second,
    /// The first request's client leaves.
    Cancel,
    /// The second request's time is over.
    Late,
    /// The first request's reader has not come for too long.
    Unread,
    /// The workers die; others are there.
    Lost,
    /// Others are there, and have less room.
    LostWithLess,
    /// The server has no time left.
    EndAll,
}

const ONCE: [Next; 11] = [
    Next::FailedSequence,
    Next::FailedStep,
    Next::OutOfMemory,
    Next::StopString,
    Next::Second,
    Next::Cancel,
    Next::Late,
    Next::Unread,
    Next::Lost,
    Next::LostWithLess,
    Next::EndAll,
];

struct World {
    /// Of the first and of the second request.
    tenants: [Arc<Tenant>; 2],
    core: Core,
    backlog: Backlog,
    in_flight: VecDeque<StepPlan>,
    /// The first and the second request's.
    mailboxes: [Option<Arc<Mailbox>>; 2],
    seen: [Vec<Event>; 2],
    /// Its client has left: nothing more is due.
    is_cancelled: bool,
    /// What has been seen of it when its client left.
    seen_at_cancel: usize,
    /// The last request came when all had been ended.
    is_late: bool,
}

/// What all worlds share.
struct Ground {
    tenants: [Arc<Tenant>; 2],
    detokenizer: Arc<Detokenizer>,
    config: Config,
}

impl Ground {
    /// The second request's tenant is the first one's, or another.
    fn new(second: TenantId) -> Self {
        let arguments = ["millrace-router", "--model-id", "m"];
        let tenants = [TenantId(0), second].map(|id| Arc::new(Tenant { id, ..Tenant::default() }));
        Self {
            tenants,
            detokenizer: Arc::new(Detokenizer::new(&byte_level())),
            config: Config::read(arguments, |_| None).unwrap(),
        }
    }

    fn world(&self) -> World {
        let scheduler = Scheduler::new(SchedulerConfig {
            max_rows: 4,
            max_step_tokens: 8,
            page_size: 4,
            num_pages: 12,
            max_sequence_tokens: 32,
            max_steps_in_flight: 2,
            attention_window: 0,
            position_switch: 0,
            max_batch_total_tokens: None,
            waiting_served_ratio: 0.3,
            max_waiting_tokens: 20,
            prefix_caching: true,
        });
        let requests = Requests::new(Arc::clone(&self.detokenizer), Arc::from([]));
        let backlog = Backlog::new(&self.config);
        let (_, commands) = mpsc::unbounded_channel();
        let meters = Meters::new(backlog.clone(), 4);
        let core = Core::new(scheduler, requests, meters, backlog.clone(), commands, LONG_AGO);
        let mut world = World {
            tenants: self.tenants.clone(),
            core,
            backlog,
            in_flight: VecDeque::new(),
            mailboxes: [None, None],
            seen: [Vec::new(), Vec::new()],
            is_cancelled: false,
            seen_at_cancel: 0,
            is_late: false,
        };
        // Two sequences of one prompt that takes two steps.
        world.submit(0, 10, 2, &[]);
        world
    }
}

impl World {
    fn submit(&mut self, which: usize, prompt: u32, num_sequences: u64, stop: &[&str]) {
        let now = Instant::now();
        let sampling = |seed| Arc::new(Sampling { do_sample: true, seed, ..Sampling::default() });
        let request = ValidRequest {
            request_id: Arc::from("test"),
            tenant: Arc::clone(&self.tenants[which]),
            prompt: (0..prompt).map(|at| FIRST_LETTER + 3 * which as u32 + at % 3).collect(),
            sampling: (0..num_sequences).map(sampling).collect(),
            stopping: Stopping {
                max_new_tokens: 3,
                stop: stop.iter().map(ToString::to_string).collect(),
                ignore_eos: true,
            },
            shown: Arc::from([]),
            prompt_logprobs: false,
            cache_salt: None,
            priority: 0,
            received: now,
            deadline: (which == 1).then(|| now + LONG_AGO),
            validated: now,
        };
        let reservation = self.backlog.reserve(Demand::of(&request), None).unwrap();
        let mailbox = Mailbox::new();
        self.mailboxes[which] = Some(Arc::clone(&mailbox));
        self.is_late = self.core.all_ended;
        self.core.handle(Some(Command::Submit { request: Box::new(request), reservation, mailbox }));
    }

    /// As `Core::send`, to workers that only listen.
    fn send(&mut self) {
        while let Some(plan) = self.core.plan() {
            for sequence in self.core.scheduler.take_started() {
                self.core.requests.started(sequence, Instant::now());
            }
            self.core.meters.sent(&plan, Planned::last(&self.core.scheduler), Instant::now());
            self.in_flight.push_back(plan);
        }
        assert!(self.in_flight.len() <= 2);
    }

    /// The answer to the oldest plan: every sequence gets the letter `letter`, or has failed.
    fn answer(&mut self, letter: u32, fails: impl Fn(SequenceId) -> bool) -> Option<StepResult> {
        let plan = self.in_flight.pop_front()?;
        let mut result = StepResult { step: plan.step, ..StepResult::default() };
        for work in &plan.work {
            let failed = fails(work.sequence);
            if failed {
                result.failed.push(Failure { sequence: work.sequence, message: "test".to_owned() });
            }
            if work.samples {
                let token_id = if failed { NO_TOKEN } else { FIRST_LETTER + letter };
                result.sampled.push(Sampled { token_id, ..Sampled::default() });
            }
        }
        Some(result)
    }

    fn fail_step(&mut self, out_of_memory: bool) {
        let Some(result) = self.answer(0, |_| true) else { return };
        self.core.take(StepResult { whole_step: true, out_of_memory, ..result }).unwrap();
    }

    fn lose(&mut self, num_pages: u32, max_rows: u32) {
        self.in_flight.clear();
        self.core.workers_lost();
        self.core.set_capacity(Capacity { num_pages, max_rows });
    }

    fn go(&mut self, next: Next) {
        match next {
            Next::Result => {
                let Some(result) = self.answer(0, |_| false) else { return };
                self.core.take(result).unwrap();
            }
            Next::FailedSequence => {
                let Some(result) = self.answer(0, |sequence| sequence == SequenceId(1)) else { return };
                self.core.take(result).unwrap();
            }
            Next::FailedStep => self.fail_step(false),
            Next::OutOfMemory => self.fail_step(true),
            Next::StopString => {
                let Some(result) = self.answer(25, |_| false) else { return };
                self.core.take(result).unwrap();
            }
            Next::Second => self.submit(1, 5, 1, &["z"]),
            Next::Cancel => {
                self.read();
                let mailbox = self.mailboxes[0].clone().unwrap();
                (self.is_cancelled, self.seen_at_cancel) = (true, self.seen[0].len());
                self.core.handle(Some(Command::Cancel { mailbox }));
            }
            Next::Late => {
                let late = self.core.requests.end_late(Instant::now() + 2 * LONG_AGO);
                self.core.drop_sequences(late);
            }
            Next::Unread => {
                let unread = self.core.requests.cancel_unread(Instant::now() + 2 * LONG_AGO, LONG_AGO);
                self.core.drop_sequences(unread);
            }
            Next::Lost => self.lose(12, 4),
            Next::LostWithLess => self.lose(4, 1),
            Next::EndAll => self.core.handle(Some(Command::EndAll)),
        }
    }

    /// Unread events stay where they are until the end, so that readers can be too slow.
    fn read(&mut self) {
        for (mailbox, seen) in self.mailboxes.iter().zip(&mut self.seen) {
            seen.extend(mailbox.iter().flat_map(|mailbox| mailbox.take_for_tests()));
        }
    }

    fn check_request(&self, which: usize, num_sequences: usize) -> Result<(), String> {
        let mut ended = vec![false; num_sequences];
        let mut has_failed = false;
        for event in &self.seen[which] {
            if has_failed {
                return Err(format!("{event:?} follows a failure"));
            }
            match event {
                Event::Token { sequence, .. } if ended[*sequence] => return Err("a token behind the end".to_owned()),
                Event::Prefilled(_) | Event::Token { .. } => {}
                Event::Finished { sequence, .. } => {
                    if std::mem::replace(&mut ended[*sequence], true) {
                        return Err(format!("sequence {sequence} ended twice"));
                    }
                }
                Event::Failed(failed) => {
                    has_failed = true;
                    if ended.iter().all(|ended| *ended) {
                        return Err(format!("{failed:?} behind the end"));
                    }
                }
            }
        }
        if has_failed || ended.iter().all(|ended| *ended) { Ok(()) } else { Err("it has no end".to_owned()) }
    }

    /// Answers step after step until nothing is left.
    fn run_out(&mut self) -> Result<(), String> {
        for _ in 0..200 {
            self.send();
            if self.in_flight.is_empty() {
                break;
            }
            self.go(Next::Result);
        }
        self.read();
        let stats = self.core.scheduler.stats();
        self.core.scheduler.check_integrity()?;
        let left =
            [stats.waiting, stats.running, stats.preempted, stats.steps_in_flight, stats.rows_used, stats.pages_used];
        if left != [0; 6] || stats.uncomputed_tokens != 0 || !self.core.scheduler.is_idle() {
            return Err(format!("something is left: {stats:?}"));
        }
        if !self.core.requests.is_empty() || self.backlog.num_inside() != 0 {
            return Err("a request is left".to_owned());
        }
        if self.is_cancelled {
            if self.seen[0].len() != self.seen_at_cancel {
                return Err("events for a client that has left".to_owned());
            }
        } else {
            self.check_request(0, 2).map_err(|wrong| format!("first request: {wrong}"))?;
        }
        if self.mailboxes[1].is_some() {
            self.check_request(1, 1).map_err(|wrong| format!("second request: {wrong}"))?;
        }
        let has_run = self.is_late && self.seen[1] != [Event::Failed(Failed::Incomplete)];
        if has_run { Err("a request behind the end has run".to_owned()) } else { Ok(()) }
    }
}

/// Every order of `length` happenings from here on; answers how many there were.
fn all_orders(ground: &Ground, length: usize) -> usize {
    let mut count = 0;
    let mut order = Vec::new();
    extend(ground, &mut order, length, &mut count);
    count
}

fn extend(ground: &Ground, order: &mut Vec<Next>, length: usize, count: &mut usize) {
    if order.len() == length {
        *count += 1;
        return check(ground, order);
    }
    for next in
        std::iter::once(Next::Result).chain(ONCE.into_iter().filter(|next| !order.contains(next)).collect::<Vec<_>>())
    {
        order.push(next);
        extend(ground, order, length, count);
        order.pop();
    }
}

fn check(ground: &Ground, order: &[Next]) {
    let mut world = ground.world();
    for next in order {
        world.send();
        world.go(*next);
        if let Err(wrong) = world.core.scheduler.check_integrity() {
            panic!("{order:?}, after {next:?}: {wrong}");
        }
    }
    if let Err(wrong) = world.run_out() {
        panic!("{order:?}: {wrong}; {:?}", world.seen);
    }
}

#[tokio::test]
async fn whatever_the_order_each_request_ends_once_and_leaves_nothing() {
    for second in [TenantId(0), TenantId(1)] {
        check_all_orders(&Ground::new(second));
    }
}

fn check_all_orders(ground: &Ground) {
    let length = 4 + usize::from(std::env::var_os("MILLRACE_SOAK").is_some());
    let count = all_orders(ground, length);
    // Two results first: the same happenings in the middle of the outputs.
    let mut middle = 0;
    for results in [2, 4] {
        let mut order = vec![Next::Result; results];
        extend(ground, &mut order, results + length - 1, &mut middle);
    }
    assert!(count > 10_000 && middle > 2_000, "{count} {middle}");
}

#[tokio::test]
async fn the_checks_see_what_is_wrong() {
    let ground = Ground::new(TenantId(0));
    let mut lost = ground.world();
    lost.send();
    lost.core.requests.end_late(Instant::now() + 2 * LONG_AGO);
    assert!(lost.run_out().is_ok(), "the first request has no deadline");
    let mut twice = ground.world();
    assert!(twice.run_out().is_ok());
    twice.seen[0].push(Event::Failed(Failed::Incomplete));
    assert!(twice.check_request(0, 2).unwrap_err().contains("behind the end"));
    let length = twice.seen[0].len() - 2;
    twice.seen[0].truncate(length);
    assert!(twice.check_request(0, 2).unwrap_err().contains("no end"));
}

#[tokio::test]
async fn results_that_are_always_ready_leave_the_tick_its_turn() {
    let ground = Ground::new(TenantId(0));
    let mut world = ground.world();
    world.core.patience = Duration::ZERO;
    for is_due in [false, false, true] {
        world.send();
        world.core.tended = Instant::now().checked_sub(if is_due { TICK } else { Duration::ZERO }).unwrap();
        world.go(Next::Result);
        assert_eq!(world.core.requests.is_empty(), is_due, "nobody reads");
    }
    world.read();
    assert_eq!(world.seen[0].last(), Some(&Event::Failed(Failed::Incomplete)));
}
