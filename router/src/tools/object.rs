//! Calls written as JSON: an object with a name and arguments, or a list of such, its keys in any order.

use super::Tools;
use super::event::Sink;
use super::value::{Escaped, Extent, Opened, Opening, Reach, unquoted};

/// What a character did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    GoOn,
    /// It was the last one, and there was a call.
    Ended,
    /// No call goes on like this.
    Broken,
}

/// One object, or one list of objects.
#[derive(Debug)]
pub(super) struct JsonCalls {
    tools: Tools,
    /// Nothing but its form says that this is a call: it must have the keys of one and name a tool that there is.
    is_bare: bool,
    at: At,
    in_list: bool,
    /// Objects around the one that has the name.
    nesting: usize,
    key: String,
    call: Call,
    /// The item so far; empty when its call has begun.
    raw: String,
    num_calls: usize,
}

#[derive(Debug, Default)]
struct Call {
    name: Option<String>,
    /// Arguments that came before the name.
    early: Option<String>,
    has_begun: bool,
    has_arguments: bool,
}

#[derive(Debug)]
enum At {
    Start,
    /// Where an item of the list may stand.
    Item,
    BehindItem,
    Key,
    InKey(Escaped),
    Colon,
    Value,
    Name(Escaped, String),
    /// Behind the brace of the arguments.
    Opening(Opening),
    Arguments(Extent),
    /// Arguments as a JSON string with JSON in it.
    Quoted(Escaped, String),
    Container(Extent),
    Text(Escaped),
    /// A number, or a word such as null.
    Word(String),
    BehindValue,
}

const NAMES: [&str; 2] = ["name", "tool_name"];
const ARGUMENTS: [&str; 4] = ["arguments", "parameters", "args", "input"];
const OTHERS: [&str; 5] = ["id", "type", "function", "tool_call_id", "index"];

impl JsonCalls {
    pub(super) fn new(tools: &Tools, is_bare: bool) -> Self {
        Self {
            tools: tools.clone(),
            is_bare,
            at: At::Start,
            in_list: false,
            nesting: 0,
            key: String::new(),
            call: Call::default(),
            raw: String::new(),
            num_calls: 0,
        }
    }

    /// Calls that no marker announces, behind what may stand before them.
    pub(super) fn after(before: &str, tools: &Tools) -> Self {
        Self { raw: before.to_owned(), ..Self::new(tools, true) }
    }

    /// What would be content if this is no call: nothing of it has been passed on.
    pub(super) fn unsaid(&mut self) -> String {
        std::mem::take(&mut self.raw)
    }

    pub(super) fn num_calls(&self) -> usize {
        self.num_calls
    }

    /// Whether part of a call has been passed on that is not whole.
    pub(super) fn is_open(&self) -> bool {
        self.call.has_begun
    }

    /// Whether it can hardly be anything else than a call.
    pub(super) fn is_likely(&self) -> bool {
        let key = self.key.as_str();
        let has_key = NAMES.contains(&key) || ARGUMENTS.contains(&key);
        self.num_calls > 0 || has_key || self.call.name.is_some() || self.call.early.is_some()
    }

    pub(super) fn push(&mut self, c: char, sink: &mut Sink) -> Step {
        if !self.call.has_begun {
            self.raw.push(c);
        }
        if c.is_ascii_whitespace() && self.skips_blanks() {
            return Step::GoOn;
        }
        match (&mut self.at, c) {
            (At::Start, '[') => self.list(),
            (At::Start | At::Item, '{') | (At::BehindValue, ',') => self.go(At::Key),
            (At::Item | At::BehindItem, ']') => self.over(),
            (At::BehindItem, ',') => {
                self.raw.clear();
                self.go(At::Item)
            }
            (At::Key, '"') => {
                self.key.clear();
                self.go(At::InKey(Escaped::default()))
            }
            (At::Key | At::BehindValue, '}') => self.close(sink),
            (At::InKey(escaped), c) => {
                if escaped.ends(c) {
                    return if self.is_strange() { Step::Broken } else { self.go(At::Colon) };
                }
                self.key.push(c);
                Step::GoOn
            }
            (At::Colon, ':') => self.go(At::Value),
            (At::Value, c) => self.value(c),
            (At::Start | At::Item | At::BehindItem | At::Key | At::Colon | At::BehindValue, _) => Step::Broken,
            _ => self.inside(c, sink),
        }
    }

    fn skips_blanks(&self) -> bool {
        use At::{BehindItem, BehindValue, Colon, Item, Key, Start, Value};
        matches!(self.at, Start | Item | BehindItem | Key | Colon | Value | BehindValue)
    }

    fn go(&mut self, at: At) -> Step {
        self.at = at;
        Step::GoOn
    }

    fn list(&mut self) -> Step {
        self.in_list = true;
        self.go(At::Item)
    }

    /// Where no marker says that this is a call, no call has other keys.
    fn is_strange(&self) -> bool {
        let key = self.key.as_str();
        self.is_bare && !(NAMES.contains(&key) || ARGUMENTS.contains(&key) || OTHERS.contains(&key))
    }

