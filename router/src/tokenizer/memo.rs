//! Ids of texts that were encoded before. A conversation comes back with every turn, a few messages longer: what it had
//! before is looked up, not encoded again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Shorter texts are encoded as quickly as they are found.
const LEAST_BYTES: usize = 64;
/// What one generation may hold, texts and ids together. There are two.
const GENERATION_BYTES: usize = 32 << 20;

/// Forgets what was not asked for during a whole generation; the oldest goes without being looked for.
#[derive(Debug)]
pub(super) struct Memo {
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Box<str>, Arc<[u32]>>,
    young_bytes: usize,
    old: HashMap<Box<str>, Arc<[u32]>>,
    most_bytes: usize,
}

impl Default for Memo {
    fn default() -> Self {
        Self::of(GENERATION_BYTES)
    }
}

impl Memo {
    fn of(most_bytes: usize) -> Self {
        Self { generations: Mutex::new(Generations { most_bytes, ..Generations::default() }) }
    }

    /// The ids of `text`, from memory or from `encode`.
    pub(super) fn ids<E>(&self, text: &str, encode: impl FnOnce(&str) -> Result<Vec<u32>, E>) -> Result<Arc<[u32]>, E> {
        if text.len() < LEAST_BYTES {
            return Ok(encode(text)?.into());
        }
        // What is found or made lives on beside the lock: nobody waits while a text is encoded.
        let found = self.lock().find(text);
        if let Some(ids) = found {
            return Ok(ids);
        }
        let ids: Arc<[u32]> = encode(text)?.into();
        self.lock().keep(text.into(), Arc::clone(&ids));
        Ok(ids)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Generations> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn find(&mut self, text: &str) -> Option<Arc<[u32]>> {
        if let Some(ids) = self.young.get(text) {
            return Some(Arc::clone(ids));
        }
        let (text, ids) = self.old.remove_entry(text)?;
        self.keep(text, Arc::clone(&ids));
        Some(ids)
    }

    fn keep(&mut self, text: Box<str>, ids: Arc<[u32]>) {
        let bytes = text.len() + size_of_val(&*ids);
        if bytes > self.most_bytes {
            return;
        }
        if self.young_bytes + bytes > self.most_bytes {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if self.young.insert(text, ids).is_none() {
            self.young_bytes += bytes;
        }
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        let entries = self.young.iter().chain(&self.old);
        entries.map(|(text, ids)| text.len() + size_of_val(&**ids)).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn count(memo: &Memo, text: &str) -> usize {
        let mut encoded = 0;
        let encode = |text: &str| {
            encoded += 1;
            Ok::<_, Infallible>(text.bytes().map(u32::from).collect())
        };
        let ids = memo.ids(text, encode).unwrap();
        assert!(ids.iter().copied().eq(text.bytes().map(u32::from)));
        encoded
    }

    #[test]
    fn a_text_is_encoded_once_unless_it_is_short() {
        let (memo, long) = (Memo::default(), "a".repeat(LEAST_BYTES));
        assert_eq!((count(&memo, &long), count(&memo, &long)), (1, 0));
        assert_eq!((count(&memo, "a"), count(&memo, "a")), (1, 1));
        assert_eq!(count(&memo, &"b".repeat(LEAST_BYTES)), 1);
    }

    #[test]
    fn memory_is_bounded_and_keeps_what_is_asked_for() {
        let memo = Memo::of(20_000);
        let text = |index: usize| format!("{index:06}").repeat(20);
        count(&memo, &text(0));
        for index in 1..200 {
            count(&memo, &text(index));
            assert_eq!(count(&memo, &text(0)), 0, "asked for all the time");
            assert!(memo.lock().bytes() <= 40_000);
        }
        assert_eq!(count(&memo, &text(1)), 1, "long forgotten");
        let huge = "x".repeat(20_000);
        assert_eq!((count(&memo, &huge), count(&memo, &huge)), (1, 1), "never kept");
    }
}
