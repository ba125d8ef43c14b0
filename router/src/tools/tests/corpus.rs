//! Outputs with calls as JSON, and with thoughts.

use super::Case;
use crate::tools::{ReasoningFamily, ToolFamily};

const HERMES: ToolFamily = ToolFamily::Hermes;
const LLAMA: ToolFamily = ToolFamily::Llama3Json;

pub(super) const JSON: &[Case] = &[
    // Hermes: well-formed.
    Case {
        calls: &[("get_weather", r#"{"city": "Paris"}"#)],
        ..Case::of(
            HERMES,
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>",
        )
    },
    Case {
        content: "Let me look.",
        calls: &[("get_weather", r#"{"city":"Zürich \"HB\" \\ 🚂","extra":{"a":[1,{"b":null}]}}"#), ("now", "{}")],
        ..Case::of(
            HERMES,
            "Let me look.\n\n<tool_call>{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Zürich \\\"HB\\\" \\\\ 🚂\",\"extra\":{\"a\":[1,{\"b\":null}]}}}</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n",
        )
    },
    // Arguments first; arguments as a string; none; null; an object inside `function`.
    Case {
        calls: &[
            ("get_weather", r#"{"city": "</tool_call>"}"#),
            ("search", r#"{"query": "a\"b"}"#),
            ("now", "{}"),
            ("now", "{}"),
            ("search", r#"{"query":"x"}"#),
        ],
        ..Case::of(
            HERMES,
            r#"<tool_call>{"arguments": {"city": "</tool_call>"}, "name": "get_weather"}</tool_call><tool_call>{"name": "search", "arguments": "{\"query\": \"a\\\"b\"}"}</tool_call><tool_call>{"name": "now"}</tool_call><tool_call>{"id": 7, "name": "now", "arguments": null}</tool_call><tool_call>{"type": "function", "function": {"name": "search", "arguments": {"query":"x"}}}</tool_call>"#,
        )
    },
    // A line break inside a string is escaped; text behind a call is content.
    Case {
        content: "Done.",
        calls: &[("search", r#"{"query": "two\nlines"}"#)],
        ..Case::of(
            HERMES,
            "<tool_call>\n{\"name\": \"search\", \"arguments\": {\"query\": \"two\nlines\"}}\n</tool_call>\n\nDone.",
        )
    },
    // A list of calls in one marker; no closing marker.
    Case {
        calls: &[("now", "{}"), ("search", r#"{"query": "b"}"#)],
        ..Case::of(
            HERMES,
            r#"<tool_call>[{"name": "now", "arguments": {}}, {"name": "search", "arguments": {"query": "b"}}]"#,
        )
    },
    // Two objects in one marker; a tool that does not exist is a call all the same.
    Case {
        calls: &[("now", "{}"), ("no_such_tool", r#"{"a": 1}"#)],
        ..Case::of(
            HERMES,
            "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n{\"name\": \"no_such_tool\", \"arguments\": {\"a\": 1}}\n</tool_call>",
        )
    },
    // A bracket too many.
    Case {
        calls: &[("now", "{}"), ("search", r#"{"query": "b"}"#)],
        ..Case::of(
            HERMES,
            "<tool_call>{\"name\": \"now\", \"arguments\": {}}}\n</tool_call><tool_call>{\"name\": \"search\", \"arguments\": {\"query\": \"b\"}}]}</tool_call>",
        )
    },
    // No call at all.
    Case { content: "  1 < 2 and <tool_calls> are words ", ..Case::of(HERMES, "  1 < 2 and <tool_calls> are words ") },
    Case { content: "ends with <tool_ca", ..Case::of(HERMES, "ends with <tool_ca") },
    Case { content: "ends with <tool_ca", is_cut_off: true, ..Case::of(HERMES, "ends with <tool_ca") },
    // Malformed: content as a whole, and the next call is one again.
    Case {
        content: "<tool_call>\nget_weather(Paris)\n</tool_call>",
        calls: &[],
        ..Case::of(HERMES, "<tool_call>\nget_weather(Paris)\n</tool_call>")
    },
    Case {
        content: "<tool_call>{\"name\": 5, \"arguments\": 7}</tool_call>",
        calls: &[("now", "{}")],
        ..Case::of(
            HERMES,
            "<tool_call>{\"name\": 5, \"arguments\": 7}</tool_call><tool_call>{\"name\": \"now\"}</tool_call>",
        )
    },
    Case {
        content: "<tool_call>{\"arguments\": {\"city\": 1}}</tool_call>",
        ..Case::of(HERMES, "<tool_call>{\"arguments\": {\"city\": 1}}</tool_call>")
    },
    // Python's quotes are no JSON.
    Case {
        content: "<tool_call>{\"name\": \"now\", \"arguments\": { 'a': 1}}</tool_call>",
        ..Case::of(HERMES, "<tool_call>{\"name\": \"now\", \"arguments\": { 'a': 1}}</tool_call>")
    },
    Case {
        calls: &[("now", "{ \n }")],
        ..Case::of(HERMES, "<tool_call>{\"name\": \"now\", \"arguments\": { \n }}</tool_call>")
    },
    Case { content: "<tool_call>{\"na", ..Case::of(HERMES, "<tool_call>{\"na") },
    Case { content: "<tool_call>", ..Case::of(HERMES, "<tool_call>") },
    // Broken off inside its arguments: the call stays as far as it came, the rest of it is left out.
    Case { calls: &[("get_weather", r#"{"city": 1"#), ("now", "{}")], open: 0, content: "", ..Case::of(HERMES, "") }
        .broken(),
    Case {
        calls: &[("get_weather", r#"{"city": "Par"#)],
        open: 1,
        ..Case::of(HERMES, "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Par")
    },
    // Cut off.
    Case {
        calls: &[("get_weather", r#"{"city": "Par"#)],
        open: 1,
        is_cut_off: true,
        ..Case::of(HERMES, "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Par")
    },
    Case { content: "Wait.", is_cut_off: true, ..Case::of(HERMES, "Wait.\n<tool_call>{\"name\": \"get_wea") },
    // Llama 3: no marker, or the one for code.
    Case {
        calls: &[("get_weather", r#"{"city": "Paris"}"#)],
        ..Case::of(LLAMA, r#"{"name": "get_weather", "parameters": {"city": "Paris"}}"#)
    },
    Case {
        calls: &[("get_weather", r#"{"city": "Paris"}"#), ("now", "{}")],
        ..Case::of(
            LLAMA,
            r#"<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}; {"name": "now", "parameters": {}}"#,
        )
    },
    Case { content: r#"{"name": "Ada", "born": 1815}"#, ..Case::of(LLAMA, r#"{"name": "Ada", "born": 1815}"#) },
    Case {
        content: r#"{"name": "unknown", "parameters": {"a": 1}}"#,
        ..Case::of(LLAMA, r#"{"name": "unknown", "parameters": {"a": 1}}"#)
    },
    Case { content: "\n{\"result\": 5} is it.", ..Case::of(LLAMA, "\n{\"result\": 5} is it.") },
    Case { content: "Hello {\"name\": \"now\"}", ..Case::of(LLAMA, "Hello {\"name\": \"now\"}") },
    Case { content: "[1, 2]", ..Case::of(LLAMA, "[1, 2]") },
    Case { content: "[]", ..Case::of(ToolFamily::Json, "[]") },
    // Any JSON.
    Case {
        calls: &[("search", r#"{"query": "q", "tags": ["a", "b"]}"#)],
        ..Case::of(
            ToolFamily::Json,
            "```json\n[{\"name\": \"search\", \"arguments\": {\"query\": \"q\", \"tags\": [\"a\", \"b\"]}}]\n```",
        )
    },
    Case { content: "```json\n{\"a\": 1}\n```", ..Case::of(ToolFamily::Json, "```json\n{\"a\": 1}\n```") },
    Case { content: "```js\nx\n```", ..Case::of(ToolFamily::Json, "```js\nx\n```") },
    // Mistral, Command R, Granite, Nemotron.
    Case {
        content: "Sure.",
        calls: &[("get_weather", r#"{"city": "Oslo"}"#), ("now", "{}")],
        ..Case::of(
            ToolFamily::Mistral,
            r#"Sure. [TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}, "id": "abcdefghi"}, {"name": "now", "arguments": {}}]"#,
        )
    },
    Case {
        content: "I will search.",
        calls: &[("search", r#"{"query": "x"}"#), ("now", "{}")],
        ..Case::of(
            ToolFamily::CommandR,
            "I will search.\nAction: ```json\n[\n    {\n        \"tool_name\": \"search\",\n        \"parameters\": {\"query\": \"x\"}\n    },\n    {\n        \"tool_name\": \"now\",\n        \"parameters\": {}\n    }\n]\n```",
        )
    },
    Case {
        calls: &[("search", r#"{"query": "x"}"#)],
        ..Case::of(
            ToolFamily::CommandR,
            r#"<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "search", "parameters": {"query": "x"}}]<|END_ACTION|>"#,
        )
    },
    Case {
        calls: &[("search", r#"{"query": "x"}"#)],
        ..Case::of(ToolFamily::Granite, r#"<|tool_call|>[{"name": "search", "arguments": {"query": "x"}}]"#)
    },
    Case {
        calls: &[("now", "{}")],
        ..Case::of(ToolFamily::Nemotron, r#"<TOOLCALL>[{"name": "now", "arguments": {}}]</TOOLCALL>"#)
    },
];

impl Case {
    /// A call whose arguments no JSON goes on like, and one behind it.
    const fn broken(self) -> Self {
        Self {
            output: "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": 1</tool_call>\n<tool_call>{\"name\": \"now\"}</tool_call>",
            open: 1,
            ..self
        }
    }
}

const THINK: Option<ReasoningFamily> = Some(ReasoningFamily::Think);

pub(super) const THOUGHTS: &[Case] = &[
    Case {
        family: None,
        reasoning: THINK,
        thought: "Hm, <b>.\n\nYes.",
        content: "It is 4.\n",
        ..Case::of(HERMES, "<think>\nHm, <b>.\n\nYes.\n</think>\n\nIt is 4.\n")
    },
    Case {
        reasoning: THINK,
        prompt: "<|assistant|>\n<think>\n",
        thought: "opened by the prompt",
        content: "Yes",
        ..Case::of(HERMES, "opened by the prompt</think>Yes")
    },
    Case {
        reasoning: THINK,
        prompt: "<think>\n\n</think>\n\n",
        content: "No thoughts.",
        ..Case::of(HERMES, "No thoughts.")
    },
    Case {
        reasoning: THINK,
        thought: "a call?",
        calls: &[("now", "{}")],
        ..Case::of(HERMES, "<think>a call?</think>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>")
    },
    Case {
        reasoning: Some(ReasoningFamily::DeepSeekR1),
        thought: "nobody opened",
        content: "this",
        ..Case::of(HERMES, "nobody opened</think>this")
    },
    Case { reasoning: THINK, is_cut_off: true, thought: "so far", ..Case::of(HERMES, "<think>so far") },
    Case { reasoning: THINK, content: "<thin", ..Case::of(HERMES, "<thin") },
    Case {
        family: None,
        reasoning: THINK,
        content: "\n 1 <think> later</think> ",
        ..Case::of(HERMES, "\n 1 <think> later</think> ")
    },
    Case {
        family: None,
        reasoning: THINK,
        prompt: "a: <think>\nSo",
        thought: "it is",
        content: "1",
        continued: "<think>\nSo",
        ..Case::of(HERMES, " it is</think>1")
    },
    Case {
        family: None,
        reasoning: THINK,
        prompt: "u: <think> a: So",
        content: " it is 1",
        continued: "So",
        ..Case::of(HERMES, " it is 1")
    },
    Case {
        reasoning: Some(ReasoningFamily::CommandA),
        thought: "t",
        calls: &[("now", "{}")],
        ..Case::of(
            ToolFamily::CommandR,
            "<|START_THINKING|>t<|END_THINKING|><|START_ACTION|>[{\"tool_name\": \"now\", \"parameters\": {}}]<|END_ACTION|>",
        )
    },
    Case {
        family: None,
        reasoning: Some(ReasoningFamily::Mistral),
        thought: "t",
        content: "c",
        ..Case::of(HERMES, "[THINK]t[/THINK]c")
    },
    Case {
        family: None,
        reasoning: Some(ReasoningFamily::Granite),
        thought: "t",
        content: "c",
        ..Case::of(HERMES, "Here is my thought process:\nt\nHere is my response:\nc")
    },
    Case {
        family: None,
        reasoning: Some(ReasoningFamily::Seed),
        thought: "t",
        content: "c",
        ..Case::of(HERMES, "<seed:think>t</seed:think>c")
    },
];
