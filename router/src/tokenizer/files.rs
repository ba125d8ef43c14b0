//! Which file of a model folder says what.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::LoadError;

/// The raw facts of a model folder.
#[derive(Debug, Default)]
pub(super) struct ModelFiles {
    pub(super) tokenizer_path: PathBuf,
    pub(super) tokenizer: Vec<u8>,
    /// By the names that templates know them by, such as `bos_token`.
    pub(super) special_tokens: BTreeMap<String, String>,
    /// By name; one that has none is the `default`.
    pub(super) chat_templates: BTreeMap<String, String>,
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
            special_tokens: special_tokens(&tokenizer_config),
            chat_templates: chat_templates(folder, &tokenizer_config, tokenizer_config_path.is_some())?,
            model_max_length: max_length(&tokenizer_config),
            eos_token_ids,
        })
    }
}

const DEFAULT: &str = "default";

/// Templates that the operator names win; then the files of their own, newest form first; then the tokenizer's config.
fn chat_templates(
    folder: &Path,
    tokenizer_config: &Value,
    is_explicit: bool,
) -> Result<BTreeMap<String, String>, LoadError> {
    let mut templates = tokenizer_config.get("chat_template").map(named_templates).unwrap_or_default();
    if is_explicit && !templates.is_empty() {
        return Ok(templates);
    }
    let file = read_json(&folder.join("chat_template.json"))?;
    templates.extend(file.as_ref().and_then(|file| file.get("chat_template")).map(named_templates).unwrap_or_default());
    if let Some(template) = read_text(&folder.join("chat_template.jinja"))? {
        templates.insert(DEFAULT.to_owned(), template);
    }
    let additional = folder.join("additional_chat_templates");
    for entry in std::fs::read_dir(&additional).into_iter().flatten().flatten() {
        let path = entry.path();
        if let (Some("jinja"), Some(name)) = (path.extension().and_then(OsStr::to_str), path.file_stem())
            && let Some(template) = read_text(&path)?
        {
            templates.insert(name.to_string_lossy().into_owned(), template);
        }
    }
    Ok(templates)
}

/// A template is a string, or a list of named ones.
fn named_templates(value: &Value) -> BTreeMap<String, String> {
    let named =
        |entry: &Value| Some((entry.get("name")?.as_str()?.to_owned(), entry.get("template")?.as_str()?.to_owned()));
    match value {
        Value::String(template) => [(DEFAULT.to_owned(), template.clone())].into(),
        Value::Array(entries) => entries.iter().filter_map(named).collect(),
        _ => BTreeMap::new(),
    }
}

fn read_text(path: &Path) -> Result<Option<String>, LoadError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LoadError::Unreadable { path: path.to_owned(), source }),
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

/// Every `…_token`: `"</s>"` or `{"content": "</s>", …}`.
fn special_tokens(config: &Value) -> BTreeMap<String, String> {
    let text = |token: &Value| token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned);
    let fields = config.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("_token"));
    fields.filter_map(|(name, token)| Some((name.clone(), text(token)?))).collect()
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
