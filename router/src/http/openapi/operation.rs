//! One method of one path, as the document describes it.

use serde_json::{Map, Value, json};

use crate::http::state::TIMEOUT;

/// The headings of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    Generation,
    OpenAi,
    Tokens,
    Clouds,
    Operation,
}

impl Group {
    pub(super) const ALL: [Self; 5] = [Self::Generation, Self::OpenAi, Self::Tokens, Self::Clouds, Self::Operation];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Generation => "Generation",
            Self::OpenAi => "OpenAI",
            Self::Tokens => "Tokens",
            Self::Clouds => "Clouds",
            Self::Operation => "Operation",
        }
    }

    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Generation => "The routes of Text Generation Inference",
            Self::OpenAi => "The routes of OpenAI's API",
            Self::Tokens => "What the tokenizer makes of a text or a conversation",
            Self::Clouds => "The same under the routes by which clouds know a model server",
            Self::Operation => "Facts, health and metrics; never asks for the API key",
        }
    }
}

/// How a family of routes writes errors down, and which it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Errors {
    Tgi,
    OpenAi,
}

/// The description of a method.
#[derive(Clone, Debug)]
pub(in crate::http) struct Operation {
    method: &'static str,
    group: Group,
    id: &'static str,
    summary: &'static str,
    description: &'static str,
    /// The schema of the body.
    takes: Option<Value>,
    answers: Map<String, Value>,
    /// Whether it obeys the header `x-request-timeout`.
    is_timed: bool,
}

impl Operation {
    pub(super) fn get(group: Group, id: &'static str, summary: &'static str) -> Self {
        Self { method: "get", group, id, summary, description: "", takes: None, answers: Map::new(), is_timed: false }
    }

    pub(super) fn post(group: Group, id: &'static str, summary: &'static str) -> Self {
        Self { method: "post", ..Self::get(group, id, summary) }
    }

    pub(super) fn explained(self, description: &'static str) -> Self {
        Self { description, ..self }
    }

    /// Ends when the client's time is over.
    pub(super) fn timed(self) -> Self {
        Self { is_timed: true, ..self }
    }

    pub(super) fn takes(self, schema: &str) -> Self {
        Self { takes: Some(reference(schema)), ..self }
    }

    pub(super) fn takes_any(self, schemas: &[&str]) -> Self {
        let schemas: Vec<Value> = schemas.iter().map(|schema| reference(schema)).collect();
        Self { takes: Some(json!({ "anyOf": schemas })), ..self }
    }

    /// An answer, by its media types and their schemas.
    pub(super) fn answers(mut self, status: u16, description: &str, content: &[(&str, Value)]) -> Self {
        let mut answer = json!({ "description": description });
        if !content.is_empty() {
            let content = content.iter().map(|(media, schema)| ((*media).to_owned(), json!({ "schema": schema })));
            answer["content"] = Value::Object(content.collect());
        }
        answer["headers"] = json!({ "x-request-id": header("The request's id: the client's own, or one made here.") });
        self.answers.insert(status.to_string(), answer);
        self
    }

    /// Headers of the 200, which only whole answers have.
    pub(super) fn with_headers(mut self, headers: &[(&str, &str)]) -> Self {
        for (name, description) in headers {
            self.answers["200"]["headers"][*name] = header(description);
        }
        self
    }

    /// Every error that a route of the original can answer.
    pub(super) fn fails_as_tgi(self) -> Self {
        self.fails(Errors::Tgi, &[400, 408, 413, 415, 422, 424, 429, 500, 503, 504]).guarded().retried()
    }

    /// Every error that a route under `/v1` can answer.
    pub(super) fn fails_as_openai(self) -> Self {
        self.fails(Errors::OpenAi, &[400, 401, 404, 408, 413, 415, 424, 429, 500, 503, 504]).retried()
    }

