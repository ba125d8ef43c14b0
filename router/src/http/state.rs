//! What every handler shares.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use tokio::sync::Semaphore;

use super::Context;
use super::error::ApiError;
use super::prompt_logprobs::PromptLogprobs;
use super::request_id::RequestId;
use super::request_metrics::RequestMetrics;
use super::underway::Underway;
use crate::config::Config;
use crate::detokenize::Detokenizer;
use crate::engine::api::EngineHandle;
use crate::health::Health;
use crate::overload::Backlog;
use crate::telemetry::Metrics;
use crate::tenants::{Tenant, Tenants};
use crate::tokenizer::TextModel;
use crate::tools::Format;
use crate::validation::Validator;

/// Built once from the context.
#[derive(Debug)]
pub(super) struct AppState {
    pub(super) config: Arc<Config>,
    pub(super) health: Health,
    pub(super) engine: EngineHandle,
    pub(super) text: Arc<TextModel>,
    pub(super) detokenizer: Arc<Detokenizer>,
    pub(super) metrics: Metrics,
    pub(super) backlog: Backlog,
    pub(super) validator: Validator,
    /// How the model writes calls and thoughts.
    pub(super) format: Format,
    /// One permit per prompt inside the server.
    pub(super) places: Arc<Semaphore>,
    pub(super) unwritten: Arc<Semaphore>,
    /// Bodies whose requests have no place yet.
    pub(super) underway: Arc<Underway>,
    pub(super) prompt_logprobs: PromptLogprobs,
    pub(super) tenants: Tenants,
    pub(super) counts: Arc<RequestMetrics>,
    pub(super) compute_type: HeaderValue,
    pub(super) models: super::openai::ModelNames,
}

impl AppState {
    pub(super) fn new(context: Context) -> Self {
        let Context { config, health, engine, text, detokenizer, metrics, backlog, places, unwritten, tenants } =
            context;
        let format = Format::of(&text, config.tool_call_parser, config.reasoning_parser);
        tracing::info!(tool_calls = format.calls_name(), reasoning = format.reasoning_name(), "parsers of the output");
        let validator = Validator::new(&config, Arc::clone(&text));
        Self {
            places,
            unwritten,
            underway: Underway::new(config.max_places(), config.payload_limit),
            prompt_logprobs: PromptLogprobs::new(config.max_client_batch_size),
            tenants,
            counts: Arc::new(RequestMetrics::new()),
            compute_type: HeaderValue::from_str(&config.compute_type)
                .unwrap_or_else(|_| HeaderValue::from_static("unknown")),
            models: super::openai::ModelNames::new(&config),
            config,
            health,
            engine,
            text,
            detokenizer,
            metrics,
            backlog,
            validator,
            format,
        }
    }
}

/// The seconds that a client will wait.
pub(super) const TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout");

fn seconds(value: &HeaderValue) -> Result<Duration, ApiError> {
    let seconds = value.to_str().ok().and_then(|text| text.trim().parse::<f64>().ok()).filter(|seconds| *seconds > 0.0);
    let timeout = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    timeout.ok_or_else(|| ApiError::field("x-request-timeout", "must be a number of seconds above 0"))
}

/// Whose key came with a request: known behind the gate.
pub(super) fn tenant(request: &Request) -> Result<Arc<Tenant>, ApiError> {
    request.extensions().get::<Arc<Tenant>>().cloned().ok_or(ApiError::Internal)
}

/// When a request came and under which id.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub(super) request_id: Arc<str>,
    /// Whose key came with it.
    pub(super) tenant: Arc<Tenant>,
    pub(super) received: Instant,
    /// When the client wants no answer any more.
    pub(super) deadline: Option<Instant>,
}

impl Arrival {
    /// The id is set by the outermost layer; `x-request-timeout` gives the seconds that the client will wait.
    pub(super) fn of(request: &Request) -> Result<Self, ApiError> {
        let stamped = request.extensions().get::<RequestId>();
        let request_id = stamped.map_or_else(|| Arc::from(""), |id| Arc::clone(&id.0));
        let received = Instant::now();
        let tenant = tenant(request)?;
        let timeout = request.headers().get(TIMEOUT).map(seconds).transpose()?;
        Ok(Self { request_id, tenant, received, deadline: timeout.and_then(|timeout| received.checked_add(timeout)) })
    }
}
