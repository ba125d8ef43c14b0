//! What one choice of a chat says: its output, read piece by piece, and how the pieces are written.

use std::sync::Arc;

use serde::Serialize;
use utoipa::ToSchema;

use super::calling::call_id;
use crate::engine::api::FinishReason;
use crate::tools::{Event, Outcome, Reader, Reading};

/// Reads the output of one choice.
#[derive(Debug)]
pub(super) struct Voice {
    reader: Reader,
    has_short_ids: bool,
}

/// One news of a choice, as a chunk of a stream writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Delta {
    Content(String),
    ReasoningContent(String),
    ToolCalls([CallDelta; 1]),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct CallDelta {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: FunctionDelta,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

/// A whole message of the assistant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct AssistantMessage {
    role: &'static str,
    /// Null in an answer that says nothing beside its calls.
    content: Option<String>,
    /// What the model thought before it answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = AnsweredToolCall)]
struct ToolCall {
    #[schema(value_type = String)]
    id: Arc<str>,
    r#type: &'static str,
    function: Function,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = AnsweredFunction)]
struct Function {
    name: String,
    /// JSON as text; a part of it if the answer was cut off.
    arguments: String,
}

impl Voice {
    pub(super) fn new(reading: &Reading, prompt: &str) -> Self {
        Self { reader: reading.reader(prompt), has_short_ids: reading.has_short_ids() }
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<Delta> {
        let events = self.reader.push(text);
        self.deltas(events)
    }

    /// The rest, and why the choice ended.
    pub(super) fn finish(&mut self, reason: FinishReason) -> (Vec<Delta>, &'static str) {
        let (events, outcome) = self.reader.finish(reason == FinishReason::Length);
        (self.deltas(events), finish_reason(reason, outcome))
    }

    fn deltas(&self, events: Vec<Event>) -> Vec<Delta> {
        events.into_iter().map(|event| self.delta(event)).collect()
    }

    fn delta(&self, event: Event) -> Delta {
        let call = |index, id, name, arguments| {
            let r#type = Option::is_some(&id).then_some("function");
            Delta::ToolCalls([CallDelta { index, id, r#type, function: FunctionDelta { name, arguments } }])
        };
        match event {
            Event::Content(text) => Delta::Content(text),
            Event::Reasoning(text) => Delta::ReasoningContent(text),
            Event::Call { index, name } => call(index, Some(call_id(self.has_short_ids)), Some(name), String::new()),
            Event::Arguments { index, fragment } => call(index, None, None, fragment),
        }
    }
}

impl AssistantMessage {
    /// An answer in words alone.
    pub(super) fn plain(text: &str) -> Self {
        Self { role: "assistant", content: Some(text.to_owned()), ..Self::default() }
    }

    /// All of a choice's output at once, and why it ended.
    pub(super) fn read(mut voice: Voice, text: &str, reason: FinishReason) -> (Self, &'static str) {
        let mut message = Self { role: "assistant", ..Self::default() };
        let deltas = voice.push(text);
        let (rest, reason) = voice.finish(reason);
        for delta in deltas.into_iter().chain(rest) {
            message.hear(delta);
        }
        (message, reason)
    }

    fn hear(&mut self, delta: Delta) {
        match delta {
            Delta::Content(text) => self.content.get_or_insert_default().push_str(&text),
            Delta::ReasoningContent(text) => self.reasoning_content.get_or_insert_default().push_str(&text),
            Delta::ToolCalls([CallDelta { index, id, function: FunctionDelta { name, arguments }, .. }]) => {
                match (id, name) {
                    (Some(id), Some(name)) => {
                        let function = Function { name, arguments };
                        self.tool_calls.push(ToolCall { id, r#type: "function", function });
                    }
                    _ => self.tool_calls[index].function.arguments.push_str(&arguments),
                }
            }
        }
    }
}

/// `tool_calls` promises that every call is whole; a length that was reached, that one may not be.
fn finish_reason(reason: FinishReason, outcome: Outcome) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::EosToken | FinishReason::StopSequence if outcome.is_callable() => "tool_calls",
        FinishReason::EosToken | FinishReason::StopSequence => "stop",
    }
}
