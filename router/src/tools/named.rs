//! Calls written as a name between markers, and then their arguments as JSON.

use super::event::Sink;
use super::object::Step;
use super::value::{Extent, Opened, Opening, Reach};

/// Characters of what stands before the arguments; no name is longer.
const LONGEST_HEAD: usize = 512;

/// How a family writes the name: from everything between the opening marker and the arguments, or the end.
pub(super) type Name = fn(&str) -> Option<String>;

#[derive(Debug)]
pub(super) struct NamedCall {
    name: Name,
    closes: &'static [&'static str],
    /// Everything so far; empty when the call has begun.
    head: String,
    /// Where in the head the arguments open, and what has come of them.
    opening: Option<(usize, Opening)>,
    arguments: Option<Extent>,
}

impl NamedCall {
    pub(super) fn new(name: Name, closes: &'static [&'static str]) -> Self {
        Self { name, closes, head: String::new(), opening: None, arguments: None }
    }

    pub(super) fn unsaid(&mut self) -> String {
        std::mem::take(&mut self.head)
    }

    pub(super) fn is_open(&self) -> bool {
        self.arguments.is_some()
    }

    pub(super) fn push(&mut self, c: char, sink: &mut Sink) -> Step {
        let Some(extent) = &mut self.arguments else { return self.push_head(c, sink) };
        let mut out = String::new();
        let reach = extent.push(c, &mut out);
        if reach != Reach::Broken {
            sink.arguments(&out);
        }
        reached(reach, sink)
    }

    fn push_head(&mut self, c: char, sink: &mut Sink) -> Step {
        self.head.push(c);
        if self.head.len() > LONGEST_HEAD {
            return Step::Broken;
        }
        if let Some((end, opening)) = &mut self.opening {
            let end = *end;
            return match opening.push(c) {
                Opened::NotYet => Step::GoOn,
                Opened::Object(extent, text, reach) => self.begin(end, (extent, &text, reach), sink),
                Opened::No => Step::Broken,
            };
        }
        if c == '{' {
            self.opening = Some((self.head.len() - 1, Opening::default()));
            return Step::GoOn;
        }
        match self.closes.iter().find(|close| self.head.ends_with(**close)) {
            None => Step::GoOn,
            // A call without arguments.
            Some(close) => self.begin(self.head.len() - close.len(), (Extent::default(), "{}", Reach::Last), sink),
        }
    }

    /// The head ends at `end`, and these arguments follow it.
    fn begin(&mut self, end: usize, (extent, text, reach): (Extent, &str, Reach), sink: &mut Sink) -> Step {
        let name = (self.name)(&self.head[..end]);
        let Some(name) = name.filter(|name| !name.is_empty() && !name.contains(char::is_whitespace)) else {
            return Step::Broken;
        };
        self.arguments = Some(extent);
        self.head.clear();
        sink.begin(name);
        sink.arguments(text);
        reached(reach, sink)
    }
}

/// The last character brought the arguments so far.
fn reached(reach: Reach, sink: &mut Sink) -> Step {
    match reach {
        Reach::Inside => Step::GoOn,
        Reach::Broken => Step::Broken,
        Reach::Last => {
            sink.end();
            Step::Ended
        }
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
