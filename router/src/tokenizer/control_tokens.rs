//! Keeps a model's control tokens out of reach of chat content.
//!
//! A control token is an added token that is marked special, or that the chat template writes. Text from messages is
//! *guarded* before rendering: a mark goes into each control token written there, so that it is none any more, while
//! templates can still trim, split and compare the text. In the rendered prompt every control token that is still whole
//! was therefore written by the template: it is *spelled* in characters that no message can contain (a message's own are
//! replaced), then the marks are removed. A tokenizer of our own knows the control tokens by that spelling only.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use regex::{Captures, Regex};
use tokenizers::{AddedToken, AddedVocabulary, Model, Tokenizer};

use super::memo::Memo;
use super::{EncodeError, TokenSpan};

/// Unicode's noncharacters U+FDD0 … U+FDEF are never exchanged between programs: nobody misses them in a message.
/// `MARK` stands inside what would be a control token, `QUOTED` behind one that is too short to stand in.
const MARK: char = '\u{FDD0}';
const QUOTED: char = '\u{FDD2}';
/// Free for whoever has to find a place again in the rendered text.
pub(super) const GOES_ON: char = '\u{FDD3}';
const SPELLING_START: char = '\u{FDD1}';
/// Nine characters of three bytes.
const SPELLING_BYTES: usize = 27;
const FIRST_DIGIT: u32 = 0xFDE0;
const NONCHARACTERS: std::ops::RangeInclusive<char> = '\u{FDD0}'..='\u{FDEF}';

#[derive(Debug)]
pub(super) struct ControlTokens {
    /// All control tokens, longest first; `None` if the model has none.
    pattern: Option<Regex>,
    spellings: HashMap<String, String>,
    /// Proper prefixes and suffixes of control tokens, which text beside a message could complete.
    prefixes: HashSet<String>,
    suffixes: HashSet<String>,
    /// Bytes of the longest control token.
    longest: usize,
    /// Knows control tokens by their spelling.
    tokenizer: Tokenizer,
    /// From its ids to the model's, where they differ.
    model_ids: HashMap<u32, u32>,
    /// The model's ids of control tokens.
    control_ids: HashMap<u32, String>,
    /// Spellings of control tokens that touch nothing before them: a text may be cut there.
    severable: HashSet<String>,
    memo: Memo,
}

impl ControlTokens {
    /// The control tokens of `tokenizer` under `template`; an error leaves no safe way to render.
    pub(super) fn new(tokenizer: &Tokenizer, template: &str) -> Result<Self, String> {
        let mut added: Vec<(u32, AddedToken)> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        added.sort_unstable_by_key(|(id, _)| *id);
        let is_control = |token: &AddedToken| {
            let text = token.content.trim();
            !text.is_empty() && (token.special || template.contains(text))
        };
        let mut control_ids = HashMap::new();
        let mut spellings = HashMap::new();
        let mut severable = HashSet::new();
        for (id, token) in added.iter().filter(|(_, token)| is_control(token)) {
            control_ids.insert(*id, token.content.clone());
            spellings.insert(token.content.clone(), spelling(*id));
            if !token.lstrip && !token.single_word {
                severable.insert(spelling(*id));
            }
        }
        let (tokenizer, model_ids) = respelled(tokenizer, added, &spellings)?;
        let texts = || spellings.keys().map(String::as_str);
        Ok(Self {
            pattern: pattern(texts())?,
            prefixes: texts().flat_map(|text| cuts(text).map(|at| text[..at].to_owned())).collect(),
            suffixes: texts().flat_map(|text| cuts(text).map(|at| text[at..].to_owned())).collect(),
            longest: texts().map(str::len).max().unwrap_or(0),
            spellings,
            tokenizer,
            model_ids,
            control_ids,
            severable,
            memo: Memo::default(),
        })
    }

