//! The forms in which clients send grammars.

use serde::Deserialize;
use serde::de::{self, Deserializer};
use serde_json::{Map, Value, json};

use super::{Grammar, GrammarError};

/// The original's: `{"type": …, "value": …}`, and further types of ours.
impl<'de> Deserialize<'de> for Grammar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = Map::deserialize(deserializer)?;
        tagged(&fields).map_err(|error| {
            let place = if error.place.is_empty() { String::new() } else { format!("`{}` ", error.place) };
            de::Error::custom(format!("{place}{}", error.problem))
        })
    }
}

const TYPES: &str = "json, json_object, json_schema, regex, lark, ebnf or choice";

fn tagged(fields: &Map<String, Value>) -> Result<Grammar, GrammarError> {
    let Some(kind) = fields.get("type").and_then(Value::as_str) else {
        return Err(GrammarError::at("type", format!("must be {TYPES}")));
    };
    let value = fields.get("value").filter(|value| !value.is_null());
    let text = |what: &str| match value {
        Some(Value::String(text)) => Ok(text.clone()),
        _ => Err(GrammarError::at("value", format!("must be {what}, a string"))),
    };
    match (kind, value) {
        ("json_object", None) => Ok(any_object()),
        ("json" | "json_schema", None) => {
            Err(GrammarError::at("value", "must be a JSON schema, as an object or as a string"))
        }
        ("json" | "json_object", Some(value)) => Ok(Grammar::Json(written_out(value)?)),
        ("json_schema", Some(value)) => Ok(Grammar::Json(named_schema(value, "value")?)),
        ("regex", _) => Ok(Grammar::Regex(text("a regex")?)),
        ("lark" | "ebnf", _) => Ok(Grammar::Lark(text("rules in Lark's notation")?)),
        ("choice", Some(Value::Array(texts))) => {
            let texts = texts.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
            texts.map(Grammar::Choice).ok_or_else(|| GrammarError::at("value", "must be a list of strings"))
        }
        ("choice", _) => Err(GrammarError::at("value", "must be a list of strings")),
        _ => Err(GrammarError::at("type", format!("must be {TYPES}"))),
    }
}

/// `response_format` of `OpenAI`'s routes, in its forms and in the original's; `None` for plain text.
pub(crate) fn response_format(format: &Value) -> Result<Option<Grammar>, GrammarError> {
    let Value::Object(fields) = format else {
        return Err(GrammarError::new("must be an object with a `type`, such as {\"type\": \"json_object\"}"));
    };
    let present = |name: &str| fields.get(name).filter(|value| !value.is_null());
    match (present("type").and_then(Value::as_str), present("value")) {
        (Some("text"), _) => Ok(None),
        (Some("json_object"), None) => Ok(Some(match present("schema") {
            Some(schema) => Grammar::Json(written_out(schema)?),
            None => any_object(),
        })),
        (Some("json_schema"), None) => {
            let Some(named) = present("json_schema") else {
                return Err(GrammarError::at("json_schema", "is missing; it holds the `name` and the `schema`"));
            };
            named_schema(named, "json_schema").map(|schema| Some(Grammar::Json(schema)))
        }
        (None, _) => Err(GrammarError::at("type", "must be text, json_object or json_schema")),
        _ => tagged(fields).map(Some),
    }
}

/// Any JSON object.
fn any_object() -> Grammar {
    Grammar::Json(json!({ "type": "object" }))
}

/// A schema, which may be sent as the text of one.
fn written_out(value: &Value) -> Result<Value, GrammarError> {
    match value {
        Value::String(text) => serde_json::from_str(text)
            .map_err(|error| GrammarError::at("value", format!("must be a JSON schema, but is no JSON: {error}"))),
        value => Ok(value.clone()),
    }
}

/// `{name, schema}`; other fields, such as `strict`, change nothing, since every schema is held to.
fn named_schema(value: &Value, place: &str) -> Result<Value, GrammarError> {
    match value.get("schema") {
        None | Some(Value::Null) => {
            Err(GrammarError::at(format!("{place}.schema"), "is missing; it is the JSON schema"))
        }
        Some(schema @ Value::Object(_)) => Ok(schema.clone()),
        Some(_) => Err(GrammarError::at(format!("{place}.schema"), "must be an object: the JSON schema")),
    }
}
