//! Looks for markers in a text that comes in pieces: what may become one waits, everything else is decided.

/// What stands next in the input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Text(String),
    Marker(&'static str),
}

/// Takes the next decided piece out of `input`; `None` if what is left may become a marker. No marker is part of another.
pub(super) fn next(input: &mut String, markers: &[&'static str]) -> Option<Found> {
    let hit = markers.iter().filter_map(|marker| Some((input.find(marker)?, *marker))).min();
    let decided = match hit {
        Some((0, marker)) => {
            input.drain(..marker.len());
            return Some(Found::Marker(marker));
        }
        Some((at, _)) => at,
        None => input.len() - undecided(input, markers),
    };
    (decided > 0).then(|| Found::Text(input.drain(..decided).collect()))
}

/// Bytes at the end that may be the beginning of a marker.
fn undecided(input: &str, markers: &[&'static str]) -> usize {
    let longest = |marker: &&'static str| {
        let bytes = marker.as_bytes();
        let most = bytes.len().saturating_sub(1).min(input.len());
        (1..=most).rev().find(|length| input.as_bytes().ends_with(&bytes[..*length]))
    };
    markers.iter().filter_map(longest).max().unwrap_or(0)
}

/// How a text relates to some expected words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// It begins with this one.
    Is(&'static str),
    /// It may still become one.
    MayBe,
    No,
}

pub(super) fn start(text: &str, words: &[&'static str]) -> Start {
    if let Some(word) = words.iter().find(|word| text.starts_with(**word)) {
        return Start::Is(word);
    }
    if words.iter().any(|word| word.starts_with(text)) { Start::MayBe } else { Start::No }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_become_a_marker_waits() {
        let markers = ["<tool_call>", "[X]"];
        let mut input = "a < b <tool".to_owned();
        assert_eq!(next(&mut input, &markers), Some(Found::Text("a < b ".to_owned())));
        assert_eq!(next(&mut input, &markers), None);
        input.push_str("_call>[X");
        assert_eq!(next(&mut input, &markers), Some(Found::Marker("<tool_call>")));
        assert_eq!(next(&mut input, &markers), None);
        input.push('Y');
        assert_eq!(next(&mut input, &markers), Some(Found::Text("[XY".to_owned())));
    }

    #[test]
    fn characters_of_several_bytes_are_never_cut() {
        let mut input = "é<｜".to_owned();
        assert_eq!(next(&mut input, &["<｜tool▁call▁begin｜>"]), Some(Found::Text("é".to_owned())));
        assert_eq!(input, "<｜");
    }
}
