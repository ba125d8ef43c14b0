//! Streamed answers. All chunks of one choice differ in a few bytes: the rest is written once, before the first.

use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use bytes::{BufMut, BytesMut};
use futures::stream::{self, SelectAll, Stream, StreamExt};
use serde::Serialize;

use super::response::{Envelope, SYSTEM_FINGERPRINT, Usage, finish_reason};
use super::voice::{Delta, Voice};
use super::wanted::{Form, Wanted};
use crate::engine::api::{Failed, Finished, Prefilled, Token};
use crate::http::admission::Admitted;
use crate::http::error::{ApiError, Dialect};
use crate::http::sse::{self, DONE, Encode};

/// One streamed answer.
#[derive(Debug)]
pub(super) struct Streamed {
    pub(super) wanted: Wanted,
    pub(super) envelope: Envelope,
}

/// Of all choices together.
#[derive(Debug, Default)]
struct Totals {
    usage: Usage,
    has_failed: bool,
}

impl Streamed {
    /// The chunks of all choices as they come, then what ends the answer. One of `prompts` has as many choices as were
    /// asked for.
    pub(super) fn chunks(self, prompts: Vec<Admitted>) -> impl Stream<Item = Bytes> + Send + 'static {
        let totals = Arc::new(Mutex::new(Totals::default()));
        let mut all = SelectAll::new();
        for (index, mut admitted) in prompts.into_iter().enumerate() {
            let encoder = self.encoder(index, &mut admitted, Arc::clone(&totals));
            all.push(Box::pin(sse::chunks(admitted, encoder)));
        }
        all.chain(stream::once(async move { self.ending(&totals) }))
    }

    fn encoder(&self, prompt: usize, admitted: &mut Admitted, totals: Arc<Mutex<Totals>>) -> PromptEncoder {
        let first = prompt * self.wanted.num_choices;
        let tail = match (self.wanted.form, self.wanted.usage) {
            (Form::Text, false) => "}]}\n\n",
            (Form::Text, true) | (Form::Chat, _) => "}],\"usage\":null}\n\n",
        };
        let choices = (first..first + self.wanted.num_choices).map(|index| {
            let mut head = self.head();
            head.extend_from_slice(format!("[{{\"index\":{index},").as_bytes());
            let voice = self.wanted.voice(&admitted.prompt);
            Choice { head, has_begun: false, voice, unsaid: Vec::new(), offset: 0 }
        });
        PromptEncoder {
            choices: choices.collect(),
            wanted: self.wanted.clone(),
            tail,
            prompt: if self.wanted.echo { std::mem::take(&mut admitted.prompt) } else { String::new() },
            prompt_ids: std::mem::take(&mut admitted.prompt_ids),
            prompt_tokens: admitted.ticket.prompt_tokens,
            totals,
        }
    }

    /// A chunk up to its choices.
    fn head(&self) -> Vec<u8> {
        let Envelope { id, created, model } = &self.envelope;
        let object = match self.wanted.form {
            Form::Text => "text_completion",
            Form::Chat => "chat.completion.chunk",
        };
        let mut head = BytesMut::from(&b"data: {\"id\":"[..]);
        write_json(&mut head, id);
        head.put_slice(format!(",\"object\":\"{object}\",\"created\":{created},\"model\":").as_bytes());
        write_json(&mut head, &**model);
        head.put_slice(format!(",\"system_fingerprint\":\"{SYSTEM_FINGERPRINT}\",\"choices\":").as_bytes());
        head.into()
    }

    fn ending(&self, totals: &Mutex<Totals>) -> Bytes {
        let totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = BytesMut::new();
        if self.wanted.usage && !totals.has_failed {
            out.put_slice(&self.head());
            out.put_slice(b"[],\"usage\":");
            write_json(&mut out, &totals.usage);
            out.put_slice(b"}\n\n");
        }
        out.put_slice(DONE);
        out.freeze()
    }
}

/// The stream of one prompt's choices.
#[derive(Debug)]
struct PromptEncoder {
    choices: Vec<Choice>,
    wanted: Wanted,
    /// A chunk from behind its finish reason.
    tail: &'static str,
    /// Empty unless it is to be repeated.
    prompt: String,
    /// Empty unless its logprobs are wanted.
    prompt_ids: Vec<u32>,
    prompt_tokens: u32,
    totals: Arc<Mutex<Totals>>,
}

#[derive(Debug)]
struct Choice {
    /// A chunk up to what is new in it.
    head: Vec<u8>,
    has_begun: bool,
    /// Reads the output, where it is not the answer as it is.
    voice: Option<Voice>,
    /// Tokens whose logprobs no chunk has carried yet: their text may be held back.
    unsaid: Vec<Token>,
    /// Characters of the tokens so far.
    offset: usize,
}

