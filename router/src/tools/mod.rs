//! What a model's output says: words, thoughts, and calls of tools, each family of models in its own form.
//!
//! A parser is fed the output in pieces and tells what is certain. Wherever the output is cut into pieces, what it says,
//! put together, is the same. Nothing of a call ever becomes content: what may begin one waits until it cannot. A call
//! begins when its name is known and its arguments are reached; what turns out to be none before that is content as a
//! whole, and a call that breaks off after that stays as far as it came.

mod bind;
mod event;
mod family;
mod format;
mod harmony;
mod literal;
mod marked;
mod named;
mod object;
mod pythonic;
mod reasoning;
mod scan;
#[cfg(test)]
mod tests;
mod value;
mod xml;

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

pub use bind::Binding;
pub use event::{Event, Outcome};
pub use family::{Named, ReasoningFamily, ToolFamily, Wish};
pub use format::Format;

use event::Sink;
use harmony::Harmony;
use marked::Marked;
use pythonic::Pythonic;
use reasoning::Thinking;
use xml::Xml;

/// The tools of a request, as parsers need them. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tools(Arc<[Tool]>);

#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    pub name: String,
    /// JSON schema of its arguments.
    pub parameters: Value,
    /// What clients call the schema.
    pub place: String,
    /// Whether arguments must hold to the schema even if the model is free to call or not.
    pub is_strict: bool,
}

impl Tools {
    pub fn new(tools: Vec<Tool>) -> Self {
        Self(tools.into())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Tool> {
        self.0.iter()
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|tool| tool.name == name)
    }

    fn may_become(&self, start: &str) -> bool {
        self.0.iter().any(|tool| tool.name.starts_with(start))
    }

    /// Whether an argument can be nothing but text.
    fn takes_text(&self, tool: &str, argument: &str) -> bool {
        let tool = self.0.iter().find(|one| one.name == tool);
        tool.is_some_and(|tool| tool.parameters["properties"][argument]["type"] == "string")
    }
}

/// One form of output.
trait Machine: fmt::Debug + Send {
    fn push(&mut self, text: &str, sink: &mut Sink);
    /// `is_cut_off`: the output ended because no more was allowed.
    fn finish(&mut self, is_cut_off: bool, sink: &mut Sink);
}

/// Everything is content.
#[derive(Debug)]
struct Plain;

impl Machine for Plain {
    fn push(&mut self, text: &str, sink: &mut Sink) {
        sink.content(text);
    }

    fn finish(&mut self, _is_cut_off: bool, _sink: &mut Sink) {}
}

/// How to read the output of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// None where nothing may be called.
    pub calls: Option<(ToolFamily, Tools)>,
    pub reasoning: Option<ReasoningFamily>,
    /// No more than one call is told.
    pub is_single: bool,
    /// The output is nothing but calls: what is cut off cannot have become anything else.
    pub must_call: bool,
    /// The assistant's words in the prompt that the output continues.
    pub continued: String,
}

impl Reading {
    pub fn is_plain(&self) -> bool {
        self.calls.is_none() && self.reasoning.is_none()
    }

    /// A parser for one output that continues `prompt`.
    pub fn reader(&self, prompt: &str) -> Reader {
        let mut machine: Box<dyn Machine> = match &self.calls {
            _ if self.is_harmony() => Box::new(Harmony::new(self.calls.as_ref().map(|(_, tools)| tools))),
            None => Box::new(Plain),
            Some((ToolFamily::Pythonic, tools)) => Box::new(Pythonic::new(tools.clone())),
            Some((ToolFamily::Qwen3Coder, tools)) => Box::new(Xml::new(xml::QWEN, tools.clone())),
            Some((ToolFamily::Glm, tools)) => Box::new(Xml::new(xml::GLM, tools.clone())),
            Some((family, tools)) => match family.marks() {
                Some(marks) => Box::new(Marked::new(marks, tools.clone(), self.must_call)),
                None => Box::new(Plain),
            },
        };
        if let Some((family, thoughts)) = self.reasoning.and_then(|family| Some((family, family.thoughts()?))) {
            let is_open = thoughts.is_open(prompt, &self.continued);
            let is_inside = is_open.unwrap_or(family == ReasoningFamily::DeepSeekR1);
            machine = Box::new(Thinking::new(thoughts, is_inside, machine));
        }
        Reader { machine, sink: Sink::new(self.calls.is_some(), if self.is_single { 1 } else { usize::MAX }) }
    }

    /// Mistral's templates take ids of nine characters only.
    pub fn has_short_ids(&self) -> bool {
        self.calls.as_ref().is_some_and(|(family, _)| *family == ToolFamily::Mistral)
    }

    fn is_harmony(&self) -> bool {
        let calls = self.calls.as_ref().is_some_and(|(family, _)| *family == ToolFamily::Harmony);
        calls || self.reasoning == Some(ReasoningFamily::Harmony)
    }
}

/// The markers that parsers of these families must see although they may be control tokens.
pub fn markers(calls: Option<ToolFamily>, reasoning: Option<ReasoningFamily>) -> Vec<&'static str> {
    let calls = calls.map(ToolFamily::markers).unwrap_or_default();
    [calls, reasoning.map(ReasoningFamily::markers).unwrap_or_default()].concat()
}

/// Reads one output.
#[derive(Debug)]
pub struct Reader {
    machine: Box<dyn Machine>,
    sink: Sink,
}

impl Reader {
    /// What is certain after more of the output.
    pub fn push(&mut self, text: &str) -> Vec<Event> {
        self.machine.push(text, &mut self.sink);
        self.sink.take()
    }

    /// The rest, at the end of the output.
    pub fn finish(&mut self, is_cut_off: bool) -> (Vec<Event>, Outcome) {
        self.machine.finish(is_cut_off, &mut self.sink);
        self.sink.finish();
        (self.sink.take(), self.sink.outcome())
    }
}
