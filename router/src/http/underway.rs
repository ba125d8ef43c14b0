//! Bodies that are under way. A client that sends slowly holds no place in the server, only as much memory as it has sent.
//!
//! Of that memory there is as much as all places need. When it is used up, those whose bodies have been coming for long
//! make room: of the tenant that holds most, the longest first. Where they cannot make enough, the newcomer is refused and
//! nobody ends. So whoever opens requests and sends little keeps nobody out, and whoever sends much has to go on sending
//! it. No tenant takes all: as many bytes as are free then, by weight, beyond one body; who would have more makes room
//! among its own. What the last body needs is for who has none, whatever the weights.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::HeaderMap;
use millrace_scheduler::TenantId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::overload::{Reason, Refusal};
use crate::tenants::Tenant;

/// A body that has been coming for so long makes room.
const SLOW: Duration = Duration::from_secs(5);
/// When to come again: by then it is known who is slow.
const PAUSE: Duration = SLOW;
/// What a request takes that has no body yet, beside its head.
const REQUEST_BYTES: usize = 16 << 10;
/// What a head may take: 64 KiB of text, and its fields.
const HEAD_BYTES: usize = 96 << 10;
/// Of a head's field, beside its text.
const FIELD_BYTES: usize = 64;

/// All of them.
#[derive(Debug)]
pub(super) struct Underway {
    most: usize,
    /// What the longest body takes.
    each: usize,
    bodies: Mutex<Bodies>,
}

#[derive(Debug, Default)]
struct Bodies {
    last: u64,
    /// By number: the oldest first.
    all: BTreeMap<u64, Body>,
    taken: usize,
    taken_by: HashMap<TenantId, usize>,
}

#[derive(Debug)]
struct Body {
    tenant: TenantId,
    since: Instant,
    bytes: usize,
    evicted: CancellationToken,
}

/// One of them, and the memory that it has; given back when dropped.
#[derive(Debug)]
pub(super) struct Sending {
    underway: Arc<Underway>,
    number: u64,
    tenant: Arc<Tenant>,
    evicted: CancellationToken,
}

/// What a request takes before any of its body has come.
pub(super) fn bytes_of_head(headers: &HeaderMap) -> usize {
    let fields = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES);
    REQUEST_BYTES + fields.sum::<usize>()
}

impl Underway {
    /// So that all places could be taken by the longest bodies at once.
    pub(super) fn new(num_places: u32, payload_limit: usize) -> Arc<Self> {
        let each = payload_limit.saturating_add(REQUEST_BYTES + HEAD_BYTES);
        let most = each.saturating_mul(num_places as usize);
        Arc::new(Self { most, each, bodies: Mutex::default() })
    }

    /// A body of which nothing has come; `bytes` are taken by its request as it is.
    pub(super) fn begin(self: &Arc<Self>, tenant: &Arc<Tenant>, bytes: usize) -> Result<Sending, Refusal> {
        let evicted = CancellationToken::new();
        let mut bodies = self.lock();
        bodies.last += 1;
        let number = bodies.last;
        let body = Body { tenant: tenant.id, since: Instant::now(), bytes: 0, evicted: evicted.clone() };
        bodies.all.insert(number, body);
        drop(bodies);
        let sending = Sending { underway: Arc::clone(self), number, tenant: Arc::clone(tenant), evicted };
        sending.grow(bytes).map(|()| sending)
    }

    /// Bytes of all bodies.
    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.lock().taken
    }

    fn lock(&self) -> MutexGuard<'_, Bodies> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refusal(&self) -> Refusal {
        Refusal::new(Reason::Bodies(self.most), PAUSE)
    }
}

impl Sending {
    /// So many bytes more. Whoever is slow may lose its own for it.
    pub(super) fn grow(&self, bytes: usize) -> Result<(), Refusal> {
        let mut bodies = self.underway.lock();
        let victims = self.victims(&bodies, bytes).ok_or_else(|| self.underway.refusal())?;
        for number in victims {
            bodies.evict(number);
        }
        bodies.take(self.number, self.tenant.id, bytes);
        Ok(())
    }

