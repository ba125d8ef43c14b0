//! What a model that is bound may write, and that its parser reads it.

use std::collections::HashMap;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher, ParserFactory};
use serde_json::json;

use super::{Said, families};
use crate::grammar::{Compiler, Grammar, Shape, Vocabulary};
use crate::tools::{Binding, Format, ReasoningFamily, Tool, ToolFamily, Tools};

const FIRST_BYTE: u32 = 1000;

fn tools() -> Tools {
    let properties = json!({ "city": { "type": "string", "maxLength": 5 } });
    let weather = json!({ "type": "object", "properties": properties, "required": ["city"] });
    let tool = |name: &str, parameters, is_strict| {
        let place = format!("tools.{name}");
        Tool { name: name.to_owned(), parameters, place, is_strict }
    };
    Tools::new(vec![tool("get_weather", weather, true), tool("now", json!({ "type": "object" }), false)])
}

/// With every marker a control token, or with none.
fn format(family: ToolFamily, is_newer: bool, has_tokens: bool) -> Format {
    let tokens: HashMap<&str, u32> =
        if has_tokens { family.markers().into_iter().zip(1..).collect() } else { HashMap::new() };
    Format { calls: Some(family), tokens, is_newer, ..Format::default() }
}

/// Whether a model may write this and end there; control tokens are written as their text.
fn allows(format: &Format, binding: &Binding, output: &str) -> bool {
    let special: Vec<(u32, &str)> = format.tokens.iter().map(|(text, id)| (*id, *text)).collect();
    let vocabulary = Vocabulary::new(special, FIRST_BYTE);
    let text = Compiler::new(&vocabulary).compile(&Grammar::Structural(binding.shape.clone()));
    let text = text.unwrap_or_else(|error| panic!("{error}: {binding:?}"));
    let mut factory = ParserFactory::new(vocabulary.tokens(), InferenceCapabilities::default(), &[]).unwrap();
    let parser = factory.quiet().create_parser(TopLevelGrammar::from_lark_or_grammar_list(&text).unwrap());
    let mut matcher = Matcher::new(parser);
    let mut ids = Vec::new();
    let mut rest = output;
    while let Some(c) = rest.chars().next() {
        let marker =
            format.tokens.iter().filter(|(text, _)| rest.starts_with(**text)).max_by_key(|(text, _)| text.len());
        let length = marker.map_or(c.len_utf8(), |(text, _)| text.len());
        match marker {
            Some((_, id)) => ids.push(*id),
            None => ids.extend(rest[..length].bytes().map(|byte| FIRST_BYTE + u32::from(byte))),
        }
        rest = &rest[length..];
    }
    matcher.try_consume_tokens(&ids).is_ok_and(|taken| taken == ids.len()) && matcher.is_accepting().unwrap()
}

fn read(binding: &Binding, output: &str) -> Said {
    let mut reader = binding.reading.reader("");
    let mut said = Said::default();
    said.hear(reader.push(output));
    let (events, outcome) = reader.finish(false);
    said.hear(events);
    Said { outcome, ..said }
}

const PARIS: &str = r#"{"city": "Paris"}"#;

