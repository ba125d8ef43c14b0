//! Grammars under which every call is well-formed and its arguments hold to their schema.
//!
//! A call that must be made is written in the model's own form, so that its parser reads it as any other. Families whose
//! arguments are no JSON have their bound calls as plain JSON instead.

use serde_json::{Value, json};

use super::{Format, Reading, ReasoningFamily, Tool, ToolFamily, Tools};
use crate::grammar::{Shape, Tag, Trigger};

/// A grammar over a whole output, and how to read what it allows.
#[derive(Clone, Debug, PartialEq)]
pub struct Binding {
    pub shape: Shape,
    pub reading: Reading,
}

/// What begins gpt-oss' answers.
const FINAL: &str = "<|channel|>final<|message|>";

/// Calls of one answer: no model means more.
const MOST_CALLS: u32 = 16;

/// How a family writes calls; markers in it may be control tokens.
#[derive(Clone, Copy)]
struct Pattern {
    /// Before all of them.
    before: &'static str,
    /// Around name and arguments of one.
    call: [&'static str; 3],
    between: &'static str,
    behind: &'static str,
}

const JSON: Pattern =
    Pattern { before: "", call: ["{\"name\": \"", "\", \"arguments\": ", "}"], between: ", ", behind: "" };

impl Format {
    /// The model must call: one tool of `tools`, or, if `several`, some of them.
    pub fn forced(&self, tools: &Tools, several: bool) -> Binding {
        let (family, pattern) = self.bound_pattern();
        let shape = Shape::Sequence(self.calls(family, pattern, tools, several));
        let calls = Some((family, tools.clone()));
        Binding {
            shape,
            reading: Reading { calls, reasoning: None, is_single: !several, must_call: true, ..Reading::default() },
        }
    }

    /// The model is free to call or not, but calls hold to their schema; those of tools that are not strict to none.
    pub fn free(&self, tools: &Tools, several: bool) -> Binding {
        let (family, pattern) = self.bound_pattern();
        let loose = tools.iter().map(|tool| {
            let anything = || json!({ "type": "object", "additionalProperties": true });
            let parameters = if tool.is_strict { tool.parameters.clone() } else { anything() };
            Tool { parameters, ..tool.clone() }
        });
        let calls = self.calls(family, pattern, &Tools::new(loose.collect()), several);
        let shape = match Self::opened(family, &calls) {
            Some(_) if family == ToolFamily::Harmony => messages(self, calls),
            Some((trigger, then)) => {
                let parts = vec![Tag { trigger, then: Shape::Sequence(then) }];
                Shape::Tagged { parts, required: false, several: several && pattern.before.is_empty() }
            }
            // What begins like a call is one.
            None => Shape::OneOf(vec![Shape::Sequence(calls), Shape::Regex("([^\\s{\\[`<](.|\\n)*)?".to_owned())]),
        };
        let reasoning = self.reasoning.filter(|_| !matches!(shape, Shape::OneOf(_)));
        let shape = reasoning.map_or(shape.clone(), |family| self.after_thoughts(family, shape));
        Binding {
            shape,
            reading: Reading {
                calls: Some((family, tools.clone())),
                is_single: !several,
                reasoning,
                ..Reading::default()
            },
        }
    }

    /// Nothing but a text of this shape. gpt-oss says it in a message of its own.
    pub fn answer(&self, shape: Shape) -> Binding {
        if !self.is_harmony() {
            return Binding { shape, reading: Reading::default() };
        }
        let reading = Reading { reasoning: Some(ReasoningFamily::Harmony), ..Reading::default() };
        Binding { shape: Shape::Sequence([self.written(FINAL), vec![shape]].concat()), reading }
    }

