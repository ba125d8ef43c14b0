//! Routes for operators. They touch no worker and are never blocked by load.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use metrics::gauge;
use serde::Serialize;
use utoipa::ToSchema;

use super::error;
use super::state::AppState;
use crate::health::{Health, Hung, Phase, Progress, ServedModel};
use crate::telemetry::Metrics;

/// 200 while requests are served, else 503.
pub(super) async fn health(State(state): State<Arc<AppState>>) -> Response {
    if state.health.is_serving() { StatusCode::OK.into_response() } else { error::unhealthy() }
}

/// What a prober is told beside the status.
#[derive(Serialize)]
struct Standing {
    ok: bool,
    phase: Phase,
    /// What is being waited for, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_for: Option<String>,
    /// How much of that is done, where it can be counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Counted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hung: Option<Hung>,
    /// For so many seconds this program has served nobody, whatever the phase says: only its end helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    standstill_seconds: Option<f64>,
}

#[derive(Serialize)]
struct Counted {
    done_bytes: u64,
    total_bytes: u64,
}

impl Standing {
    fn of(health: &Health, ok: impl FnOnce(Phase, Option<&Hung>) -> bool) -> Self {
        let (phase, hung) = (health.phase(), health.hung());
        let standstill_seconds = health.standstill().map(|silence| silence.as_secs_f64());
        let ok = ok(phase, hung.as_ref());
        let Some(Progress { words, done, total }) = health.waits_for() else {
            return Self { ok, phase, waiting_for: None, progress: None, hung, standstill_seconds };
        };
        let progress = (total > 0).then_some(Counted { done_bytes: done, total_bytes: total });
        Self { ok, phase, waiting_for: Some(words), progress, hung, standstill_seconds }
    }
}

impl IntoResponse for Standing {
    fn into_response(self) -> Response {
        if self.ok {
            return Json(self).into_response();
        }
        let retry = [(header::RETRY_AFTER, HeaderValue::from_static("1"))];
        (StatusCode::SERVICE_UNAVAILABLE, retry, Json(self)).into_response()
    }
}

/// 503 while a rank hangs that only its end can help, or the engine of this program stands still. A group that loads, or
/// is loaded again, is alive.
pub(super) async fn livez(State(state): State<Arc<AppState>>) -> Response {
    live(&state.health)
}

pub(super) fn live(health: &Health) -> Response {
    Standing::of(health, |_, hung| hung.is_none() && health.standstill().is_none()).into_response()
}

/// 503 while new requests should go elsewhere.
pub(super) async fn readyz(State(state): State<Arc<AppState>>) -> Response {
    ready(&state.health)
}

pub(super) fn ready(health: &Health) -> Response {
    Standing::of(health, |_, _| health.is_serving()).into_response()
}

/// 503 until requests have been served for the first time.
pub(super) async fn startupz(State(state): State<Arc<AppState>>) -> Response {
    started(&state.health)
}

pub(super) fn started(health: &Health) -> Response {
    Standing::of(health, |phase, _| phase != Phase::Starting).into_response()
}

/// Begins what SIGTERM begins.
pub(super) async fn drain(State(state): State<Arc<AppState>>) -> Response {
    tracing::warn!("asked to stop by a request to /admin/drain");
    state.health.ask_to_drain();
    (StatusCode::ACCEPTED, Json(serde_json::json!({ "draining": true }))).into_response()
}

/// The original's keys and its name for the program: clients tell servers apart by them.
#[derive(Serialize, ToSchema)]
pub(super) struct Info {
    model_id: String,
    model_sha: Option<String>,
    model_pipeline_tag: Option<String>,
    max_concurrent_requests: usize,
    max_best_of: usize,
    max_stop_sequences: usize,
    /// Until the workers have said what fits: what was configured, or null.
    max_input_tokens: Option<u32>,
    max_total_tokens: Option<u32>,
    validation_workers: usize,
    max_client_batch_size: usize,
    router: &'static str,
    version: &'static str,
    sha: Option<String>,
    docker_label: Option<String>,
    /// Not of the original: who computes the model, what it has and lacks; null until the workers have said it.
    model: Option<ServedModel>,
    /// Not of the original: how calls and thoughts are read out of the model's output.
    tool_call_parser: &'static str,
    reasoning_parser: &'static str,
}

pub(super) async fn info(State(state): State<Arc<AppState>>) -> Json<Info> {
    let config = &state.config;
    let limits = state.health.limits();
    Json(Info {
        model_id: config.model_id.clone(),
        model_sha: config.revision.clone(),
        model_pipeline_tag: None,
        max_concurrent_requests: config.max_concurrent_requests,
        max_best_of: config.max_best_of,
        max_stop_sequences: config.max_stop_sequences,
        max_input_tokens: limits.map(|limits| limits.max_input_tokens).or(config.max_input_tokens),
        max_total_tokens: limits.map(|limits| limits.max_total_tokens).or(config.max_total_tokens),
        validation_workers: config.validation_workers,
        max_client_batch_size: config.max_client_batch_size,
        router: "text-generation-router",
        version: env!("CARGO_PKG_VERSION"),
        sha: None,
        docker_label: None,
        model: state.health.model(),
        tool_call_parser: state.format.calls_name(),
        reasoning_parser: state.format.reasoning_name(),
    })
}

/// Prometheus' text form.
pub(super) async fn metrics(State(state): State<Arc<AppState>>) -> Response {
    state.counts.show(state.backlog.outlook());
    rendered(&state.metrics, &state.health)
}

/// With how far a start has come; both are 0 when nothing is being waited for, or when it cannot be counted.
pub(super) fn rendered(metrics: &Metrics, health: &Health) -> Response {
    let progress = health.waits_for().unwrap_or_default();
    gauge!("millrace_start_done_bytes").set(progress.done as f64);
    gauge!("millrace_start_total_bytes").set(progress.total as f64);
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], metrics.page()).into_response()
}