/// Each family's way to call for the weather in Paris, once and (where it can) once more.
fn outputs() -> Vec<(ToolFamily, bool, String, Option<String>)> {
    let object = |arguments: &str| format!("{{\"name\": \"get_weather\", \"{arguments}\": {PARIS}}}");
    let list = |before: &str, item: &str, behind: &str| {
        (format!("{before}{item}{behind}"), Some(format!("{before}{item}, {item}{behind}")))
    };
    let named = |before: &str, item: &str, between: &str, behind: &str| {
        (format!("{before}{item}{behind}"), Some(format!("{before}{item}{between}{item}{behind}")))
    };
    let hermes = format!("<tool_call>\n{}\n</tool_call>", object("arguments"));
    let command = format!("{{\"tool_name\": \"get_weather\", \"parameters\": {PARIS}}}");
    let command_a = format!("{{\"tool_call_id\": \"0\", \"tool_name\": \"get_weather\", \"parameters\": {PARIS}}}");
    let v3 =
        format!("<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{PARIS}\n```<｜tool▁call▁end｜>");
    let v31 = format!("<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{PARIS}<｜tool▁call▁end｜>");
    let (begin, end) = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>");
    let kimi =
        format!("<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{PARIS}<|tool_call_end|>");
    let harmony = format!("<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{PARIS}");
    let all = [
        (ToolFamily::Hermes, false, named("", &hermes, "\n", "")),
        (ToolFamily::Llama3Json, false, named("", &object("parameters"), "; ", "")),
        (ToolFamily::Mistral, false, list("[TOOL_CALLS][", &object("arguments"), "]")),
        (ToolFamily::Mistral, true, named("", &format!("[TOOL_CALLS]get_weather[ARGS]{PARIS}"), "", "")),
        (ToolFamily::DeepSeek, false, named(begin, &v3, "\n", end)),
        (ToolFamily::DeepSeek, true, named(begin, &v31, "", end)),
        (ToolFamily::Kimi, false, named("<|tool_calls_section_begin|>", &kimi, "", "<|tool_calls_section_end|>")),
        (ToolFamily::CommandR, false, list("Action: ```json\n[", &command, "]\n```")),
        (ToolFamily::CommandR, true, list("<|START_ACTION|>[", &command_a, "]<|END_ACTION|>")),
        (ToolFamily::Granite, false, list("<|tool_call|>[", &object("arguments"), "]")),
        (ToolFamily::Nemotron, false, list("<TOOLCALL>[", &object("arguments"), "]</TOOLCALL>")),
        (ToolFamily::Harmony, false, (harmony, None)),
        (ToolFamily::Json, false, (object("arguments"), None)),
        (ToolFamily::Pythonic, false, (object("arguments"), None)),
        (ToolFamily::Qwen3Coder, false, (object("arguments"), None)),
        (ToolFamily::Glm, false, (object("arguments"), None)),
    ];
    all.into_iter().map(|(family, is_newer, (one, two))| (family, is_newer, one, two)).collect()
}

#[test]
fn calls_that_must_be_made_are_written_in_each_familys_form() {
    let outputs = outputs();
    assert!(families::ALL.iter().all(|family| outputs.iter().any(|(one, ..)| one == family)));
    for (family, is_newer, one, two) in outputs {
        for has_tokens in [false, true] {
            let format = format(family, is_newer, has_tokens);
            let (single, several) = (format.forced(&tools(), false), format.forced(&tools(), true));
            for binding in [&single, &several] {
                assert!(allows(&format, binding, &one), "{family} {one}");
                let said = read(binding, &one);
                assert_eq!(said.calls, [("get_weather".to_owned(), PARIS.to_owned())], "{family}");
                assert!(said.outcome.is_callable() && said.content.is_empty(), "{family}: {said:?}");
                for bad in [
                    "",
                    "Hello.",
                    one.split("Paris").next().unwrap(),
                    &one.replace("Paris", "London"),
                    &one.replace("city", "town"),
                ] {
                    assert!(!allows(&format, binding, bad), "{family} {bad}");
                }
            }
            if let Some(two) = &two {
                assert!(allows(&format, &several, two) && !allows(&format, &single, two), "{family} {two}");
                assert_eq!(read(&several, two).outcome.complete, 2, "{family}");
            }
        }
    }
}

#[test]
fn a_call_that_must_be_made_is_never_content_however_short_it_is_cut() {
    // gpt-oss' markers are control tokens, which come whole.
    for (family, is_newer, one, _) in outputs().into_iter().filter(|(family, ..)| *family != ToolFamily::Harmony) {
        let binding = format(family, is_newer, false).forced(&tools(), false);
        for at in (0..one.len()).filter(|at| one.is_char_boundary(*at)) {
            let mut reader = binding.reading.reader("");
            let mut said = Said::default();
            said.hear(reader.push(&one[..at]));
            said.hear(reader.finish(true).0);
            assert_eq!(said.content, "", "{family}: {}", &one[..at]);
        }
    }
}

