//! Every output of the corpus, cut into pieces at every place, says the same.

mod binding;
mod corpus;
mod corpus_named;
mod families;
mod formats;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Event, Outcome, Reading, ReasoningFamily, Tool, ToolFamily, Tools};

/// One output, and what it says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) family: Option<ToolFamily>,
    pub(super) reasoning: Option<ReasoningFamily>,
    pub(super) prompt: &'static str,
    pub(super) continued: &'static str,
    pub(super) output: &'static str,
    pub(super) is_cut_off: bool,
    pub(super) content: &'static str,
    pub(super) thought: &'static str,
    /// Names and arguments.
    pub(super) calls: &'static [(&'static str, &'static str)],
    /// Calls at the end that are not whole: 0 or 1.
    pub(super) open: usize,
}

impl Case {
    pub(super) const fn of(family: ToolFamily, output: &'static str) -> Self {
        Self {
            family: Some(family),
            reasoning: None,
            prompt: "",
            continued: "",
            output,
            is_cut_off: false,
            content: "",
            thought: "",
            calls: &[],
            open: 0,
        }
    }
}

pub(super) fn tools() -> Tools {
    let tool = |name: &str, properties: Value| Tool {
        name: name.to_owned(),
        parameters: json!({ "type": "object", "properties": properties }),
        place: String::new(),
        is_strict: false,
    };
    Tools::new(vec![
        tool("get_weather", json!({ "city": { "type": "string" }, "days": { "type": "integer" }, "extra": {} })),
        tool("search", json!({ "query": { "type": "string" }, "tags": { "type": "array" } })),
        tool("now", json!({})),
    ])
}

/// What an output said, put together.
#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    content: String,
    thought: String,
    calls: Vec<(String, String)>,
    outcome: Outcome,
}

impl Said {
    fn hear(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Content(text) => self.content.push_str(&text),
                Event::Reasoning(text) => self.thought.push_str(&text),
                Event::Call { index, name } => {
                    assert_eq!(index, self.calls.len(), "calls are counted");
                    self.calls.push((name, String::new()));
                }
                Event::Arguments { index, fragment } => {
                    assert_eq!(index + 1, self.calls.len(), "arguments belong to the last call");
                    assert!(!fragment.is_empty());
                    self.calls[index].1.push_str(&fragment);
                }
            }
        }
    }
}

fn read<'a>(case: &Case, pieces: impl IntoIterator<Item = &'a str>) -> Said {
    let reading = Reading {
        calls: case.family.map(|family| (family, tools())),
        reasoning: case.reasoning,
        continued: case.continued.to_owned(),
        ..Reading::default()
    };
    let mut reader = reading.reader(case.prompt);
    let mut said = Said::default();
    for piece in pieces {
        said.hear(reader.push(piece));
    }
    let (events, outcome) = reader.finish(case.is_cut_off);
    said.hear(events);
    Said { outcome, ..said }
}

fn expected(case: &Case) -> Said {
    let calls: Vec<(String, String)> =
        case.calls.iter().map(|(name, arguments)| ((*name).to_owned(), (*arguments).to_owned())).collect();
    let outcome = Outcome { calls: calls.len(), complete: calls.len() - case.open };
    Said { content: case.content.to_owned(), thought: case.thought.to_owned(), calls, outcome }
}

fn cases() -> impl Iterator<Item = Case> {
    [corpus::JSON, corpus::THOUGHTS, corpus_named::NAMED, corpus_named::OTHERS].into_iter().flatten().copied()
}

#[test]
fn outputs_say_what_they_say_wherever_they_are_cut() {
    let mut num_splits = 0;
    for case in cases() {
        let expected = expected(&case);
        assert_eq!(read(&case, [case.output]), expected, "{case:?}");
        for at in (0..=case.output.len()).filter(|at| case.output.is_char_boundary(*at)) {
            let (a, b) = case.output.split_at(at);
            assert_eq!(read(&case, [a, b]), expected, "cut into {a:?} and {b:?}: {case:?}");
            num_splits += 1;
        }
        let characters = case.output.char_indices().map(|(at, c)| &case.output[at..at + c.len_utf8()]);
        assert_eq!(read(&case, characters), expected, "by character: {case:?}");
    }
    assert!(num_splits > 5_000, "{num_splits}");
}

#[test]
fn where_one_call_is_allowed_the_first_is_told() {
    for case in cases() {
        let calls = case.family.map(|family| (family, tools()));
        let continued = case.continued.to_owned();
        let reading = Reading { calls, reasoning: case.reasoning, is_single: true, must_call: false, continued };
        let mut said = Said::default();
        let mut reader = reading.reader(case.prompt);
        said.hear(reader.push(case.output));
        said.hear(reader.finish(case.is_cut_off).0);
        let all = expected(&case);
        assert_eq!((&said.content, said.calls.as_slice()), (&all.content, &all.calls[..all.calls.len().min(1)]));
    }
}

