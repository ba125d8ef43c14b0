//! The schemas of the document: derived from the types that read and write bodies, then told what those types leave to
//! further checks: which fields belong to which route, the forms of free fields, the operator's limits.

use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa::openapi::{RefOr, Schema};

use super::operation::reference;
use super::shapes;
use crate::config::Config;
use crate::http::{cloud, error, openai, ops, wire};

/// A list of schemas by name, as utoipa collects them.
pub(in crate::http) type Schemas = Vec<(String, RefOr<Schema>)>;

/// `T` and all that it is made of.
pub(in crate::http) fn add<T: ToSchema>(schemas: &mut Schemas) {
    T::schemas(schemas);
    add_as::<T>(schemas, &T::name());
}

/// `T` under a name of its own: the kinds of a generic type would share one.
pub(in crate::http) fn add_as<T: ToSchema>(schemas: &mut Schemas, name: &str) {
    T::schemas(schemas);
    schemas.push((name.to_owned(), T::schema()));
}

/// Fields that have a meaning on one of `OpenAI`'s two routes only.
const OF_CHAT: [&str; 18] = [
    "messages",
    "top_logprobs",
    "chat_template_kwargs",
    "chat_template",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "tool_prompt",
    "functions",
    "function_call",
    "modalities",
    "audio",
    "prediction",
    "web_search_options",
    "reasoning_effort",
];
const OF_COMPLETIONS: [&str; 4] = ["prompt", "best_of", "echo", "suffix"];

pub(super) fn all(config: &Config) -> Value {
    let mut collected = Schemas::new();
    add::<wire::GenerateRequest>(&mut collected);
    add::<wire::CompatRequest>(&mut collected);
    add::<wire::GenerateResponse<'_>>(&mut collected);
    add::<wire::StreamEvent<'_>>(&mut collected);
    add::<wire::StreamError<'_>>(&mut collected);
    add::<wire::SimpleToken>(&mut collected);
    add::<error::TgiError<'_>>(&mut collected);
    add::<error::OpenAiError<'_>>(&mut collected);
    add::<ops::Info>(&mut collected);
    openai::add_schemas(&mut collected);
    cloud::add_schemas(&mut collected);
    let mut schemas = Map::new();
    for (name, schema) in collected {
        let mut schema = serde_json::to_value(schema).expect("a schema is strings, numbers, lists and maps");
        tidy(&mut schema);
        schemas.insert(name, schema);
    }
    schemas.extend(shapes::all());
    let both = schemas.remove("OpenAiRequest").unwrap_or_default();
    schemas.insert("ChatRequest".to_owned(), chat(both.clone()));
    schemas.insert("CompletionRequest".to_owned(), completions(both, config));
    limit(&mut schemas, config);
    Value::Object(schemas)
}

fn chat(mut schema: Value) -> Value {
    schema["description"] = json!("What `/v1/chat/completions` takes.");
    schema["required"] = json!(["messages"]);
    remove(&mut schema, &OF_COMPLETIONS);
    for field in ["audio", "prediction", "web_search_options"] {
        specify(&mut schema, field, &json!({ "type": "null" }));
    }
    specify(&mut schema, "functions", &json!({ "type": ["array", "null"], "maxItems": 0 }));
    specify(&mut schema, "function_call", &json!({ "type": ["string", "null"], "enum": ["none", "auto", null] }));
    specify(&mut schema, "modalities", &json!({ "type": ["array", "null"], "items": { "const": "text" } }));
    specify(&mut schema, "messages", &json!({ "type": "array", "items": reference("Message"), "minItems": 1 }));
    specify(&mut schema, "logprobs", &json!({ "type": ["boolean", "null"], "default": false }));
    let efforts: Vec<Value> = openai::EFFORTS.into_iter().map(Value::from).chain([Value::Null]).collect();
    specify(&mut schema, "reasoning_effort", &json!({ "type": ["string", "null"], "enum": efforts }));
    specify(&mut schema, "tools", &json!({ "type": ["array", "null"], "items": reference("Tool") }));
    specify(&mut schema, "tool_choice", &shapes::tool_choice());
    in_common(&mut schema);
    schema
}

