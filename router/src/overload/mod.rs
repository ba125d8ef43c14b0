//! Overload: what is in front of a newcomer, in tokens and in time; who is refused for now, and when asking again makes
//! sense.
//!
//! # Who is refused
//!
//! A newcomer with a prompt of `p` tokens, beside the bound on requests (`max_concurrent_requests`), which is not kept here:
//!
//! * `P > 0` and `P + p > max_queued_tokens`, where `P` are the prompt tokens inside that are still to be computed;
//! * `W > max_queue_seconds`, where `W` is the time until its own prompt is begun;
//! * `W > 0` and `W + a ceil(p / B) + b p` is more than its own deadline leaves: it would be queued to die;
//! * its tenant has prompt tokens that wait, and with `p` they are more than that tenant's own `max_queued_tokens`.
//!
//! Nobody is refused by a server that has nothing in front of them, however large the request or small the bound.
//!
//! # How long the wait is
//!
//! Everybody inside has rows, memory, and steps to go: `ceil(p / B)` for a prompt (`B`: tokens of a step), then one for each
//! token of the output, whose length is expected (`lengths`), not known. The line for seats (`line`) is played through in order
//! of arrival; it says after how many steps `S` a newcomer has its row and its memory. Prompts in front need steps, too, at most
//! `B` tokens in each beside one for each of the `A` rows that run. So with a step's cost `a + b n` (`pace`):
//!
//! ```text
//! S' = max(S, ceil(u P / (B - A)))        W = a S' + b (A S' + u P) + R
//! ```
//!
//! `u` is the share of prompts that the prefix cache did not hold lately. `R` is what is left of a replacement of the workers: the
//! time that the last one took, less what has passed of this one, and never less than half of what has passed. After it, what
//! ran is computed again, and is among `P`. `W` grows with everybody in front; it is 0 when there is a seat and no prompt in front.
//!
//! Where several tenants are inside, a newcomer does not wait behind the crowd of another: rows and tokens are shared by weight.
//! Then `W` is the smaller of two: that of the line of all, and that of its own tenant's line at a server of its part (of rows,
//! of memory, of the tokens of a step). In the same way only who is over the bound on `P` of all, and over its own tenant's part of
//! that bound with what of `P` is its tenant's, is refused for it.
//!
//! Those of its own tenant who wait with a later `priority` come after it: they are in no line of its, and not in the `P` of `W`.
//! Before its body is read, it may be as soon as its tenant allows. The bounds on tokens count everybody.
//!
//! While others decode, the prompts of the tenant that has used the workers most lately are guests in their steps, and get `g`
//! tokens of each in the mean (the engine says whose, and how many, per weight). Whichever line a newcomer of it stands in, `S'` is
//! then at least `ceil(u P / g)` with the `P` of its tenant alone, and its own prompt takes `ceil(p / g)` steps. Where the engine
//! holds steps shorter because there are several tenants, `B` is what is left of them.
//!
//! What it leaves out: the gate that lets newcomers join in groups (at most `max_waiting_tokens` steps), and preemptions to come.
//!
//! # Who keeps the books
//!
//! A [`Reservation`] is made under a lock, together with the decision: a thousand newcomers in one millisecond are
//! decided upon one after the other. It goes into the engine with its request, and is given back when the engine forgets the
//! request, whichever way it ended. The engine takes that lock a few times for each request, and never for a step: what
//! changes with steps it leaves in atomics.

mod books;
mod demand;
mod lengths;
mod line;
mod pace;
mod party;
mod refusal;
mod wait;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millrace_scheduler::TenantId;

pub use demand::Demand;
pub(crate) use pace::{Pace, StepCost};
pub use refusal::{Reason, Refusal};

use crate::config::Config;
use crate::tenants::Tenant;
use books::Books;
use wait::Wait;

/// How much the newest step counts in the mean of guests' tokens: they come in some steps, many at once.
const GUESTS_WEIGHT: f64 = 0.05;

/// No tenant's id.
const NOBODY: u64 = u64::MAX;

/// What the operator allows to wait.
#[derive(Clone, Copy, Debug, Default)]
struct Bounds {
    tokens: Option<u64>,
    wait: Option<Duration>,
}

/// What the engine says after each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Progress {
    /// Answered since the start.
    pub(crate) steps: u64,
    pub(crate) cost: StepCost,
    /// Tokens of running and of preempted sequences that are to be computed before their next token.
    pub(crate) uncomputed_tokens: u64,
    /// Of the KV memory; as many as there are numbers where there is no such memory.
    pub(crate) free_tokens: u64,
    pub(crate) used_tokens: u64,
    pub(crate) num_preempted: u64,
    /// Of prompts, in a step: fewer than there is room for if there are several tenants.
    pub(crate) prompt_tokens: u32,
}

