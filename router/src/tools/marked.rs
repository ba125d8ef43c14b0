//! Calls between markers, or at the very beginning of an answer, in a form that tells where they end.

use super::event::Sink;
use super::named::{Name, NamedCall};
use super::object::{JsonCalls, Step};
use super::scan::{self, Found, Start};
use super::{Machine, Tools};

/// How a family marks its calls.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks {
    pub(super) opens: &'static [&'static str],
    /// Behind calls; may be missing.
    pub(super) closes: &'static [&'static str],
    /// Around several calls; nobody needs to see them.
    pub(super) around: &'static [&'static str],
    /// Whether calls may also begin an answer without a marker.
    pub(super) is_bare: bool,
    /// Calls of the form "name, then arguments".
    pub(super) named: Option<Name>,
    /// Calls as JSON.
    pub(super) is_json: bool,
}

const FENCE: &str = "```json";

#[derive(Debug)]
pub(super) struct Marked {
    marks: Marks,
    tools: Tools,
    /// Everything that is looked for in the content.
    markers: Vec<&'static str>,
    /// Nothing but calls can come.
    must_call: bool,
    mode: Mode,
    input: String,
}

#[derive(Debug)]
enum Mode {
    /// Nothing has come yet that could not stand before a call without a marker.
    Beginning,
    Content,
    /// Behind a marker; blanks and a code fence may come before the call.
    Opened(&'static str),
    /// The marker goes with what has not been passed on, should it be no call.
    Call(Region, &'static str),
    Behind,
    /// Behind a call that broke off: up to its closing marker nothing is worth showing.
    Skipping,
}

#[derive(Debug)]
enum Region {
    Json(JsonCalls),
    Named(NamedCall),
}

impl Region {
    fn push(&mut self, c: char, sink: &mut Sink) -> Step {
        match self {
            Self::Json(calls) => calls.push(c, sink),
            Self::Named(call) => call.push(c, sink),
        }
    }

    fn is_open(&self) -> bool {
        match self {
            Self::Json(calls) => calls.is_open(),
            Self::Named(call) => call.is_open(),
        }
    }

    fn num_calls(&self) -> usize {
        if let Self::Json(calls) = self { calls.num_calls() } else { 0 }
    }

    fn unsaid(&mut self) -> String {
        match self {
            Self::Json(calls) => calls.unsaid(),
            Self::Named(call) => call.unsaid(),
        }
    }
}

impl Marked {
    pub(super) fn new(marks: Marks, tools: Tools, must_call: bool) -> Self {
        let markers = [marks.opens, marks.around].concat();
        let mode = if marks.is_bare { Mode::Beginning } else { Mode::Content };
        Self { marks, tools, markers, must_call, mode, input: String::new() }
    }

    /// One step on the input; false if more has to come first.
    fn advance(&mut self, sink: &mut Sink) -> bool {
        match &mut self.mode {
            Mode::Beginning => self.beginning(),
            Mode::Content => self.content(sink),
            Mode::Opened(marker) => {
                let marker = *marker;
                self.opened(marker, sink)
            }
            Mode::Call(..) => self.call(sink),
            Mode::Behind => self.behind(),
            Mode::Skipping => match scan::next(&mut self.input, self.marks.closes) {
                Some(Found::Marker(_)) => self.go(Mode::Content),
                found => found.is_some(),
            },
        }
    }

    fn go(&mut self, mode: Mode) -> bool {
        self.mode = mode;
        true
    }

    fn beginning(&mut self) -> bool {
        let input = self.input.trim_start();
        let Some(first) = input.chars().next() else { return false };
        match scan::start(input, &[FENCE]) {
            Start::MayBe => return false,
            Start::Is(_) if input[FENCE.len()..].trim_start().is_empty() => return false,
            Start::Is(_) if input[FENCE.len()..].trim_start().starts_with(['{', '[']) => {}
            _ if first == '{' || first == '[' => {}
            _ => return self.go(Mode::Content),
        }
        // The fence belongs to what is shown if this is no call.
        let at = self.input.find(['{', '[']).unwrap_or_default();
        let before: String = self.input.drain(..at).collect();
        let calls = JsonCalls::after(&before, &self.tools);
        self.go(Mode::Call(Region::Json(calls), ""))
    }

    fn content(&mut self, sink: &mut Sink) -> bool {
        match scan::next(&mut self.input, &self.markers) {
            Some(Found::Text(text)) => {
                sink.content(&text);
                true
            }
            Some(Found::Marker(marker)) if self.marks.opens.contains(&marker) => self.go(Mode::Opened(marker)),
            Some(Found::Marker(_)) => true,
            None => false,
        }
    }

    fn opened(&mut self, marker: &'static str, sink: &mut Sink) -> bool {
        let input = self.input.trim_start();
        if input.is_empty() {
            return false;
        }
        let after_fence = match scan::start(input, &[FENCE]) {
            Start::MayBe => return false,
            Start::Is(fence) => input[fence.len()..].trim_start(),
            Start::No => input,
        };
        let region = match (after_fence.chars().next(), self.marks.named) {
            (None, _) => return false,
            (Some('{' | '['), _) if self.marks.is_json => {
                self.input = after_fence.to_owned();
                Region::Json(JsonCalls::new(&self.tools, false))
            }
            (Some(_), Some(name)) => Region::Named(NamedCall::new(name, self.marks.closes)),
            (Some(_), None) => {
                sink.content(marker);
                return self.go(Mode::Content);
            }
        };
        self.go(Mode::Call(region, marker))
    }

    fn call(&mut self, sink: &mut Sink) -> bool {
        let Mode::Call(region, marker) = &mut self.mode else { return false };
        let mut ended = None;
        for (at, c) in self.input.char_indices() {
            let step = region.push(c, sink);
            if step != Step::GoOn {
                ended = Some((at, at + c.len_utf8(), step));
                break;
            }
        }
        let Some((start, end, step)) = ended else {
            self.input.clear();
            return false;
        };
        if step == Step::Ended {
            self.input.drain(..end);
            return self.go(Mode::Behind);
        }
        if region.is_open() {
            // Its closing marker may begin with this very character.
            self.input.drain(..start);
            return self.go(Mode::Skipping);
        }
        if region.num_calls() == 0 {
            sink.content(marker);
        }
        sink.content(&region.unsaid());
        self.input.drain(..end);
        self.go(Mode::Content)
    }

    /// Behind a whole call: what closes it, or the next one.
    fn behind(&mut self) -> bool {
        let input = self.input.trim_start();
        // Models separate calls by these, or close a bracket too many.
        if let Some(rest) = input.strip_prefix([';', ',', '}', ']']) {
            self.input = rest.to_owned();
            return true;
        }
        match scan::start(input, &self.markers) {
            Start::Is(_) => return self.go(Mode::Content),
            Start::MayBe => return false,
            Start::No => {}
        }
        match scan::start(input, self.marks.closes) {
            Start::Is(close) => {
                self.input = input[close.len()..].to_owned();
                self.go(Mode::Content)
            }
            Start::MayBe => false,
            Start::No if self.marks.is_json && input.starts_with(['{', '[']) => {
                let calls = JsonCalls::new(&self.tools, self.marks.is_bare);
                self.go(Mode::Call(Region::Json(calls), ""))
            }
            Start::No => self.go(Mode::Content),
        }
    }
}

impl Machine for Marked {
    fn push(&mut self, text: &str, sink: &mut Sink) {
        self.input.push_str(text);
        while self.advance(sink) {}
    }

    fn finish(&mut self, is_cut_off: bool, sink: &mut Sink) {
        match &mut self.mode {
            Mode::Beginning | Mode::Content if is_cut_off && self.must_call => sink.leave_out(),
            Mode::Beginning | Mode::Content => sink.content(&self.input),
            Mode::Opened(marker) if !is_cut_off => {
                sink.content(marker);
                sink.content(&self.input);
            }
            Mode::Call(region, marker) if !region.is_open() => {
                let is_marked = !self.marks.is_bare || !marker.is_empty() || self.must_call;
                let is_likely = is_marked || matches!(region, Region::Json(calls) if calls.is_likely());
                if is_cut_off && is_likely {
                    sink.leave_out();
                } else {
                    if region.num_calls() == 0 {
                        sink.content(marker);
                    }
                    sink.content(&region.unsaid());
                }
            }
            Mode::Opened(_) => sink.leave_out(),
            Mode::Call(..) | Mode::Behind | Mode::Skipping => {}
        }
        self.input.clear();
    }
}
