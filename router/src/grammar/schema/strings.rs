//! What a schema says of strings: patterns and formats.

use serde_json::{Map, Value};

use crate::grammar::{GrammarError, regex};

/// Those whose texts llguidance can write.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Whether a schema allows strings, so that what it says of them matters.
pub(super) fn applies(fields: &Map<String, Value>) -> bool {
    match fields.get("type") {
        Some(Value::String(name)) => name == "string",
        Some(Value::Array(names)) => names.iter().any(|name| name == "string"),
        _ => true,
    }
}

pub(super) fn known_format(format: &Value, place: &str) -> Result<(), GrammarError> {
    match format.as_str() {
        Some(name) if FORMATS.contains(&name) => Ok(()),
        Some(name) => {
            let problem = format!("`{name}` is not supported; the formats are {}", FORMATS.join(", "));
            Err(GrammarError::at(place, problem))
        }
        None => Err(GrammarError::at(place, "must be a string")),
    }
}

/// `pattern`.
pub(super) fn pattern(value: &Value, place: &str) -> Result<Value, GrammarError> {
    match value {
        Value::String(pattern) => searched(pattern, place).map(Value::String),
        _ => Err(GrammarError::at(place, "must be a regex, a string")),
    }
}

/// A regex that is looked for anywhere in a text.
pub(super) fn searched(pattern: &str, place: &str) -> Result<String, GrammarError> {
    let located = |error: GrammarError| GrammarError { place: place.to_owned(), ..error };
    regex::check(pattern).map_err(located)?;
    Ok(regex::narrowed(pattern))
}
