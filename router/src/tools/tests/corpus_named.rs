//! Outputs with calls in forms other than plain JSON.

use super::Case;
use crate::tools::{ReasoningFamily, ToolFamily};

pub(super) const NAMED: &[Case] = &[
    Case {
        content: "Checking.",
        calls: &[("get_weather", r#"{"city": "Lyon"}"#), ("now", "{}")],
        ..Case::of(
            ToolFamily::DeepSeek,
            "Checking.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Lyon\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        )
    },
    // DeepSeek V3.1.
    Case {
        calls: &[("get_weather", r#"{"city": "Lyon"}"#), ("now", "{}")],
        ..Case::of(
            ToolFamily::DeepSeek,
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Lyon\"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        )
    },
    Case {
        calls: &[("now", "{}")],
        ..Case::of(ToolFamily::DeepSeek, "<｜tool▁call▁begin｜>now<｜tool▁sep｜><｜tool▁call▁end｜>")
    },
    Case {
        content: "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{'a': 1}<｜tool▁call▁end｜>",
        ..Case::of(ToolFamily::DeepSeek, "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{'a': 1}<｜tool▁call▁end｜>")
    },
    Case {
        content: "<｜tool▁call▁begin｜>what is this",
        ..Case::of(ToolFamily::DeepSeek, "<｜tool▁call▁begin｜>what is this")
    },
    Case {
        is_cut_off: true,
        ..Case::of(ToolFamily::DeepSeek, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_w")
    },
    Case {
        is_cut_off: true,
        calls: &[("get_weather", r#"{"city": "L"#)],
        open: 1,
        ..Case::of(
            ToolFamily::DeepSeek,
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"L",
        )
    },
    Case {
        reasoning: Some(ReasoningFamily::Think),
        prompt: "<｜Assistant｜><think>\n",
        thought: "Need weather.",
        calls: &[("get_weather", r#"{"city": "Lyon"}"#)],
        ..Case::of(
            ToolFamily::DeepSeek,
            "Need weather.\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Lyon\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        )
    },
    // Mistral's newer form.
    Case {
        calls: &[("get_weather", r#"{"city": "Nice"}"#), ("now", "{}")],
        ..Case::of(
            ToolFamily::Mistral,
            "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Nice\"}[TOOL_CALLS]now[CALL_ID]abc123def[ARGS]{}",
        )
    },
    Case {
        reasoning: Some(ReasoningFamily::Mistral),
        thought: "hm",
        content: "ok",
        calls: &[("now", "{}")],
        ..Case::of(ToolFamily::Mistral, "[THINK]hm[/THINK]ok[TOOL_CALLS]now{}")
    },
    Case { content: "[TOOL_CALLS]two words{", ..Case::of(ToolFamily::Mistral, "[TOOL_CALLS]two words{") },
    Case {
        calls: &[("search", r#"{"query": "x"}"#), ("now", "{}")],
        ..Case::of(
            ToolFamily::Kimi,
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.search:0<|tool_call_argument_begin|>{\"query\": \"x\"}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        )
    },
];

const PYTHONIC: ToolFamily = ToolFamily::Pythonic;
const QWEN: ToolFamily = ToolFamily::Qwen3Coder;
const HARMONY: ToolFamily = ToolFamily::Harmony;

pub(super) const OTHERS: &[Case] = &[
    Case {
        calls: &[
            ("get_weather", r#"{"city":"L'\"été\\n\n","days":-3,"extra":{"a":[1.5,true,null],"b":["x",[]]}}"#),
            ("now", "{}"),
        ],
        ..Case::of(
            PYTHONIC,
            r#"[get_weather(city='L\'"été\\n\n', days=-3, extra={'a': [1.5, True, None,], "b": ("x", [])}), now()]"#,
        )
    },
    Case {
        calls: &[("search", r#"{"query":"(a, b) = [c]","tags":[]}"#)],
        content: "there",
        ..Case::of(PYTHONIC, "<|python_start|>[search(query=\"(a, b) = [c]\", tags=[],)]<|python_end|>there")
    },
    Case { content: "[1, 2]", ..Case::of(PYTHONIC, "[1, 2]") },
    Case { content: "[print(1)]", ..Case::of(PYTHONIC, "[print(1)]") },
    Case { content: "Hi [now()]", ..Case::of(PYTHONIC, "Hi [now()]") },
    Case {
        calls: &[("get_weather", r#"{"city":"#)],
        open: 1,
        ..Case::of(PYTHONIC, "[get_weather(city=variable), now()]")
    },
    Case {
        calls: &[("now", "{}"), ("get_weather", r#"{"city":"Par"#)],
        open: 1,
        is_cut_off: true,
        ..Case::of(PYTHONIC, "[now(), get_weather(city=\"Par")
    },
    Case {
        content: "I call.",
        calls: &[("get_weather", r#"{"city":"New\n\"York\"","days":3,"extra":{"a": 1}}"#), ("now", "{}")],
        ..Case::of(
            QWEN,
            "I call.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nNew\n\"York\"\n</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=extra>\n{\"a\": 1}\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        )
    },
    Case {
        calls: &[("search", r#"{"query":"a < b","tags":true}"#)],
        ..Case::of(
            QWEN,
            "<function=search>\n<parameter=query>a < b</parameter>\n<parameter=tags>True</parameter>\n</function>",
        )
    },
    Case { content: "<tool_call>\nnothing", ..Case::of(QWEN, "<tool_call>\nnothing") },
    Case {
        calls: &[("search", r#"{"query":"#)],
        open: 1,
        is_cut_off: true,
        ..Case::of(QWEN, "<tool_call>\n<function=search>\n<parameter=query>")
    }
    .cut(),
    Case {
        calls: &[("get_weather", r#"{"city":"Rome","days":"a few","extra":[1]}"#)],
        ..Case::of(
            ToolFamily::Glm,
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n<arg_key>days</arg_key>\n<arg_value>a few</arg_value><arg_key>extra</arg_key><arg_value>[1]</arg_value>\n</tool_call>",
        )
    },
    Case {
        calls: &[("now", "{}"), ("now", "{}")],
        ..Case::of(ToolFamily::Glm, "<tool_call>now\n</tool_call>\n<tool_call>now</tool_call>")
    },
    // gpt-oss.
    Case {
        thought: "Need the weather.",
        calls: &[("get_weather", r#"{"city":"SF"}"#)],
        ..Case::of(
            HARMONY,
            "<|channel|>analysis<|message|>Need the weather.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\":\"SF\"}<|call|>",
        )
    },
    // The token that ends the call is not shown; the recipient may stand before the channel.
    Case {
        calls: &[("get_weather", r#"{"city":"SF"}"#)],
        ..Case::of(HARMONY, " to=functions.get_weather<|channel|>commentary json<|message|>{\"city\":\"SF\"}")
    },
    Case {
        calls: &[("get_weather", r#"{"city":"S"#)],
        open: 1,
        is_cut_off: true,
        ..Case::of(HARMONY, "<|channel|>commentary to=functions.get_weather<|message|>{\"city\":\"S")
    },
    Case {
        family: None,
        reasoning: Some(ReasoningFamily::Harmony),
        thought: "a\nb",
        content: "Hello <you>.",
        ..Case::of(
            HARMONY,
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|><|start|>assistant<|channel|>final<|message|>Hello <you>.<|return|>",
        )
    },
    Case { content: "No header.", ..Case::of(HARMONY, "No header.") },
];

impl Case {
    /// Inside a string that may go on with its closing tag.
    const fn cut(self) -> Self {
        Self {
            output: "<tool_call>\n<function=search>\n<parameter=query>\nx\n</param",
            calls: &[("search", r#"{"query":"x"#)],
            ..self
        }
    }
}
