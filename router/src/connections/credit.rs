//! How slowly a client may take what is there for it.

use std::time::Duration;

/// Bytes that a client has to take in a second, as long as it has no credit for less.
const BYTES_PER_SECOND: f64 = 1024.0;

/// How long bytes may wait for a client. Waiting spends it; each byte that is taken earns some of it again. Time in which
/// nothing waits changes nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Credit {
    most: Duration,
    left: Duration,
}

impl Credit {
    pub(super) fn new(most: Duration) -> Self {
        Self { most, left: most }
    }

    pub(super) fn left(&self) -> Duration {
        self.left
    }

    /// Whether waiting so long now would spend all of it.
    pub(super) fn is_spent_by(&self, waited: Duration) -> bool {
        waited >= self.left
    }

    pub(super) fn spend(&mut self, waited: Duration) {
        self.left = self.left.saturating_sub(waited);
    }

    pub(super) fn earn(&mut self, bytes: usize) {
        if self.left < self.most {
            let earned = Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND);
            self.left = self.left.saturating_add(earned).min(self.most);
        }
    }
}
