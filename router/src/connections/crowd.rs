//! Who is connected, and who of them asks for nothing.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::standing::Standing;

/// Files that this process opens for itself: workers, logs, the model.
const OWN_FILES: u64 = 64;
/// How often who waits for a place looks for bodies that have become slow.
const LOOK: Duration = Duration::from_secs(1);
/// Connections whose bodies were cut short and that have not ended yet: so many may be there beside the others.
const MOST_ENDING: usize = 32;

/// As many connections as were asked for, if the system lets this process have so many files: its limit is raised as far
/// as it may be.
pub(crate) fn most_connections(asked: usize) -> usize {
    let wanted = asked as u64 + OWN_FILES;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let mut files = current.unwrap_or(u64::MAX);
    if files < wanted {
        let raised = wanted.min(maximum.unwrap_or(u64::MAX));
        if setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }).is_ok() {
            files = raised;
        }
    }
    let most = usize::try_from(files.saturating_sub(OWN_FILES)).unwrap_or(usize::MAX).clamp(1, asked.max(1));
    if most < asked {
        tracing::warn!(
            most,
            asked,
            "this process may open too few files for all connections; raise its limit (ulimit -n)"
        );
    }
    most
}

/// All connections.
#[derive(Debug)]
pub(super) struct Crowd {
    most: usize,
    /// Bodies that have been coming for so long make room.
    slow: Duration,
    inside: Arc<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    all: Mutex<Everybody>,
    /// Somebody has left, or asks for nothing any more.
    left: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Everybody {
    last: u64,
    standings: HashMap<u64, Arc<Standing>>,
    /// Not among the others any more.
    ending: HashSet<u64>,
}

/// A place for a connection, given back when dropped.
#[derive(Debug)]
pub(super) struct Visit {
    number: u64,
    inside: Arc<Inside>,
    pub(super) standing: Arc<Standing>,
}

impl Crowd {
    pub(super) fn new(most: usize, slow: Duration) -> Self {
        Self { most, slow, inside: Arc::default() }
    }

    /// A place, as soon as there is one. Connections without a request make room, and those whose requests come slowly;
    /// the others are waited for.
    pub(super) async fn enter(&self) -> Visit {
        loop {
            let left = self.inside.left.notified();
            if self.inside.lock().standings.len() < self.most || self.evict() {
                return self.inside.visit();
            }
            let _later = timeout(LOOK, left).await;
        }
    }

    /// Ends the connection that is the first to make room, if there is one.
    pub(super) fn evict(&self) -> bool {
        let mut everybody = self.inside.lock();
        let ranks = everybody.standings.iter().filter_map(|(number, one)| Some((one.rank(self.slow)?, *number)));
        let Some(((is_slow, _), number)) = ranks.min() else { return false };
        if is_slow && everybody.ending.len() >= MOST_ENDING {
            return false;
        }
        if let Some(standing) = everybody.standings.remove(&number) {
            if is_slow {
                everybody.ending.insert(number);
                standing.cut();
            } else {
                standing.evict();
            }
        }
        true
    }
}

impl Inside {
    fn lock(&self) -> MutexGuard<'_, Everybody> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn visit(self: &Arc<Self>) -> Visit {
        let standing = Arc::new(Standing::new(Arc::clone(&self.left)));
        let mut everybody = self.lock();
        everybody.last += 1;
        let number = everybody.last;
        everybody.standings.insert(number, Arc::clone(&standing));
        drop(everybody);
        Visit { number, inside: Arc::clone(self), standing }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut everybody = self.inside.lock();
        everybody.standings.remove(&self.number);
        everybody.ending.remove(&self.number);
        drop(everybody);
        self.inside.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::{Body, Bytes, HttpBody};
    use axum::response::IntoResponse;
    use futures::{poll, stream};
    use http_body_util::BodyExt;

    use super::super::CutShort;
    use super::*;

