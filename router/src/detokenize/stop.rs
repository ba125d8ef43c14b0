//! Stop strings, found in a stream of text wherever they fall: across pieces, inside one, overlapping.
//!
//! Each is searched by Knuth, Morris and Pratt's automaton: constant work per byte however long the string, and its state
//! is what must be held back: the longest end of the text that could become the string.

use std::sync::Arc;

/// A request's stop strings, compiled; shared by the sequences of its group.
#[derive(Clone, Debug)]
pub struct StopStrings {
    patterns: Arc<[Pattern]>,
    /// An empty stop string ends a sequence after its first token.
    has_empty: bool,
    max_length: usize,
    /// What is complete within the text of so many tokens ends nothing.
    num_exempt: u32,
}

#[derive(Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// `border[n]`: length of the longest proper prefix of `bytes[..=n]` that is also its suffix.
    border: Vec<u32>,
}

impl StopStrings {
    pub fn new(strings: &[String]) -> Self {
        let patterns: Arc<[Pattern]> =
            strings.iter().filter(|string| !string.is_empty()).map(|string| Pattern::new(string)).collect();
        Self {
            has_empty: strings.iter().any(String::is_empty),
            max_length: patterns.iter().map(|pattern| pattern.bytes.len()).max().unwrap_or(0),
            patterns,
            num_exempt: 0,
        }
    }

    /// The same for a sequence that must have more than `num_tokens` tokens.
    #[must_use]
    pub fn behind(self, num_tokens: u32) -> Self {
        Self { num_exempt: num_tokens, ..self }
    }

    /// Bytes of the longest.
    pub(super) fn max_length(&self) -> usize {
        self.max_length
    }
}

impl Pattern {
    fn new(string: &str) -> Self {
        let bytes = string.as_bytes().to_vec();
        let mut border = vec![0_u32; bytes.len()];
        for index in 1..bytes.len() {
            let mut length = border[index - 1];
            while length > 0 && bytes[length as usize] != bytes[index] {
                length = border[length as usize - 1];
            }
            border[index] = length + u32::from(bytes[length as usize] == bytes[index]);
        }
        Self { bytes, border }
    }

    /// The matched length after one more byte.
    fn advance(&self, mut matched: usize, byte: u8) -> usize {
        while matched > 0 && self.bytes.get(matched) != Some(&byte) {
            matched = self.border[matched - 1] as usize;
        }
        matched + usize::from(self.bytes[matched] == byte)
    }
}

/// One sequence's search.
#[derive(Clone, Debug)]
pub(super) struct StopSearch {
    strings: StopStrings,
    /// Per pattern: how much of it the text's end matches.
    matched: Vec<usize>,
    num_pieces: u32,
}

/// The first stop string to be complete; of those that end together, the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Bytes of the last piece after its end.
    pub(super) overshoot: usize,
    /// Bytes of the string.
    pub(super) length: usize,
}

impl StopSearch {
    pub(super) fn new(strings: StopStrings) -> Self {
        let matched = vec![0; strings.patterns.len()];
        Self { strings, matched, num_pieces: 0 }
    }

    /// Whether there is nothing to search for.
    pub(super) fn is_empty(&self) -> bool {
        self.matched.is_empty() && !self.strings.has_empty
    }

    /// Reads the next token's piece of text. Not to be called again after a find.
    pub(super) fn push(&mut self, text: &str) -> Option<Found> {
        self.num_pieces = self.num_pieces.saturating_add(1);
        let counts = self.num_pieces > self.strings.num_exempt;
        for (index, byte) in text.bytes().enumerate() {
            let mut found = None;
            for (pattern, matched) in self.strings.patterns.iter().zip(&mut self.matched) {
                *matched = pattern.advance(*matched, byte);
                if *matched == pattern.bytes.len() {
                    if counts {
                        found = found.max(Some(*matched));
                    } else {
                        // What of it may begin another one.
                        *matched = pattern.border[*matched - 1] as usize;
                    }
                }
            }
            if let Some(length) = found {
                return Some(Found { overshoot: text.len() - index - 1, length });
            }
        }
        (self.strings.has_empty && counts).then_some(Found { overshoot: 0, length: 0 })
    }

    /// Bytes at the end of the text that may become a stop string.
    pub(super) fn held(&self) -> usize {
        self.matched.iter().copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn search(stops: &[String], pieces: &[String], num_exempt: u32) -> (Option<(usize, Found)>, usize) {
        let mut search = StopSearch::new(StopStrings::new(stops).behind(num_exempt));
        for (index, piece) in pieces.iter().enumerate() {
            if let Some(found) = search.push(piece) {
                return (Some((index, found)), 0);
            }
        }
        (None, search.held())
    }

    /// By definition: the smallest end of any occurrence behind the exempt bytes, then the longest that ends there.
    fn expected_end(stops: &[String], text: &str, exempt: usize) -> Option<(usize, usize)> {
        let mut ends = (exempt + 1..=text.len()).filter(|end| text.is_char_boundary(*end));
        ends.find_map(|end| {
            let longest = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str())).map(String::len).max();
            longest.map(|length| (end, length))
        })
    }

    fn expected_held(stops: &[String], text: &str) -> usize {
        let held = |stop: &String| {
            let prefixes = (0..stop.len()).rev().filter(|length| stop.is_char_boundary(*length));
            prefixes.map(|length| &stop[..length]).find(|prefix| text.ends_with(prefix)).map_or(0, str::len)
        };
        stops.iter().map(held).max().unwrap_or(0)
    }

    #[test]
    fn an_empty_stop_string_ends_after_one_piece() {
        let stops = [String::new()];
        let nothing = Found { overshoot: 0, length: 0 };
        assert_eq!(search(&stops, &["abc".into()], 0).0, Some((0, nothing)));
        assert_eq!(search(&stops, &["abc".into(), String::new()], 1).0, Some((1, nothing)));
    }

    #[test]
    fn of_strings_that_end_together_the_longest_counts() {
        let stops = ["b".to_owned(), "aab".to_owned()];
        assert_eq!(search(&stops, &["xaabz".into()], 0).0, Some((0, Found { overshoot: 1, length: 3 })));
    }

    proptest! {
        #[test]
        fn finds_what_a_plain_search_finds(
            stops in prop::collection::vec("[abé]{1,6}", 1..4),
            pieces in prop::collection::vec("[abé]{0,4}", 0..24),
            num_exempt in 0..8_usize,
        ) {
            let text = pieces.concat();
            let exempt = pieces.iter().take(num_exempt).map(String::len).sum();
            let (found, held) = search(&stops, &pieces, num_exempt as u32);
            let actual = found.map(|(index, found)| (pieces[..=index].concat().len() - found.overshoot, found.length));
            prop_assert_eq!(actual, expected_end(&stops, &text, exempt));
            if actual.is_none() {
                prop_assert_eq!(held, expected_held(&stops, &text));
            }
        }
    }
}
