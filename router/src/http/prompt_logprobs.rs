//! What prompt logprobs may take of this process, all requests together: they are the one thing a small request can ask for
//! whose answer grows with its prompt, some hundred bytes for each number.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Entries in the server at once: a token's own logprob, and one for each of its top tokens.
const MAX_ENTRIES: usize = 1 << 20;

/// One permit per entry.
#[derive(Debug)]
pub(super) struct PromptLogprobs {
    left: Arc<Semaphore>,
    most: usize,
    /// Of one prompt, so that every prompt of a client's largest batch can have as many.
    most_of_one: usize,
}

/// Why a request cannot have its prompt logprobs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// It asks for more than any request may.
    TooMany { entries: usize, most: usize },
    /// Others have what there is: so many entries in all.
    Taken(usize),
}

impl PromptLogprobs {
    pub(super) fn new(max_client_batch_size: usize) -> Self {
        Self::of(MAX_ENTRIES, max_client_batch_size)
    }

    fn of(most: usize, max_client_batch_size: usize) -> Self {
        Self { left: Arc::new(Semaphore::new(most)), most, most_of_one: most / max_client_batch_size.max(1) }
    }

    /// Of `tokens` of a prompt with `top` others each; kept until the answer is written.
    pub(super) fn take(&self, tokens: usize, top: usize) -> Result<OwnedSemaphorePermit, Denied> {
        let entries = tokens.saturating_mul(1 + top);
        let permits = u32::try_from(entries).ok().filter(|_| entries <= self.most_of_one);
        let permits = permits.ok_or(Denied::TooMany { entries, most: self.most_of_one })?;
        Arc::clone(&self.left).try_acquire_many_owned(permits).map_err(|_| Denied::Taken(self.most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_requests_share_what_there_is_and_none_may_ask_for_more_than_its_part() {
        let entries = PromptLogprobs::of(100, 2);
        assert_eq!(entries.take(17, 2).err(), Some(Denied::TooMany { entries: 51, most: 50 }));
        assert_eq!(entries.take(usize::MAX, 2).err(), Some(Denied::TooMany { entries: usize::MAX, most: 50 }));
        let first = entries.take(10, 4).unwrap();
        let _second = entries.take(30, 0).unwrap();
        assert_eq!(entries.take(21, 0).err(), Some(Denied::Taken(100)));
        drop(first);
        assert!(entries.take(50, 0).is_ok());
    }
}
