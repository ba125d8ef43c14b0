//! The names a model answers to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::OpenAiError;
use crate::config::Config;
use crate::http::error::ApiError;
use crate::http::state::AppState;

/// What the original's own clients send when they do not care.
const PLACEHOLDERS: [&str; 3] = ["", "tgi", "dummy"];

/// Bytes of a name that a client gives, and gets back: in every event of a stream.
pub(in crate::http) const LONGEST_NAME: usize = 512;

#[derive(Debug)]
pub(in crate::http) struct ModelNames {
    /// Never empty; the first is the name in answers.
    served: Vec<Arc<str>>,
    /// Unknown names are refused.
    is_strict: bool,
    is_warned: AtomicBool,
}

#[derive(Serialize, ToSchema)]
pub(in crate::http) struct ModelList {
    object: &'static str,
    data: Vec<ModelEntry>,
}

#[derive(Serialize, ToSchema)]
pub(in crate::http) struct ModelEntry {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: String,
}

impl ModelNames {
    pub(in crate::http) fn new(config: &Config) -> Self {
        let further = config.served_model_name.iter().filter(|name| **name != config.model_id);
        let served = std::iter::once(&config.model_id).chain(further).map(|name| Arc::from(name.as_str())).collect();
        Self { served, is_strict: config.strict_model_names, is_warned: AtomicBool::new(false) }
    }

    /// The name to answer with. There is one model: unless names are strict, any other name means it too, with one
    /// warning.
    pub(super) fn resolve(&self, asked: Option<&str>) -> Result<Arc<str>, ApiError> {
        let Some(name) = asked.filter(|name| !PLACEHOLDERS.contains(name)) else {
            return Ok(Arc::clone(&self.served[0]));
        };
        if let Some(served) = self.served.iter().find(|served| ***served == *name) {
            return Ok(Arc::clone(served));
        }
        if self.is_strict {
            return Err(ApiError::UnknownModel(name.to_owned()));
        }
        if name.len() > LONGEST_NAME {
            return Err(ApiError::field("model", format!("must have at most {LONGEST_NAME} bytes")));
        }
        self.warn_once();
        Ok(Arc::from(name))
    }

    /// Without the name, which is a client's text.
    fn warn_once(&self) {
        if !self.is_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "a request names a model that is not served; such requests are answered with {}",
                self.served[0]
            );
        }
    }
}

/// `GET /v1/models`.
pub(in crate::http) async fn list(State(state): State<Arc<AppState>>) -> Json<ModelList> {
    let names = state.models.served.iter();
    Json(ModelList { object: "list", data: names.map(|name| ModelEntry::of(name)).collect() })
}

/// `GET /v1/models/{name}`; names may hold slashes.
pub(in crate::http) async fn one(
    State(state): State<Arc<AppState>>,
    Path(asked): Path<String>,
) -> Result<Json<ModelEntry>, OpenAiError> {
    let served = state.models.served.iter().find(|served| ***served == *asked);
    Ok(Json(ModelEntry::of(served.ok_or(ApiError::UnknownModel(asked))?)))
}

impl ModelEntry {
    fn of(name: &str) -> Self {
        Self { id: name.to_owned(), object: "model", created: 0, owned_by: name.to_owned() }
    }
}
