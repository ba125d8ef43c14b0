//! Conversations as `OpenAI`'s clients write them, checked for what templates and this server rely on.
//!
//! Everything else in a message is left as it came: a template may know it.

use serde_json::{Map, Value};

use super::request::OpenAiRequest;
use crate::http::error::ApiError;
use crate::tokenizer::{Conversation, Ending};

/// Variables that have fields of their own.
const RESERVED: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

pub(in crate::http) type Message = Map<String, Value>;

impl OpenAiRequest {
    /// The conversation of a chat request, taken out of it.
    pub(in crate::http) fn conversation(&mut self) -> Result<Conversation, ApiError> {
        conversation(self)
    }
}

fn conversation(request: &mut OpenAiRequest) -> Result<Conversation, ApiError> {
    let messages = request.messages.take().ok_or_else(|| ApiError::field("messages", "is missing; send a list"))?;
    let messages = messages.into_iter().enumerate().map(|(index, message)| checked(message, index));
    let variables = request.chat_template_kwargs.take().unwrap_or_default();
    if let Some(name) = variables.keys().find(|name| RESERVED.contains(&name.as_str())) {
        let problem = "has a field of its own in the request; send it there";
        return Err(ApiError::field(format!("chat_template_kwargs.{name}"), problem));
    }
    Ok(Conversation {
        messages: messages.collect::<Result<_, _>>()?,
        tools: request.tools.take().filter(|tools| !tools.is_empty()).map(Value::Array),
        documents: request.documents.take().map(Value::Array),
        variables,
        template: request.chat_template.take(),
        ending: ending(request)?,
        unthinking: None,
    })
}

fn ending(request: &OpenAiRequest) -> Result<Ending, ApiError> {
    match (request.continue_final_message, request.add_generation_prompt) {
        (Some(true), Some(true)) => {
            let problem = "contradicts `add_generation_prompt`: a message goes on or a new one begins";
            Err(ApiError::field("continue_final_message", problem))
        }
        (Some(true), _) => Ok(Ending::Continued),
        (_, Some(false)) => Ok(Ending::Closed),
        (_, Some(true)) | (Some(false), None) => Ok(Ending::Opened),
        (None, None) => Ok(Ending::Either),
    }
}

/// Message `index` as templates see it: nulls are as good as absent, but a call's content may be null.
fn checked(mut message: Message, index: usize) -> Result<Value, ApiError> {
    let at = |field: &str| format!("messages[{index}].{field}");
    if !message.get("role").is_some_and(Value::is_string) {
        return Err(ApiError::field(at("role"), "must be a string such as `user`"));
    }
    message.retain(|key, value| key == "content" || !value.is_null());
    for text in ["name", "tool_call_id"] {
        if message.get(text).is_some_and(|value| !value.is_string()) {
            return Err(ApiError::field(at(text), "must be a string"));
        }
    }
    let has_calls = match message.get("tool_calls") {
        None => false,
        Some(Value::Array(calls)) => check_calls(calls, &at("tool_calls"))?,
        Some(_) => return Err(ApiError::field(at("tool_calls"), "must be a list")),
    };
    match message.get_mut("content") {
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => check_parts(parts, &at("content"))?,
        None | Some(Value::Null) if has_calls => {}
        None | Some(Value::Null) => {
            return Err(ApiError::field(at("content"), "is missing; send a string or a list of text parts"));
        }
        Some(_) => return Err(ApiError::field(at("content"), "must be a string or a list of parts")),
    }
    Ok(Value::Object(message))
}

/// Whether there are any calls; each must name its function.
fn check_calls(calls: &[Value], at: &str) -> Result<bool, ApiError> {
    for (place, call) in calls.iter().enumerate() {
        if !call.pointer("/function/name").is_some_and(Value::is_string) {
            return Err(ApiError::field(format!("{at}[{place}].function.name"), "must be a string"));
        }
        let arguments = call.pointer("/function/arguments");
        if !arguments.is_none_or(|arguments| arguments.is_string() || arguments.is_object()) {
            let problem = "must be JSON as a string, or an object";
            return Err(ApiError::field(format!("{at}[{place}].function.arguments"), problem));
        }
    }
    Ok(!calls.is_empty())
}

/// Every part must be text.
fn check_parts(parts: &mut [Value], at: &str) -> Result<(), ApiError> {
    for (place, part) in parts.iter_mut().enumerate() {
        let field = format!("{at}[{place}]");
        match part["type"].as_str() {
            Some("text") if part["text"].is_string() => {}
            Some("text") => return Err(ApiError::field(field, "has no `text`")),
            // What an assistant said instead of an answer.
            Some("refusal") if part["refusal"].is_string() => {
                *part = serde_json::json!({ "type": "text", "text": part["refusal"] });
            }
            Some(kind) => {
                let problem = format!("has type `{kind}`, but this model takes text only; send parts of type `text`");
                return Err(ApiError::unsupported(field, problem));
            }
            None => return Err(ApiError::field(field, "needs a `type`, for example \"text\"")),
        }
    }
    Ok(())
}
