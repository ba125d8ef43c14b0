//! What scrapers get. Anybody may ask for it without reading the answer, and each copy takes some ten thousands of bytes:
//! those who do not read share theirs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// As long as fewer pages than this have not been sent, each scraper gets one of its own.
const FRESH: usize = 16;
/// Behind that, how old a page gets before there is another one.
const PACE: Duration = Duration::from_secs(5);

/// Pages that have not been sent.
#[derive(Debug, Default)]
pub(super) struct Pages {
    newest: Mutex<Option<(Instant, Bytes)>>,
    /// Counted by every page that somebody has.
    unsent: Arc<()>,
}

struct Page {
    text: String,
    _unsent: Arc<()>,
}

impl AsRef<[u8]> for Page {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

impl Pages {
    /// What `render` tells now; a few seconds old if many do not read what they have.
    pub(super) fn page(&self, render: impl FnOnce() -> String) -> Bytes {
        if Arc::strong_count(&self.unsent) > FRESH
            && let Some((since, page)) = &*self.newest.lock().unwrap_or_else(PoisonError::into_inner)
            && since.elapsed() < PACE
        {
            return page.clone();
        }
        let page = Bytes::from_owner(Page { text: render(), _unsent: Arc::clone(&self.unsent) });
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), page.clone()));
        page
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_reads_gets_what_is_true_now_and_those_who_do_not_share() {
        let pages = Pages::default();
        let mut count = 0;
        let mut next = || {
            pages.page(|| {
                count += 1;
                count.to_string()
            })
        };
        for expected in 1..=100 {
            assert_eq!(next(), expected.to_string());
        }
        let mut unread: Vec<Bytes> = (0..1000).map(|_| next()).collect();
        assert_eq!(unread.iter().collect::<HashSet<_>>().len(), FRESH);
        advance(PACE).await;
        let newer = next();
        assert!(!unread.contains(&newer));
        assert_eq!(next(), newer);
        unread.clear();
        assert_ne!(next(), newer);
    }
}
