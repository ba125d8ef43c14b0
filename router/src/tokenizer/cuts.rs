//! Where a prompt may be cut so that the ids of its pieces, one after another, are those of the whole.
//!
//! Two places are known. *Before a control token*: a tokenizer looks for added tokens before anything else, and encodes
//! what stands between them by itself. *Before a space between two ASCII letters or digits*: if no added token and no
//! token of the model reaches over that place, and the tokenizer's rules look at neither side of it from the other. Which
//! rules do not is a list; a tokenizer with a part that is not on it is not cut there.

use regex::Regex;
use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

/// A piece has at least so many bytes before it ends at a space.
const PIECE_BYTES: usize = 1024;

/// Alternatives of the expressions by which published byte-level tokenizers split. None matches a letter or digit and the
/// space behind it, and none that begins before that space asks what follows it.
const ALTERNATIVES: [&str; 27] = [
    r"\n",
    " {2,}",
    "'s",
    "'t",
    "'re",
    "'ve",
    "'m",
    "'ll",
    "'d",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    "(?i:[sdmt]|ll|ve|re)",
    "'(?i:[sdmt]|ll|ve|re)",
    r" ?\p{L}+",
    r" ?\p{N}+",
    r" ?[^\s\p{L}\p{N}]+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"\p{N}",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s*[\r\n]",
    r"\s+(?!\S)",
    r"\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
];

/// What happens to the space at which a text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Space {
    /// It begins the next piece.
    Kept,
    /// It is left out: the tokenizer's normalizer puts one in front of every text.
    Implied,
}

#[derive(Debug)]
pub(super) struct Cuts {
    /// Every added token that is found before normalizing, longest first, and which of them a piece may begin with.
    added: Option<(Regex, Vec<String>)>,
    space: Option<Space>,
}

impl Cuts {
    /// `json`: the tokenizer's own file. Nothing is cut of a tokenizer that draws by chance.
    pub(super) fn of(json: &[u8], tokenizer: &Tokenizer) -> Self {
        let parts: Value = serde_json::from_slice(json).unwrap_or_default();
        if !parts["model"]["dropout"].is_null() {
            return Self { added: None, space: None };
        }
        let added: Vec<AddedToken> = tokenizer.get_added_tokens_decoder().into_values().collect();
        Self { added: control(&added), space: at_spaces(&parts, tokenizer, &added) }
    }

    /// Whether any text could be cut.
    pub(super) fn any(&self) -> bool {
        self.added.is_some() || self.space.is_some()
    }

    /// The pieces of a text, in order.
    pub(super) fn pieces<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let mut pieces = Vec::new();
        let mut start = 0;
        if let Some((added, severable)) = &self.added {
            for found in added.find_iter(text) {
                if found.start() > start && severable.iter().any(|token| token == found.as_str()) {
                    self.cut_at_spaces(&text[start..found.start()], &mut pieces);
                    start = found.start();
                }
            }
        }
        self.cut_at_spaces(&text[start..], &mut pieces);
        pieces
    }

    fn cut_at_spaces<'a>(&self, mut rest: &'a str, pieces: &mut Vec<&'a str>) {
        if let Some(space) = self.space {
            while let Some(at) = place(rest) {
                pieces.push(&rest[..at]);
                rest = &rest[if space == Space::Kept { at } else { at + 1 }..];
            }
        }
        pieces.push(rest);
    }
}

/// The first space between ASCII letters or digits behind as many bytes as a piece has.
fn place(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let is_word = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_alphanumeric);
    (PIECE_BYTES..bytes.len()).find(|at| bytes[*at] == b' ' && is_word(at - 1) && is_word(at + 1))
}

/// A piece may begin with a token that touches nothing before it.
fn control(added: &[AddedToken]) -> Option<(Regex, Vec<String>)> {
    let mut found: Vec<&AddedToken> = added.iter().filter(|token| !token.normalized).collect();
    found.sort_unstable_by_key(|token| std::cmp::Reverse(token.content.len()));
    let pattern = found.iter().map(|token| regex::escape(&token.content)).collect::<Vec<_>>().join("|");
    let severable = found.iter().filter(|token| !token.lstrip && !token.single_word);
    let severable: Vec<String> = severable.map(|token| token.content.clone()).collect();
    if severable.is_empty() {
        return None;
    }
    Some((Regex::new(&pattern).ok()?, severable))
}

