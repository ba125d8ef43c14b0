//! Inputs made of a kept corpus: cut, doubled, spliced, and strewn with what parsers stumble over.
//!
//! A seed means the same inputs everywhere. `CASES` in the environment says how many; a test runs few of them.

/// What means something to one of the formats.
const DICTIONARY: [&[u8]; 58] = [
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\\udc00",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e400",
    b"-0.0",
    b"18446744073709551616",
    b"9223372036854775807",
    b"4294967295",
    b"1e-400",
    b"\xff",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x98\x80",
    b"\xe2\x80\xa8",
    b"\xef\xbf\xbd",
    b"\xef\xb7\x90",
    b"\xcc\x81",
    b"\x00",
    b"\n",
    b"\r\n\r\n",
    b"data: ",
    b"[DONE]",
    b"<s>",
    b"</s>",
    b"<|user|>",
    b"<|end|>",
    b"<think>",
    b"</think>",
    b"<tool_call>",
    b"{{",
    b"{%",
    b"%}",
    b"$ref",
    b"#/",
    b"(?",
    b"{1,9999}",
    b"[^",
    b"|",
    b"*",
    b"+",
    b"\\d",
    b"type",
    b"pattern",
    b"stop",
    b"content",
    b"tools",
];

/// How many inputs: `CASES`, or as many as a test has time for.
pub(crate) fn cases(usual: usize) -> usize {
    std::env::var("CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(usual)
}

/// xorshift64: small, fast, and the same everywhere.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % sides.max(1) as u64) as usize
    }

    pub(crate) fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.roll(among.len())]
    }

    /// `input`, changed in up to five places; `other` is what pieces are taken from.
    pub(crate) fn mutate(&mut self, input: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..self.roll(6) {
            self.change(&mut bytes, other);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let (from, to) = self.range(bytes.len());
        match self.roll(8) {
            0 => drop(bytes.drain(from..to)),
            1 => {
                let doubled = bytes[from..to].to_vec();
                bytes.splice(to..to, doubled);
            }
            2 => {
                let (first, last) = self.range(other.len());
                bytes.splice(from..to, other[first..last].iter().copied());
            }
            3 if !bytes.is_empty() => {
                let at = self.roll(bytes.len());
                bytes[at] ^= 1 << self.roll(8);
            }
            4 if !bytes.is_empty() => {
                let at = self.roll(bytes.len());
                bytes[at] = self.roll(256) as u8;
            }
            5 => bytes.truncate(from),
            _ => {
                let word = *self.pick(&DICTIONARY);
                bytes.splice(from..from, word.iter().copied());
            }
        }
    }

    /// A short piece of so many.
    fn range(&mut self, length: usize) -> (usize, usize) {
        let from = self.roll(length + 1);
        (from, from + self.roll((length - from).min(40) + 1))
    }
}