    /// Free text has no control tokens: where they stand around thoughts, these have a place of their own before the answer.
    fn after_thoughts(&self, family: ReasoningFamily, answer: Shape) -> Shape {
        let ends = family.thoughts().and_then(|thoughts| {
            let close = *self.tokens.get(thoughts.close)?;
            Some((self.tokens.get(thoughts.open).copied(), close))
        });
        let Some((open, close)) = ends else { return answer };
        let at_most_once = |shape| Shape::Repeat { shape: Box::new(shape), least: 0, most: Some(1) };
        // The prompt may have opened them.
        let opened = open.map(|open| at_most_once(Shape::Token(open)));
        let thoughts = [Shape::Regex("(.|\n)*".to_owned()), Shape::Token(close)];
        Shape::Sequence(vec![at_most_once(Shape::Sequence(opened.into_iter().chain(thoughts).collect())), answer])
    }

    /// The family in whose form bound calls are written.
    fn bound_pattern(&self) -> (ToolFamily, Pattern) {
        let plain = if self.is_harmony() { ToolFamily::Harmony } else { ToolFamily::Json };
        let family = self.calls.unwrap_or(plain);
        match pattern(family, self.is_newer) {
            Some(pattern) => (family, pattern),
            None => (ToolFamily::Json, JSON),
        }
    }

    fn calls(&self, family: ToolFamily, pattern: Pattern, tools: &Tools, several: bool) -> Vec<Shape> {
        let one = self.call(pattern, tools);
        let mut shapes = self.written(pattern.before);
        // A family's only call ends its answer; a bare object stands alone.
        if !several || matches!(family, ToolFamily::Harmony | ToolFamily::Json) {
            shapes.extend(one);
        } else {
            let further = [self.written(pattern.between), one.clone()].concat();
            shapes.extend(one);
            let most = Some(MOST_CALLS - 1);
            shapes.push(Shape::Repeat { shape: Box::new(Shape::Sequence(further)), least: 0, most });
        }
        shapes.extend(self.written(pattern.behind));
        shapes
    }

    fn call(&self, pattern: Pattern, tools: &Tools) -> Vec<Shape> {
        let [before, between, behind] = pattern.call;
        let options = tools.iter().map(|tool| {
            let arguments = Shape::Json { schema: closed(&tool.parameters), place: tool.place.clone() };
            let head = [vec![Shape::Text(tool.name.clone())], self.written(between), vec![arguments]].concat();
            Shape::Sequence(head)
        });
        let call = Shape::OneOf(options.collect());
        [self.written(before), vec![call], self.written(behind)].concat()
    }

    /// A text with its control tokens.
    fn written(&self, text: &str) -> Vec<Shape> {
        let mut shapes = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let hit = self.tokens.iter().filter_map(|(marker, id)| Some((rest.find(marker)?, marker.len(), *id))).min();
            let Some((at, length, id)) = hit else {
                shapes.push(Shape::Text(rest.to_owned()));
                break;
            };
            if at > 0 {
                shapes.push(Shape::Text(rest[..at].to_owned()));
            }
            shapes.push(Shape::Token(id));
            rest = &rest[at + length..];
        }
        shapes
    }

    /// The marker with which calls begin, and what follows it.
    fn opened(family: ToolFamily, calls: &[Shape]) -> Option<(Trigger, Vec<Shape>)> {
        let (first, rest) = calls.split_first()?;
        match first {
            Shape::Token(id) => Some((Trigger::Token(*id), rest.to_vec())),
            Shape::Text(text) => {
                let marker = family.markers().into_iter().find(|marker| text.starts_with(marker))?;
                let inner = Some(text[marker.len()..].to_owned()).filter(|inner| !inner.is_empty()).map(Shape::Text);
                Some((Trigger::Text(marker.to_owned()), inner.into_iter().chain(rest.iter().cloned()).collect()))
            }
            _ => None,
        }
    }
}

