//! Conversations that are nearly right, in every chat template of the corpus; and templates that are nearly right.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::fixture::with_template;
use super::template::{ChatTemplate, Scene};
use super::{Conversation, Ending};
use crate::mutate::{Dice, cases};

fn templates() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat_templates");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
    paths.sort();
    let named = |path: &std::path::PathBuf| (path.display().to_string(), std::fs::read_to_string(path).unwrap());
    paths.iter().map(named).collect()
}

/// Conversations of the corpus, as the text of their messages.
fn conversations() -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat_templates/expected.json");
    let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut all: Vec<Vec<u8>> = cases.iter().map(|case| case["messages"].to_string().into_bytes()).collect();
    all.sort();
    all.dedup();
    all.push(
        br#"[{"role":"user","content":null},{"role":"assistant","content":[],"tool_calls":[{"function":{}}]}]"#
            .to_vec(),
    );
    all
}

#[test]
fn whatever_a_conversation_holds_it_is_rendered_or_refused() {
    let texts: Vec<_> = templates().iter().map(|(name, source)| (name.clone(), with_template(source))).collect();
    let corpus = conversations();
    let (mut dice, mut rendered) = (Dice::new(2), 0);
    let count = cases(3_000);
    for _ in 0..count {
        let (first, other) = (dice.pick(&corpus).clone(), dice.pick(&corpus).clone());
        let mutated = dice.mutate(&first, &other);
        // Half of them as far as they are still JSON, the others with a text in a message's place.
        let messages = serde_json::from_slice::<Vec<Value>>(&mutated).unwrap_or_else(|_| {
            vec![
                json!({ "role": "user", "content": String::from_utf8_lossy(&mutated) }),
                json!(dice.roll(3)),
                json!({}),
            ]
        });
        let mut variables = Map::new();
        if dice.roll(3) == 0 {
            let names = [
                "messages",
                "tools",
                "bos_token",
                "loop",
                "enable_thinking",
                "documents",
                "add_generation_prompt",
                "x",
            ];
            variables.insert((*dice.pick(&names)).to_owned(), serde_json::from_slice(&other).unwrap_or(Value::Null));
        }
        let tools = (dice.roll(3) == 0)
            .then(|| json!([{ "type": "function", "function": { "name": "f", "parameters": messages } }]));
        let ending = *dice.pick(&[Ending::Either, Ending::Opened, Ending::Closed, Ending::Continued]);
        let conversation = Conversation { messages, tools, variables, ending, ..Conversation::default() };
        let (_, text) = dice.pick(&texts);
        if let Ok(prompt) = text.render(&conversation).map(super::Rendered::encode) {
            prompt.unwrap();
            rendered += 1;
        }
    }
    assert!(rendered * 10 > count, "{rendered} of {count}");
}

/// A template is the operator's: it may be wrong in any way, and the server says so.
#[test]
fn whatever_a_template_is_it_is_compiled_or_refused() {
    let corpus = templates();
    let messages = vec![json!({ "role": "user", "content": "a" }), json!({ "role": "assistant", "content": "b" })];
    let scene = Scene { messages, opens: true, ..Scene::default() };
    let (mut dice, mut compiled) = (Dice::new(3), 0);
    let count = cases(1_500);
    for _ in 0..count {
        let (first, other) = (&dice.pick(&corpus).1.clone(), &dice.pick(&corpus).1.clone());
        let source = String::from_utf8_lossy(&dice.mutate(first.as_bytes(), other.as_bytes())).into_owned();
        if let Ok(template) = ChatTemplate::compile(&source, &BTreeMap::new()) {
            compiled += 1;
            let _refused_or_not = template.render(&scene);
        }
    }
    assert!(compiled * 10 > count, "{compiled} of {count}");
}
