//! What every handler shares.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use axum::http::HeaderValue;
use tokio::sync::Semaphore;

use super::Context;
use super::request_id::RequestId;
use super::request_metrics::RequestMetrics;
use crate::config::Config;
use crate::detokenize::Detokenizer;
use crate::engine::api::EngineHandle;
use crate::health::Health;
use crate::telemetry::Metrics;
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
    pub(super) validator: Validator,
    /// How the model writes calls and thoughts.
    pub(super) format: Format,
    /// One permit per prompt inside the server.
    pub(super) places: Arc<Semaphore>,
    pub(super) counts: Arc<RequestMetrics>,
    pub(super) compute_type: HeaderValue,
    pub(super) models: super::openai::ModelNames,
}

impl AppState {
    pub(super) fn new(context: Context) -> Self {
        let Context { config, health, engine, text, detokenizer, metrics, places } = context;
        let format = Format::of(&text, config.tool_call_parser, config.reasoning_parser);
        tracing::info!(tool_calls = format.calls_name(), reasoning = format.reasoning_name(), "parsers of the output");
        let validator = Validator::new(&config, Arc::clone(&text));
        Self {
            places,
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
            validator,
            format,
        }
    }
}

/// When a request came and under which id.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub(super) request_id: Arc<str>,
    pub(super) received: Instant,
}

impl Arrival {
    /// Set by the outermost layer.
    pub(super) fn of(request: &Request) -> Self {
        let stamped = request.extensions().get::<RequestId>();
        let request_id = stamped.map_or_else(|| Arc::from(""), |id| Arc::clone(&id.0));
        Self { request_id, received: Instant::now() }
    }
}
