//! What was compiled lately, and how it went.

use std::collections::HashMap;
use std::sync::Arc;

use super::GrammarError;

/// Bounded by entries and by bytes of text; the one that was asked for least recently goes first.
#[derive(Debug)]
pub(super) struct Cache {
    entries: HashMap<Arc<str>, Entry>,
    bytes: usize,
    clock: u64,
    max_entries: usize,
    max_bytes: usize,
}

#[derive(Debug)]
struct Entry {
    verdict: Result<(), GrammarError>,
    last_asked: u64,
}

impl Cache {
    pub(super) fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self { entries: HashMap::new(), bytes: 0, clock: 0, max_entries, max_bytes }
    }

    /// The stored text, so that all requests share it, or why it was refused.
    pub(super) fn get(&mut self, text: &str) -> Option<Result<Arc<str>, GrammarError>> {
        self.clock += 1;
        let key = self.entries.get_key_value(text)?.0.clone();
        let entry = self.entries.get_mut(text)?;
        entry.last_asked = self.clock;
        Some(entry.verdict.clone().map(|()| key))
    }

    pub(super) fn put(&mut self, text: Arc<str>, verdict: Result<(), GrammarError>) {
        if text.len() > self.max_bytes || self.entries.contains_key(&text) {
            return;
        }
        while self.entries.len() >= self.max_entries || self.bytes + text.len() > self.max_bytes {
            self.drop_oldest();
        }
        self.clock += 1;
        self.bytes += text.len();
        self.entries.insert(text, Entry { verdict, last_asked: self.clock });
    }

    /// Looks at every entry: there are few, and each was worth a compilation.
    fn drop_oldest(&mut self) {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.last_asked);
        let Some(text) = oldest.map(|(text, _)| Arc::clone(text)) else { return };
        self.entries.remove(&text);
        self.bytes -= text.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_asked_goes_first_and_both_bounds_hold() {
        let mut cache = Cache::new(3, 100);
        for text in ["a", "b", "c"] {
            cache.put(text.into(), Ok(()));
        }
        assert!(cache.get("a").is_some());
        cache.put("d".into(), Err(GrammarError::new("bad")));
        assert!(cache.get("b").is_none());
        assert_eq!(cache.get("d"), Some(Err(GrammarError::new("bad"))));
        cache.put("x".repeat(99).into(), Ok(()));
        assert_eq!((cache.entries.len(), cache.bytes), (2, 100));
        cache.put("y".repeat(101).into(), Ok(()));
        assert_eq!((cache.entries.len(), cache.bytes), (2, 100));
    }
}
