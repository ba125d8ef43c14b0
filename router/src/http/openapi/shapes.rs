//! Forms that no type has, since they are read by hand or written piece by piece.

use serde_json::{Map, Value, json};

use super::operation::reference;

/// Schemas with names of their own.
pub(super) fn all() -> Map<String, Value> {
    let shapes = [
        ("TokenizeRequest", tokenize_request()),
        ("ChatTokenizeRequest", chat_tokenize_request()),
        ("Grammar", grammar()),
        ("ResponseFormat", response_format()),
        ("Message", message()),
        ("ContentPart", content_part()),
        ("Tool", tool()),
        ("ToolCall", tool_call()),
        ("ChatCompletionChunk", chunk("chat.completion.chunk", &chat_delta())),
        ("TextCompletionChunk", chunk("text_completion", &text_delta())),
    ];
    shapes.into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect()
}

fn tokenize_request() -> Value {
    json!({
        "description": "What `/tokenize` takes: a body of `/generate`, of which only `inputs` counts.",
        "type": "object",
        "required": ["inputs"],
        "properties": { "inputs": { "type": "string", "examples": ["My name is Olivier and I"] } },
    })
}

fn chat_tokenize_request() -> Value {
    json!({
        "description": "What `/chat_tokenize` takes: a body of chat, of which only what the template shows counts.",
        "type": "object",
        "required": ["messages"],
        "properties": { "messages": { "type": "array", "items": reference("Message") } },
    })
}

fn grammar() -> Value {
    let form = |kinds: &[&str], required: &[&str], value: Value| {
        let properties = json!({ "type": { "enum": kinds }, "value": value });
        json!({ "type": "object", "required": required, "properties": properties })
    };
    let always = ["type", "value"];
    let schema = |types: &[&str]| json!({ "type": types, "description": "A JSON schema, or its text." });
    let named = json!({
        "type": "object",
        "required": ["schema"],
        "properties": { "schema": { "type": "object" } },
    });
    let regex = json!({ "type": "string", "description": "The whole answer matches it.", "examples": ["[0-9]+"] });
    let rules = json!({ "type": "string", "description": "Rules in Lark's notation, beginning with `start`." });
    let texts = json!({
        "type": "array",
        "items": { "type": "string" },
        "minItems": 1,
        "description": "The answer is one of these texts.",
    });
    json!({
        "description": "What the answer must conform to.",
        "oneOf": [
            form(&["json"], &always, schema(&["object", "string"])),
            form(&["json_object"], &["type"], schema(&["object", "string", "null"])),
            form(&["json_schema"], &always, named),
            form(&["regex"], &always, regex),
            form(&["lark", "ebnf"], &always, rules),
            form(&["choice"], &always, texts),
        ],
    })
}

fn response_format() -> Value {
    let schema = json!({ "type": "object", "description": "A JSON schema." });
    json!({
        "description": "What the answer must conform to, in OpenAI's form or in that of `Grammar`.",
        "anyOf": [
            { "type": "object", "required": ["type"], "properties": { "type": { "const": "text" } } },
            {
                "type": "object",
                "required": ["type"],
                "properties": { "type": { "const": "json_object" }, "schema": schema },
            },
            {
                "type": "object",
                "required": ["type", "json_schema"],
                "properties": {
                    "type": { "const": "json_schema" },
                    "json_schema": {
                        "type": "object",
                        "required": ["schema"],
                        "properties": {
                            "name": { "description": "For the reader." },
                            "schema": schema,
                            "strict": { "description": "Every schema is held to." },
                        },
                    },
                },
            },
            reference("Grammar"),
        ],
    })
}

fn message() -> Value {
    json!({
        "description": "One message of a conversation. Further keys reach the chat template as they are.",
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {
                "type": "string",
                "description": "`system`, `developer`, `user`, `assistant`, `tool`, or what else the chat template knows.",
                "examples": ["user"],
            },
            "content": {
                "description": "A text or parts of one; may be null only where there are `tool_calls`.",
                "anyOf": [
                    { "type": "string" },
                    { "type": "array", "items": reference("ContentPart") },
                    { "type": "null" },
                ],
                "examples": ["What is deep learning?"],
            },
            "name": { "type": ["string", "null"], "description": "Who of several speaks." },
            "tool_calls": { "type": ["array", "null"], "items": reference("ToolCall") },
            "tool_call_id": { "type": ["string", "null"], "description": "Which call a tool's message answers." },
        },
    })
}

fn content_part() -> Value {
    json!({
        "description": "A part of a message; this server takes text.",
        "oneOf": [
            {
                "type": "object",
                "required": ["type", "text"],
                "properties": { "type": { "const": "text" }, "text": { "type": "string" } },
            },
            {
                "type": "object",
                "required": ["type", "refusal"],
                "properties": { "type": { "const": "refusal" }, "refusal": { "type": "string" } },
            },
        ],
    })
}

