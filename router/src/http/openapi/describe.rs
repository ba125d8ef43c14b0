//! What each route does.

use serde_json::{Value, json};

use super::operation::{Group, Operation, reference};

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

/// Of whole answers.
const COST: [(&str, &str); 10] = [
    ("x-compute-type", "What computed it."),
    ("x-compute-time", "Seconds from the request to the answer."),
    ("x-compute-characters", "Characters of the prompt."),
    ("x-total-time", "Milliseconds from the request to the answer."),
    ("x-validation-time", "Milliseconds of them spent checking and tokenizing."),
    ("x-queue-time", "Milliseconds of them spent waiting."),
    ("x-inference-time", "Milliseconds of them spent computing."),
    ("x-time-per-token", "Milliseconds for each generated token."),
    ("x-prompt-tokens", "Tokens of the prompt."),
    ("x-generated-tokens", "Tokens that were generated."),
];

/// An event whose data is JSON of this form.
fn event(schema: &Value) -> Value {
    let data = json!({ "type": "string", "contentMediaType": "application/json", "contentSchema": schema });
    json!({ "type": "object", "required": ["data"], "properties": { "data": data } })
}

fn list_of(schema: &str) -> Value {
    json!({ "type": "array", "items": reference(schema) })
}

pub(in crate::http) fn compat() -> Operation {
    Operation::post(Group::Generation, "compat_generate", "Generate text, whole or as a stream")
        .explained("As `/generate`, or `/generate_stream` if `stream` is true. The text comes back with its prompt.")
        .takes("CompatRequest")
        .timed()
        .answers(
            200,
            "A list of one answer; or, if `stream` is true, its events",
            &[(JSON, list_of("GenerateResponse")), (EVENTS, event(&reference("StreamEvent")))],
        )
        .with_headers(&COST)
        .fails_as_tgi()
}

pub(in crate::http) fn generate() -> Operation {
    Operation::post(Group::Generation, "generate", "Generate text")
        .takes("GenerateRequest")
        .timed()
        .answers(200, "The answer", &[(JSON, reference("GenerateResponse"))])
        .with_headers(&COST)
        .fails_as_tgi()
}

pub(in crate::http) fn generate_stream() -> Operation {
    Operation::post(Group::Generation, "generate_stream", "Generate text as a stream of events")
        .explained(
            "Each event is a line `data: ` with JSON. A failure in the middle is an event of the form `StreamError`.",
        )
        .takes("GenerateRequest")
        .timed()
        .answers(200, "An event for each token", &[(EVENTS, event(&reference("StreamEvent")))])
        .fails_as_tgi()
}

pub(in crate::http) fn tokenize() -> Operation {
    Operation::post(Group::Tokens, "tokenize", "The tokens of a text")
        .takes("TokenizeRequest")
        .answers(200, "The tokens of `inputs`", &[(JSON, list_of("SimpleToken"))])
        .fails_as_tgi()
}

pub(in crate::http) fn chat_tokenize() -> Operation {
    Operation::post(Group::Tokens, "chat_tokenize", "The prompt and the tokens of a conversation")
        .takes("ChatTokenizeRequest")
        .answers(200, "What the chat template makes of it", &[(JSON, reference("ChatTokenized"))])
        .fails_as_tgi()
}

pub(in crate::http) fn chat_completions() -> Operation {
    Operation::post(Group::OpenAi, "chat_completions", "Answer a conversation")
        .takes("ChatRequest")
        .timed()
        .answers(
            200,
            "The answer; or, if `stream` is true, its chunks and `[DONE]`",
            &[(JSON, reference("ChatCompletion")), (EVENTS, event(&reference("ChatCompletionChunk")))],
        )
        .with_headers(&COST)
        .fails_as_openai()
}

pub(in crate::http) fn completions() -> Operation {
    Operation::post(Group::OpenAi, "completions", "Go on with one text or several")
        .takes("CompletionRequest")
        .timed()
        .answers(
            200,
            "The answer; or, if `stream` is true, its chunks and `[DONE]`",
            &[(JSON, reference("TextCompletion")), (EVENTS, event(&reference("TextCompletionChunk")))],
        )
        .with_headers(&COST)
        .fails_as_openai()
}

pub(in crate::http) fn models() -> Operation {
    Operation::get(Group::OpenAi, "models", "The models that are served").answers(
        200,
        "Every name that the model goes by",
        &[(JSON, reference("ModelList"))],
    )
}

pub(in crate::http) fn model() -> Operation {
    Operation::get(Group::OpenAi, "model", "One model that is served")
        .answers(200, "The model", &[(JSON, reference("ModelEntry"))])
        .refuses(&[400, 404])
}