/// What workers have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) rows: u32,
    pub(crate) step_tokens: u32,
}

/// What is known of the queue, for people.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Outlook {
    /// `W`.
    pub(crate) wait: Duration,
    /// `P`.
    pub(crate) queued_tokens: u64,
}

/// What is in front of newcomers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Backlog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    bounds: Bounds,
    published: Published,
    /// In the mean of the last steps; infinite: as many as there is room for.
    guest_tokens: AtomicU64,
    /// Whose prompts they are; [`NOBODY`].
    guest: AtomicU64,
    books: Mutex<Books>,
}

/// [`Progress`], field by field: readers may see two steps mixed, which are not far apart.
#[derive(Debug, Default)]
struct Published {
    steps: AtomicU64,
    step_seconds: AtomicU64,
    token_seconds: AtomicU64,
    uncomputed_tokens: AtomicU64,
    free_tokens: AtomicU64,
    used_tokens: AtomicU64,
    num_preempted: AtomicU64,
    prompt_tokens: AtomicU32,
}

impl Published {
    fn write(&self, progress: Progress) {
        self.steps.store(progress.steps, Ordering::Relaxed);
        self.step_seconds.store(progress.cost.step.to_bits(), Ordering::Relaxed);
        self.token_seconds.store(progress.cost.token.to_bits(), Ordering::Relaxed);
        self.uncomputed_tokens.store(progress.uncomputed_tokens, Ordering::Relaxed);
        self.free_tokens.store(progress.free_tokens, Ordering::Relaxed);
        self.used_tokens.store(progress.used_tokens, Ordering::Relaxed);
        self.num_preempted.store(progress.num_preempted, Ordering::Relaxed);
        self.prompt_tokens.store(progress.prompt_tokens, Ordering::Relaxed);
    }

    fn read(&self) -> Progress {
        let seconds = |bits: &AtomicU64| f64::from_bits(bits.load(Ordering::Relaxed));
        Progress {
            steps: self.steps.load(Ordering::Relaxed),
            cost: StepCost { step: seconds(&self.step_seconds), token: seconds(&self.token_seconds) },
            uncomputed_tokens: self.uncomputed_tokens.load(Ordering::Relaxed),
            free_tokens: self.free_tokens.load(Ordering::Relaxed),
            used_tokens: self.used_tokens.load(Ordering::Relaxed),
            num_preempted: self.num_preempted.load(Ordering::Relaxed),
            prompt_tokens: self.prompt_tokens.load(Ordering::Relaxed),
        }
    }
}

impl Backlog {
    pub fn new(config: &Config) -> Self {
        let wait = config.max_queue_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let shared = Shared {
            bounds: Bounds { tokens: config.max_queued_tokens, wait },
            published: Published::default(),
            guest_tokens: AtomicU64::new(f64::INFINITY.to_bits()),
            guest: AtomicU64::new(NOBODY),
            books: Mutex::new(Books::new(Instant::now())),
        };
        shared.published.write(Progress {
            steps: 0,
            cost: StepCost::UNKNOWN,
            uncomputed_tokens: 0,
            free_tokens: u64::MAX,
            used_tokens: 0,
            num_preempted: 0,
            prompt_tokens: u32::MAX,
        });
        Self { shared: Arc::new(shared) }
    }

    /// Whether there is any use in looking closer at what a newcomer wants; `priority`: the soonest that it may have.
    /// Promises nothing: [`Self::reserve`] decides.
    pub fn knock(&self, tenant: &Tenant, priority: i32, deadline: Option<Instant>) -> Result<(), Refusal> {
        let least = Demand::least(tenant, priority);
        self.shared.decide(&mut self.shared.books(), least, deadline, Instant::now())
    }

    /// Decides upon a newcomer, and notes it in the same moment if it may come in. In the order of these calls requests are
    /// expected to be served.
    pub fn reserve(&self, demand: Demand, deadline: Option<Instant>) -> Result<Reservation, Refusal> {
        let mut books = self.shared.books();
        self.shared.decide(&mut books, demand, deadline, Instant::now())?;
        let id = books.enter(demand);
        drop(books);
        Ok(Reservation { id, shared: Arc::clone(&self.shared) })
    }

    /// When the first of those who run will have left, as far as one can tell.
    pub fn next_departure(&self) -> Duration {
        let mut books = self.shared.books();
        books.wait_behind_all(&self.shared.published.read(), Demand::anybodys(), Instant::now()).until_departure()
    }

    pub(crate) fn outlook(&self) -> Outlook {
        let mut books = self.shared.books();
        let progress = self.shared.published.read();
        let wait = books.wait_behind_all(&progress, Demand::anybodys(), Instant::now()).in_front();
        Outlook { wait, queued_tokens: books.queued_tokens(&progress) }
    }