fn tool() -> Value {
    json!({
        "description": "A function that the model may call.",
        "type": "object",
        "required": ["type", "function"],
        "properties": {
            "type": { "const": "function" },
            "function": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": { "type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$", "examples": ["get_weather"] },
                    "description": { "type": ["string", "null"] },
                    "parameters": { "type": ["object", "null"], "description": "A JSON schema of the arguments." },
                    "strict": { "type": ["boolean", "null"], "description": "Hold the arguments to the schema." },
                },
            },
        },
    })
}

fn tool_call() -> Value {
    json!({
        "description": "A call of a function.",
        "type": "object",
        "required": ["function"],
        "properties": {
            "id": { "description": "What the answer's `tool_call_id` says.", "examples": ["call_1"] },
            "type": { "description": "`function`.", "examples": ["function"] },
            "function": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": { "type": "string" },
                    "arguments": { "type": ["string", "object", "null"], "description": "JSON, as text or as an object." },
                },
            },
        },
    })
}

pub(super) fn tool_choice() -> Value {
    json!({
        "default": "auto",
        "anyOf": [
            { "type": "null" },
            { "type": "string", "description": "`auto`, `none`, `required`, or the name of a tool." },
            {
                "type": "object",
                "required": ["function"],
                "properties": {
                    "type": { "const": "function" },
                    "function": {
                        "type": "object",
                        "required": ["name"],
                        "properties": { "name": { "type": "string" } },
                    },
                },
            },
            {
                "type": "object",
                "required": ["type", "allowed_tools"],
                "properties": {
                    "type": { "const": "allowed_tools" },
                    "allowed_tools": {
                        "type": "object",
                        "required": ["mode", "tools"],
                        "properties": {
                            "mode": { "enum": ["auto", "required"] },
                            "tools": { "type": "array", "items": { "type": "object" } },
                        },
                    },
                },
            },
        ],
    })
}

pub(super) fn prompt(max_prompts: usize) -> Value {
    let text = json!({ "type": "string", "minLength": 1 });
    let ids = json!({ "type": "array", "items": { "type": "integer", "minimum": 0 }, "minItems": 1 });
    json!({
        "anyOf": [
            text,
            ids,
            { "type": "array", "items": text, "minItems": 1, "maxItems": max_prompts },
            { "type": "array", "items": ids, "minItems": 1, "maxItems": max_prompts },
        ],
    })
}

pub(super) fn stop() -> Value {
    json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }, { "type": "null" }] })
}

pub(super) fn logit_bias() -> Value {
    json!({
        "type": ["object", "array", "null"],
        "items": { "type": "number", "minimum": -100, "maximum": 100 },
        "propertyNames": { "pattern": "^[0-9]+$" },
        "additionalProperties": { "type": "number", "minimum": -100, "maximum": 100 },
        "maxProperties": 1024,
        "example": { "50256": -100 },
    })
}

fn chat_delta() -> Value {
    json!({
        "delta": {
            "type": "object",
            "properties": {
                "role": { "const": "assistant" },
                "content": { "type": ["string", "null"] },
                "reasoning_content": { "type": "string" },
                "tool_calls": { "type": "array", "items": call_delta() },
            },
        },
        "logprobs": { "anyOf": [{ "type": "null" }, reference("ChatLogprobs")] },
    })
}

fn call_delta() -> Value {
    json!({
        "description": "The first of a call has its id and its name; further ones have more of its arguments.",
        "type": "object",
        "required": ["index", "function"],
        "properties": {
            "index": { "type": "integer", "minimum": 0 },
            "id": { "type": "string" },
            "type": { "const": "function" },
            "function": {
                "type": "object",
                "required": ["arguments"],
                "properties": { "name": { "type": "string" }, "arguments": { "type": "string" } },
            },
        },
    })
}

fn text_delta() -> Value {
    json!({
        "text": { "type": "string" },
        "logprobs": { "anyOf": [{ "type": "null" }, reference("TextLogprobs")] },
    })
}

/// A piece of a streamed answer, whose choices have these properties and two more.
fn chunk(object: &str, choice: &Value) -> Value {
    let mut choice = choice.clone();
    choice["index"] = json!({ "type": "integer", "minimum": 0 });
    choice["finish_reason"] = json!({ "type": ["string", "null"], "description": "`stop`, `length` or `tool_calls`." });
    json!({
        "description": "A piece of a streamed answer. The last one before `[DONE]` has no choices but the usage, if asked.",
        "type": "object",
        "required": ["id", "object", "created", "model", "choices"],
        "properties": {
            "id": { "type": "string" },
            "object": { "const": object },
            "created": { "type": "integer" },
            "model": { "type": "string" },
            "system_fingerprint": { "type": "string" },
            "choices": { "type": "array", "items": { "type": "object", "properties": choice } },
            "usage": { "anyOf": [{ "type": "null" }, reference("Usage")] },
        },
    })
}
