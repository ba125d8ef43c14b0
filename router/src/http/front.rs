//! What is asked first: from the first second on there is an answer, also while there is no model yet.
//!
//! Every request passes here. Until `open`, health is told and everything else is refused for the moment; then each goes
//! on to the server's own routes, also on connections that were there before.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::Request;
use axum::middleware::from_fn;
use axum::response::Response;
use axum::routing::get;
use tower::ServiceExt;

use super::error::{self, ApiError, Dialect};
use super::openapi::{DOCUMENT, PAGE};
use super::{cors, gate, net, ops, request_id};
use crate::config::Config;
use crate::health::Health;
use crate::telemetry::Metrics;
use crate::tenants::Tenants;

/// Clones share what has been opened.
#[derive(Clone, Debug)]
pub struct Front {
    early: Router,
    opened: Arc<OnceLock<Router>>,
}

impl Front {
    pub fn new(config: &Config, health: &Health, metrics: &Metrics, tenants: &Tenants) -> Self {
        Self { early: early(config, health, metrics, tenants), opened: Arc::default() }
    }

    /// From now on `routes` answer. They are kept by nobody but those who serve them.
    pub fn open(self, routes: Router) {
        let _earlier = self.opened.set(routes);
    }

    /// To be served.
    pub fn routes(self) -> Router {
        Router::new().fallback(move |request: Request| {
            let routes = self.opened.get().unwrap_or(&self.early).clone();
            async move { routes.oneshot(request).await.unwrap_or_else(|never| match never {}) }
        })
    }
}

/// What anybody may ask later, and what cannot be told yet.
const OPEN_LATER: [&str; 6] = ["/info", "/v1/models", "/v1/models/{*name}", DOCUMENT, PAGE, "/docs/{*file}"];
const KSERVE_OPEN_LATER: [&str; 5] = [
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/{model}/versions/{version}",
    "/v2/models/{model}/versions/{version}/ready",
];

fn early(config: &Config, health: &Health, metrics: &Metrics, tenants: &Tenants) -> Router {
    let unhealthy = || get(async || error::unhealthy());
    let (livez, readyz, startupz) = (health.clone(), health.clone(), health.clone());
    let (counted, metrics) = (health.clone(), metrics.clone());
    let mut routes = Router::new()
        .route("/", unhealthy())
        .route("/health", unhealthy())
        .route("/ping", unhealthy())
        .route("/livez", get(async move || ops::live(&livez)))
        .route("/readyz", get(async move || ops::ready(&readyz)))
        .route("/startupz", get(async move || ops::started(&startupz)))
        .route("/metrics", get(async move || ops::rendered(&metrics, &counted)));
    if let Some(path) = &config.aip_health_route {
        routes = routes.route(path, unhealthy());
    }
    let kserve = KSERVE_OPEN_LATER.iter().filter(|_| config.kserve);
    for path in OPEN_LATER.iter().chain(kserve) {
        let health = health.clone();
        let refuse = async move |request: Request| refusal(ApiError::loading(&health), &request);
        routes = routes.route(path, get(refuse));
    }
    // Whoever has no key is not told more than later.
    let (health, tenants) = (health.clone(), tenants.clone());
    let refuse = async move |request: Request| {
        let checked = gate::tenant(&tenants, request.headers());
        refusal(checked.err().unwrap_or_else(|| ApiError::loading(&health)), &request)
    };
    let routes = routes.method_not_allowed_fallback(refuse.clone()).fallback(refuse);
    routes.layer(cors::layer(&config.cors_allow_origin)).layer(from_fn(net)).layer(from_fn(request_id::stamp))
}

fn refusal(error: ApiError, request: &Request) -> Response {
    error.into_response(Dialect::of(request.uri().path()))
}
