//! HTTP: what clients send and get. Wire types, routes in one table, errors in each route family's own form.

mod ops;

use std::sync::Arc;

use axum::Router;
use axum::routing::get;

use crate::config::Config;
use crate::engine::api::EngineHandle;
use crate::health::Health;
use crate::telemetry::Metrics;
use crate::tokenizer::TextModel;

/// What the routes stand on.
#[derive(Clone, Debug)]
pub struct Context {
    pub config: Arc<Config>,
    pub health: Health,
    pub engine: EngineHandle,
    pub text: Arc<TextModel>,
    pub metrics: Metrics,
}

/// The whole server.
pub fn router(context: Context) -> Router {
    Router::new()
        .route("/health", get(ops::health))
        .route("/ping", get(ops::health))
        .route("/info", get(ops::info))
        .route("/metrics", get(ops::metrics))
        .with_state(Arc::new(context))
}
