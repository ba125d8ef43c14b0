//! One admitted request: its place in the server, and the accounts of how it ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admission::Places;
use super::request_metrics::{Failure, RequestMetrics};
use crate::engine::api::{Failed, Finished};
use crate::request::ValidRequest;
use crate::telemetry::{RequestRecord, log_request};
use crate::tenants::Tenant;

/// Dropped without an end, it counts the client as gone.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) request_id: Arc<str>,
    tenant: Arc<Tenant>,
    pub(super) prompt_tokens: u32,
    /// Characters of the prompt, the template's included.
    pub(super) characters: usize,
    received: Instant,
    validated: Instant,
    counts: Arc<RequestMetrics>,
    is_settled: bool,
    /// Kept also by its answer.
    places: Arc<Places>,
}

/// Where a request's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Timing {
    /// From arrival to the last token.
    pub(super) total: Duration,
    pub(super) validation: Duration,
    /// From validated to first scheduled.
    pub(super) queue: Duration,
    /// From first scheduled to the last token.
    pub(super) inference: Duration,
    pub(super) per_token: Duration,
}

impl Ticket {
    pub(super) fn new(request: &ValidRequest, characters: usize, counts: Arc<RequestMetrics>, place: Places) -> Self {
        counts.admitted(request);
        request.tenant.usage.admitted();
        Self {
            request_id: Arc::clone(&request.request_id),
            tenant: Arc::clone(&request.tenant),
            prompt_tokens: u32::try_from(request.prompt.len()).unwrap_or(u32::MAX),
            characters,
            received: request.received,
            validated: request.validated,
            counts,
            is_settled: false,
            places: Arc::new(place),
        }
    }

    /// What the request holds: to be kept until its answer has been sent.
    pub(super) fn places(&self) -> Arc<Places> {
        Arc::clone(&self.places)
    }

    /// The request ended with an answer.
    pub(super) fn succeeded(&mut self, finished: &Finished) -> Timing {
        self.is_settled = true;
        let timing = self.timing(finished);
        self.counts.succeeded(&timing, finished.generated_tokens);
        log_request(&RequestRecord {
            request_id: &self.request_id,
            tenant: &self.tenant.name,
            total_time: timing.total,
            validation_time: timing.validation,
            queue_time: timing.queue,
            inference_time: timing.inference,
            time_per_token: timing.per_token,
            seed: finished.seed,
        });
        timing
    }

    /// The request ended with an error.
    pub(super) fn failed(&mut self, failed: &Failed) {
        self.is_settled = true;
        self.counts.failed(match failed {
            Failed::Generation(_) => Failure::Generation,
            Failed::TimedOut => Failure::TimedOut,
            Failed::Incomplete => Failure::Incomplete,
        });
    }

    fn timing(&self, finished: &Finished) -> Timing {
        let times = &finished.times;
        let inference = times.ended.saturating_duration_since(times.started);
        Timing {
            total: times.ended.saturating_duration_since(self.received),
            validation: self.validated.saturating_duration_since(self.received),
            queue: times.started.saturating_duration_since(self.validated),
            inference,
            per_token: inference / finished.generated_tokens.max(1),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.is_settled {
            self.counts.failed(Failure::Dropped);
            tracing::info!(
                request_id = &*self.request_id,
                tenant = &*self.tenant.name,
                "the client left before the end"
            );
        }
    }
}