/// Whether a text may be cut at spaces between words, and what becomes of the space.
fn at_spaces(parts: &Value, tokenizer: &Tokenizer, added: &[AddedToken]) -> Option<Space> {
    let normalizer = Normalizer::of(&parts["normalizer"])?;
    let space = if normalizer.prepends { Space::Implied } else { Space::Kept };
    let words = words(&parts["pre_tokenizer"], normalizer.mark)?;
    let apart = match words {
        Words::Apart => true,
        Words::Together(mark) => {
            let model = &parts["model"];
            let plain = ["continuing_subword_prefix", "end_of_word_suffix"].iter().all(|part| model[*part].is_null());
            let plain = plain && model["ignore_merges"].as_bool() != Some(true);
            let vocab = tokenizer.get_vocab(false);
            let known = vocab.contains_key(mark.encode_utf8(&mut [0; 4]) as &str);
            model["type"] == "BPE" && plain && known && !vocab.keys().any(|token| reaches_over(token, mark))
        }
    };
    let harmless = |token: &AddedToken| {
        let (first, last) = (token.content.chars().next(), token.content.chars().next_back());
        let is_word = |end: Option<char>| end.is_none_or(|c| c.is_ascii_alphanumeric());
        let spaced = token.content.chars().zip(token.content.chars().skip(1));
        let spaced = spaced.into_iter().any(|(before, c)| is_space(c) && !is_space(before));
        let touches = space == Space::Implied && (is_word(first) || is_word(last));
        let strips = token.lstrip && is_word(first) || token.rstrip && is_word(last);
        !(spaced || touches || strips)
    };
    (apart && added.iter().all(harmless)).then_some(space)
}

fn is_space(c: char) -> bool {
    c.is_whitespace() || c == '\u{2581}'
}

/// Whether a token has a mark behind anything but a mark.
fn reaches_over(token: &str, mark: char) -> bool {
    token.chars().zip(token.chars().skip(1)).any(|(before, c)| c == mark && before != mark)
}

/// A normalizer that leaves a space between ASCII letters or digits alone, or writes a mark for it.
#[derive(Debug, Default)]
struct Normalizer {
    mark: Option<char>,
    /// The mark is put in front of every text, too.
    prepends: bool,
}

impl Normalizer {
    fn of(described: &Value) -> Option<Self> {
        let mut made = Self::default();
        let mut prepended = None;
        for part in sequence(described, "normalizers") {
            match part["type"].as_str()? {
                "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" | "StripAccents" | "BertNormalizer" => {}
                "Prepend" => prepended = Some(single(&part["prepend"])?),
                "Replace" if part["pattern"]["String"] == " " => made.mark = Some(single(&part["content"])?),
                _ => return None,
            }
        }
        made.prepends = prepended.is_some();
        (prepended.is_none() || prepended == made.mark).then_some(made)
    }
}

/// Whether words reach the model one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    Apart,
    /// With this mark for each space.
    Together(char),
}

fn words(described: &Value, mark: Option<char>) -> Option<Words> {
    let mut mark = mark;
    let mut apart = false;
    for part in sequence(described, "pretokenizers") {
        match part["type"].as_str()? {
            // Here a mark for the space is no space any more, and other letters than ASCII's may be part of words.
            "ByteLevel" | "Whitespace" | "WhitespaceSplit" | "BertPreTokenizer" if mark.is_some() => return None,
            "ByteLevel" => apart |= part["use_regex"].as_bool() != Some(false),
            "Whitespace" | "WhitespaceSplit" | "BertPreTokenizer" => apart = true,
            "Digits" => {}
            "Metaspace" => {
                mark = Some(single(&part["replacement"])?);
                apart |= part["split"].as_bool() != Some(false);
            }
            // Every space is a mark by now.
            "Split" if mark.is_some() && part["pattern"]["String"] == " " => {}
            "Split" if mark.is_none() => {
                let isolated = part["behavior"] == "Isolated" && part["invert"].as_bool() != Some(true);
                let alternatives = alternatives(part["pattern"]["Regex"].as_str()?);
                if !isolated || !alternatives.iter().all(|alternative| ALTERNATIVES.contains(alternative)) {
                    return None;
                }
                // Whatever else there is, a match begins at the space.
                apart |= alternatives.contains(&r"\s+");
            }
            _ => return None,
        }
    }
    if apart { Some(Words::Apart) } else { mark.map(Words::Together) }
}

/// The alternatives of an expression.
fn alternatives(expression: &str) -> Vec<&str> {
    let (mut depth, mut in_class, mut escaped, mut start) = (0, false, false, 0);
    let mut alternatives = Vec::new();
    for (at, c) in expression.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ']' => in_class = false,
            _ if in_class => {}
            '[' => in_class = true,
            '(' => depth += 1,
            ')' => depth -= 1,
            '|' if depth == 0 => {
                alternatives.push(&expression[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    alternatives.push(&expression[start..]);
    alternatives
}

/// The parts of a normalizer or pre-tokenizer; none of one that is absent.
fn sequence<'a>(described: &'a Value, parts: &str) -> Vec<&'a Value> {
    match described {
        Value::Null => Vec::new(),
        _ if described["type"] == "Sequence" => described[parts].as_array().into_iter().flatten().collect(),
        _ => vec![described],
    }
}

/// The character of a text that has one.
fn single(text: &Value) -> Option<char> {
    let mut characters = text.as_str()?.chars();
    characters.next().filter(|_| characters.next().is_none())
}
