//! The request side of the metrics, under the original's names. Handles are made once.

use metrics::{Counter, Histogram, counter, histogram};

use super::ticket::Timing;
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