    /// How many requests are in the books.
    #[cfg(test)]
    pub(crate) fn num_inside(&self) -> usize {
        self.shared.books().num_inside()
    }

    /// After each step.
    pub(crate) fn publish(&self, progress: Progress) {
        self.shared.published.write(progress);
    }

    /// So many prompt tokens of this tenant may be in the next step, if another tenant of its weight decodes. The engine alone
    /// says so.
    pub(crate) fn set_guest(&self, tenant: Option<TenantId>, tokens: u32) {
        self.shared.guest.store(tenant.map_or(NOBODY, |tenant| tenant.0.into()), Ordering::Relaxed);
        let (place, tokens) = (&self.shared.guest_tokens, f64::from(tokens));
        let mean = f64::from_bits(place.load(Ordering::Relaxed));
        let mean = if mean.is_finite() { mean + GUESTS_WEIGHT * (tokens - mean) } else { tokens };
        place.store(mean.to_bits(), Ordering::Relaxed);
    }

    /// The workers are gone.
    pub(crate) fn workers_lost(&self) {
        self.shared.books().workers_lost(Instant::now());
    }

    /// The workers are there, for the first time or again.
    pub(crate) fn workers_ready(&self, room: Room) {
        self.shared.books().workers_ready(room, Instant::now());
    }
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decide(
        &self,
        books: &mut Books,
        demand: Demand,
        deadline: Option<Instant>,
        now: Instant,
    ) -> Result<(), Refusal> {
        let Bounds { tokens, wait: longest } = self.bounds;
        let own_bound = demand.max_queued_tokens.map(u64::from);
        if tokens.is_none() && longest.is_none() && deadline.is_none() && own_bound.is_none() {
            return Ok(());
        }
        let progress = self.published.read();
        let guest = u32::try_from(self.guest.load(Ordering::Relaxed)).ok().map(TenantId);
        books.set_guest(guest, f64::from_bits(self.guest_tokens.load(Ordering::Relaxed)));
        let wait = books.wait(&progress, demand, now);
        let (own, share) = books.own_queued_tokens(demand, &progress);
        if let Some(allowed) = tokens {
            // Of the tenant's own part, and of all: whoever fits into one of them may come.
            let queues =
                [(own, (allowed as f64 * share) as u64, share), (books.queued_tokens(&progress), allowed, 1.0)];
            let over = queues.map(|(waiting, allowed, share)| {
                let with_it = waiting.saturating_add(demand.prompt_tokens.into());
                (waiting > 0 && with_it > allowed).then(|| wait.until_computed(with_it - allowed, share))
            });
            if let [Some(until_own), Some(until_all)] = over {
                let [(waiting, allowed, _), _] = queues;
                return Err(Refusal::new(Reason::QueuedTokens { waiting, allowed }, until_own.min(until_all)));
            }
        }
        let waiting = books.waiting_tokens(demand.tenant);
        let with_it = waiting.saturating_add(demand.prompt_tokens.into());
        if let Some(allowed) = own_bound.filter(|allowed| waiting > 0 && with_it > *allowed) {
            let pause = wait.until_computed(with_it - allowed, share);
            return Err(Refusal::new(Reason::TenantQueuedTokens { waiting, allowed }, pause));
        }
        let in_front = wait.in_front();
        if let Some(allowed) = longest.filter(|allowed| in_front > *allowed) {
            return Err(Refusal::new(Reason::Wait { wait: in_front, allowed }, in_front.saturating_sub(allowed)));
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
        let until_token = in_front.saturating_add(wait.own());
        match left {
            Some(left) if !in_front.is_zero() && until_token > left => {
                Err(Refusal::new(Reason::Deadline { wait: until_token, left }, until_token.saturating_sub(left)))
            }
            _ => Ok(()),
        }
    }
}

/// A request's entry in the books, given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    id: u64,
    shared: Arc<Shared>,
}

impl Reservation {
    /// It waits no more: the first of its sequences is in a step.
    pub(crate) fn started(&self) {
        let steps = self.shared.published.steps.load(Ordering::Relaxed);
        self.shared.books().started(self.id, steps);
    }

    /// Its prompt is computed; so much of it was in the prefix cache.
    pub(crate) fn prefilled(&self, cached_tokens: u32) {
        self.shared.books().prefilled(self.id, cached_tokens);
    }

    /// One of its outputs is over; `by_itself`: before its length said so.
    pub(crate) fn ended(&self, num_tokens: u32, by_itself: bool) {
        self.shared.books().ended(num_tokens, by_itself);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.books().leave(self.id);
    }
}

#[cfg(test)]
mod tests;