#[test]
fn whole_calls_have_arguments_that_are_json() {
    for case in cases().filter(|case| case.open == 0) {
        for (name, arguments) in case.calls {
            let parsed: Result<Value, _> = serde_json::from_str(arguments);
            assert!(parsed.is_ok_and(|value| value.is_object()), "{name} {arguments} of {case:?}");
        }
    }
}

#[test]
fn calls_whose_arguments_are_no_json_are_not_whole() {
    for (family, output) in [
        (ToolFamily::Hermes, r#"<tool_call>{"name": "now", "arguments": {"a": NaN}}</tool_call>"#),
        (ToolFamily::Hermes, r#"<tool_call>{"name": "now", "arguments": "{1}"}</tool_call>"#),
        (ToolFamily::Hermes, r#"<tool_call>{"arguments": {"a" 1}, "name": "now"}</tool_call>"#),
        (ToolFamily::Json, r#"{"name": "now", "arguments": {"a": "\q"}}"#),
        (ToolFamily::Pythonic, r#"[now(a="\u12")]"#),
        (ToolFamily::Pythonic, r#"[now(a="\xfg")]"#),
        (ToolFamily::Harmony, "<|channel|>commentary to=functions.now <|message|>[1]"),
        (ToolFamily::Harmony, "<|channel|>commentary to=functions.now <|message|>{'a': 1}"),
    ] {
        let said = read(&Case::of(family, ""), [output]);
        assert_eq!((said.outcome, said.content.as_str()), (Outcome { calls: 1, complete: 0 }, ""), "{output}");
    }
    let said = read(
        &Case::of(ToolFamily::Hermes, ""),
        [r#"<tool_call>{"name": "now", "arguments": {"a": Tr"#, "ue}}</tool_call>"],
    );
    assert_eq!((said.calls[0].1.as_str(), said.outcome.complete), (r#"{"a": true}"#, 1));
}

#[test]
fn an_output_that_is_cut_off_says_a_part_of_the_whole() {
    for case in cases().filter(|case| !case.is_cut_off) {
        let whole = read(&case, [case.output]);
        for at in (0..case.output.len()).filter(|at| case.output.is_char_boundary(*at)) {
            let part = Case { is_cut_off: true, output: &case.output[..at], ..case };
            let said = read(&part, [part.output]);
            for ((name, arguments), (whole_name, whole_arguments)) in said.calls.iter().zip(&whole.calls) {
                assert_eq!(name, whole_name);
                assert!(whole_arguments.starts_with(arguments.as_str()), "{arguments} of {whole_arguments}: {part:?}");
            }
            assert!(said.calls.len() <= whole.calls.len(), "{part:?}");
            if !whole.calls.is_empty() && case.content.is_empty() {
                let call = ["arguments", "parameters", "\"name\"", "get_weather(", "<parameter"];
                assert!(!call.iter().any(|part| said.content.contains(part)), "{said:?} of {part:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn outputs_say_the_same_in_any_pieces(which in any::<prop::sample::Index>(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12)) {
        let all: Vec<Case> = cases().collect();
        let case = which.get(&all);
        let places: Vec<usize> = (0..=case.output.len()).filter(|at| case.output.is_char_boundary(*at)).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| *cut.get(&places)).chain([0, case.output.len()]).collect();
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &case.output[pair[0]..pair[1]]);
        prop_assert_eq!(read(case, pieces), expected(case));
    }

    /// Whatever a model says: no panic, and the same in one piece and by character.
    #[test]
    fn nonsense_says_the_same_in_any_pieces(
        family in prop::sample::select(families::ALL.to_vec()),
        reasoning in prop::option::of(prop::sample::select(families::ALL_REASONING.to_vec())),
        words in prop::collection::vec(prop::sample::select(families::WORDS.to_vec()), 0..14),
        is_cut_off in any::<bool>(),
    ) {
        let output: String = words.concat();
        let case = Case { reasoning, is_cut_off, ..Case::of(family, "") };
        let characters: Vec<String> = output.chars().map(String::from).collect();
        let by_character = read(&case, characters.iter().map(String::as_str));
        let by_word = read(&case, words.iter().copied());
        let at_once = read(&case, [output.as_str()]);
        prop_assert_eq!(&by_character, &at_once);
        prop_assert_eq!(&by_word, &at_once);
        prop_assert!(at_once.outcome.complete <= at_once.outcome.calls);
    }
}
