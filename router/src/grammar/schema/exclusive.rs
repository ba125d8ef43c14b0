//! Whether no value can fit two options of a `oneOf`, so that it says what `anyOf` says.
//!
//! llguidance proves that as well, but does not look behind references, where tagged unions have their tags.

use serde_json::{Map, Value};

/// References that are followed in a row.
const MAX_HOPS: usize = 8;
/// Required properties that are looked at in each option: tags come first.
const MAX_KEYS: usize = 16;

/// Answers yes only where that is certain.
pub(super) fn are_exclusive(root: &Value, options: &[Value]) -> bool {
    let options: Vec<&Value> = options.iter().map(|option| resolved(root, option)).collect();
    options.iter().enumerate().all(|(index, a)| options[index + 1..].iter().all(|b| are_disjoint(root, a, b)))
}

/// What a schema refers to, since a value must fit that too.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let mut schema = schema;
    for _ in 0..MAX_HOPS {
        let reference = schema.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix('#'));
        let Some(target) = reference.and_then(|pointer| root.pointer(&super::unescaped(pointer))) else { break };
        schema = target;
    }
    schema
}

fn are_disjoint(root: &Value, a: &Value, b: &Value) -> bool {
    if let (Some(a), Some(b)) = (constants(a), constants(b)) {
        return a.iter().all(|a| b.iter().all(|b| differ(a, b)));
    }
    match (types(a), types(b)) {
        (Some(a), Some(b)) if !a.iter().any(|name| b.contains(name)) => true,
        (Some(x), Some(y)) if x == ["object"] && y == ["object"] => has_tag(root, a, b) || has_tag(root, b, a),
        _ => false,
    }
}

/// Whether a property that `a` requires tells it from `b`.
fn has_tag(root: &Value, a: &Value, b: &Value) -> bool {
    let required = a.get("required").and_then(Value::as_array).into_iter().flatten();
    let mut names = required.filter_map(Value::as_str).take(MAX_KEYS);
    names.any(|name| match (property(a, name), property(b, name)) {
        (Some(own), Some(other)) => {
            let (own, other) = (resolved(root, own), resolved(root, other));
            let differ_in_type =
                || matches!((types(own), types(other)), (Some(a), Some(b)) if !a.iter().any(|one| b.contains(one)));
            match (constants(own), constants(other)) {
                (Some(own), Some(other)) => own.iter().all(|a| other.iter().all(|b| differ(a, b))),
                _ => differ_in_type(),
            }
        }
        (_, None) => is_closed(b),
        (None, Some(_)) => false,
    })
}

fn property<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    schema.get("properties")?.get(name)
}

fn is_closed(schema: &Value) -> bool {
    let patterns = schema.get("patternProperties").and_then(Value::as_object);
    schema.get("additionalProperties") == Some(&Value::Bool(false)) && patterns.is_none_or(Map::is_empty)
}

/// The only values that fit, where a schema lists them.
fn constants(schema: &Value) -> Option<Vec<&Value>> {
    match (schema.get("const"), schema.get("enum")) {
        (Some(only), _) => Some(vec![only]),
        (None, Some(Value::Array(values))) => Some(values.iter().collect()),
        _ => None,
    }
}

/// Certain to be different: numbers by their value, and nothing is said of lists and objects.
fn differ(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() > 0.0,
            _ => false,
        },
        (Value::Array(_), Value::Array(_)) | (Value::Object(_), Value::Object(_)) => false,
        _ => a != b,
    }
}

/// The types that a schema allows at most, integers among numbers.
fn types(schema: &Value) -> Option<Vec<&str>> {
    let names = match schema.get("type") {
        Some(Value::String(name)) => vec![name.as_str()],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => constants(schema)?.into_iter().map(type_of).collect(),
    };
    Some(names.into_iter().map(|name| if name == "integer" { "number" } else { name }).collect())
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
