//! The engine's metrics. Handles are made once; recording is a few atomic operations per step, none per token.
//!
//! A step counts as `prefill` if it computes any prompt, else as `decode`. With two steps in flight, a step's duration
//! runs from its sending or the previous step's answer, whichever came later: durations add up to the time spent.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use millrace_scheduler::{JoinReason, Scheduler, Stats, StepPart, StepPlan, StepResult, Terms, Timings};

use super::guests::Guests;
use crate::overload::{Backlog, Pace, Progress};

#[derive(Debug)]
pub(super) struct Meters {
    prefill: MethodMeters,
    decode: MethodMeters,
    queue_size: Gauge,
    current_size: Gauge,
    current_max_tokens: Gauge,
    next_size: Histogram,
    joined: JoinMeters,
    join_duration: Histogram,
    pool: PoolMeters,
    worker_restarts: Counter,
    /// Tokens that speculation saved per step: none, as nothing speculates.
    _skipped_tokens: Histogram,
    in_flight: VecDeque<Sent>,
    last_answer: Instant,
    backlog: Backlog,
    pace: Pace,
    guests: Guests,
    page_size: u32,
    num_answered: u64,
}

/// What is measured of calls, by method.
#[derive(Debug)]
struct MethodMeters {
    count: Counter,
    success: Counter,
    failure: Counter,
    duration: Histogram,
    forward: Histogram,
    decode: Histogram,
    filter: Histogram,
}

/// How often sequences joined others, by reason.
#[derive(Debug)]
struct JoinMeters {
    backpressure: Counter,
    wait_exceeded: Counter,
    chunking: Counter,
}

/// What only this server has: pages, rows, the prefix cache.
#[derive(Debug)]
struct PoolMeters {
    rows_used: Gauge,
    pages_used: Gauge,
    pages_cached: Gauge,
    pages_free: Gauge,
    prompt_tokens_computed: Counter,
    prompt_tokens_cached: Counter,
    preemptions: Counter,
    position_switches: Counter,
    steps: Counter,
    step_tokens: Gauge,
    step_sequences: Gauge,
    out_of_memory_steps: Counter,
}

#[derive(Clone, Debug)]
struct Sent {
    at: Instant,
    is_prefill: bool,
    joins: bool,
    num_tokens: usize,
    parts: Vec<StepPart>,
}

/// What a plan does not say of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Planned {
    /// Why sequences joined others in it, if they did.
    pub(super) joined: Option<JoinReason>,
    /// What each tenant has of it, if there are several.
    pub(super) parts: Vec<StepPart>,
}

impl Planned {
    /// Of the step planned last.
    pub(super) fn last(scheduler: &Scheduler) -> Self {
        Self { joined: scheduler.last_join(), parts: scheduler.last_parts().to_vec() }
    }
}

impl Meters {
    pub(super) fn new(backlog: Backlog, page_size: u32) -> Self {
        Self {
            prefill: MethodMeters::new("prefill"),
            decode: MethodMeters::new("decode"),
            queue_size: gauge!("tgi_queue_size"),
            current_size: gauge!("tgi_batch_current_size"),
            current_max_tokens: gauge!("tgi_batch_current_max_tokens"),
            next_size: histogram!("tgi_batch_next_size"),
            joined: JoinMeters::new(),
            join_duration: histogram!("tgi_batch_concat_duration", "method" => "decode"),
            pool: PoolMeters::new(),
            worker_restarts: counter!("millrace_worker_restarts_total"),
            _skipped_tokens: histogram!("tgi_request_skipped_tokens"),
            in_flight: VecDeque::new(),
            last_answer: Instant::now(),
            backlog,
            pace: Pace::default(),
            guests: Guests::default(),
            page_size,
            num_answered: 0,
        }
    }

    /// A step has been planned and leaves now.
    pub(super) fn sent(&mut self, plan: &StepPlan, planned: Planned, now: Instant) {
        let Planned { joined, parts } = planned;
        let is_prefill = plan.work.iter().any(|work| work.count > 1 || !work.samples) || !plan.admitted.is_empty();
        self.method(is_prefill).count.increment(1);
        if !plan.admitted.is_empty() {
            self.next_size.record(plan.admitted.len() as f64);
        }
        if let Some(reason) = joined {
            self.joined.of(reason).increment(1);
        }
        let num_tokens: usize = plan.work.iter().map(|work| work.count as usize).sum();
        self.guests.sent(&parts);
        self.in_flight.push_back(Sent { at: now, is_prefill, joins: joined.is_some(), num_tokens, parts });
    }

    /// The answer to the oldest step in flight has come.
    pub(super) fn answered(&mut self, result: &StepResult, now: Instant) -> Answered {
        let Some(sent) = self.in_flight.pop_front() else { return Answered { is_prefill: false } };
        let duration = now.saturating_duration_since(sent.at.max(self.last_answer));
        self.last_answer = now;
        self.num_answered += 1;
        self.pace.learn(sent.is_prefill, sent.num_tokens, duration);
        self.guests.answered(&sent.parts, duration, now);
        let Timings { inputs_us, forward_us, sample_us, .. } = result.timings;
        let method = self.method(sent.is_prefill);
        if result.failed.is_empty() {
            method.success.increment(1);
        } else {
            method.failure.increment(1);
        }
        method.duration.record(duration);
        method.forward.record(microseconds(forward_us));
        method.decode.record(microseconds(sample_us));
        if sent.joins {
            self.join_duration.record(microseconds(inputs_us));
        }
        Answered { is_prefill: sent.is_prefill }
    }