    const SLOW: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_nothing_makes_room_the_longest_idle_first() {
        let crowd = Crowd::new(3, SLOW);
        let mut visits = Vec::new();
        for _ in 0..3 {
            visits.push(crowd.enter().await);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let asking = visits[0].standing.request();
        let newcomer = crowd.enter().await;
        let evicted: Vec<bool> = visits.iter().map(|visit| visit.standing.is_evicted()).collect();
        assert_eq!(evicted, [false, true, false]);
        // An answered request counts as a sign of life.
        drop(asking);
        let another = crowd.enter().await;
        assert!(visits[2].standing.is_evicted() && !visits[0].standing.is_evicted());
        assert!(!newcomer.standing.is_evicted());
        drop(another);
    }

    #[tokio::test]
    async fn requests_are_waited_for() {
        let crowd = Crowd::new(2, SLOW);
        let (one, other) = (crowd.enter().await, crowd.enter().await);
        let (asking, _other) = (one.standing.request(), other.standing.request());
        let mut newcomer = Box::pin(crowd.enter());
        assert!(poll!(&mut newcomer).is_pending());
        assert!(!crowd.evict());
        drop(asking);
        drop(one);
        newcomer.await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_nothing_any_more_makes_room_at_once_for_who_waits() {
        let crowd = Crowd::new(1, SLOW);
        let one = crowd.enter().await;
        let asking = one.standing.request();
        let mut newcomer = Box::pin(crowd.enter());
        assert!(poll!(&mut newcomer).is_pending());
        drop(asking);
        assert!(poll!(&mut newcomer).is_ready() && one.standing.is_evicted());
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_that_come_slowly_make_room_the_slowest_first_and_only_where_nobody_is_idle() {
        let crowd = Crowd::new(4, SLOW);
        let (mut visits, mut asking, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..4 {
            visits.push(crowd.enter().await);
        }
        for visit in visits[1..].iter().rev() {
            asking.push(visit.standing.request());
            bodies.push(visit.standing.coming(Body::from_stream(stream::pending::<Result<Bytes, Infallible>>())));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        // This one's has come, and its answer is being made.
        drop(bodies.remove(1));
        assert!(crowd.evict() && visits[0].standing.is_evicted(), "who is idle");
        assert!(!crowd.evict(), "nobody is slow yet");
        tokio::time::advance(SLOW).await;
        let cut = || visits.iter().map(|visit| visit.standing.is_cut()).collect::<Vec<_>>();
        assert_eq!((cut(), crowd.evict()), (vec![false; 4], true));
        assert_eq!((cut(), crowd.evict()), (vec![false, false, false, true], true));
        assert_eq!((cut(), crowd.evict()), (vec![false, true, false, true], false));
        assert!(bodies[0].frame().await.unwrap().unwrap_err().is::<CutShort>());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_finds_a_body_that_becomes_slow_and_few_are_ending_at_once() {
        let crowd = Crowd::new(MOST_ENDING + 2, SLOW);
        let (mut visits, mut coming) = (Vec::new(), Vec::new());
        for number in 0..2 * MOST_ENDING + 2 {
            let entered = tokio::time::timeout(2 * SLOW, crowd.enter()).await;
            assert_eq!(entered.is_ok(), number < 2 * MOST_ENDING + 2, "{number}");
            let visit = entered.unwrap();
            let body = visit.standing.coming(Body::from_stream(stream::pending::<Result<Bytes, Infallible>>()));
            coming.push((visit.standing.request(), body));
            visits.push(visit);
        }
        assert!(tokio::time::timeout(10 * SLOW, crowd.enter()).await.is_err(), "first of all those have to end");
        drop(visits.remove(0));
        crowd.enter().await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_until_its_body_is_gone() {
        let crowd = Crowd::new(1, SLOW);
        let visit = crowd.enter().await;
        let mut body =
            visit.standing.request().until_over(Body::from("answer").into_response(), Duration::from_secs(3600));
        assert_eq!(body.size_hint().exact(), Some(6));
        assert!(body.frame().await.is_some() && body.is_end_stream());
        let idle = visit.standing.idle_for(Duration::from_secs(60));
        tokio::pin!(idle);
        assert!(tokio::time::timeout(Duration::from_secs(600), &mut idle).await.is_err());
        drop(body);
        tokio::time::timeout(Duration::from_secs(130), idle).await.unwrap();
    }

    #[test]
    fn there_are_fewer_connections_than_files() {
        assert_eq!(most_connections(1), 1);
        let files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        assert!((most_connections(usize::MAX / 2) as u64) < files);
    }
}