    /// A value begins.
    fn value(&mut self, c: char) -> Step {
        let key = self.key.as_str();
        let is_name = NAMES.contains(&key) || key == "function";
        let is_arguments = ARGUMENTS.contains(&key) && !self.call.has_arguments;
        match c {
            '"' if is_name && self.call.name.is_none() => self.go(At::Name(Escaped::default(), String::new())),
            '"' if is_arguments => self.go(At::Quoted(Escaped::default(), String::new())),
            '{' if is_arguments => {
                self.call.has_arguments = true;
                self.go(At::Opening(Opening::default()))
            }
            '{' if key == "function" && self.call.name.is_none() => {
                self.nesting += 1;
                self.go(At::Key)
            }
            '"' => self.go(At::Text(Escaped::default())),
            '{' | '[' if is_arguments => Step::Broken,
            '{' | '[' => {
                let mut extent = Extent::default();
                extent.push(c, &mut String::new());
                self.go(At::Container(extent))
            }
            c if c.is_ascii_alphanumeric() || c == '-' => self.go(At::Word(c.to_string())),
            _ => Step::Broken,
        }
    }

    /// Arguments that are an object for certain: the call begins, if its name is known.
    fn arguments(&mut self, extent: Extent, text: String, reach: Reach, sink: &mut Sink) -> Step {
        self.at = At::Arguments(extent);
        if self.call.name.is_none() {
            self.call.early = Some(text);
        } else if self.begin(&text, sink) == Step::Broken {
            return Step::Broken;
        }
        self.reached(reach, sink)
    }

    /// The last character brought the arguments so far.
    fn reached(&mut self, reach: Reach, sink: &mut Sink) -> Step {
        match reach {
            Reach::Inside => Step::GoOn,
            Reach::Broken => Step::Broken,
            Reach::Last => {
                if self.call.early.is_none() {
                    sink.end();
                }
                self.go(At::BehindValue)
            }
        }
    }

    /// The call's name is known, and it has arguments, or none.
    fn begin(&mut self, arguments: &str, sink: &mut Sink) -> Step {
        let Some(name) = self.call.name.take_if(|name| !name.is_empty()) else { return Step::Broken };
        if self.is_bare && !self.tools.has(&name) {
            return Step::Broken;
        }
        self.call.has_begun = true;
        self.call.name = Some(name.clone());
        self.num_calls += 1;
        self.raw.clear();
        sink.begin(name);
        sink.arguments(arguments);
        Step::GoOn
    }

    /// Inside a value.
    fn inside(&mut self, c: char, sink: &mut Sink) -> Step {
        match &mut self.at {
            At::Name(escaped, raw) | At::Quoted(escaped, raw) => {
                if !escaped.ends(c) {
                    raw.push(c);
                    return Step::GoOn;
                }
                self.text_ended(sink)
            }
            At::Opening(opening) => match opening.push(c) {
                Opened::NotYet => Step::GoOn,
                Opened::Object(extent, text, reach) => self.arguments(extent, text, reach, sink),
                Opened::No => Step::Broken,
            },
            At::Arguments(extent) => {
                let mut out = String::new();
                let reach = extent.push(c, &mut out);
                match &mut self.call.early {
                    Some(early) => early.push_str(&out),
                    None => sink.arguments(&out),
                }
                self.reached(reach, sink)
            }
            At::Text(escaped) => {
                if escaped.ends(c) {
                    self.at = At::BehindValue;
                }
                Step::GoOn
            }
            At::Container(extent) => match extent.push(c, &mut String::new()) {
                Reach::Inside => Step::GoOn,
                Reach::Last => self.go(At::BehindValue),
                Reach::Broken => Step::Broken,
            },
            At::Word(word) => {
                if c.is_ascii_alphanumeric() || "+-.".contains(c) {
                    word.push(c);
                    return Step::GoOn;
                }
                self.word_ended(c, sink)
            }
            _ => Step::GoOn,
        }
    }

    /// A name is known, or arguments that were written as a string.
    fn text_ended(&mut self, sink: &mut Sink) -> Step {
        match std::mem::replace(&mut self.at, At::BehindValue) {
            At::Name(_, raw) => {
                self.call.name = unquoted(&raw);
                match self.call.early.take() {
                    Some(early) => self.begin_whole(&early, sink),
                    None => Step::GoOn,
                }
            }
            At::Quoted(_, raw) => {
                self.call.has_arguments = true;
                let Some(text) = unquoted(&raw).filter(|text| text.trim_start().starts_with('{')) else {
                    return Step::Broken;
                };
                if self.call.name.is_some() {
                    return self.begin_whole(&text, sink);
                }
                self.call.early = Some(text);
                Step::GoOn
            }
            _ => Step::Broken,
        }
    }

    fn begin_whole(&mut self, arguments: &str, sink: &mut Sink) -> Step {
        let step = self.begin(arguments, sink);
        if step == Step::GoOn {
            sink.end();
        }
        step
    }

    /// `c` stands behind the word: only an absent list of arguments may be one.
    fn word_ended(&mut self, c: char, sink: &mut Sink) -> Step {
        let At::Word(word) = std::mem::replace(&mut self.at, At::BehindValue) else { return Step::Broken };
        if ARGUMENTS.contains(&self.key.as_str()) && word != "null" {
            return Step::Broken;
        }
        match c {
            '}' => self.close(sink),
            ',' => self.go(At::Key),
            c if c.is_ascii_whitespace() => Step::GoOn,
            _ => Step::Broken,
        }
    }

    /// An object is over.
    fn close(&mut self, sink: &mut Sink) -> Step {
        if self.nesting > 0 {
            self.nesting -= 1;
            return self.go(At::BehindValue);
        }
        if !self.call.has_begun {
            let step = self.begin("{}", sink);
            if step == Step::Broken {
                return step;
            }
            sink.end();
        }
        self.call = Call::default();
        if self.in_list { self.go(At::BehindItem) } else { self.over() }
    }

    /// An empty list is no call.
    fn over(&self) -> Step {
        if self.num_calls > 0 { Step::Ended } else { Step::Broken }
    }
}
