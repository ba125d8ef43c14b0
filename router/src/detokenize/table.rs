//! The fast path: decoders under which a token is the same bytes wherever it stands.
//!
//! Two families cover nearly all models. Byte-level BPE (GPT-2, Llama 3, Qwen): a token is raw bytes, written with 256
//! stand-in characters. `SentencePiece` with byte fallback (Llama 2, Mistral, Gemma): a token is text with `▁` for a
//! space, or one raw byte written `<0xNN>`. How bytes join into characters is `stream`'s part.

use serde_json::Value;
use tokenizers::Tokenizer;

/// The bytes of every token.
#[derive(Debug)]
pub(super) struct Table {
    bytes: Vec<u8>,
    /// Token `id` is `bytes[ends[id - 1]..ends[id]]`.
    ends: Vec<u32>,
    pub(super) family: Family,
}

/// How tokens join into text.
#[derive(Debug)]
pub(super) enum Family {
    /// Bytes are concatenated, then decoded lossily.
    ByteLevel,
    /// Consecutive byte tokens form a run that is decoded on its own.
    ByteFallback {
        /// By token id: whether it is a byte token.
        is_byte: Vec<bool>,
        /// Removed from the very start of a text, up to so many times.
        strip: Option<(char, usize)>,
    },
}

impl Table {
    /// `None` if the tokenizer's decoder is of another kind.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let decoder = serde_json::to_value(tokenizer.get_decoder()?).ok()?;
        let scheme = Scheme::of(&decoder)?;
        let mut table = Self { bytes: Vec::new(), ends: Vec::new(), family: Family::ByteLevel };
        let mut is_byte = Vec::new();
        let size = tokenizer.get_vocab(true).values().max().map_or(0, |largest| largest + 1);
        for id in 0..size {
            let token = tokenizer.id_to_token(id).unwrap_or_default();
            match &scheme {
                Scheme::ByteLevel => table.bytes.extend(byte_level_bytes(&token)),
                Scheme::ByteFallback { replacements, .. } => {
                    let text = replacements.iter().fold(token, |text, (from, to)| text.replace(from, to));
                    let byte = fallback_byte(&text);
                    is_byte.push(byte.is_some());
                    match byte {
                        Some(byte) => table.bytes.push(byte),
                        None => table.bytes.extend(text.as_bytes()),
                    }
                }
            }
            table.ends.push(u32::try_from(table.bytes.len()).ok()?);
        }
        if let Scheme::ByteFallback { strip, .. } = scheme {
            table.family = Family::ByteFallback { is_byte, strip };
        }
        Some(table)
    }

    /// Empty for ids that the tokenizer does not know: a model's vocabulary may be padded.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..*end as usize]
    }

    /// Whether the token is one raw byte of a run.
    pub(super) fn is_fallback_byte(&self, id: u32) -> bool {
        match &self.family {
            Family::ByteLevel => false,
            Family::ByteFallback { is_byte, .. } => is_byte.get(id as usize).copied().unwrap_or(false),
        }
    }

    /// The character that is stripped from the start of a text.
    pub(super) fn stripped_character(&self) -> Option<char> {
        match &self.family {
            Family::ByteLevel => None,
            Family::ByteFallback { strip, .. } => strip.map(|(character, _)| character),
        }
    }
}

enum Scheme {
    ByteLevel,
    ByteFallback { replacements: Vec<(String, String)>, strip: Option<(char, usize)> },
}

impl Scheme {
    /// Reads a decoder as tokenizer.json writes it.
    fn of(decoder: &Value) -> Option<Self> {
        let single = std::slice::from_ref(decoder);
        let steps = decoder.get("decoders").and_then(Value::as_array).map_or(single, Vec::as_slice);
        if let [only] = steps
            && kind(only) == "ByteLevel"
        {
            return Some(Self::ByteLevel);
        }
        let fallback = steps.iter().position(|step| kind(step) == "ByteFallback")?;
        let replacements = steps[..fallback].iter().map(replacement).collect::<Option<Vec<_>>>()?;
        let strip = match &steps[fallback + 1..] {
            [] => None,
            [fuse] if kind(fuse) == "Fuse" => None,
            [fuse, strip] if kind(fuse) == "Fuse" && kind(strip) == "Strip" => Some(left_strip(strip)?),
            _ => return None,
        };
        Some(Self::ByteFallback { replacements, strip })
    }
}

fn kind(step: &Value) -> &str {
    step["type"].as_str().unwrap_or_default()
}

/// A `Replace` of a fixed string.
fn replacement(step: &Value) -> Option<(String, String)> {
    let pattern = step["pattern"]["String"].as_str().filter(|_| kind(step) == "Replace")?;
    Some((pattern.to_owned(), step["content"].as_str()?.to_owned()))
}

/// A `Strip` that touches only the start: text that has been sent cannot be stripped at its end.
fn left_strip(step: &Value) -> Option<(char, usize)> {
    if step["stop"].as_u64()? != 0 {
        return None;
    }
    Some((step["content"].as_str()?.chars().next()?, usize::try_from(step["start"].as_u64()?).ok()?))
}

/// `<0xNN>` as `ByteFallback` reads it.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

/// Undoes GPT-2's stand-in characters; a token with any other character is its own text.
fn byte_level_bytes(token: &str) -> Vec<u8> {
    token.chars().map(stand_in_byte).collect::<Option<Vec<_>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// GPT-2's table: printable bytes stand for themselves, the other 68 in order for U+0100 and up.
fn stand_in_byte(character: char) -> Option<u8> {
    let code = u32::from(character);
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    #[test]
    fn stand_ins_are_those_of_byte_level_tokenizers() {
        let bytes: Vec<u8> = ByteLevel::alphabet().into_iter().filter_map(stand_in_byte).collect();
        let distinct: std::collections::HashSet<u8> = bytes.iter().copied().collect();
        assert_eq!((bytes.len(), distinct.len()), (256, 256));
        assert_eq!(byte_level_bytes("Ġhello"), b" hello");
        assert_eq!(byte_level_bytes("Ċ"), b"\n");
        assert_eq!(byte_level_bytes("two words"), b"two words");
    }

    #[test]
    fn byte_tokens_are_read_as_byte_fallback_reads_them() {
        assert_eq!(fallback_byte("<0xE4>"), Some(0xE4));
        assert_eq!(fallback_byte("<0xG0>"), None);
        assert_eq!(fallback_byte("<0x0E4>"), None);
    }

    #[test]
    fn decoders_that_look_at_neighbours_are_left_to_the_window() {
        let metaspace = serde_json::json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"});
        assert!(Scheme::of(&metaspace).is_none());
        let right = serde_json::json!({"type": "Sequence", "decoders": [
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 0, "stop": 1}]});
        assert!(Scheme::of(&right).is_none());
    }
}
