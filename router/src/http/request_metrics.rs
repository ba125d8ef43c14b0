//! The request side of the metrics, under the original's names. Handles are made once.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::ticket::Timing;
use crate::overload::{Outlook, Reason, Refusal};
use crate::request::ValidRequest;

#[derive(Debug)]
pub(super) struct RequestMetrics {
    count: Counter,
    success: Counter,
    overloaded: Counter,
    validation: Counter,
    template: Counter,
    incomplete: Counter,
    dropped: Counter,
    generation: Counter,
    timed_out: Counter,
    duration: Histogram,
    validation_duration: Histogram,
    queue_duration: Histogram,
    inference_duration: Histogram,
    mean_time_per_token_duration: Histogram,
    generated_tokens: Histogram,
    input_length: Histogram,
    max_new_tokens: Histogram,
    /// By [`Reason::label`].
    refusals: Vec<(&'static str, Counter)>,
    queue_wait: Gauge,
    queued_tokens: Gauge,
}

/// Why a request did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Overloaded,
    Validation,
    Template,
    Incomplete,
    /// The client left.
    Dropped,
    Generation,
    /// Its deadline came first.
    TimedOut,
}

impl RequestMetrics {
    pub(super) fn new() -> Self {
        let failure = |label: &'static str| counter!("tgi_request_failure", "err" => label);
        Self {
            count: counter!("tgi_request_count"),
            success: counter!("tgi_request_success"),
            overloaded: failure("overloaded"),
            validation: failure("validation"),
            template: failure("template"),
            incomplete: failure("incomplete"),
            dropped: failure("dropped"),
            generation: failure("generation"),
            timed_out: failure("timeout"),
            duration: histogram!("tgi_request_duration"),
            validation_duration: histogram!("tgi_request_validation_duration"),
            queue_duration: histogram!("tgi_request_queue_duration"),
            inference_duration: histogram!("tgi_request_inference_duration"),
            mean_time_per_token_duration: histogram!("tgi_request_mean_time_per_token_duration"),
            generated_tokens: histogram!("tgi_request_generated_tokens"),
            input_length: histogram!("tgi_request_input_length"),
            max_new_tokens: histogram!("tgi_request_max_new_tokens"),
            refusals: Reason::LABELS
                .map(|label| (label, counter!("millrace_refusals_total", "reason" => label)))
                .into(),
            queue_wait: gauge!("millrace_queue_wait_seconds"),
            queued_tokens: gauge!("millrace_queued_tokens"),
        }
    }

    /// One generation has been asked for.
    pub(super) fn asked(&self) {
        self.count.increment(1);
    }

    pub(super) fn admitted(&self, request: &ValidRequest) {
        self.input_length.record(request.prompt.len() as f64);
        self.max_new_tokens.record(f64::from(request.stopping.max_new_tokens));
    }

    pub(super) fn succeeded(&self, timing: &Timing, generated_tokens: u32) {
        self.success.increment(1);
        self.duration.record(timing.total);
        self.validation_duration.record(timing.validation);
        self.queue_duration.record(timing.queue);
        self.inference_duration.record(timing.inference);
        self.mean_time_per_token_duration.record(timing.per_token);
        self.generated_tokens.record(f64::from(generated_tokens));
    }

    /// What newcomers would find.
    pub(super) fn show(&self, outlook: Outlook) {
        self.queue_wait.set(outlook.wait.as_secs_f64());
        self.queued_tokens.set(outlook.queued_tokens as f64);
    }

    /// The server has enough to do.
    pub(super) fn refused(&self, refusal: Refusal) -> Refusal {
        self.failed(Failure::Overloaded);
        let counter = self.refusals.iter().find(|(label, _)| *label == refusal.reason.label());
        if let Some((_, counter)) = counter {
            counter.increment(1);
        }
        refusal
    }

    pub(super) fn failed(&self, failure: Failure) {
        let counter = match failure {
            Failure::Overloaded => &self.overloaded,
            Failure::Validation => &self.validation,
            Failure::Template => &self.template,
            Failure::Incomplete => &self.incomplete,
            Failure::Dropped => &self.dropped,
            Failure::Generation => &self.generation,
            Failure::TimedOut => &self.timed_out,
        };
        counter.increment(1);
    }
}
