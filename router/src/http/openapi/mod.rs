//! `/api-doc/openapi.json` and `/docs`: the interface, described by the types that parse and write it.
//!
//! A route enters the server only through a [`Table`], together with its description: no route is undescribed. The
//! document is written once, at start, when flags and environment have said which routes and limits there are.

pub(super) mod describe;
mod operation;

mod schemas;
mod shapes;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::http::header;
use axum::routing::{MethodRouter, get};
use serde_json::{Map, Value, json};
use utoipa_swagger_ui::{Config as PageConfig, SwaggerUi};

pub(super) use operation::Operation;
pub(super) use schemas::{Schemas, add, add_as};

use super::state::AppState;
use crate::config::Config;

pub(super) const DOCUMENT: &str = "/api-doc/openapi.json";
pub(super) const PAGE: &str = "/docs";

/// Routes with their descriptions, by path.
pub(super) struct Table {
    routes: Router<Arc<AppState>>,
    paths: Map<String, Value>,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { routes: Router::new(), paths: Map::new() }
    }

    /// One path, the handlers of its methods, and what each of them does.
    pub(super) fn route(
        mut self,
        path: &str,
        handlers: MethodRouter<Arc<AppState>>,
        operations: impl IntoIterator<Item = Operation>,
    ) -> Self {
        let operations = operations.into_iter().map(|operation| operation.described(path));
        self.paths.insert(path.replace("{*", "{"), Value::Object(operations.collect()));
        self.routes = self.routes.route(path, handlers);
        self
    }

    /// What `layers` makes of the routes.
    pub(super) fn map(mut self, layers: impl FnOnce(Router<Arc<AppState>>) -> Router<Arc<AppState>>) -> Self {
        self.routes = layers(self.routes);
        self
    }

    pub(super) fn merge(mut self, other: Self) -> Self {
        self.paths.extend(other.paths);
        self.routes = self.routes.merge(other.routes);
        self
    }

    /// All routes, the document and its page among them.
    pub(super) fn into_router(mut self, config: &Config) -> Router<Arc<AppState>> {
        for (path, operation) in [(DOCUMENT, describe::document()), (PAGE, describe::page())] {
            self.paths.insert(path.to_owned(), Value::Object([operation.described(path)].into_iter().collect()));
        }
        let document = Bytes::from(document(&self.paths, config).to_string());
        let answer = move || async move { ([(header::CONTENT_TYPE, "application/json")], document) };
        // From the page's own folder, so that both are found behind a proxy that serves them under another path.
        let page = SwaggerUi::new(PAGE).config(PageConfig::from(format!("..{DOCUMENT}")));
        self.routes.route(DOCUMENT, get(answer)).merge(page)
    }
}

fn document(paths: &Map<String, Value>, config: &Config) -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Millrace",
            "description": "Text generation: the routes of Text Generation Inference and of OpenAI's API.",
            "license": { "name": "Apache 2.0", "identifier": "Apache-2.0" },
            "version": env!("CARGO_PKG_VERSION"),
        },
        "tags": operation::Group::ALL.map(|group| json!({ "name": group.name(), "description": group.description() })),
        "paths": paths,
        "components": {
            "schemas": schemas::all(config),
            "securitySchemes": {
                "api_key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The key that the server was started with (`API_KEY`), if it was started with one.",
                },
            },
        },
    })
}
