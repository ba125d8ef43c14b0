//! `OpenAI`'s two ways of writing logprobs down: entries with bytes for chat, columns with offsets for completions.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::detokenize::Detokenizer;
use crate::engine::api::{Prefilled, Token, TopToken};

/// What `OpenAI` writes for minus infinity, which JSON has no number for.
const IMPOSSIBLE: f32 = -9999.0;

/// What was asked for, and the bytes behind each id.
#[derive(Clone, Debug)]
pub(super) struct Logprobs {
    /// Most likely tokens to list at each position.
    pub(super) num_top: usize,
    pub(super) detokenizer: Arc<Detokenizer>,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct ChatLogprobs {
    content: Vec<ChatLogprob>,
    #[schema(value_type = Option<String>)]
    refusal: Option<()>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ChatLogprob {
    #[serde(flatten)]
    token: OneLogprob,
    top_logprobs: Vec<OneLogprob>,
}

#[derive(Debug, Serialize, ToSchema)]
struct OneLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// Columns of equal length.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct TextLogprobs {
    tokens: Vec<String>,
    /// The first token of a prompt has none.
    token_logprobs: Vec<Option<f32>>,
    /// Absent where only the tokens' own were asked for. The first token of a prompt has none.
    #[schema(value_type = Option<Vec<Option<Object>>>)]
    top_logprobs: Option<Vec<Option<Map<String, Value>>>>,
    /// Where each token starts, in characters of the choice's text.
    text_offset: Vec<usize>,
}

impl Logprobs {
    pub(super) fn chat<'a>(&self, tokens: impl IntoIterator<Item = &'a Token>) -> ChatLogprobs {
        let content = tokens.into_iter().map(|token| ChatLogprob {
            token: self.one(token.id, token.logprob),
            top_logprobs: self.top(token).map(|top| self.one(top.id, top.logprob)).collect(),
        });
        ChatLogprobs { content: content.collect(), refusal: None }
    }

    /// Columns of generated tokens, the first of which starts at character `offset`; that moves behind the last.
    pub(super) fn text<'a>(&self, tokens: impl IntoIterator<Item = &'a Token>, offset: &mut usize) -> TextLogprobs {
        let mut columns = self.columns();
        for token in tokens {
            let text = self.token_text(token.id);
            let top = self.with_top(&text, token.logprob, &token.top_tokens);
            let bytes = self.detokenizer.token_bytes(token.id);
            // Control tokens are listed, and not shown.
            let said = if self.detokenizer.is_special(token.id) { &[] } else { bytes.as_slice() };
            columns.begin(said, offset);
            columns.push(text, Some(finite(token.logprob)), Some(top));
        }
        columns
    }

    /// Columns of the tokens of a prompt, which reads `text`.
    pub(super) fn prompt(&self, text: &str, ids: &[u32], prefilled: &Prefilled, offset: &mut usize) -> TextLogprobs {
        let mut columns = self.columns();
        let mut unread = text.as_bytes();
        for (index, id) in ids.iter().enumerate() {
            let text = self.token_text(*id);
            let logprob = prefilled.prompt_logprobs.get(index).copied().flatten();
            let top = prefilled.prompt_top_tokens.get(index).map_or(&[][..], Vec::as_slice);
            let top = logprob.map(|logprob| self.with_top(&text, logprob, top));
            let (said, rest) = unread.split_at(self.width(*id, unread));
            unread = rest;
            columns.begin(said, offset);
            columns.push(text, logprob.map(finite), top);
        }
        columns
    }

    /// Bytes of `unread` that the next token of a prompt stands for: none of them if the tokenizer added it, or the blank
    /// that it has.
    fn width(&self, id: u32, unread: &[u8]) -> usize {
        let bytes = self.detokenizer.token_bytes(id);
        let bare = bytes.strip_prefix(b" ").unwrap_or(&bytes);
        match () {
            () if unread.starts_with(&bytes) => bytes.len(),
            () if self.detokenizer.is_special(id) => 0,
            () if unread.starts_with(bare) => bare.len(),
            () => bytes.len().min(unread.len()),
        }
    }

    fn columns(&self) -> TextLogprobs {
        TextLogprobs { top_logprobs: (self.num_top > 0).then(Vec::new), ..TextLogprobs::default() }
    }

    /// The likeliest tokens by their text, and the one that is there.
    fn with_top(&self, text: &str, logprob: f32, top: &[TopToken]) -> Map<String, Value> {
        let top = top.iter().take(self.num_top).map(|top| (self.token_text(top.id), finite(top.logprob).into()));
        top.chain([(text.to_owned(), finite(logprob).into())]).collect()
    }

    /// Ties can make a row longer than asked.
    fn top<'a>(&self, token: &'a Token) -> impl Iterator<Item = &'a TopToken> + use<'a> {
        token.top_tokens.iter().take(self.num_top)
    }

    fn one(&self, id: u32, logprob: f32) -> OneLogprob {
        let bytes = self.detokenizer.token_bytes(id);
        OneLogprob { token: String::from_utf8_lossy(&bytes).into_owned(), logprob: finite(logprob), bytes }
    }

    /// A token that is no text by itself is written in bytes, so that two of them differ.
    fn token_text(&self, id: u32) -> String {
        String::from_utf8(self.detokenizer.token_bytes(id)).unwrap_or_else(|error| {
            let bytes = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
            format!("bytes:{}", bytes.collect::<String>())
        })
    }
}

impl TextLogprobs {
    /// The next token stands for these bytes of the text. One that starts inside a character starts where that does.
    fn begin(&mut self, said: &[u8], offset: &mut usize) {
        let is_inside = |byte: &u8| byte & 0b1100_0000 == 0b1000_0000;
        let is_late = said.first().is_some_and(is_inside);
        self.text_offset.push(offset.saturating_sub(usize::from(is_late)));
        *offset += said.iter().filter(|byte| !is_inside(byte)).count();
    }

    fn push(&mut self, text: String, logprob: Option<f32>, top: Option<Map<String, Value>>) {
        self.tokens.push(text);
        self.token_logprobs.push(logprob);
        if let Some(rows) = &mut self.top_logprobs {
            rows.push(top);
        }
    }

    /// The columns of both, one after the other.
    pub(super) fn and(mut self, more: Self) -> Self {
        self.tokens.extend(more.tokens);
        self.token_logprobs.extend(more.token_logprobs);
        self.text_offset.extend(more.text_offset);
        if let (Some(rows), Some(further)) = (&mut self.top_logprobs, more.top_logprobs) {
            rows.extend(further);
        }
        self
    }
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { IMPOSSIBLE }
}
