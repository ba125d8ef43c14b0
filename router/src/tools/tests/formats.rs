//! What a model folder decides.

use serde_json::json;

use crate::tokenizer::{Conversation, TextModel, fixture};
use crate::tools::{Format, ReasoningFamily, ToolFamily, Wish};

fn template(name: &str) -> TextModel {
    let path = format!("{}/tests/chat_templates/{name}.jinja", env!("CARGO_MANIFEST_DIR"));
    fixture::with_template(&std::fs::read_to_string(path).unwrap())
}

fn format(name: &str) -> Format {
    Format::of(&template(name), Wish::Auto, Wish::Auto)
}

#[test]
fn a_template_that_shows_tools_chooses_the_parser() {
    for (name, calls, reasoning, shows_tools, takes_effort) in [
        ("qwen3", ToolFamily::Hermes, Some(ReasoningFamily::Think), true, false),
        ("qwen25", ToolFamily::Hermes, None, true, false),
        ("llama31_tools", ToolFamily::Llama3Json, None, true, false),
        ("mistral_v3_tools", ToolFamily::Mistral, None, true, false),
        ("gpt_oss", ToolFamily::Harmony, Some(ReasoningFamily::Harmony), true, true),
        ("command_r_tools", ToolFamily::CommandR, None, true, false),
        // Tools are shown, but no form of calls: plain JSON.
        ("granite", ToolFamily::Json, None, true, false),
        ("chatml", ToolFamily::Json, None, false, false),
        ("zephyr", ToolFamily::Json, None, false, false),
        ("phi4_mini", ToolFamily::Json, None, false, false),
    ] {
        let format = format(name);
        assert_eq!((format.calls, format.reasoning), (Some(calls), reasoning), "{name}");
        assert_eq!((format.shows_tools, format.takes_effort), (shows_tools, takes_effort), "{name}");
    }
}

#[test]
fn the_operators_wish_wins() {
    let text = template("qwen3");
    let format = Format::of(&text, Wish::This(ToolFamily::Pythonic), Wish::None);
    assert_eq!((format.calls_name(), format.reasoning_name()), ("pythonic", "none"));
    let format = Format::of(&text, Wish::None, Wish::Auto);
    assert_eq!((format.calls_name(), format.reasoning_name()), ("none", "think"));
    assert!(format.shows_tools, "that is the template's affair");
}

/// Qwen adds its markers without marking them special. The fixture's `<think>` is such a token.
#[test]
fn added_tokens_in_angle_brackets_are_asked_for_by_id() {
    let format = format("qwen3");
    assert_eq!(format.tokens.get("<think>"), Some(&6));
    let added = |content: &str, special: bool| {
        let mut tokenizer = fixture::tokenizer_json();
        tokenizer["added_tokens"][5]["content"] = json!(content);
        tokenizer["added_tokens"][5]["special"] = json!(special);
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        vocab.remove("<|end|>");
        vocab.insert(content.to_owned(), json!(5));
        let folder = fixture::folder_with(&[("tokenizer.json", tokenizer)]);
        TextModel::load(folder.path(), None).unwrap().is_control(5)
    };
    assert!(added("<tool_call>", false) && added("[TOOL_CALLS]", true));
    assert!(!added("[TOOL_CALLS]", false) && !added("<tool_call", false));
}

#[test]
fn effort_reaches_the_template() {
    let text = template("gpt_oss");
    let conversation = Conversation {
        messages: vec![json!({ "role": "user", "content": "x" })],
        variables: [("reasoning_effort".to_owned(), json!("high"))].into_iter().collect(),
        ..Conversation::default()
    };
    assert!(text.render(&conversation).unwrap().text().contains("Reasoning: high"));
}
