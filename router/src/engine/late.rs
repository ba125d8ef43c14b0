//! Ranks that answer and get no further, while the workers of a server that has served before load and are prepared again.
//!
//! How long that takes differs from model to model, so only what has been seen of it before bounds it: the first time, and
//! to a router that has not seen it, it may take as long as it takes.

use std::time::Duration;

use millrace_client::{Vital, Vitals};

use super::report;
use super::start::{PAUSE, news};
use crate::health::Health;

/// So many times what it took before it may take.
const FACTOR: u32 = 10;
/// However quick it was before: files may have to be read again, and memory waited for.
const PREPARING: Duration = Duration::from_secs(120);
/// Some loads are not counted while they go on, so they seem to stand still.
const LOADING: Duration = Duration::from_secs(600);

/// How long workers may take that are prepared, once that has taken so long.
pub(super) fn longest_preparing(took: Duration) -> Duration {
    took.saturating_mul(FACTOR).max(PREPARING)
}

/// Does the work. Whatever is found meanwhile, a rank and why it hangs, is told; the work is not given up: who replaces
/// that rank ends it. `find` is asked after every [`PAUSE`], so that a pause of this process counts as one.
pub(super) async fn watched<T>(
    work: impl Future<Output = T>,
    mut find: impl FnMut() -> Option<(usize, String)>,
    vitals: &Vitals,
    health: &Health,
) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            outcome = &mut work => return outcome,
            () = tokio::time::sleep(PAUSE) => {
                if let Some(hung) = find().and_then(|(rank, reason)| news(vitals, health, rank, reason)) {
                    report(health, hung);
                }
            }
        }
    }
}

/// How far the ranks have loaded, looked at after every [`PAUSE`].
#[derive(Debug)]
pub(super) struct Load {
    vitals: Vitals,
    limit: Option<Duration>,
    /// Whether any rank has been seen to load.
    pub(super) was_seen: bool,
    last: Vec<Stage>,
    still: Duration,
}

impl Load {
    /// Of ranks that may stand still for some times what a whole load took before, if one was seen.
    pub(super) fn new(vitals: Vitals, took: Option<Duration>) -> Self {
        let limit = took.map(|took| took.saturating_mul(FACTOR).max(LOADING));
        Self { vitals, limit, was_seen: false, last: Vec::new(), still: Duration::ZERO }
    }

    /// The rank that is furthest behind, if none has got any further for too long, and why that is so.
    pub(super) fn stands_still(&mut self) -> Option<(usize, String)> {
        let all = self.vitals.all();
        let now: Vec<_> = all.iter().map(Stage::of).collect();
        let loading = now.iter().enumerate().filter(|(_, stage)| !stage.name.is_empty());
        let furthest_behind = loading.min_by_key(|(_, stage)| (stage.done, stage.bytes_read));
        let behind = furthest_behind.map(|(rank, stage)| (rank, stage.name.clone()));
        self.was_seen |= behind.is_some();
        self.still = if now == self.last { self.still + PAUSE } else { Duration::ZERO };
        self.last = now;
        let (rank, name) = behind?;
        let limit = self.limit.filter(|limit| self.still >= *limit)?;
        Some((rank, format!("it has got no further for {limit:.1?} while it loaded: {name}")))
    }
}

/// Where one rank is in loading; the same stage of another group is another one.
#[derive(Debug, PartialEq, Eq)]
struct Stage {
    generation: u32,
    name: String,
    done: u64,
    bytes_read: u64,
}

impl Stage {
    fn of(vital: &Vital) -> Self {
        let Vital { generation, done, bytes_read, .. } = *vital;
        Self { generation, name: vital.stage.clone(), done, bytes_read }
    }
}

#[cfg(test)]
mod tests {
    use millrace_client::fake::{FakeGroup, FakeOptions};
    use millrace_client::{Backoff, Workers, connect_with_retry};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_next_group_has_all_of_its_time_to_load() {
        let mut group = FakeGroup::single(&FakeOptions::default());
        let (worker, vitals) = (group.rank(0).clone(), group.vitals().clone());
        worker.hang_while_loading(true);
        let mut load = Load::new(vitals.clone(), Some(Duration::from_secs(1)));
        tokio::spawn(async move { connect_with_retry(&mut group, Backoff::default(), None).await.map(drop) });
        for generation in 1..=2 {
            while vitals.all().iter().all(|vital| vital.generation != generation) {
                tokio::time::sleep(PAUSE / 10).await;
            }
            let mut waited = Duration::ZERO;
            while load.stands_still().is_none() {
                tokio::time::sleep(PAUSE).await;
                waited += PAUSE;
            }
            assert_eq!(waited, LOADING);
            worker.die();
        }
    }
}