/// `None` where arguments are no JSON.
fn pattern(family: ToolFamily, is_newer: bool) -> Option<Pattern> {
    let list = |before, behind| Pattern { before, behind, ..JSON };
    Some(match (family, is_newer) {
        (ToolFamily::Hermes, _) => Pattern {
            call: ["<tool_call>\n{\"name\": \"", "\", \"arguments\": ", "}\n</tool_call>"],
            between: "\n",
            ..JSON
        },
        (ToolFamily::Llama3Json, _) => {
            Pattern { call: ["{\"name\": \"", "\", \"parameters\": ", "}"], between: "; ", ..JSON }
        }
        (ToolFamily::Mistral, false) => list("[TOOL_CALLS][", "]"),
        (ToolFamily::Mistral, true) => Pattern { call: ["[TOOL_CALLS]", "[ARGS]", ""], between: "", ..JSON },
        (ToolFamily::DeepSeek, false) => Pattern {
            before: "<｜tool▁calls▁begin｜>",
            call: ["<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "\n```json\n", "\n```<｜tool▁call▁end｜>"],
            between: "\n",
            behind: "<｜tool▁calls▁end｜>",
        },
        (ToolFamily::DeepSeek, true) => Pattern {
            before: "<｜tool▁calls▁begin｜>",
            call: ["<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"],
            between: "",
            behind: "<｜tool▁calls▁end｜>",
        },
        (ToolFamily::Kimi, _) => Pattern {
            before: "<|tool_calls_section_begin|>",
            call: ["<|tool_call_begin|>functions.", ":0<|tool_call_argument_begin|>", "<|tool_call_end|>"],
            between: "",
            behind: "<|tool_calls_section_end|>",
        },
        (ToolFamily::Harmony, _) => {
            Pattern { call: ["<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", ""], ..JSON }
        }
        (ToolFamily::CommandR, true) => Pattern {
            before: "<|START_ACTION|>[",
            call: ["{\"tool_call_id\": \"0\", \"tool_name\": \"", "\", \"parameters\": ", "}"],
            behind: "]<|END_ACTION|>",
            ..JSON
        },
        (ToolFamily::CommandR, false) => Pattern {
            before: "Action: ```json\n[",
            call: ["{\"tool_name\": \"", "\", \"parameters\": ", "}"],
            behind: "]\n```",
            ..JSON
        },
        (ToolFamily::Granite, _) => list("<|tool_call|>[", "]"),
        (ToolFamily::Nemotron, _) => list("<TOOLCALL>[", "]</TOOLCALL>"),
        (ToolFamily::Json, _) => JSON,
        (ToolFamily::Pythonic | ToolFamily::Qwen3Coder | ToolFamily::Glm, _) => return None,
    })
}

/// gpt-oss: thoughts, remarks, and then an answer or a call.
fn messages(format: &Format, call: Vec<Shape>) -> Shape {
    let message = |header: &str| [format.written(header), vec![Shape::Regex("(.|\\n)*".to_owned())]].concat();
    let next = format.written("<|end|><|start|>assistant");
    let before = ["<|channel|>analysis<|message|>", "<|channel|>commentary<|message|>"];
    let before = before.map(|header| Shape::Sequence([message(header), next.clone()].concat()));
    let before = Shape::Repeat { shape: Box::new(Shape::OneOf(before.to_vec())), least: 0, most: Some(MOST_CALLS) };
    let last = Shape::OneOf(vec![Shape::Sequence(message(FINAL)), Shape::Sequence(call)]);
    Shape::Sequence(vec![before, last])
}

/// The schema of an object with no properties but those that it names, unless it says otherwise: a model that may make up
/// further ones may never stop.
fn closed(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(fields) = schema.as_object_mut() {
        fields.entry("type").or_insert_with(|| json!("object"));
        let is_plain = fields.contains_key("properties");
        let is_open = ["patternProperties", "additionalProperties", "$ref", "anyOf", "oneOf", "allOf"];
        if is_plain && !is_open.iter().any(|key| fields.contains_key(*key)) {
            fields.insert("additionalProperties".to_owned(), json!(false));
        }
    }
    schema
}
