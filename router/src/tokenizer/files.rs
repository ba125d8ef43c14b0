//! Which file of a model folder says what.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::LoadError;

/// The raw facts of a model folder.
#[derive(Debug, Default)]
pub(super) struct ModelFiles {
    pub(super) tokenizer_path: PathBuf,
    pub(super) tokenizer: Vec<u8>,
    pub(super) bos_token: Option<String>,
    pub(super) eos_token: Option<String>,
    pub(super) chat_template: Option<String>,
    pub(super) model_max_length: Option<u32>,
    /// From config.json and `generation_config.json`.
    pub(super) eos_token_ids: Vec<u32>,
}

impl ModelFiles {
    /// tokenizer.json must be there, the rest may be.
    pub(super) fn read(folder: &Path, tokenizer_config_path: Option<&Path>) -> Result<Self, LoadError> {
        let tokenizer_path = folder.join("tokenizer.json");
        let tokenizer = std::fs::read(&tokenizer_path)
            .map_err(|source| LoadError::Unreadable { path: tokenizer_path.clone(), source })?;
        let tokenizer_config = match tokenizer_config_path {
            Some(path) => read_json(path)?.ok_or_else(|| LoadError::Unreadable {
                path: path.to_owned(),
                source: std::io::ErrorKind::NotFound.into(),
            })?,
            None => read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default(),
        };
        let mut eos_token_ids = Vec::new();
        for name in ["config.json", "generation_config.json"] {
            let config = read_json(&folder.join(name))?.unwrap_or_default();
            let ids = [config.get("eos_token_id"), config.pointer("/text_config/eos_token_id")];
            eos_token_ids.extend(ids.into_iter().flatten().flat_map(token_ids));
        }
        Ok(Self {
            tokenizer_path,
            tokenizer,
            bos_token: token_text(&tokenizer_config, "bos_token"),
            eos_token: token_text(&tokenizer_config, "eos_token"),
            chat_template: chat_template(folder, &tokenizer_config, tokenizer_config_path.is_some())?,
            model_max_length: max_length(&tokenizer_config),
            eos_token_ids,
        })
    }
}

/// A template that the operator names wins; then the files of its own, newest form first; then the tokenizer's config.
fn chat_template(folder: &Path, tokenizer_config: &Value, is_explicit: bool) -> Result<Option<String>, LoadError> {
    let configured = tokenizer_config.get("chat_template").and_then(default_template);
    if is_explicit && configured.is_some() {
        return Ok(configured);
    }
    let path = folder.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(template) => return Ok(Some(template)),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(LoadError::Unreadable { path, source }),
    }
    let file = read_json(&folder.join("chat_template.json"))?;
    let in_file = file.as_ref().and_then(|file| file.get("chat_template")).and_then(default_template);
    Ok(in_file.or(configured))
}

/// A template is a string, or a list of named ones of which `default` counts.
fn default_template(value: &Value) -> Option<String> {
    match value {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str())
            .map(str::to_owned),
        _ => None,
    }
}

fn read_json(path: &Path) -> Result<Option<Value>, LoadError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LoadError::Unreadable { path: path.to_owned(), source }),
    };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|source| LoadError::Malformed { path: path.to_owned(), source })
}

/// `"</s>"` or `{"content": "</s>", …}`.
fn token_text(config: &Value, name: &str) -> Option<String> {
    let token = config.get(name)?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

/// One id or a list of ids.
fn token_ids(value: &Value) -> Vec<u32> {
    let to_id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(ids) => ids.iter().filter_map(to_id).collect(),
        id => to_id(id).into_iter().collect(),
    }
}

/// Tokenizers without a limit carry a number such as 1e30.
fn max_length(config: &Value) -> Option<u32> {
    let length = config.get("model_max_length")?.as_f64()?;
    (length >= 1.0 && length < f64::from(u32::MAX)).then_some(length as u32)
}