    /// Text from a message, made harmless for rendering.
    pub(super) fn guard(&self, text: &str) -> String {
        let text = text.replace(|c| NONCHARACTERS.contains(&c), "\u{FFFD}");
        let Some(pattern) = &self.pattern else { return text };
        let mut guarded = String::with_capacity(text.len());
        let mut copied = 0;
        // Searching on right after the mark finds tokens that overlap.
        while let Some(found) = pattern.find_at(&text, copied) {
            let first = found.as_str().chars().next().map_or(0, char::len_utf8);
            let mark_at = found.start() + first;
            guarded.push_str(&text[copied..mark_at]);
            guarded.push(if mark_at == found.end() { QUOTED } else { MARK });
            copied = mark_at;
        }
        guarded.push_str(&text[copied..]);
        guarded
    }

    /// As `guard`, for text that a template puts between its own: neither end may complete a control token.
    pub(super) fn guard_ends(&self, text: &str) -> String {
        let mut guarded = self.guard(text);
        let core = guarded.trim();
        let end = guarded.trim_end().len();
        let start = end - core.len().min(end);
        let boundaries = || core.char_indices().map(|(at, _)| at);
        let opens = boundaries().rev().map(|at| &core[at..]).take_while(|tail| tail.len() < self.longest);
        let closes = boundaries().skip(1).chain([core.len()]).map(|at| &core[..at]);
        let closes = closes.take_while(|head| head.len() < self.longest);
        let (opens, closes) = (opens.collect::<Vec<_>>(), closes.collect::<Vec<_>>());
        let opens = opens.into_iter().any(|tail| self.prefixes.contains(tail));
        let closes = closes.into_iter().any(|head| self.suffixes.contains(head));
        if opens {
            guarded.insert(end, MARK);
        }
        if closes {
            guarded.insert(start, MARK);
        }
        guarded
    }

    /// What the prompt says, marks removed.
    pub(super) fn plain(rendered: &str) -> String {
        rendered.replace([MARK, QUOTED], "")
    }

    /// Ids of a rendered prompt. Adds no special tokens: the template writes what it wants.
    ///
    /// A tokenizer looks for added tokens before anything else, and encodes what stands between them by itself; so a
    /// prompt's ids are those of its pieces, if each but the first begins with such a token. Pieces are remembered.
    pub(super) fn encode(&self, rendered: &str) -> Result<Vec<u32>, EncodeError> {
        let text = Self::plain(&self.spell(rendered));
        let mut ids = Vec::new();
        for piece in self.pieces(&text) {
            let encode = |piece: &str| Ok(self.encode_spelled(piece)?.into_iter().map(|span| span.id).collect());
            ids.extend_from_slice(&self.memo.ids(piece, encode)?);
        }
        Ok(ids)
    }