pub(in crate::http) fn invocations() -> Operation {
    Operation::post(Group::Clouds, "invocations", "Generate text (SageMaker)")
        .explained("The body's form says which route is meant: `inputs` means `/`, `messages` chat, `prompt` completions.")
        .takes_any(&["CompatRequest", "ChatRequest", "CompletionRequest"])
        .timed()
        .answers(
            200,
            "The answer of that route",
            &[
                (JSON, json!({ "anyOf": [list_of("GenerateResponse"), reference("ChatCompletion"), reference("TextCompletion")] })),
                (EVENTS, event(&json!({ "anyOf": [reference("StreamEvent"), reference("ChatCompletionChunk"), reference("TextCompletionChunk")] }))),
            ],
        )
        .with_headers(&COST)
        .fails_as_either()
}

pub(in crate::http) fn vertex() -> Operation {
    Operation::post(Group::Clouds, "vertex", "Generate text for several instances (Vertex AI)")
        .takes("VertexRequest")
        .timed()
        .answers(200, "A text for each instance", &[(JSON, reference("VertexResponse"))])
        .fails_as_tgi()
}

/// `vertex` under the path that the environment names.
pub(in crate::http) fn aip_predict() -> Operation {
    vertex().named("aip_predict")
}

pub(in crate::http) fn infer() -> Operation {
    Operation::post(Group::Clouds, "kserve_infer", "Generate text (KServe)")
        .takes("InferRequest")
        .timed()
        .answers(200, "An answer for each input", &[(JSON, reference("InferResponse"))])
        .fails_as_tgi()
}

pub(in crate::http) fn kserve_server() -> Operation {
    Operation::get(Group::Clouds, "kserve_server", "What this server is (KServe)").answers(
        200,
        "Name, version and extensions",
        &[(JSON, json!({ "type": "object" }))],
    )
}

pub(in crate::http) fn kserve_model(id: &'static str) -> Operation {
    Operation::get(Group::Clouds, id, "What is served (KServe)")
        .answers(200, "Name, version and extensions", &[(JSON, json!({ "type": "object" }))])
        .refuses_as_tgi(&[404])
}

pub(in crate::http) fn kserve_live() -> Operation {
    Operation::get(Group::Clouds, "kserve_live", "Whether this server answers (KServe)").answers(
        200,
        "It does",
        &[(JSON, json!({ "type": "object" }))],
    )
}

pub(in crate::http) fn kserve_ready(id: &'static str) -> Operation {
    Operation::get(Group::Clouds, id, "Whether requests are served (KServe)")
        .answers(200, "They are", &[(JSON, json!({ "type": "object" }))])
        .answers(503, "They are not", &[(JSON, json!({ "type": "object" }))])
}

pub(in crate::http) fn info() -> Operation {
    Operation::get(Group::Operation, "info", "The model, the limits and the version").answers(
        200,
        "Facts",
        &[(JSON, reference("Info"))],
    )
}

pub(in crate::http) fn health(id: &'static str) -> Operation {
    Operation::get(Group::Operation, id, "Whether requests are served").answers(200, "They are", &[]).answers(
        503,
        "They are not: loading, recovering or stopping",
        &[(JSON, reference("ErrorResponse"))],
    )
}

pub(in crate::http) fn standing(id: &'static str, what: &'static str) -> Operation {
    let body = || [(JSON, json!({ "type": "object" }))];
    Operation::get(Group::Operation, id, what).answers(200, "It is so", &body()).answers(503, "It is not", &body())
}

pub(in crate::http) fn drain() -> Operation {
    Operation::post(Group::Operation, "drain", "Stop the server, as SIGTERM does")
        .explained("Only with `--admin-routes`, and only for a key that may command the server.")
        .answers(202, "It stops when running requests have ended", &[(JSON, json!({ "type": "object" }))])
        .guarded()
        .answers(403, "The API key may not use this route", &[(JSON, reference("ErrorResponse"))])
}

pub(in crate::http) fn metrics() -> Operation {
    Operation::get(Group::Operation, "metrics", "Counters and histograms for Prometheus").answers(
        200,
        "Prometheus' text form",
        &[("text/plain", json!({ "type": "string" }))],
    )
}

pub(super) fn document() -> Operation {
    Operation::get(Group::Operation, "openapi", "This document").answers(
        200,
        "An OpenAPI document",
        &[(JSON, json!({ "type": "object" }))],
    )
}

pub(super) fn page() -> Operation {
    Operation::get(Group::Operation, "docs", "This document as a page")
        .answers(200, "The page", &[("text/html", json!({ "type": "string" }))])
        .answers(303, "The page is at `/docs/`", &[])
}
