//! gpt-oss' messages: each has a header that names its channel and recipient. Analysis is reasoning, a message to a function
//! is a call, everything else is content.

use super::event::Sink;
use super::scan::{self, Found, Start};
use super::{Machine, Tools};

const MESSAGE: &str = "<|message|>";
const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
/// What ends a message's body; the last two begin the next one's header.
const ENDS: [&str; 5] = ["<|end|>", "<|return|>", "<|call|>", START, CHANNEL];

#[derive(Debug)]
pub(super) struct Harmony {
    mode: Mode,
    input: String,
    has_thought: bool,
    /// Without tools, a message to a function is content.
    has_tools: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Mode {
    /// The first header may be that of a message, or the model speaks without one.
    Beginning,
    Header,
    Body(Body),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Content,
    Reasoning,
    Arguments { has_any: bool },
}

impl Harmony {
    pub(super) fn new(tools: Option<&Tools>) -> Self {
        Self { mode: Mode::Beginning, input: String::new(), has_thought: false, has_tools: tools.is_some() }
    }

    fn advance(&mut self, sink: &mut Sink) -> bool {
        match self.mode {
            Mode::Beginning => {
                self.mode = match scan::start(&self.input, &[CHANNEL, START, MESSAGE, " to=", "to="]) {
                    Start::MayBe => return false,
                    Start::Is(_) => Mode::Header,
                    Start::No => Mode::Body(Body::Content),
                };
                true
            }
            Mode::Header => {
                let Some(at) = self.input.find(MESSAGE) else { return false };
                let header: String = self.input.drain(..at + MESSAGE.len()).collect();
                self.mode = Mode::Body(self.body(&header, sink));
                true
            }
            Mode::Body(body) => self.say(body, sink),
        }
    }

    /// What a header announces.
    fn body(&mut self, header: &str, sink: &mut Sink) -> Body {
        let recipient = header.split_once("to=functions.").map(|(_, name)| name);
        let name = recipient.map(|name| name.split(|c: char| c.is_whitespace() || c == '<').next().unwrap_or_default());
        match name.filter(|name| self.has_tools && !name.is_empty()) {
            Some(name) => {
                sink.begin(name.to_owned());
                Body::Arguments { has_any: false }
            }
            None if header.contains("<|channel|>analysis") => {
                sink.begin_reasoning(std::mem::replace(&mut self.has_thought, true));
                Body::Reasoning
            }
            None => Body::Content,
        }
    }

    fn say(&mut self, body: Body, sink: &mut Sink) -> bool {
        match scan::next(&mut self.input, &ENDS) {
            None => return false,
            Some(Found::Text(text)) => match body {
                Body::Content => sink.content(&text),
                Body::Reasoning => sink.reasoning(&text),
                Body::Arguments { .. } => {
                    sink.arguments(&text);
                    self.mode = Mode::Body(Body::Arguments { has_any: true });
                }
            },
            Some(Found::Marker(end)) => {
                Self::over(body, sink);
                self.mode = Mode::Header;
                if end == CHANNEL {
                    self.input.insert_str(0, CHANNEL);
                }
            }
        }
        true
    }

    fn over(body: Body, sink: &mut Sink) {
        match body {
            Body::Content => {}
            Body::Reasoning => sink.end_reasoning(),
            Body::Arguments { has_any } => {
                if !has_any {
                    sink.arguments("{}");
                }
                sink.end();
            }
        }
    }
}

impl Machine for Harmony {
    fn push(&mut self, text: &str, sink: &mut Sink) {
        self.input.push_str(text);
        while self.advance(sink) {}
    }

    fn finish(&mut self, is_cut_off: bool, sink: &mut Sink) {
        let rest = std::mem::take(&mut self.input);
        match self.mode {
            Mode::Beginning => sink.content(&rest),
            Mode::Header => {}
            Mode::Body(body) => {
                match body {
                    Body::Content => sink.content(&rest),
                    Body::Reasoning => sink.reasoning(&rest),
                    Body::Arguments { .. } if is_cut_off => {}
                    Body::Arguments { .. } => sink.arguments(&rest),
                }
                // The token that ends a call ends the answer too, and is not shown.
                if !is_cut_off {
                    Self::over(body, sink);
                }
            }
        }
    }
}
