//! Calls written as tags with one element per argument (Qwen3-Coder, GLM 4.5). Arguments become JSON as they come; what a
//! value is, a string or JSON, the tool's schema says.

use super::event::Sink;
use super::scan::{self, Found, Start};
use super::value::escape;
use super::{Machine, Tools};

/// How a family writes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tags {
    opens: &'static [&'static str],
    /// Before the name, if anything.
    before_name: Option<&'static str>,
    /// Any of these characters ends the name.
    name_ends: &'static [char],
    key: &'static str,
    key_end: &'static str,
    /// Before the value, if anything.
    value_open: Option<&'static str>,
    /// Behind a value; the plain one last.
    value_ends: &'static [&'static str],
    /// Behind the arguments.
    ends: &'static [&'static str],
    close: &'static str,
}

pub(super) const QWEN: Tags = Tags {
    opens: &["<tool_call>", "<function="],
    before_name: Some("<function="),
    name_ends: &['>'],
    key: "<parameter=",
    key_end: ">",
    value_open: None,
    value_ends: &["\n</parameter>", "</parameter>"],
    ends: &["</function>", "</tool_call>"],
    close: "</tool_call>",
};

pub(super) const GLM: Tags = Tags {
    opens: &["<tool_call>"],
    before_name: None,
    name_ends: &['\n', '<'],
    key: "<arg_key>",
    key_end: "</arg_key>",
    value_open: Some("<arg_value>"),
    value_ends: &["</arg_value>"],
    ends: &["</tool_call>"],
    close: "</tool_call>",
};

#[derive(Debug)]
pub(super) struct Xml {
    tags: Tags,
    tools: Tools,
    mode: Mode,
    function: String,
    has_arguments: bool,
    input: String,
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    Content,
    /// Behind this marker.
    Name(&'static str),
    Between,
    Key,
    /// A string, passed on as it comes.
    Text,
    /// Something else, passed on when it is whole.
    Other,
    /// Behind a call.
    Behind,
    /// Behind a call that broke off.
    Skipping,
}

impl Xml {
    pub(super) fn new(tags: Tags, tools: Tools) -> Self {
        let (function, input) = (String::new(), String::new());
        Self { tags, tools, mode: Mode::Content, function, has_arguments: false, input }
    }

    fn advance(&mut self, sink: &mut Sink) -> bool {
        match self.mode {
            Mode::Content => match scan::next(&mut self.input, self.tags.opens) {
                Some(Found::Text(text)) => {
                    sink.content(&text);
                    true
                }
                Some(Found::Marker(marker)) => self.go(Mode::Name(marker)),
                None => false,
            },
            Mode::Name(marker) => self.name(marker, sink),
            Mode::Between => self.between(sink),
            Mode::Key => self.key(sink),
            Mode::Text => self.text(sink),
            Mode::Other => self.other(sink),
            Mode::Behind => self.behind(),
            Mode::Skipping => match scan::next(&mut self.input, &[self.tags.close]) {
                Some(Found::Marker(_)) => self.go(Mode::Content),
                found => found.is_some(),
            },
        }
    }

    fn go(&mut self, mode: Mode) -> bool {
        self.mode = mode;
        true
    }

    fn name(&mut self, marker: &'static str, sink: &mut Sink) -> bool {
        let input = self.input.trim_start();
        let expected = self.tags.before_name.filter(|before| *before != marker);
        let named = match expected.map(|before| scan::start(input, &[before])) {
            Some(Start::MayBe) => return false,
            Some(Start::No) => None,
            Some(Start::Is(before)) => Some(&input[before.len()..]),
            None => Some(input),
        };
        let ends = named.and_then(|named| named.find(self.tags.name_ends).map(|end| (named, end)));
        let is_name =
            |name: &str| !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || "<>{}".contains(c));
        match (named, ends) {
            (Some(named), None) if named.is_empty() || is_name(named) => false,
            (_, Some((named, end))) if is_name(named[..end].trim()) => {
                named[..end].trim().clone_into(&mut self.function);
                // A tag that begins where the name ends belongs to what follows.
                let rest = if named[end..].starts_with('<') { &named[end..] } else { &named[end + 1..] };
                self.input = rest.to_owned();
                sink.begin(self.function.clone());
                sink.arguments("{");
                self.has_arguments = false;
                self.go(Mode::Between)
            }
            _ => {
                sink.content(marker);
                self.go(Mode::Content)
            }
        }
    }