    /// Whose bodies have to end for so many bytes more; `None`: it is refused.
    fn victims(&self, bodies: &Bodies, bytes: usize) -> Option<Vec<u64>> {
        // Who has been evicted meanwhile has nothing more to take.
        let own = bodies.all.get(&self.number)?;
        let mut held = bodies.taken_by(self.tenant.id);
        let mut free = self.underway.most.saturating_sub(bodies.taken);
        let fits = |held: usize, free: usize| {
            let Some(left) = free.checked_sub(bytes) else { return false };
            let left = if left < self.underway.each { 0 } else { left };
            held == own.bytes || held + bytes <= self.tenant.part(left)
        };
        let mut victims = Vec::new();
        if fits(held, free) {
            return Some(victims);
        }
        let is_used_up = free < bytes;
        let mut slow = bodies.slower_than(self.number);
        let all = free + slow.iter().map(|(_, body)| body.bytes).sum::<usize>();
        while !fits(held, free) {
            // Who would have more than its part, whoever makes room, makes room itself.
            let is_anybodys = is_used_up && fits(held, all);
            let next = slow.iter().position(|(_, body)| is_anybodys || body.tenant == self.tenant.id)?;
            let (number, body) = slow.remove(next);
            victims.push(number);
            free += body.bytes;
            held -= if body.tenant == self.tenant.id { body.bytes } else { 0 };
        }
        Some(victims)
    }

    /// Completes, with the reason, when this body has to make room for others.
    pub(super) async fn evicted(&self) -> Refusal {
        self.evicted.cancelled().await;
        self.underway.refusal()
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.underway.lock().forget(self.number);
    }
}

impl Bodies {
    fn take(&mut self, number: u64, tenant: TenantId, bytes: usize) {
        if let Some(body) = self.all.get_mut(&number) {
            body.bytes += bytes;
            self.taken += bytes;
            *self.taken_by.entry(tenant).or_default() += bytes;
        }
    }

    fn taken_by(&self, tenant: TenantId) -> usize {
        self.taken_by.get(&tenant).copied().unwrap_or_default()
    }

    /// Who has been sending for long, and longer than this one: of the tenant that holds most first, and of each the
    /// oldest first.
    fn slower_than(&self, number: u64) -> Vec<(u64, &Body)> {
        let older = self.all.range(..number).take_while(|(_, body)| body.since.elapsed() >= SLOW);
        let mut slow: Vec<(u64, &Body)> = older.map(|(number, body)| (*number, body)).collect();
        slow.sort_by_key(|(_, body)| Reverse(self.taken_by(body.tenant)));
        slow
    }

    fn evict(&mut self, number: u64) {
        if let Some(body) = self.forget(number) {
            body.evicted.cancel();
        }
    }