#[test]
fn a_free_model_may_speak_and_its_calls_hold_to_strict_schemas() {
    for (family, is_newer, one, two) in outputs() {
        for has_tokens in [false, true] {
            let format = format(family, is_newer, has_tokens);
            if family == ToolFamily::Harmony && !has_tokens {
                continue; // Its messages are told apart by control tokens only.
            }
            let binding = format.free(&tools(), true);
            let wrong = one.replace("Paris", "London");
            assert!(allows(&format, &binding, &one), "{family} {one}");
            assert!(!allows(&format, &binding, &wrong), "{family} {wrong}");
            let loose = one.replace("get_weather", "now").replace("city", "any");
            assert!(allows(&format, &binding, &loose), "{family} {loose}");
            if let Some(two) = &two {
                assert!(allows(&format, &binding, two), "{family} {two}");
            }
            let words = "No <b>call</b>.\nThat is all.";
            let words = if family == ToolFamily::Harmony { "<|channel|>final<|message|>No." } else { words };
            assert!(allows(&format, &binding, words), "{family}");
            assert!(read(&binding, words).calls.is_empty());
        }
    }
}

#[test]
fn thoughts_between_control_tokens_come_before_a_free_answer() {
    let family = ReasoningFamily::CommandA;
    let mut format = Format { reasoning: Some(family), ..format(ToolFamily::CommandR, true, true) };
    format.tokens.extend(family.markers().into_iter().zip(100..));
    let binding = format.free(&tools(), true);
    let call = format!(
        "<|START_ACTION|>[{{\"tool_call_id\": \"0\", \"tool_name\": \"get_weather\", \"parameters\": {PARIS}}}]<|END_ACTION|>"
    );
    for thought in ["", "<|START_THINKING|>Hm.<|END_THINKING|>", "Opened by the prompt.<|END_THINKING|>"] {
        assert!(allows(&format, &binding, &format!("{thought}{call}")), "{thought}");
        assert!(allows(&format, &binding, &format!("{thought}Words.")), "{thought}");
    }
    let said = read(&binding, &format!("<|START_THINKING|>Hm.<|END_THINKING|>{call}"));
    assert_eq!((said.thought.as_str(), said.outcome.complete), ("Hm.", 1));
}

#[test]
fn thoughts_of_messages_come_before_a_call() {
    let format = Format { reasoning: Some(ReasoningFamily::Harmony), ..format(ToolFamily::Harmony, false, true) };
    let binding = format.free(&tools(), true);
    let call = format!("<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{PARIS}");
    let output = format!("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{call}");
    assert!(allows(&format, &binding, &output));
    let said = read(&binding, &output);
    assert_eq!((said.thought.as_str(), said.outcome.complete), ("Hm.", 1));
}

#[test]
fn an_answer_in_a_form_is_a_message_where_answers_are() {
    let form = || Shape::Json { schema: json!({ "type": "integer" }), place: String::new() };
    let harmony = Format { reasoning: Some(ReasoningFamily::Harmony), ..format(ToolFamily::Harmony, false, true) };
    let binding = harmony.answer(form());
    let output = "<|channel|>final<|message|>12";
    assert!(allows(&harmony, &binding, output) && !allows(&harmony, &binding, "12"));
    let said = read(&binding, output);
    assert_eq!((said.content.as_str(), said.thought.as_str()), ("12", ""));
    assert_eq!(harmony.shown(&binding.reading).len(), 7);
    let hermes = format(ToolFamily::Hermes, false, true);
    assert!(allows(&hermes, &hermes.answer(form()), "12"));
}

#[test]
fn control_tokens_are_asked_for_only_by_a_reading_that_knows_them() {
    let format = format(ToolFamily::Mistral, true, true);
    let reading = format.forced(&tools(), false).reading;
    assert_eq!(format.shown(&reading).len(), 3);
    assert!(format.shown(&crate::tools::Reading::default()).is_empty());
    assert!(reading.has_short_ids());
}