    fn between(&mut self, sink: &mut Sink) -> bool {
        let input = self.input.trim_start();
        let expected = [&[self.tags.key], self.tags.ends].concat();
        match scan::start(input, &expected) {
            Start::MayBe => false,
            Start::Is(tag) if tag == self.tags.key => {
                self.input = input[tag.len()..].to_owned();
                self.go(Mode::Key)
            }
            Start::Is(tag) => {
                self.input = input[tag.len()..].to_owned();
                sink.arguments("}");
                sink.end();
                self.go(if tag == self.tags.close { Mode::Content } else { Mode::Behind })
            }
            Start::No => self.go(Mode::Skipping),
        }
    }

    fn key(&mut self, sink: &mut Sink) -> bool {
        let Some((key, rest)) = self.input.split_once(self.tags.key_end) else { return false };
        let rest = match self.tags.value_open.map(|open| scan::start(rest.trim_start(), &[open])) {
            None if rest.is_empty() => return false,
            None => rest.strip_prefix('\n').unwrap_or(rest),
            Some(Start::MayBe) => return false,
            Some(Start::Is(open)) => &rest.trim_start()[open.len()..],
            Some(Start::No) => return self.go(Mode::Skipping),
        };
        let is_text = self.tools.takes_text(&self.function, key.trim());
        let mut quoted = String::new();
        key.trim().chars().for_each(|c| escape(c, &mut quoted));
        let comma = if std::mem::replace(&mut self.has_arguments, true) { "," } else { "" };
        sink.arguments(&format!("{comma}\"{quoted}\":{}", if is_text { "\"" } else { "" }));
        self.input = rest.to_owned();
        self.go(if is_text { Mode::Text } else { Mode::Other })
    }

    fn text(&mut self, sink: &mut Sink) -> bool {
        let mut quoted = String::new();
        match scan::next(&mut self.input, self.tags.value_ends) {
            None => return false,
            Some(Found::Text(text)) => text.chars().for_each(|c| escape(c, &mut quoted)),
            Some(Found::Marker(_)) => {
                quoted.push('"');
                self.mode = Mode::Between;
            }
        }
        sink.arguments(&quoted);
        true
    }

    fn other(&mut self, sink: &mut Sink) -> bool {
        let Some(end) = self.input.find(self.tags.value_ends[self.tags.value_ends.len() - 1]) else { return false };
        let value = self.input[..end].trim();
        let json = match value {
            "True" => "true".to_owned(),
            "False" => "false".to_owned(),
            "None" => "null".to_owned(),
            value if serde_json::from_str::<serde::de::IgnoredAny>(value).is_ok() => value.to_owned(),
            value => serde_json::Value::from(value).to_string(),
        };
        sink.arguments(&json);
        self.input.drain(..end + self.tags.value_ends[self.tags.value_ends.len() - 1].len());
        self.go(Mode::Between)
    }

    fn behind(&mut self) -> bool {
        let input = self.input.trim_start();
        match scan::start(input, &[self.tags.close]) {
            Start::Is(close) => self.input = input[close.len()..].to_owned(),
            Start::MayBe => return false,
            Start::No => {}
        }
        self.go(Mode::Content)
    }
}

impl Machine for Xml {
    fn push(&mut self, text: &str, sink: &mut Sink) {
        self.input.push_str(text);
        while self.advance(sink) {}
    }

    fn finish(&mut self, is_cut_off: bool, sink: &mut Sink) {
        match self.mode {
            Mode::Content => sink.content(&self.input),
            Mode::Name(marker) if !is_cut_off => {
                sink.content(marker);
                sink.content(&self.input);
            }
            // What might have become the end of a string was part of it, unless the rest of it is missing.
            Mode::Text if !is_cut_off => {
                let mut quoted = String::new();
                self.input.chars().for_each(|c| escape(c, &mut quoted));
                sink.arguments(&quoted);
            }
            Mode::Name(_) => sink.leave_out(),
            _ => {}
        }
        self.input.clear();
    }
}
