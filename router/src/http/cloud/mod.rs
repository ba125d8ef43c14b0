//! Routes under which clouds know a model server. Each is another way in to what the other routes do.

mod invocations;
mod kserve;
mod vertex;

pub(super) use invocations::invocations;
pub(super) use vertex::vertex;

use axum::routing::{get, post};

use crate::config::Config;
use crate::http::openapi::{Schemas, Table, add, describe};
use crate::http::ops;

/// Routes that the environment switches on, and that do work.
pub(super) fn guarded(config: &Config) -> Table {
    let mut routes = Table::new();
    if let Some(path) = &config.aip_predict_route {
        routes = routes.route(path, post(vertex), [describe::aip_predict()]);
    }
    if config.kserve {
        let path = "/v2/models/{model}/versions/{version}/infer";
        routes = routes.route(path, post(kserve::infer), [describe::infer()]);
    }
    routes
}

/// Routes that the environment switches on, for probes.
pub(super) fn open(config: &Config) -> Table {
    let mut routes = Table::new();
    if let Some(path) = &config.aip_health_route {
        routes = routes.route(path, get(ops::health), [describe::health("aip_health")]);
    }
    if config.kserve {
        let model = "/v2/models/{model}/versions/{version}";
        routes = routes
            .route("/v2", get(kserve::server), [describe::kserve_server()])
            .route("/v2/health/live", get(kserve::live), [describe::kserve_live()])
            .route("/v2/health/ready", get(kserve::ready), [describe::kserve_ready("kserve_ready")])
            .route(model, get(kserve::model), [describe::kserve_model("kserve_model")])
            .route(&format!("{model}/ready"), get(kserve::ready), [describe::kserve_ready("kserve_model_ready")]);
    }
    routes
}

/// What these routes read and write.
pub(super) fn add_schemas(schemas: &mut Schemas) {
    add::<vertex::VertexRequest>(schemas);
    add::<vertex::VertexResponse>(schemas);
    add::<kserve::InferRequest>(schemas);
    add::<kserve::InferResponse>(schemas);
}
