//! HTTP: what clients send and get. Wire types, routes in one table, errors in each route family's own form.
//!
//! A request passes, from the outside in: its id, a net for panics, CORS, the gate (key, readiness), and a handler.
//! `admission` reads its body, within the body's limits, and gets it a place; the handler makes an `Ask` of what it read and
//! has it checked, the engine generates, and the handler writes events down in its route's form.

mod admission;
mod body;
mod cloud;
mod collect;
mod cors;
mod error;
mod front;
mod gate;
mod generate;
mod headers;
mod kept;
mod object;
mod openai;
mod openapi;
mod ops;
mod prompt_logprobs;
mod refused_streams;
mod request_id;
mod request_metrics;
mod sse;
mod state;
mod ticket;
mod underway;
mod weight;
mod wire;

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use futures::FutureExt;
use tokio::sync::Semaphore;

use crate::config::Config;
use crate::detokenize::Detokenizer;
use crate::engine::api::EngineHandle;
use crate::health::Health;
use crate::overload::Backlog;
use crate::telemetry::Metrics;
use crate::tenants::Tenants;
use crate::tokenizer::TextModel;
use error::{ApiError, Dialect};
pub use front::Front;
use openapi::{Table, describe};
use state::AppState;

/// What the routes stand on.
#[derive(Clone, Debug)]
pub struct Context {
    pub config: Arc<Config>,
    pub health: Health,
    pub engine: EngineHandle,
    pub text: Arc<TextModel>,
    pub detokenizer: Arc<Detokenizer>,
    pub metrics: Metrics,
    pub backlog: Backlog,
    /// One permit per prompt inside the server: `max_places` of the configuration.
    pub places: Arc<Semaphore>,
    /// One permit per answer of theirs whose last byte has not been written.
    pub unwritten: Arc<Semaphore>,
    /// Whose keys open what.
    pub tenants: Tenants,
}

/// The whole server. Starts the tokenizer threads; metrics are recorded by the recorder that is installed now.
pub fn router(context: Context) -> Router {
    let payload_limit = context.config.payload_limit;
    let cors = cors::layer(&context.config.cors_allow_origin);
    let guarded = Table::new()
        .route("/generate", post(generate::generate), [describe::generate()])
        .route("/generate_stream", post(generate::generate_stream), [describe::generate_stream()])
        .route("/tokenize", post(generate::tokenize), [describe::tokenize()])
        .route("/chat_tokenize", post(openai::chat_tokenize), [describe::chat_tokenize()])
        .route("/invocations", post(cloud::invocations), [describe::invocations()])
        .route("/vertex", post(cloud::vertex), [describe::vertex()])
        .route("/v1/completions", post(openai::completions), [describe::completions()])
        .route("/v1/chat/completions", post(openai::chat_completions), [describe::chat_completions()])
        .merge(cloud::guarded(&context.config));
    let open = Table::new()
        .route("/health", get(ops::health), [describe::health("health")])
        .route("/livez", get(ops::livez), [describe::standing("livez", "Whether the server needs no help to go on")])
        .route("/readyz", get(ops::readyz), [describe::standing("readyz", "Whether new requests are served now")])
        .route("/startupz", get(ops::startupz), [describe::standing("startupz", "Whether the first start is done")])
        .route("/ping", get(ops::health), [describe::health("ping")])
        .route("/info", get(ops::info), [describe::info()])
        .route("/metrics", get(ops::metrics), [describe::metrics()])
        .route("/v1/models", get(openai::list), [describe::models()])
        .route("/v1/models/{*name}", get(openai::one), [describe::model()])
        .merge(cloud::open(&context.config));
    let config = Arc::clone(&context.config);
    let state = Arc::new(AppState::new(context));
    let guard = from_fn_with_state(Arc::clone(&state), gate::guard);
    let in_stream = from_fn_with_state(Arc::clone(&state), refused_streams::layer);
    let farewell = from_fn_with_state(Arc::clone(&state), gate::farewell);
    let admins = from_fn_with_state(Arc::clone(&state), gate::admin);
    let mut admin = Table::new();
    if config.admin_routes {
        admin = admin.route("/admin/drain", post(ops::drain).route_layer(admins), [describe::drain()]);
    }
    // One path, two rules: only the POST needs the key.
    let root = post(generate::compat).route_layer(in_stream.clone()).route_layer(guard.clone()).get(ops::health);
    let routes = guarded
        .map(|routes| routes.route_layer(in_stream).route_layer(guard))
        .route("/", root, [describe::compat(), describe::health("root_health")])
        .merge(open)
        .merge(admin)
        .into_router(&config)
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(payload_limit))
        .layer(cors)
        .layer(farewell)
        .with_state(state);
    netted(routes)
}

/// The two outermost layers: whatever happens inside, there is an answer with a request id.
fn netted(routes: Router) -> Router {
    routes.layer(from_fn(net)).layer(from_fn(request_id::stamp))
}

async fn unknown_route(request: Request) -> Response {
    let path = request.uri().path();
    ApiError::UnknownRoute(path.to_owned()).into_response(Dialect::of(path))
}

async fn wrong_method(request: Request) -> Response {
    let path = request.uri().path();
    ApiError::WrongMethod(path.to_owned()).into_response(Dialect::of(path))
}

/// A panic is a bug: the client gets an answer, the log gets the reason, everybody else goes on.
async fn net(request: Request, next: Next) -> Response {
    let dialect = Dialect::of(request.uri().path());
    // What a handler shares with others is made of locks and atomics that a panic leaves usable.
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(payload) => {
            // Its words may be a client's: the place, which the panic itself has told, is what helps.
            tracing::error!("a handler panicked");
            tracing::debug!("a handler panicked: {}", reason(payload.as_ref()));
            ApiError::Internal.into_response(dialect)
        }
    }
}

fn reason(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