    /// A spelled text, cut before control tokens.
    fn pieces<'a>(&self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let may_cut = |at: usize| text.get(at..at + SPELLING_BYTES).is_some_and(|token| self.severable.contains(token));
        let starts = text.match_indices(SPELLING_START).map(|(at, _)| at).filter(|at| *at > 0 && may_cut(*at));
        let ends: Vec<usize> = starts.chain([text.len()]).collect();
        let mut start = 0;
        ends.into_iter().map(move |end| &text[std::mem::replace(&mut start, end)..end])
    }

    /// As `encode`, with the bytes of the plain prompt behind each token.
    pub(super) fn encode_spans(&self, rendered: &str) -> Result<Vec<TokenSpan>, EncodeError> {
        self.encode_spelled(&Self::plain(&self.spell(rendered)))
    }

    fn encode_spelled(&self, text: &str) -> Result<Vec<TokenSpan>, EncodeError> {
        let failed = |error: tokenizers::Error| EncodeError(error.to_string());
        let encoding = self.tokenizer.encode(text, false).map_err(failed)?;
        let mut spans = Vec::with_capacity(encoding.len());
        // Bytes by which what was spelled so far is longer than in the prompt.
        let mut excess = 0;
        for (&id, &(start, stop)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            let written = text.get(start..stop).unwrap_or_default();
            if self.control_ids.get(&id).is_some_and(|control| control == written) {
                let ids = self.encode_by_character(written)?.into_iter();
                spans.extend(ids.map(|id| TokenSpan { id, start: start - excess, stop: stop - excess }));
                continue;
            }
            let id = self.model_ids.get(&id).copied().unwrap_or(id);
            let start = start - excess;
            if written.starts_with(SPELLING_START) {
                excess += written.len() - self.control_ids.get(&id).map_or(0, String::len);
            }
            spans.push(TokenSpan { id, start, stop: stop - excess });
        }
        Ok(spans)
    }

    /// Every control token that is whole and not quoted, by its spelling.
    fn spell<'a>(&self, rendered: &'a str) -> Cow<'a, str> {
        let Some(pattern) = &self.pattern else { return rendered.into() };
        pattern.replace_all(rendered, |found: &Captures<'_>| {
            let quoted = found.get(0).is_some_and(|found| rendered[found.end()..].starts_with(QUOTED));
            let spelling = self.spellings.get(&found[0]).filter(|_| !quoted);
            spelling.map_or_else(|| found[0].to_owned(), Clone::clone)
        })
    }

    /// Some models' own vocabulary (Unigram's, say) holds a control token's text as an ordinary piece.
    fn encode_by_character(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let mut ids = Vec::new();
        for character in text.chars() {
            let pieces = self.tokenizer.get_model().tokenize(character.encode_utf8(&mut [0; 4]));
            let pieces = pieces.map_err(|error| EncodeError(error.to_string()))?;
            ids.extend(pieces.into_iter().map(|piece| piece.id));
        }
        Ok(ids)
    }
}

/// A text that stands for token `id` and cannot be typed.
fn spelling(id: u32) -> String {
    let digit = |shift: u32| char::from_u32(FIRST_DIGIT + ((id >> shift) & 0xF)).unwrap_or(MARK);
    std::iter::once(SPELLING_START).chain((0..8).rev().map(|place| digit(4 * place))).collect()
}

fn pattern<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Option<Regex>, String> {
    let mut texts: Vec<&str> = texts.collect();
    if texts.is_empty() {
        return Ok(None);
    }
    texts.sort_unstable_by_key(|text| Reverse(text.len()));
    let alternatives: Vec<String> = texts.into_iter().map(regex::escape).collect();
    Regex::new(&alternatives.join("|")).map(Some).map_err(|error| error.to_string())
}

/// The character boundaries strictly inside a text.
fn cuts(text: &str) -> impl Iterator<Item = usize> {
    text.char_indices().map(|(at, _)| at).skip(1)
}

/// A copy of the tokenizer with the control tokens respelled, and the map from its ids to the model's.
fn respelled(
    tokenizer: &Tokenizer,
    added: Vec<(u32, AddedToken)>,
    spellings: &HashMap<String, String>,
) -> Result<(Tokenizer, HashMap<u32, u32>), String> {
    let mut respelled = tokenizer.clone();
    respelled.with_added_vocabulary(AddedVocabulary::new());
    let mut originals = Vec::with_capacity(added.len());
    for (id, mut token) in added {
        if let Some(spelling) = spellings.get(&token.content) {
            token.content.clone_from(spelling);
            // Found before any normalizer could touch the spelling.
            token.normalized = false;
        }
        originals.push((id, token));
    }
    let tokens: Vec<AddedToken> = originals.iter().map(|(_, token)| token.clone()).collect();
    respelled.add_tokens(tokens).map_err(|error| error.to_string())?;
    let mut model_ids = HashMap::new();
    for (id, token) in originals {
        let own = respelled.token_to_id(&token.content).ok_or("an added token was not added")?;
        if own != id {
            model_ids.insert(own, id);
        }
    }
    let model = respelled.get_model();
    if model_ids.keys().any(|own| model.id_to_token(*own).is_some()) {
        return Err("the tokenizer's vocabulary has gaps in its ids".to_owned());
    }
    Ok((respelled, model_ids))
}
