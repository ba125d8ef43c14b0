//! The parts of a schema that every value must hold to: where one of them allows nothing, nor does the whole.

use serde_json::{Map, Value};

use super::{escaped, unescaped};

/// Where definitions stand.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];

/// The parts that `schema` at `place` in `root` cannot do without, each with its JSON pointer. Options of `anyOf` and `oneOf`
/// are none: that nothing is left of all of them is said of their schema.
pub(in crate::grammar) fn needed<'a>(root: &'a Value, schema: &'a Value, place: &str) -> Vec<(String, &'a Value)> {
    let Value::Object(fields) = schema else { return Vec::new() };
    let mut parts = Vec::new();
    let reference = fields.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix('#'));
    if let Some(pointer) = reference.filter(|pointer| pointer.starts_with('/')).map(unescaped) {
        parts.extend(root.pointer(&pointer).map(|target| (pointer, target)));
    }
    parts.extend(list(fields, "allOf", place));
    let required = fields.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    parts.extend(required.filter_map(|name| {
        let part = fields.get("properties")?.get(name)?;
        Some((format!("{place}/properties/{}", escaped(name)), part))
    }));
    let least = fields.get("minItems").and_then(Value::as_u64).and_then(|least| usize::try_from(least).ok());
    let least = least.unwrap_or_default();
    let first: Vec<_> = list(fields, "prefixItems", place).collect();
    let items = fields.get("items").filter(|_| least > first.len());
    parts.extend(first.into_iter().take(least));
    parts.extend(items.map(|items| (format!("{place}/items"), items)));
    parts
}

fn list<'a>(fields: &'a Map<String, Value>, name: &str, place: &str) -> impl Iterator<Item = (String, &'a Value)> {
    let at = format!("{place}/{name}");
    let items = fields.get(name).and_then(Value::as_array).into_iter().flatten().enumerate();
    items.map(move |(index, item)| (format!("{at}/{index}"), item))
}

/// A part of `root` as a schema of its own, with all definitions.
pub(in crate::grammar) fn alone(root: &Value, part: &Value) -> Value {
    let Value::Object(fields) = part else { return part.clone() };
    let mut fields = fields.clone();
    for name in DEFINITIONS {
        if let Some(definitions) = root.get(name) {
            fields.entry(name).or_insert_with(|| definitions.clone());
        }
    }
    Value::Object(fields)
}