impl PromptEncoder {
    /// A conversation's first chunk says who speaks; a completion that echoes begins with the prompt.
    fn begin(&mut self, index: usize, prefilled: &Prefilled, out: &mut BytesMut) {
        if std::mem::replace(&mut self.choices[index].has_begun, true) {
            return;
        }
        if self.wanted.form == Form::Chat {
            // An answer that calls has no content; which it will be is not known yet.
            let content = if self.wanted.reading.calls.is_some() { "null" } else { "\"\"" };
            let delta = format!("\"delta\":{{\"role\":\"assistant\",\"content\":{content}}}");
            self.write(index, &format!("{delta},\"logprobs\":null,\"finish_reason\":null"), out);
        }
        if self.wanted.echo {
            let columns = self.wanted.logprobs.as_ref().map(|logprobs| {
                logprobs.prompt(&self.prompt, &self.prompt_ids, prefilled, &mut self.choices[index].offset)
            });
            out.put_slice(&self.choices[index].head);
            out.put_slice(b"\"text\":");
            write_json(out, &self.prompt);
            out.put_slice(b",\"logprobs\":");
            write_json(out, &columns);
            out.put_slice(b",\"finish_reason\":null");
            out.put_slice(self.tail.as_bytes());
        }
    }

    fn write(&self, index: usize, news: &str, out: &mut BytesMut) {
        out.put_slice(&self.choices[index].head);
        out.put_slice(news.as_bytes());
        out.put_slice(self.tail.as_bytes());
    }

    /// What a piece of the output says.
    fn write_output(&mut self, index: usize, text: &str, out: &mut BytesMut) {
        match &mut self.choices[index].voice {
            None => self.write_text(index, text, out),
            Some(voice) => {
                let deltas = voice.push(text);
                self.write_deltas(index, deltas, out);
            }
        }
    }

    fn write_deltas(&mut self, index: usize, deltas: Vec<Delta>, out: &mut BytesMut) {
        for delta in deltas {
            out.put_slice(&self.choices[index].head);
            out.put_slice(b"\"delta\":");
            write_json(out, &delta);
            out.put_slice(b",\"logprobs\":");
            self.write_logprobs(index, out);
            out.put_slice(b",\"finish_reason\":null");
            out.put_slice(self.tail.as_bytes());
        }
    }

    fn write_text(&mut self, index: usize, text: &str, out: &mut BytesMut) {
        if text.is_empty() {
            return;
        }
        let (before, after): (&[u8], &[u8]) = match self.wanted.form {
            Form::Text => (b"\"text\":", b",\"logprobs\":"),
            Form::Chat => (b"\"delta\":{\"content\":", b"},\"logprobs\":"),
        };
        out.put_slice(&self.choices[index].head);
        out.put_slice(before);
        write_json(out, text);
        out.put_slice(after);
        self.write_logprobs(index, out);
        out.put_slice(b",\"finish_reason\":null");
        out.put_slice(self.tail.as_bytes());
    }

    /// Those of all tokens since the last chunk.
    fn write_logprobs(&mut self, index: usize, out: &mut BytesMut) {
        let choice = &mut self.choices[index];
        let Some(logprobs) = self.wanted.logprobs.as_ref().filter(|_| !choice.unsaid.is_empty()) else {
            return out.put_slice(b"null");
        };
        match self.wanted.form {
            Form::Chat => write_json(out, &logprobs.chat(&choice.unsaid)),
            Form::Text => write_json(out, &logprobs.text(&choice.unsaid, &mut choice.offset)),
        }
        choice.unsaid.clear();
    }

    fn finish(&mut self, index: usize, finished: &Finished, out: &mut BytesMut) {
        let mut generated_tokens = finished.generated_tokens;
        if self.wanted.is_prompt_only {
            generated_tokens = 0;
        } else {
            self.write_output(index, &finished.delta, out);
        }
        let mut reason = finish_reason(finished.reason);
        if let Some(voice) = &mut self.choices[index].voice {
            let (rest, read) = voice.finish(finished.reason);
            reason = read;
            self.write_deltas(index, rest, out);
        }
        out.put_slice(&self.choices[index].head);
        out.put_slice(match self.wanted.form {
            Form::Text => b"\"text\":\"\"",
            Form::Chat => b"\"delta\":{}",
        });
        out.put_slice(b",\"logprobs\":");
        self.write_logprobs(index, out);
        out.put_slice(format!(",\"finish_reason\":\"{reason}\"{}", self.tail).as_bytes());
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals.usage.add(Usage::new(0, generated_tokens));
    }
}

impl Encode for PromptEncoder {
    fn prefilled(&mut self, prefilled: &Prefilled, out: &mut BytesMut) {
        for index in 0..self.choices.len() {
            self.begin(index, prefilled, out);
        }
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals.usage.add(Usage::new(self.prompt_tokens, 0).with_cached(prefilled.cached_tokens));
    }

    fn token(&mut self, sequence: usize, token: &Token, end: Option<&Finished>, out: &mut BytesMut) {
        self.begin(sequence, &Prefilled::default(), out);
        if !self.wanted.is_prompt_only {
            if self.wanted.logprobs.is_some() {
                self.choices[sequence].unsaid.push(token.clone());
            }
            self.write_output(sequence, &token.delta, out);
        }
        if let Some(finished) = end {
            self.finish(sequence, finished, out);
        }
    }

    fn failed(&mut self, failed: &Failed, out: &mut BytesMut) {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner).has_failed = true;
        out.put_slice(b"data: ");
        out.put_slice(&ApiError::Failed(failed.clone()).to_json(Dialect::OpenAi));
        out.put_slice(b"\n\n");
    }
}

fn write_json(out: &mut BytesMut, value: &(impl Serialize + ?Sized)) {
    // Strings and numbers: nothing that JSON could refuse, and memory does not fail to be written.
    let written = serde_json::to_writer(out.writer(), value);
    debug_assert!(written.is_ok());
}
