//! The texts of one sequence: piece by piece, whole, and what may be shown of it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::stop::{StopSearch, StopStrings};
use super::stream::Stream;
use super::{CONTEXT_TOKENS, Detokenizer};

/// What one token did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Text that the token completed, special tokens kept.
    pub text: String,
    /// Text to show: without special tokens, without what may become a stop string, nothing from a found one on.
    pub delta: String,
    pub special: bool,
    /// A stop string is complete: the sequence should end here.
    pub stopped: bool,
}

/// Decodes one sequence. Cost per token is constant; memory is the text.
#[derive(Debug)]
pub struct SequenceText {
    detokenizer: Arc<Detokenizer>,
    kept: Stream,
    /// Without special tokens; `None` while that is the same.
    visible: Option<Stream>,
    search: StopSearch,
    /// The last pieces, at least as long as the longest stop string: bytes kept, bytes visible.
    recent: VecDeque<(usize, usize)>,
    recent_kept: usize,
    /// All visible text.
    generated: String,
    /// Bytes of it that have been passed on.
    passed: usize,
    stopped: bool,
    max_stop_length: usize,
    /// Special tokens that are visible all the same.
    shown: Arc<[u32]>,
}

impl SequenceText {
    /// For a sequence that continues `prompt`, so that a leading space is kept where the tokenizer would strip it from a
    /// text of its own.
    pub fn new(detokenizer: Arc<Detokenizer>, prompt: &[u32], stop: StopStrings) -> Self {
        Self::showing(detokenizer, prompt, stop, &Arc::from([]))
    }

    /// As `new`, with some special tokens visible.
    pub fn showing(detokenizer: Arc<Detokenizer>, prompt: &[u32], stop: StopStrings, shown: &Arc<[u32]>) -> Self {
        let is_hidden = |id: u32| detokenizer.is_special(id) && !shown.contains(&id);
        let context = &prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..];
        // However many special tokens a prompt ends with, text before them is what visible text follows.
        let visible = prompt.iter().rev().filter(|id| !is_hidden(**id)).take(CONTEXT_TOKENS);
        let mut without_special: Vec<u32> = visible.copied().collect();
        without_special.reverse();
        let differs = without_special != context;
        Self {
            kept: Stream::after(context, &detokenizer.decoding),
            visible: differs.then(|| Stream::after(&without_special, &detokenizer.decoding)),
            max_stop_length: stop.max_length(),
            search: StopSearch::new(stop),
            recent: VecDeque::new(),
            recent_kept: 0,
            generated: String::new(),
            passed: 0,
            shown: Arc::clone(shown),
            stopped: false,
            detokenizer,
        }
    }

    /// The next token. Not to be called again after a stop string was found.
    pub fn push(&mut self, id: u32) -> Piece {
        let special = self.detokenizer.is_special(id);
        let is_hidden = special && !self.shown.contains(&id);
        if is_hidden && self.visible.is_none() {
            self.visible = Some(self.kept.clone());
        }
        let text = self.kept.push(id, &self.detokenizer.decoding);
        let num_visible = self.push_visible(id, is_hidden, &text);
        if self.search.is_empty() {
            let delta = self.show(self.generated.len());
            return Piece { text, delta, special, stopped: false };
        }
        self.remember(text.len(), num_visible);
        let end = match self.search.push(&text) {
            None => self.position_before_end(self.search.held()),
            Some(found) => {
                let start = self.position_before_end(found.overshoot + found.length);
                let end = self.position_before_end(found.overshoot);
                self.generated.truncate(end);
                self.stopped = true;
                start
            }
        };
        let delta = self.show(end);
        Piece { text, delta, special, stopped: self.stopped }
    }

    /// The whole text, and what of it is still to be shown. Half a character at the end becomes U+FFFD.
    pub fn finish(mut self) -> (String, String) {
        if self.stopped {
            return (self.generated, String::new());
        }
        let rest = self.visible.as_mut().unwrap_or(&mut self.kept).finish(&self.detokenizer.decoding);
        self.generated.push_str(&rest);
        let delta = self.generated[self.passed..].to_owned();
        (self.generated, delta)
    }

    /// Appends the token's visible text; answers its bytes.
    fn push_visible(&mut self, id: u32, is_hidden: bool, kept: &str) -> usize {
        let before = self.generated.len();
        match &mut self.visible {
            None => self.generated.push_str(kept),
            Some(_) if is_hidden => {}
            Some(stream) => self.generated.push_str(&stream.push(id, &self.detokenizer.decoding)),
        }
        self.generated.len() - before
    }

    fn remember(&mut self, kept: usize, visible: usize) {
        while let Some((oldest, _)) = self.recent.front()
            && self.recent_kept - oldest >= self.max_stop_length
        {
            self.recent_kept -= oldest;
            self.recent.pop_front();
        }
        self.recent.push_back((kept, visible));
        self.recent_kept += kept;
    }

    /// The place in the visible text that lies so many bytes of kept text before the end.
    fn position_before_end(&self, mut kept_bytes: usize) -> usize {
        let mut visible_bytes = 0;
        for (kept, visible) in self.recent.iter().rev() {
            if kept_bytes == 0 {
                break;
            }
            visible_bytes += if kept_bytes < *kept { kept_bytes.min(*visible) } else { *visible };
            kept_bytes = kept_bytes.saturating_sub(*kept);
        }
        let mut position = self.generated.len().saturating_sub(visible_bytes);
        while !self.generated.is_char_boundary(position) {
            position -= 1;
        }
        position
    }

    /// Shows the visible text up to `end`.
    fn show(&mut self, end: usize) -> String {
        let end = end.max(self.passed).min(self.generated.len());
        let delta = self.generated.get(self.passed..end).unwrap_or_default().to_owned();
        self.passed = end;
        delta
    }
}
