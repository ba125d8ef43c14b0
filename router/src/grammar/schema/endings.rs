//! Whether a schema that refers to itself can be met by a text that ends.

use std::collections::HashSet;

use serde_json::{Map, Value};

/// Rounds after which what is still unknown is believed to end. Definitions stand behind what they refer to but where they
/// refer to each other, so one round settles nearly all.
const MAX_ROUNDS: usize = 100;

/// Looks at a rewritten schema: all its references are `#` or to a definition. Answers no only where that is certain.
pub(super) fn can_end(root: &Map<String, Value>, definitions: &Map<String, Value>) -> bool {
    let mut ending: HashSet<&str> = HashSet::new();
    for _ in 0..MAX_ROUNDS {
        let before = ending.len();
        for (name, schema) in definitions {
            if !ending.contains(name.as_str()) && ends(schema, &ending) {
                ending.insert(name);
            }
        }
        if object_ends(root, &ending) {
            return true;
        }
        if ending.len() == before {
            return false;
        }
    }
    true
}

fn ends(schema: &Value, ending: &HashSet<&str>) -> bool {
    match schema {
        Value::Bool(allows) => *allows,
        Value::Object(fields) => object_ends(fields, ending),
        _ => true,
    }
}

/// A value must meet every keyword at once, so one that cannot be met by anything finite decides.
fn object_ends(fields: &Map<String, Value>, ending: &HashSet<&str>) -> bool {
    let list = |name: &str| fields.get(name).and_then(Value::as_array);
    let refers_well = match fields.get("$ref").and_then(Value::as_str) {
        None => true,
        Some("#") => false,
        Some(reference) => reference.strip_prefix("#/$defs/").is_none_or(|name| ending.contains(name)),
    };
    let ends = |schema: &Value| ends(schema, ending);
    refers_well
        && list("allOf").is_none_or(|all| all.iter().all(ends))
        && list("anyOf").is_none_or(|any| any.iter().any(ends))
        && list("oneOf").is_none_or(|one| one.iter().any(ends))
        && (has_plain_type(fields) || containers_end(fields, ending))
}

/// Whether a value without others inside would do.
fn has_plain_type(fields: &Map<String, Value>) -> bool {
    let is_plain = |name: &Value| name != "object" && name != "array";
    match fields.get("type") {
        Some(Value::Array(names)) => names.iter().any(is_plain),
        Some(name) => is_plain(name),
        None => true,
    }
}

fn containers_end(fields: &Map<String, Value>, ending: &HashSet<&str>) -> bool {
    let allows = |kind: &str| match fields.get("type") {
        Some(Value::Array(names)) => names.iter().any(|name| name == kind),
        Some(name) => name == kind,
        None => true,
    };
    (allows("object") && required_end(fields, ending)) || (allows("array") && items_end(fields, ending))
}

fn required_end(fields: &Map<String, Value>, ending: &HashSet<&str>) -> bool {
    let properties = fields.get("properties").and_then(Value::as_object);
    let required = fields.get("required").and_then(Value::as_array).into_iter().flatten();
    let mut schemas = required.filter_map(|name| properties?.get(name.as_str()?));
    schemas.all(|schema| ends(schema, ending))
}

fn items_end(fields: &Map<String, Value>, ending: &HashSet<&str>) -> bool {
    let least = fields.get("minItems").and_then(Value::as_u64).unwrap_or(0);
    let least = usize::try_from(least).unwrap_or(usize::MAX);
    let tuple = fields.get("prefixItems").or(fields.get("items")).and_then(Value::as_array);
    let rest = fields.get("items").filter(|items| !items.is_array());
    let first = tuple.into_iter().flatten().take(least);
    let has_more = least > tuple.map_or(0, Vec::len);
    first.into_iter().all(|item| ends(item, ending)) && (!has_more || rest.is_none_or(|item| ends(item, ending)))
}
