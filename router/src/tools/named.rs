//! Calls written as a name between markers, and then their arguments as JSON.

use super::event::Sink;
use super::object::Step;
use super::value::{Extent, Reach};

/// Characters of what stands before the arguments; no name is longer.
const LONGEST_HEAD: usize = 512;

/// How a family writes the name: from everything between the opening marker and the arguments, or the end.
pub(super) type Name = fn(&str) -> Option<String>;

#[derive(Debug)]
pub(super) struct NamedCall {
    name: Name,
    closes: &'static [&'static str],
    /// Empty when the call has begun.
    head: String,
    arguments: Option<Extent>,
}

impl NamedCall {
    pub(super) fn new(name: Name, closes: &'static [&'static str]) -> Self {
        Self { name, closes, head: String::new(), arguments: None }
    }

    pub(super) fn unsaid(&mut self) -> String {
        std::mem::take(&mut self.head)
    }

    pub(super) fn is_open(&self) -> bool {
        self.arguments.is_some()
    }

    pub(super) fn push(&mut self, c: char, sink: &mut Sink) -> Step {
        if let Some(extent) = &mut self.arguments {
            let mut out = String::new();
            let reach = extent.push(c, &mut out);
            if reach != Reach::Broken {
                sink.arguments(&out);
            }
            return match reach {
                Reach::Inside => Step::GoOn,
                Reach::Broken => Step::Broken,
                Reach::Last => {
                    sink.end();
                    Step::Ended
                }
            };
        }
        self.head.push(c);
        if self.head.len() > LONGEST_HEAD {
            return Step::Broken;
        }
        if c == '{' {
            return self.begin(1, sink);
        }
        match self.closes.iter().find(|close| self.head.ends_with(**close)) {
            None => Step::GoOn,
            // A call without arguments.
            Some(close) => match self.begin(close.len(), sink) {
                Step::GoOn => {
                    sink.arguments("}");
                    sink.end();
                    Step::Ended
                }
                step => step,
            },
        }
    }

    /// The head is whole but for what stands behind it.
    fn begin(&mut self, behind: usize, sink: &mut Sink) -> Step {
        let name = (self.name)(&self.head[..self.head.len() - behind]);
        let Some(name) = name.filter(|name| !name.is_empty() && !name.contains(char::is_whitespace)) else {
            return Step::Broken;
        };
        let mut extent = Extent::default();
        extent.push('{', &mut String::new());
        self.arguments = Some(extent);
        self.head.clear();
        sink.begin(name);
        sink.arguments("{");
        Step::GoOn
    }
}

/// `function<｜tool▁sep｜>NAME`, then a code fence; newer models: `NAME<｜tool▁sep｜>`.
pub(super) fn deepseek(head: &str) -> Option<String> {
    let (before, after) = head.split_once("<｜tool▁sep｜>")?;
    let after = after.trim().trim_end_matches("json").trim_end_matches('`').trim();
    Some(if after.is_empty() { before.trim() } else { after }.to_owned())
}

/// `NAME[ARGS]`, and perhaps `[CALL_ID]ID` between them.
pub(super) fn mistral(head: &str) -> Option<String> {
    head.trim().split('[').next().map(|name| name.trim().to_owned())
}

/// `functions.NAME:INDEX<|tool_call_argument_begin|>`.
pub(super) fn kimi(head: &str) -> Option<String> {
    let id = head.trim().split("<|").next()?.trim();
    let name = id.rsplit_once(':').map_or(id, |(name, _)| name);
    Some(name.strip_prefix("functions.").unwrap_or(name).to_owned())
}
