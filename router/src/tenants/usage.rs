//! What one tenant holds of the server at this moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use metrics::{Counter, counter};

/// Places that a tenant has taken. Survives a reload of the file of keys.
#[derive(Debug)]
pub struct Usage {
    places: AtomicU32,
    requests: Counter,
    tokens: Counter,
}

/// Counters have no identity: two tenants are alike if an operator decided alike for them.
impl PartialEq for Usage {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Usage {}

/// Places taken; given back when dropped.
#[derive(Debug)]
pub struct Taken {
    usage: Arc<Usage>,
    count: u32,
}

impl Usage {
    /// Its counters have the tenant's name as a label: only names that an operator gave, never what clients send.
    pub(super) fn new(tenant: &str) -> Self {
        let requests = counter!("millrace_tenant_requests_total", "tenant" => tenant.to_owned());
        let tokens = counter!("millrace_tenant_tokens_total", "tenant" => tenant.to_owned());
        Self { places: AtomicU32::new(0), requests, tokens }
    }

    /// One request has been accepted.
    pub fn admitted(&self) {
        self.requests.increment(1);
    }

    /// So many tokens have been computed for it since the start.
    pub fn served(&self, num_tokens: u64) {
        self.tokens.absolute(num_tokens);
    }

    pub fn places(&self) -> u32 {
        self.places.load(Ordering::Relaxed)
    }

    /// Takes `count` places unless that would be more than `limit`.
    pub fn take(self: &Arc<Self>, count: u32, limit: u32) -> Option<Taken> {
        let fits = |places: u32| places.checked_add(count).filter(|places| *places <= limit);
        self.places.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Taken { usage: Arc::clone(self), count })
    }
}

impl Taken {
    /// `count` of them; `None` when so many are not left.
    pub fn split(&mut self, count: u32) -> Option<Self> {
        self.count = self.count.checked_sub(count)?;
        Some(Self { usage: Arc::clone(&self.usage), count })
    }

    /// Both together; they are the same tenant's.
    pub fn merge(&mut self, mut other: Self) {
        self.count += std::mem::take(&mut other.count);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.usage.places.fetch_sub(self.count, Ordering::Relaxed);
    }
}