    /// For the step that is planned next: see [`Guests`].
    pub(super) fn terms(&mut self, scheduler: &Scheduler, now: Instant) -> Terms {
        self.guests.terms(scheduler, now)
    }

    /// What the engine spent on an answer: applying it, detokenizing, waking readers.
    pub(super) fn emitted(&mut self, answered: Answered, spent: Duration) {
        self.method(answered.is_prefill).filter.record(spent);
    }

    /// Steps in flight will not be answered.
    pub(super) fn workers_lost(&mut self) {
        while let Some(sent) = self.in_flight.pop_front() {
            self.method(sent.is_prefill).failure.increment(1);
        }
        self.guests.workers_lost();
        self.worker_restarts.increment(1);
    }

    pub(super) fn show(&self, stats: &Stats) {
        self.queue_size.set((stats.waiting + stats.preempted) as f64);
        self.current_size.set(stats.running as f64);
        self.current_max_tokens.set(stats.reserved_tokens as f64);
        self.pool.show(stats);
        self.publish(stats);
    }

    /// Tells those who decide upon newcomers.
    fn publish(&self, stats: &Stats) {
        let tokens = |pages: usize| pages as u64 * u64::from(self.page_size);
        self.backlog.publish(Progress {
            steps: self.num_answered,
            cost: self.pace.cost(),
            uncomputed_tokens: stats.uncomputed_tokens as u64,
            free_tokens: if self.page_size == 0 { u64::MAX } else { tokens(stats.pages_free + stats.pages_cached) },
            used_tokens: tokens(stats.pages_used),
            num_preempted: stats.preempted as u64,
            prompt_tokens: self.guests.step_tokens().unwrap_or(u32::MAX),
        });
    }

    fn method(&self, is_prefill: bool) -> &MethodMeters {
        if is_prefill { &self.prefill } else { &self.decode }
    }
}

/// Which step was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    is_prefill: bool,
}

impl MethodMeters {
    fn new(method: &'static str) -> Self {
        Self {
            count: counter!("tgi_batch_inference_count", "method" => method),
            success: counter!("tgi_batch_inference_success", "method" => method),
            failure: counter!("tgi_batch_inference_failure", "method" => method),
            duration: histogram!("tgi_batch_inference_duration", "method" => method),
            forward: histogram!("tgi_batch_forward_duration", "method" => method),
            decode: histogram!("tgi_batch_decode_duration", "method" => method),
            filter: histogram!("tgi_batch_filter_duration", "method" => method),
        }
    }
}

impl JoinMeters {
    fn new() -> Self {
        let joined = |reason: &'static str| counter!("tgi_batch_concat", "reason" => reason);
        Self {
            backpressure: joined("backpressure"),
            wait_exceeded: joined("wait_exceeded"),
            chunking: joined("chunking"),
        }
    }

    fn of(&self, reason: JoinReason) -> &Counter {
        match reason {
            JoinReason::Backpressure => &self.backpressure,
            JoinReason::WaitExceeded => &self.wait_exceeded,
            JoinReason::Chunking => &self.chunking,
        }
    }
}

impl PoolMeters {
    fn new() -> Self {
        Self {
            rows_used: gauge!("millrace_rows_used"),
            pages_used: gauge!("millrace_kv_pages_used"),
            pages_cached: gauge!("millrace_kv_pages_cached"),
            pages_free: gauge!("millrace_kv_pages_free"),
            prompt_tokens_computed: counter!("millrace_prompt_tokens_computed_total"),
            prompt_tokens_cached: counter!("millrace_prompt_tokens_cached_total"),
            preemptions: counter!("millrace_preemptions_total"),
            position_switches: counter!("millrace_position_switches_total"),
            steps: counter!("millrace_steps_total"),
            step_tokens: gauge!("millrace_step_tokens_allowed"),
            step_sequences: gauge!("millrace_step_sequences_allowed"),
            out_of_memory_steps: counter!("millrace_out_of_memory_steps_total"),
        }
    }

    fn show(&self, stats: &Stats) {
        self.rows_used.set(stats.rows_used as f64);
        self.pages_used.set(stats.pages_used as f64);
        self.pages_cached.set(stats.pages_cached as f64);
        self.pages_free.set(stats.pages_free as f64);
        self.prompt_tokens_computed.absolute(stats.computed_prompt_tokens_total);
        self.prompt_tokens_cached.absolute(stats.cached_prompt_tokens_total);
        self.preemptions.absolute(stats.preemptions_total);
        self.position_switches.absolute(stats.position_switches_total);
        self.steps.absolute(stats.steps_total);
        self.step_tokens.set(f64::from(stats.step_tokens));
        self.step_sequences.set(f64::from(stats.step_sequences));
        self.out_of_memory_steps.absolute(stats.out_of_memory_steps_total);
    }
}

fn microseconds(count: u32) -> Duration {
    Duration::from_micros(u64::from(count))
}