    fn forget(&mut self, number: u64) -> Option<Body> {
        let body = self.all.remove(&number)?;
        self.taken -= body.bytes;
        if let Some(held) = self.taken_by.get_mut(&body.tenant) {
            *held -= body.bytes;
            if *held == 0 {
                self.taken_by.remove(&body.tenant);
            }
        }
        Some(body)
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;
    use proptest::prelude::*;

    use super::*;

    const EACH: usize = 1000 + REQUEST_BYTES + HEAD_BYTES;

    fn tenant(id: u32) -> Arc<Tenant> {
        weighing(id, 1)
    }

    fn weighing(id: u32, weight: u32) -> Arc<Tenant> {
        Arc::new(Tenant { id: TenantId(id), weight, min_weight: Some(1), ..Tenant::default() })
    }

    fn check_empty(underway: &Underway) {
        let bodies = underway.lock();
        assert_eq!((bodies.taken, bodies.all.len(), bodies.taken_by.len()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_makes_room_the_slowest_first_and_who_is_quick_does_not() {
        let (underway, all) = (Underway::new(2, 1000), Arc::default());
        let first = underway.begin(&all, EACH).unwrap();
        tokio::time::advance(SLOW / 2).await;
        let second = underway.begin(&all, EACH).unwrap();
        assert_eq!(underway.begin(&all, 1).unwrap_err().reason, Reason::Bodies(2 * EACH));
        tokio::time::advance(SLOW / 2).await;
        let third = underway.begin(&all, 1).unwrap();
        assert!(poll!(Box::pin(first.evicted())).is_ready() && first.grow(0).is_err());
        assert!(poll!(Box::pin(second.evicted())).is_pending());
        third.grow(EACH - 1).unwrap();
        // The slowest of all goes itself.
        tokio::time::advance(SLOW).await;
        assert!(second.grow(1).is_err());
        third.grow(1).unwrap();
        assert!(poll!(Box::pin(second.evicted())).is_ready());
        drop((first, second, third));
        check_empty(&underway);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenants_flood_leaves_room_for_another_and_its_own_slow_ones_go_first() {
        let underway = Underway::new(8, 1000);
        let (a, b) = (tenant(1), tenant(2));
        let mut flood = Vec::new();
        while let Ok(sending) = underway.begin(&a, EACH) {
            flood.push(sending);
        }
        assert_eq!(flood.len(), 4);
        let mut others = vec![underway.begin(&b, EACH).unwrap()];
        tokio::time::advance(SLOW).await;
        others.push(underway.begin(&b, 1).unwrap());
        flood.push(underway.begin(&a, EACH).unwrap());
        let evicted = |all: &[Sending]| all.iter().filter(|sending| sending.evicted.is_cancelled()).count();
        assert!(flood[0].evicted.is_cancelled());
        assert_eq!(evicted(&others), 0);
    }

    /// So many of the longest bodies as it can have.
    fn flood(underway: &Arc<Underway>, tenant: &Arc<Tenant>) -> Vec<Sending> {
        std::iter::from_fn(|| underway.begin(tenant, EACH).ok()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_has_ended_nobody() {
        let underway = Underway::new(8, 1000);
        let heavy = weighing(1, 1000);
        let others = underway.begin(&tenant(2), EACH).unwrap();
        tokio::time::advance(SLOW).await;
        let held = flood(&underway, &heavy);
        let third = underway.begin(&tenant(3), EACH).unwrap();
        assert_eq!(held.len(), 6);
        // More than its part, whoever makes room; and more than those who are slow have.
        assert!(underway.begin(&heavy, EACH).is_err() && underway.begin(&tenant(4), 3 * EACH).is_err());
        assert!([others, third].iter().all(|body| !body.evicted.is_cancelled()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_would_have_more_than_its_part_makes_room_itself() {
        let underway = Underway::new(8, 1000);
        let others = underway.begin(&tenant(2), EACH).unwrap();
        let own = underway.begin(&tenant(3), EACH).unwrap();
        tokio::time::advance(SLOW).await;
        let quick = flood(&underway, &weighing(1, 1000));
        let last = underway.begin(&tenant(4), EACH).unwrap();
        assert_eq!(quick.len(), 5);
        let _instead = underway.begin(&tenant(3), EACH).unwrap();
        assert!(own.evicted.is_cancelled());
        assert!([others, last].iter().all(|body| !body.evicted.is_cancelled()));
    }

    #[tokio::test]
    async fn the_last_room_is_for_who_has_none_whatever_the_weights() {
        let underway = Underway::new(8, 1000);
        let heavy = weighing(1, 1000);
        let held = flood(&underway, &heavy);
        assert_eq!(held.len(), 7);
        assert!(underway.begin(&heavy, EACH / 2).is_err());
        let _only = underway.begin(&tenant(2), EACH).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn of_the_slow_who_holds_most_makes_room_first() {
        let underway = Underway::new(8, 1000);
        let oldest = underway.begin(&tenant(2), EACH).unwrap();
        let held = flood(&underway, &weighing(1, 1000));
        let _third = underway.begin(&tenant(3), EACH).unwrap();
        tokio::time::advance(SLOW).await;
        let _newcomer = underway.begin(&tenant(4), EACH).unwrap();
        assert!(held[0].evicted.is_cancelled() && !held[1].evicted.is_cancelled());
        assert!(!oldest.evicted.is_cancelled());
    }

    #[tokio::test]
    async fn one_body_of_a_tenant_is_never_too_much() {
        let underway = Underway::new(1, 1000);
        let only = underway.begin(&tenant(1), 1).unwrap();
        only.grow(EACH - 1).unwrap();
        assert!(only.grow(1).is_err());
    }

    proptest! {
        #[test]
        fn no_more_is_taken_than_there_is_and_all_of_it_comes_back(
            steps in prop::collection::vec((0_usize..12, 0_usize..3 * EACH, 0_u64..3), 1..80),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let underway = Underway::new(4, 1000);
                let mut all: HashMap<usize, Sending> = HashMap::new();
                for (who, bytes, seconds) in steps {
                    tokio::time::advance(Duration::from_secs(seconds)).await;
                    match all.remove(&who) {
                        Some(sending) if bytes % 2 == 0 => {
                            let was_evicted = sending.evicted.is_cancelled();
                            let num_before = underway.lock().all.len();
                            let grown = sending.grow(bytes).is_ok();
                            assert!(!(was_evicted && grown));
                            assert!(grown || underway.lock().all.len() == num_before);
                            all.insert(who, sending);
                        }
                        Some(gone) => drop(gone),
                        None => all.extend(underway.begin(&tenant((who % 3) as u32), bytes).ok().map(|new| (who, new))),
                    }
                    let bodies = underway.lock();
                    let taken: usize = bodies.all.values().map(|body| body.bytes).sum();
                    let by_tenant: usize = bodies.taken_by.values().sum();
                    assert!(taken <= underway.most && taken == bodies.taken && taken == by_tenant);
                }
                drop(all);
                check_empty(&underway);
            });
        }
    }
}
