//! Families by name and by template.

use crate::tools::{Named, ReasoningFamily, ToolFamily, Wish, markers};

pub(super) const ALL: [ToolFamily; 13] = [
    ToolFamily::Hermes,
    ToolFamily::Qwen3Coder,
    ToolFamily::Glm,
    ToolFamily::Llama3Json,
    ToolFamily::Pythonic,
    ToolFamily::Mistral,
    ToolFamily::DeepSeek,
    ToolFamily::Kimi,
    ToolFamily::Harmony,
    ToolFamily::CommandR,
    ToolFamily::Granite,
    ToolFamily::Nemotron,
    ToolFamily::Json,
];

pub(super) const ALL_REASONING: [ReasoningFamily; 7] = [
    ReasoningFamily::Think,
    ReasoningFamily::DeepSeekR1,
    ReasoningFamily::Mistral,
    ReasoningFamily::CommandA,
    ReasoningFamily::Granite,
    ReasoningFamily::Seed,
    ReasoningFamily::Harmony,
];

/// What calls are made of.
pub(super) const WORDS: [&str; 62] = [
    "<tool_call>",
    "</tool_call>",
    "{\"name\": ",
    "\"get_weather\"",
    ", \"arguments\": ",
    "{\"city\": \"Par\\\"is\"}",
    "}",
    "{",
    "[",
    "]",
    "\n",
    " ",
    "\"",
    "\\",
    "'",
    ",",
    ";",
    ":",
    "null",
    "1",
    "é",
    "<",
    "<|python_tag|>",
    "```json",
    "```",
    "[TOOL_CALLS]",
    "[ARGS]",
    "get_weather",
    "(",
    ")",
    "city=",
    "'x'",
    "True",
    "<|tool_call|>",
    "Action:",
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<|tool_call_begin|>",
    "functions.now:0",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<function=",
    "now",
    ">",
    "<parameter=",
    "</parameter>",
    "</function>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "<|channel|>",
    "analysis",
    "commentary to=functions.now",
    "<|message|>",
    "<|end|>",
    "<|start|>",
    "<think>",
    "</think>",
];

#[test]
fn every_family_has_a_name_and_takes_it() {
    assert_eq!(ToolFamily::table().len(), ALL.len());
    for family in ALL {
        assert_eq!(family.name().parse(), Ok(Wish::This(family)));
    }
    for family in ALL_REASONING {
        assert_eq!(family.name().parse(), Ok(Wish::This(family)));
    }
    assert_eq!("auto".parse::<Wish<ToolFamily>>(), Ok(Wish::Auto));
    assert_eq!("none".parse::<Wish<ReasoningFamily>>(), Ok(Wish::None));
    let refused = "llama".parse::<Wish<ToolFamily>>().unwrap_err();
    assert!(refused.contains("hermes") && refused.contains("llama3_json"), "{refused}");
}

#[test]
fn no_marker_is_part_of_another_that_is_looked_for_with_it() {
    for family in ALL {
        let Some(marks) = family.marks() else { continue };
        let sought = [marks.opens, marks.around].concat();
        for (index, marker) in sought.iter().enumerate() {
            let others = sought.iter().enumerate().filter(|(other, _)| *other != index);
            assert!(others.into_iter().all(|(_, other)| !other.contains(marker)), "{family}: {marker}");
        }
    }
}

#[test]
fn templates_call_for_the_family_that_they_write() {
    let template = |name: &str| {
        let path = format!("{}/tests/chat_templates/{name}.jinja", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    };
    for (name, calls, reasoning) in [
        ("hermes", Some(ToolFamily::Hermes), None),
        ("qwen25", Some(ToolFamily::Hermes), None),
        ("qwen3", Some(ToolFamily::Hermes), Some(ReasoningFamily::Think)),
        ("llama31_tools", Some(ToolFamily::Llama3Json), None),
        ("mistral_v3_tools", Some(ToolFamily::Mistral), None),
        ("deepseek_r1", None, Some(ReasoningFamily::Think)),
        ("gpt_oss", Some(ToolFamily::Harmony), Some(ReasoningFamily::Harmony)),
        ("command_r_tools", Some(ToolFamily::CommandR), None),
        ("chatml", None, None),
        ("zephyr", None, None),
        ("gemma", None, None),
    ] {
        let source = template(name);
        assert_eq!(ToolFamily::of_template(&source), calls, "{name}");
        assert_eq!(ReasoningFamily::of_template(&source), reasoning, "{name}");
    }
}

#[test]
fn parsers_see_the_markers_of_their_family() {
    assert!(markers(Some(ToolFamily::Mistral), None).contains(&"[ARGS]"));
    assert!(markers(None, Some(ReasoningFamily::Think)).contains(&"</think>"));
    assert!(markers(Some(ToolFamily::Harmony), None).contains(&"<|channel|>"));
    assert!(markers(None, None).is_empty());
}
