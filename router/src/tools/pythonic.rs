//! Calls written as a Python list: `[f(a=1, b="x"), g()]`. Arguments become JSON as they come.

use super::event::Sink;
use super::literal::Value;
use super::scan::{self, Found, Start};
use super::value::escape;
use super::{Machine, Tools};

const OPEN: &str = "<|python_start|>";
const CLOSE: &str = "<|python_end|>";

#[derive(Debug)]
pub(super) struct Pythonic {
    tools: Tools,
    mode: Mode,
    input: String,
}

#[derive(Debug)]
enum Mode {
    Beginning,
    Content,
    Calls(Calls),
    /// Behind the list, or behind a call that broke off (then everything is left out).
    Behind {
        is_broken: bool,
    },
}

/// The list of calls.
#[derive(Debug)]
struct Calls {
    at: At,
    /// What has come of a call that has not begun, from the bracket or comma before it on.
    raw: String,
    count: usize,
}

#[derive(Debug)]
enum At {
    List,
    Item,
    Function(String),
    /// Inside a call's parentheses.
    Inside {
        has_arguments: bool,
    },
    Keyword(String),
    Value(Value),
    BehindCall,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    GoOn,
    Ended,
    Broken,
}

impl Pythonic {
    pub(super) fn new(tools: Tools) -> Self {
        Self { tools, mode: Mode::Beginning, input: String::new() }
    }

    fn advance(&mut self, sink: &mut Sink) -> bool {
        match &mut self.mode {
            Mode::Beginning => {
                let input = self.input.trim_start();
                match scan::start(input, &[OPEN, "["]) {
                    Start::Is(OPEN) => self.input = input[OPEN.len()..].to_owned(),
                    Start::Is(_) => self.mode = Mode::Calls(Calls::new()),
                    Start::MayBe => return false,
                    Start::No => self.mode = Mode::Content,
                }
                true
            }
            Mode::Content => match scan::next(&mut self.input, &[OPEN, CLOSE]) {
                Some(Found::Text(text)) => {
                    sink.content(&text);
                    true
                }
                Some(Found::Marker(marker)) => {
                    self.mode = if marker == OPEN { Mode::Beginning } else { Mode::Content };
                    true
                }
                None => false,
            },
            Mode::Calls(_) => self.calls(sink),
            Mode::Behind { is_broken: true } => {
                self.input.clear();
                false
            }
            Mode::Behind { is_broken: false } => {
                self.mode = Mode::Content;
                true
            }
        }
    }

    fn calls(&mut self, sink: &mut Sink) -> bool {
        let Mode::Calls(calls) = &mut self.mode else { return false };
        let mut ended = None;
        for (at, c) in self.input.char_indices() {
            let step = calls.push(c, &self.tools, sink);
            if step != Step::GoOn {
                ended = Some((at + c.len_utf8(), step));
                break;
            }
        }
        let Some((end, step)) = ended else {
            self.input.clear();
            return false;
        };
        self.input.drain(..end);
        self.mode = match step {
            Step::Broken if calls.is_open() => Mode::Behind { is_broken: true },
            Step::Broken => {
                sink.content(&calls.raw);
                Mode::Content
            }
            _ => Mode::Behind { is_broken: false },
        };
        true
    }
}

impl Machine for Pythonic {
    fn push(&mut self, text: &str, sink: &mut Sink) {
        self.input.push_str(text);
        while self.advance(sink) {}
    }

    fn finish(&mut self, is_cut_off: bool, sink: &mut Sink) {
        match &self.mode {
            Mode::Beginning | Mode::Content => sink.content(&self.input),
            Mode::Calls(calls) if !(calls.is_open() || is_cut_off && calls.is_likely(&self.tools)) => {
                sink.content(&calls.raw);
            }
            Mode::Calls(_) | Mode::Behind { .. } => {}
        }
        self.input.clear();
    }
}

impl Calls {
    fn new() -> Self {
        Self { at: At::List, raw: String::new(), count: 0 }
    }

    fn is_open(&self) -> bool {
        matches!(self.at, At::Inside { .. } | At::Keyword(_) | At::Value(_))
    }

    fn is_likely(&self, tools: &Tools) -> bool {
        self.count > 0 || matches!(&self.at, At::Function(name) if !name.is_empty() && tools.may_become(name))
    }

    fn push(&mut self, c: char, tools: &Tools, sink: &mut Sink) -> Step {
        if !self.is_open() {
            self.raw.push(c);
        }
        let is_blank = c.is_ascii_whitespace();
        match &mut self.at {
            At::List if c == '[' => self.go(At::Item),
            At::Item | At::BehindCall | At::Inside { .. } if is_blank => Step::GoOn,
            At::Item if is_name_start(c) => self.go(At::Function(c.to_string())),
            At::Item | At::BehindCall if c == ']' && self.count > 0 => Step::Ended,
            At::BehindCall if c == ',' => {
                self.raw.clear();
                self.go(At::Item)
            }
            At::Function(name) if c == '(' && tools.has(name) => {
                sink.begin(std::mem::take(name));
                sink.arguments("{");
                self.count += 1;
                self.raw.clear();
                self.go(At::Inside { has_arguments: false })
            }
            At::Function(name) if is_name(c) || c == '.' || c == '-' => {
                name.push(c);
                Step::GoOn
            }
            At::Inside { .. } if c == ')' => self.close(sink),
            At::Inside { has_arguments } if is_name_start(c) => {
                if *has_arguments {
                    sink.arguments(",");
                }
                self.go(At::Keyword(c.to_string()))
            }
            At::Keyword(name) if c == '=' => {
                let mut key = String::new();
                name.trim_end().chars().for_each(|c| escape(c, &mut key));
                sink.arguments(&format!("\"{key}\":"));
                self.go(At::Value(Value::default()))
            }
            At::Keyword(name) if is_name(c) || is_blank => {
                name.push(c);
                Step::GoOn
            }
            At::Value(_) => self.value(c, sink),
            _ => Step::Broken,
        }
    }

    fn go(&mut self, at: At) -> Step {
        self.at = at;
        Step::GoOn
    }

    fn close(&mut self, sink: &mut Sink) -> Step {
        sink.arguments("}");
        sink.end();
        self.go(At::BehindCall)
    }

    fn value(&mut self, c: char, sink: &mut Sink) -> Step {
        let At::Value(value) = &mut self.at else { return Step::Broken };
        let mut out = String::new();
        let ended = value.push(c, &mut out);
        sink.arguments(&out);
        match ended {
            None => Step::Broken,
            Some(false) => Step::GoOn,
            Some(true) if c == ')' => self.close(sink),
            Some(true) => self.go(At::Inside { has_arguments: true }),
        }
    }
}

fn is_name_start(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

pub(super) fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}
