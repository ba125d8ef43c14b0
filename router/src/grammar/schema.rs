//! JSON schemas: refused where they cannot be held to, and written as llguidance takes them.

use serde_json::{Value, json};

use super::GrammarError;

/// What may stand between two parts of a JSON text: a bound, so that no output is all whitespace.
const WHITESPACE: &str = r"\x20{1,2}|\x20{0,2}\r?\n[\x20\x09]{0,40}";
/// Letters that may follow a backslash. Without `u`: an escape could spell a key that the schema gives another meaning.
const ESCAPES: &str = "nrbtf\\\"";

/// The schema with what it leaves open to whoever writes JSON.
pub(super) fn prepare(schema: &Value) -> Result<Value, GrammarError> {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        Value::Object(_) => schema.clone(),
        Value::Bool(false) => return Err(GrammarError::new("is `false`, which allows no output at all")),
        _ => return Err(GrammarError::new("must be a JSON schema: an object")),
    };
    if let Value::Object(fields) = &mut schema {
        let writing = json!({ "whitespace_pattern": WHITESPACE, "json_allowed_escapes": ESCAPES });
        fields.insert("x-guidance".to_owned(), writing);
    }
    Ok(schema)
}