    /// Where the body's form decides which of the two it is.
    pub(super) fn fails_as_either(self) -> Self {
        let either = json!({ "anyOf": [reference("ErrorResponse"), reference("OpenAiErrorResponse")] });
        let statuses = [400, 404, 408, 413, 415, 422, 424, 429, 500, 503, 504];
        let operation = statuses.iter().fold(self, |operation, status| {
            operation.answers(*status, reason(*status), &[("application/json", either.clone())])
        });
        operation.guarded().retried()
    }

    /// Behind the API key; the original's clients see an empty body without it.
    pub(super) fn guarded(self) -> Self {
        self.answers(401, reason(401), &[])
    }

    /// The same under another id.
    pub(super) fn named(self, id: &'static str) -> Self {
        Self { id, ..self }
    }

    /// Single errors in `OpenAI`'s form.
    pub(super) fn refuses(self, statuses: &[u16]) -> Self {
        self.fails(Errors::OpenAi, statuses)
    }

    /// The same in the form of the original's routes.
    pub(super) fn refuses_as_tgi(self, statuses: &[u16]) -> Self {
        self.fails(Errors::Tgi, statuses)
    }

    fn fails(self, errors: Errors, statuses: &[u16]) -> Self {
        let schema = match errors {
            Errors::Tgi => reference("ErrorResponse"),
            Errors::OpenAi => reference("OpenAiErrorResponse"),
        };
        statuses.iter().fold(self, |operation, status| {
            operation.answers(*status, reason(*status), &[("application/json", schema.clone())])
        })
    }

    /// When to ask again, where that is the answer.
    fn retried(mut self) -> Self {
        for status in ["429", "503"] {
            self.answers[status]["headers"]["retry-after"] = header("Seconds after which to try again.");
        }
        self
    }

    /// The method and its description under `path`.
    pub(super) fn described(self, path: &str) -> (String, Value) {
        let Self { method, group, id, summary, description, takes, answers, is_timed } = self;
        let is_guarded = answers.contains_key("401");
        let mut operation = json!({ "tags": [group.name()], "operationId": id, "summary": summary });
        if !description.is_empty() {
            operation["description"] = json!(description);
        }
        let in_path = path.split('/').filter_map(parameter);
        let parameters: Vec<Value> = in_path.chain(is_timed.then(timeout)).collect();
        if !parameters.is_empty() {
            operation["parameters"] = json!(parameters);
        }
        if let Some(schema) = takes {
            operation["requestBody"] =
                json!({ "required": true, "content": { "application/json": { "schema": schema } } });
        }
        operation["responses"] = Value::Object(answers);
        // Only a server with a key asks for one.
        operation["security"] = if is_guarded { json!([{}, { "api_key": [] }]) } else { json!([{}]) };
        (method.to_owned(), operation)
    }
}

pub(super) fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn header(description: &str) -> Value {
    json!({ "description": description, "schema": { "type": "string" } })
}

/// The parameter that a segment of a path stands for.
fn parameter(segment: &str) -> Option<Value> {
    let name = segment.strip_prefix('{')?.strip_suffix('}')?.trim_start_matches('*');
    Some(json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
}

/// The header that every route takes which generates.
fn timeout() -> Value {
    json!({
        "name": TIMEOUT.as_str(),
        "in": "header",
        "description": "Seconds after which no answer is wanted any more: the request ends with an error then, wherever \
                        it is. The field `timeout` says the same; the shorter one counts.",
        "schema": { "type": "number", "exclusiveMinimum": 0 },
        "example": 60.0,
    })
}

fn reason(status: u16) -> &'static str {
    match status {
        400 => "The body is no JSON; under /v1 also: it breaks a rule, or is no request",
        401 => "The API key is missing or wrong",
        404 => "No such model",
        408 => "The body came too slowly",
        413 => "The body is larger than `payload_limit`",
        415 => "The body's media type is not JSON",
        422 => "The request breaks a rule, or is no request",
        424 => "The model failed on this request",
        429 => "Model is overloaded: try again in `retry-after` seconds",
        500 => "The answer ended early, or the server failed on this request",
        504 => "The request's timeout was over first",
        503 => "Not ready: still loading, or stopping",
        _ => "Refused",
    }
}
