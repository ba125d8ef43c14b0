//! Who is there or was there lately, and how much of the workers' time each has used. Pure: the time is passed in.
//!
//! Use fades: it halves in ten seconds. So who asks for little now and then has used little when it comes, and who floods has
//! used much, whatever they ask for. Who has been away for a minute is forgotten.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use millrace_scheduler::TenantId;

const HALF_LIFE: Duration = Duration::from_secs(10);
const REMEMBERED: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Visitors {
    known: BTreeMap<TenantId, Visitor>,
}

#[derive(Clone, Copy, Debug)]
struct Visitor {
    /// When it was there last.
    seen: Instant,
    /// Seconds, as of `noted`.
    used: f64,
    noted: Instant,
}

impl Visitor {
    fn used(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.noted).as_secs_f64();
        self.used * 0.5_f64.powf(age / HALF_LIFE.as_secs_f64())
    }
}

impl Visitors {
    pub(super) fn see(&mut self, there: impl Iterator<Item = TenantId>, now: Instant) {
        for tenant in there {
            let new = Visitor { seen: now, used: 0.0, noted: now };
            self.known.entry(tenant).or_insert(new).seen = now;
        }
        self.known.retain(|_, visitor| now.saturating_duration_since(visitor.seen) < REMEMBERED);
    }

    pub(super) fn are_several(&self) -> bool {
        self.known.len() > 1
    }

    pub(super) fn add(&mut self, tenant: TenantId, seconds: f64, now: Instant) {
        if let Some(visitor) = self.known.get_mut(&tenant) {
            (visitor.used, visitor.noted) = (visitor.used(now) + seconds, now);
        }
    }

    /// In microseconds.
    pub(super) fn used(&self, now: Instant) -> Vec<(TenantId, u64)> {
        self.known.iter().map(|(tenant, visitor)| (*tenant, (visitor.used(now) * 1e6) as u64)).collect()
    }
}
