//! Routes for operators. They touch no worker and are never blocked by load.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::error;
use super::state::AppState;
use crate::health::{Phase, ServedModel};

/// 200 while requests are served, else 503.
pub(super) async fn health(State(state): State<Arc<AppState>>) -> Response {
    if state.health.phase() == Phase::Serving { StatusCode::OK.into_response() } else { error::unhealthy() }
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
    })
}

/// Prometheus' text form.
pub(super) async fn metrics(State(state): State<Arc<AppState>>) -> String {
    state.metrics.render()
}
