//! Routes for operators. They touch no worker and are never blocked by load.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::Context;
use crate::health::Phase;

/// 200 while requests are served, else 503.
pub(super) async fn health(State(context): State<Arc<Context>>) -> Response {
    if context.health.phase() == Phase::Serving {
        return StatusCode::OK.into_response();
    }
    let body = json!({ "error": "unhealthy", "error_type": "healthcheck" });
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

/// The original's keys, `router` included: clients tell servers apart by them.
#[derive(Serialize)]
pub(super) struct Info {
    model_id: String,
    model_sha: Option<String>,
    model_pipeline_tag: Option<String>,
    max_concurrent_requests: usize,
    max_best_of: usize,
    max_stop_sequences: usize,
    /// `null` until the workers have said what fits.
    max_input_tokens: Option<u32>,
    max_total_tokens: Option<u32>,
    validation_workers: usize,
    max_client_batch_size: usize,
    router: &'static str,
    version: &'static str,
    sha: Option<String>,
    docker_label: Option<String>,
}

pub(super) async fn info(State(context): State<Arc<Context>>) -> Json<Info> {
    let config = &context.config;
    let limits = context.health.limits();
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
    })
}

/// Prometheus' text form.
pub(super) async fn metrics(State(context): State<Arc<Context>>) -> String {
    context.metrics.render()
}
