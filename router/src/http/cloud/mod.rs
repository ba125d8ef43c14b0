//! Routes under which clouds know a model server. Each is another way in to what the other routes do.

mod invocations;
mod kserve;
mod vertex;

pub(super) use invocations::invocations;
pub(super) use vertex::vertex;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use crate::config::Config;
use crate::http::ops;
use crate::http::state::AppState;

/// Routes that the environment switches on, and that do work.
pub(super) fn guarded(config: &Config) -> Router<Arc<AppState>> {
    let mut routes = Router::new();
    if let Some(path) = &config.aip_predict_route {
        routes = routes.route(path, post(vertex));
    }
    if config.kserve {
        routes = routes.route("/v2/models/{model}/versions/{version}/infer", post(kserve::infer));
    }
    routes
}

/// Routes that the environment switches on, for probes.
pub(super) fn open(config: &Config) -> Router<Arc<AppState>> {
    let mut routes = Router::new();
    if let Some(path) = &config.aip_health_route {
        routes = routes.route(path, get(ops::health));
    }
    if config.kserve {
        routes = routes
            .route("/v2", get(kserve::server))
            .route("/v2/health/live", get(kserve::live))
            .route("/v2/health/ready", get(kserve::ready))
            .route("/v2/models/{model}/versions/{version}", get(kserve::model))
            .route("/v2/models/{model}/versions/{version}/ready", get(kserve::ready));
    }
    routes
}