fn completions(mut schema: Value, config: &Config) -> Value {
    schema["description"] = json!("What `/v1/completions` takes.");
    schema["required"] = json!(["prompt"]);
    remove(&mut schema, &OF_CHAT);
    specify(&mut schema, "prompt", &shapes::prompt(config.max_client_batch_size));
    let logprobs = json!({ "type": ["integer", "boolean", "null"], "minimum": 0, "maximum": config.max_top_n_tokens });
    specify(&mut schema, "logprobs", &logprobs);
    specify(&mut schema, "suffix", &json!({ "type": "null" }));
    in_common(&mut schema);
    schema
}

/// Ranges of integers, and what the derivation writes down in a way of its own.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.values_mut().for_each(tidy);
            object.retain(|key, value| !(value.is_null() && matches!(key.as_str(), "default" | "example")));
            if let Some(Value::String(text)) = object.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            let (format, most) = match object.get("format").and_then(Value::as_str) {
                Some("u-int8") => ("uint8", json!(u8::MAX)),
                Some("u-int32") => ("uint32", json!(u32::MAX)),
                Some("u-int64") => ("uint64", json!(u64::MAX)),
                Some("int32") => ("int32", json!(i32::MAX)),
                _ => return raise_description(object),
            };
            object.insert("format".to_owned(), json!(format));
            object.entry("maximum").or_insert(most);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// What an optional reference says of itself belongs to the field.
fn raise_description(object: &mut Map<String, Value>) {
    let Some(Value::Array(forms)) = object.get_mut("oneOf") else { return };
    let reference = forms.iter_mut().find_map(|form| form.as_object_mut().filter(|form| form.contains_key("$ref")));
    if let Some(description) = reference.and_then(|reference| reference.shift_remove("description")) {
        object.insert("description".to_owned(), description);
    }
}

fn in_common(schema: &mut Value) {
    specify(schema, "stop", &shapes::stop());
    specify(schema, "logit_bias", &shapes::logit_bias());
    specify(schema, "response_format", &json!({ "anyOf": [{ "type": "null" }, reference("ResponseFormat")] }));
}

fn remove(schema: &mut Value, fields: &[&str]) {
    if let Some(properties) = schema["properties"].as_object_mut() {
        properties.retain(|field, _| !fields.contains(&field.as_str()));
    }
}

/// Says more of a field than its type does; its description and example stay.
fn specify(schema: &mut Value, field: &str, more: &Value) {
    let property = &mut schema["properties"][field];
    let kept = ["description", "example"].map(|key| (key, property[key].take()));
    *property = more.clone();
    for (key, value) in kept.into_iter().filter(|(_, value)| !value.is_null()) {
        property[key] = value;
    }
}

/// What flags allow.
fn limit(schemas: &mut Map<String, Value>, config: &Config) {
    let stops = config.max_stop_sequences;
    let limits = [
        ("GenerateParameters", "best_of", "maximum", json!(config.max_best_of)),
        ("GenerateParameters", "stop", "maxItems", json!(stops)),
        ("GenerateParameters", "top_n_tokens", "maximum", json!(config.max_top_n_tokens)),
        ("ChatRequest", "top_logprobs", "maximum", json!(config.max_top_n_tokens)),
        ("ChatRequest", "n", "maximum", json!(config.max_concurrent_requests)),
        ("CompletionRequest", "n", "maximum", json!(config.max_concurrent_requests)),
        ("CompletionRequest", "best_of", "maximum", json!(config.max_best_of)),
    ];
    for (schema, field, rule, value) in limits {
        schemas[schema]["properties"][field][rule] = value;
    }
    for schema in ["ChatRequest", "CompletionRequest"] {
        schemas[schema]["properties"]["stop"]["anyOf"][1]["maxItems"] = json!(stops);
    }
    let grammar = json!({ "anyOf": [{ "type": "null" }, reference("Grammar")] });
    specify(&mut schemas["GenerateParameters"], "grammar", &grammar);
}
