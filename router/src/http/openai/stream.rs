//! Streamed answers. All chunks of one choice differ in a few bytes: the rest is written once, before the first.

use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use bytes::{BufMut, BytesMut};
use futures::stream::{self, SelectAll, Stream, StreamExt};
use serde::Serialize;

use super::response::{Envelope, SYSTEM_FINGERPRINT, Usage, finish_reason};
use crate::engine::api::{Failed, Finished, Prefilled, Token};
use crate::http::admission::Admitted;
use crate::http::error::{ApiError, Dialect};
use crate::http::sse::{self, DONE, Encode};

/// How the two routes differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Chat,
}

/// One streamed answer.
#[derive(Debug)]
pub(super) struct Streamed {
    pub(super) form: Form,
    pub(super) envelope: Envelope,
    /// Whether a chunk with the usage ends it.
    pub(super) wants_usage: bool,
}

/// Of all choices together.
#[derive(Debug, Default)]
struct Totals {
    usage: Usage,
    has_failed: bool,
}

impl Streamed {
    /// The chunks of all choices as they come, then what ends the answer.
    pub(super) fn chunks(self, choices: Vec<Admitted>) -> impl Stream<Item = Bytes> + Send + 'static {
        let totals = Arc::new(Mutex::new(Totals::default()));
        let mut all = SelectAll::new();
        for (index, admitted) in choices.into_iter().enumerate() {
            let encoder = self.encoder(index, admitted.ticket.prompt_tokens, Arc::clone(&totals));
            all.push(Box::pin(sse::chunks(admitted, encoder)));
        }
        all.chain(stream::once(async move { self.ending(&totals) }))
    }

    fn encoder(&self, index: usize, prompt_tokens: u32, totals: Arc<Mutex<Totals>>) -> ChoiceEncoder {
        let mut head = self.head();
        head.extend_from_slice(format!("[{{\"index\":{index},").as_bytes());
        let tail = match (self.form, self.wants_usage) {
            (Form::Text, false) => "}]}\n\n",
            (Form::Text, true) | (Form::Chat, _) => "}],\"usage\":null}\n\n",
        };
        ChoiceEncoder { form: self.form, head, tail, prompt_tokens, totals, has_begun: false }
    }

    /// A chunk up to its choices.
    fn head(&self) -> Vec<u8> {
        let Envelope { id, created, model } = &self.envelope;
        let object = match self.form {
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
        if self.wants_usage && !totals.has_failed {
            out.put_slice(&self.head());
            out.put_slice(b"[],\"usage\":");
            write_json(&mut out, &totals.usage);
            out.put_slice(b"}\n\n");
        }
        out.put_slice(DONE);
        out.freeze()
    }
}

/// The stream of one choice.
#[derive(Debug)]
struct ChoiceEncoder {
    form: Form,
    /// A chunk up to what is new in it.
    head: Vec<u8>,
    /// A chunk from behind its finish reason.
    tail: &'static str,
    prompt_tokens: u32,
    totals: Arc<Mutex<Totals>>,
    has_begun: bool,
}

impl ChoiceEncoder {
    /// A conversation's first chunk says who speaks.
    fn begin(&mut self, out: &mut BytesMut) {
        if self.form == Form::Chat && !self.has_begun {
            self.write(
                out,
                "\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null",
            );
        }
        self.has_begun = true;
    }

    fn write(&self, out: &mut BytesMut, news: &str) {
        out.put_slice(&self.head);
        out.put_slice(news.as_bytes());
        out.put_slice(self.tail.as_bytes());
    }

    fn write_text(&self, out: &mut BytesMut, text: &str) {
        if text.is_empty() {
            return;
        }
        let (before, after): (&[u8], &[u8]) = match self.form {
            Form::Text => (b"\"text\":", b",\"logprobs\":null,\"finish_reason\":null"),
            Form::Chat => (b"\"delta\":{\"content\":", b"},\"logprobs\":null,\"finish_reason\":null"),
        };
        out.put_slice(&self.head);
        out.put_slice(before);
        write_json(out, text);
        out.put_slice(after);
        out.put_slice(self.tail.as_bytes());
    }

    fn finish(&self, finished: &Finished, out: &mut BytesMut) {
        self.write_text(out, &finished.delta);
        let nothing = match self.form {
            Form::Text => "\"text\":\"\"",
            Form::Chat => "\"delta\":{}",
        };
        let reason = finish_reason(finished.reason);
        self.write(out, &format!("{nothing},\"logprobs\":null,\"finish_reason\":\"{reason}\""));
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals.usage.add(Usage::new(self.prompt_tokens, finished.generated_tokens));
    }
}

impl Encode for ChoiceEncoder {
    fn prefilled(&mut self, _: &Prefilled, out: &mut BytesMut) {
        self.begin(out);
    }

    fn token(&mut self, token: &Token, end: Option<&Finished>, out: &mut BytesMut) {
        self.begin(out);
        self.write_text(out, &token.delta);
        if let Some(finished) = end {
            self.finish(finished, out);
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
