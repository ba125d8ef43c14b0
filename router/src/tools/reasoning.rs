//! Splits what a model thinks from what it answers.

use super::Machine;
use super::event::Sink;
use super::scan::{self, Found, Start};
use crate::tokenizer::Thoughts;

/// Thoughts first, then whatever `answer` makes of the rest.
#[derive(Debug)]
pub(super) struct Thinking {
    thoughts: Thoughts,
    mode: Mode,
    input: String,
    answer: Box<dyn Machine>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Before,
    Inside,
    Behind,
}

impl Thinking {
    /// `is_inside`: the prompt has opened the thoughts already.
    pub(super) fn new(thoughts: Thoughts, is_inside: bool, answer: Box<dyn Machine>) -> Self {
        let mode = if is_inside { Mode::Inside } else { Mode::Before };
        Self { thoughts, mode, input: String::new(), answer }
    }

    fn advance(&mut self, sink: &mut Sink) -> bool {
        match self.mode {
            Mode::Before => {
                let input = self.input.trim_start();
                match scan::start(input, &[self.thoughts.open]) {
                    Start::MayBe => return false,
                    Start::Is(open) => {
                        self.input = input[open.len()..].to_owned();
                        self.mode = Mode::Inside;
                    }
                    Start::No => self.mode = Mode::Behind,
                }
            }
            // A model whose prompt opened its thoughts may open them again.
            Mode::Inside => match scan::next(&mut self.input, &[self.thoughts.open, self.thoughts.close]) {
                None => return false,
                Some(Found::Text(text)) => sink.reasoning(&text),
                Some(Found::Marker(marker)) if marker == self.thoughts.open => {}
                Some(Found::Marker(_)) => {
                    sink.end_reasoning();
                    self.mode = Mode::Behind;
                }
            },
            Mode::Behind if self.input.is_empty() => return false,
            Mode::Behind => {
                let text = std::mem::take(&mut self.input);
                self.answer.push(&text, sink);
            }
        }
        true
    }
}

impl Machine for Thinking {
    fn push(&mut self, text: &str, sink: &mut Sink) {
        self.input.push_str(text);
        while self.advance(sink) {}
    }

    fn finish(&mut self, is_cut_off: bool, sink: &mut Sink) {
        let rest = std::mem::take(&mut self.input);
        match self.mode {
            Mode::Inside => sink.reasoning(&rest),
            Mode::Before | Mode::Behind => self.answer.push(&rest, sink),
        }
        self.answer.finish(is_cut_off, sink);
    }
}
