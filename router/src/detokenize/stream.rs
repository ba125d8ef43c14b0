//! One sequence's ids to text as they come.

use tokenizers::Tokenizer;

use super::Decoding;
use super::table::Family;

/// No character is longer than four tokens; a text that still ends in U+FFFD after this many is broken, not unfinished.
const MAX_PENDING_TOKENS: usize = 8;

/// Decodes ids one by one; what it returns is never half a character.
#[derive(Clone, Debug)]
pub(super) enum Stream {
    ByteLevel { pending: Vec<u8> },
    ByteFallback { run: ByteRun, strip: usize },
    Window(Window),
}

impl Stream {
    /// For what follows these ids.
    pub(super) fn after(context: &[u32], decoding: &Decoding) -> Self {
        match decoding {
            Decoding::Window(tokenizer) => Self::Window(Window::after(context.to_vec(), tokenizer)),
            Decoding::Table(table) => match &table.family {
                Family::ByteLevel => Self::ByteLevel { pending: Vec::new() },
                Family::ByteFallback { strip, .. } => {
                    let strip = strip.filter(|_| context.is_empty()).map_or(0, |(_, times)| times);
                    Self::ByteFallback { run: ByteRun::default(), strip }
                }
            },
        }
    }

    /// The text that this token completes. `decoding` is the one it was made for.
    pub(super) fn push(&mut self, id: u32, decoding: &Decoding) -> String {
        match (self, decoding) {
            (Self::Window(window), Decoding::Window(tokenizer)) => window.push(id, tokenizer),
            (Self::ByteLevel { pending }, Decoding::Table(table)) => push_bytes(pending, table.bytes(id)),
            (Self::ByteFallback { run, strip }, Decoding::Table(table)) => {
                let text = run.push(table.bytes(id), table.is_fallback_byte(id));
                strip_start(text, strip, table.stripped_character())
            }
            _ => unreachable!("a stream is used with the decoding it was made for"),
        }
    }

    /// What is left at the end: U+FFFD for what never became a character.
    pub(super) fn finish(&mut self, decoding: &Decoding) -> String {
        match (self, decoding) {
            (Self::Window(window), Decoding::Window(tokenizer)) => window.finish(tokenizer),
            (Self::ByteLevel { pending }, _) => String::from_utf8_lossy(&std::mem::take(pending)).into_owned(),
            (Self::ByteFallback { run, .. }, _) => run.close(),
            _ => unreachable!("a stream is used with the decoding it was made for"),
        }
    }
}

/// Appends bytes and takes out what is decided: characters, and U+FFFD for what cannot become one. As
/// `String::from_utf8_lossy` would say of everything at once.
fn push_bytes(pending: &mut Vec<u8>, bytes: &[u8]) -> String {
    if pending.is_empty()
        && let Ok(text) = std::str::from_utf8(bytes)
    {
        return text.to_owned();
    }
    pending.extend_from_slice(bytes);
    let undecided = undecided_tail(pending);
    let decided = pending.len() - undecided;
    let text = String::from_utf8_lossy(&pending[..decided]).into_owned();
    pending.drain(..decided);
    text
}

/// How many bytes at the end may yet become one character.
fn undecided_tail(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Err(error) = std::str::from_utf8(rest) {
        let after_valid = &rest[error.valid_up_to()..];
        match error.error_len() {
            Some(length) => rest = &after_valid[length..],
            None => return after_valid.len(),
        }
    }
    0
}

/// Consecutive byte tokens. The tokenizer reads a whole run as UTF-8 or, if it is not, as one U+FFFD per byte; here
/// characters leave as soon as they are whole, so of a broken run only the rest becomes U+FFFD.
#[derive(Clone, Debug, Default)]
pub(super) struct ByteRun {
    pending: Vec<u8>,
    broken: bool,
}

impl ByteRun {
    fn push(&mut self, bytes: &[u8], is_byte: bool) -> String {
        if !is_byte {
            let mut text = self.close();
            text.push_str(&String::from_utf8_lossy(bytes));
            return text;
        }
        self.pending.extend_from_slice(bytes);
        match std::str::from_utf8(&self.pending) {
            Ok(text) if !self.broken => {
                let text = text.to_owned();
                self.pending.clear();
                text
            }
            Err(error) if error.error_len().is_none() && !self.broken => String::new(),
            _ => {
                self.broken = true;
                self.take_replaced()
            }
        }
    }

    fn close(&mut self) -> String {
        self.broken = false;
        self.take_replaced()
    }

    fn take_replaced(&mut self) -> String {
        let text = "\u{FFFD}".repeat(self.pending.len());
        self.pending.clear();
        text
    }
}

/// Removes up to `left` leading `character`s from the first text of a sequence.
fn strip_start(mut text: String, left: &mut usize, character: Option<char>) -> String {
    while *left > 0 && !text.is_empty() {
        if text.chars().next() == character {
            text.remove(0);
            *left -= 1;
        } else {
            *left = 0;
        }
    }
    text
}

/// The general path: decodes a few tokens again with each new one, so that any decoder can look back.
#[derive(Clone, Debug)]
pub(super) struct Window {
    /// Context first, then what has come since text last left.
    ids: Vec<u32>,
    num_context: usize,
    context_text: String,
}

impl Window {
    fn after(context: Vec<u32>, tokenizer: &Tokenizer) -> Self {
        let context_text = decode(tokenizer, &context);
        Self { num_context: context.len(), ids: context, context_text }
    }

    fn push(&mut self, id: u32, tokenizer: &Tokenizer) -> String {
        self.ids.push(id);
        let text = decode(tokenizer, &self.ids);
        let piece = self.beyond_context(&text);
        let may_change = piece.is_empty() || piece.ends_with('\u{FFFD}');
        if may_change && self.ids.len() - self.num_context < MAX_PENDING_TOKENS {
            return String::new();
        }
        let piece = piece.to_owned();
        self.ids.drain(..self.num_context);
        *self = Self::after(std::mem::take(&mut self.ids), tokenizer);
        piece
    }

    fn finish(&mut self, tokenizer: &Tokenizer) -> String {
        let text = decode(tokenizer, &self.ids);
        let piece = self.beyond_context(&text).to_owned();
        self.num_context = self.ids.len();
        self.context_text = text;
        piece
    }

    fn beyond_context<'a>(&self, text: &'a str) -> &'a str {
        text.get(self.context_text.len()..).unwrap_or_default()
    }
}

/// What the tokenizer says, special tokens included; nothing if it fails, which only a broken tokenizer.json makes it do.
fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    tokenizer.decode(ids, false).unwrap_or_default()
}
