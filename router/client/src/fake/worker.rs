//! The handle by which a test holds a fake worker: what it is, what it shall do wrong, what it has seen.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millrace_scheduler::{Sampled, Sampling};
use tokio::sync::{Notify, watch};

use super::model::ToyModel;

/// What a fake worker is.
#[derive(Clone, Debug)]
pub struct FakeOptions {
    pub model: ToyModel,
    pub vocab_size: u32,
    pub max_positions: u32,
    /// 0: sequences hold no pages, their state lies in their row.
    pub page_size: u32,
    pub num_pages: u32,
    /// Rows that fit; 0: as many as are asked for.
    pub max_rows: u32,
    /// Time that a step takes.
    pub delay: Duration,
    /// Time that it says a step of as many tokens as may be took in its trial; zero: it says nothing of it.
    pub trial: Duration,
    /// Time until the "weights" are loaded; `Describe` waits for it.
    pub load_time: Duration,
    /// Whether page contents are kept and checked. Without it, a step of 512 rows costs next to nothing.
    pub verify: bool,
}

impl Default for FakeOptions {
    /// 256 pages of 16 tokens, sequences up to 4096 tokens, 1000 token ids, answers at once.
    fn default() -> Self {
        Self {
            model: ToyModel::default(),
            vocab_size: 1000,
            max_positions: 4096,
            page_size: 16,
            num_pages: 256,
            max_rows: 0,
            delay: Duration::ZERO,
            trial: Duration::ZERO,
            load_time: Duration::ZERO,
            verify: true,
        }
    }
}

/// What goes wrong at one step. Happens once, in whichever stream reaches that step first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is gone: every stream breaks.
    Die,
    /// No answer until [`FakeWorker::release`] or a death.
    Hang,
    /// The sequence of this work entry (counted modulo their number) fails.
    FailSequence(usize),
    /// The step fails as a whole, and with it every sequence of it.
    FailStep,
    Malformed(Malformation),
}

/// How an answer breaks the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformation {
    /// A column is cut within a value.
    Ragged,
    /// One token too many.
    ExtraToken,
    /// A token id beyond the vocabulary.
    ForeignToken,
    /// The number of another step.
    WrongStep,
    /// The answer comes twice.
    Twice,
    /// What was asked about prompts is not answered.
    NoPromptLogprobs,
}

/// A worker without a model, for one rank. Clones are handles on the same one.
#[derive(Clone, Debug)]
pub struct FakeWorker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: FakeOptions,
    rank: u32,
    world_size: u32,
    started: Instant,
    instance: u64,
    faults: Mutex<BTreeMap<u64, Fault>>,
    refusal: Mutex<Option<String>>,
    violations: Mutex<Vec<String>>,
    reachable: AtomicBool,
    released: Notify,
    /// Stopped: it answers nothing.
    stopped: watch::Sender<bool>,
    loading_hangs: watch::Sender<bool>,
    /// It tells nobody where it stands.
    mute: AtomicBool,
    /// How often it has died.
    deaths: watch::Sender<u64>,
    steps: AtomicU64,
    computed_tokens: AtomicU64,
    streams: AtomicU64,
}

impl FakeWorker {
    /// The only rank.
    pub fn new(options: FakeOptions) -> Self {
        Self::of_group(options, 0, 1)
    }

    /// One of `world_size` ranks.
    pub fn of_group(options: FakeOptions, rank: u32, world_size: u32) -> Self {
        let shared = Shared {
            options,
            rank,
            world_size,
            started: Instant::now(),
            instance: RandomState::new().hash_one(rank),
            faults: Mutex::default(),
            refusal: Mutex::default(),
            violations: Mutex::default(),
            reachable: AtomicBool::new(true),
            released: Notify::new(),
            stopped: watch::Sender::new(false),
            loading_hangs: watch::Sender::new(false),
            mute: AtomicBool::new(false),
            deaths: watch::Sender::new(0),
            steps: AtomicU64::new(0),
            computed_tokens: AtomicU64::new(0),
            streams: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    pub fn options(&self) -> &FakeOptions {
        &self.shared.options
    }

    /// The ids of the first `n` tokens that follow a prompt, whatever else runs.
    pub fn expected(&self, prompt: &[u32], sampling: &Sampling, n: usize) -> Vec<u32> {
        self.expected_samples(prompt, sampling, n).into_iter().map(|sampled| sampled.token_id).collect()
    }

    /// Like [`Self::expected`], with logprobs and top tokens.
    pub fn expected_samples(&self, prompt: &[u32], sampling: &Sampling, n: usize) -> Vec<Sampled> {
        self.options().model.generate(prompt, sampling, n)
    }

    /// Has something go wrong at step `step` of a stream. One fault per step number; in step 0, which is `Prepare`, it
    /// can only die or hang.
    pub fn inject(&self, step: u64, fault: Fault) {
        lock(&self.shared.faults).insert(step, fault);
    }

    /// Has `Prepare` refused with this message; `None` has it granted again.
    pub fn refuse_prepare(&self, message: Option<&str>) {
        *lock(&self.shared.refusal) = message.map(str::to_owned);
    }

    /// Whether new connections in process find it. Served over a socket, `kill` and `restart` decide.
    pub fn set_reachable(&self, reachable: bool) {
        self.shared.reachable.store(reachable, Ordering::Relaxed);
    }

    /// Dies now: every stream breaks. In process it can be connected to again at once, as another instance.
    pub fn die(&self) {
        self.shared.deaths.send_modify(|deaths| *deaths += 1);
    }

    /// Like SIGSTOP and SIGCONT: a stopped one begins no step and answers nothing, and its sockets stay open.
    pub fn stop(&self, stopped: bool) {
        self.shared.stopped.send_replace(stopped);
    }

    /// It computes and answers steps, but never again says where it stands.
    pub fn mute(&self) {
        self.shared.mute.store(true, Ordering::Relaxed);
    }

    /// Loading gets no further, as long as this is so; it goes on saying where it stands.
    pub fn hang_while_loading(&self, hangs: bool) {
        self.shared.loading_hangs.send_replace(hangs);
    }

    /// Ends a hang, the present one or else the next.
    pub fn release(&self) {
        self.shared.released.notify_one();
    }

    /// Everything that was wrong with the plans so far. Correct schedulers leave it empty.
    pub fn violations(&self) -> Vec<String> {
        lock(&self.shared.violations).clone()
    }

    /// Steps computed, over all streams.
    pub fn steps(&self) -> u64 {
        self.shared.steps.load(Ordering::Relaxed)
    }

    /// Tokens whose K/V were computed, over all streams.
    pub fn computed_tokens(&self) -> u64 {
        self.shared.computed_tokens.load(Ordering::Relaxed)
    }

    /// Step streams opened.
    pub fn streams(&self) -> u64 {
        self.shared.streams.load(Ordering::Relaxed)
    }
}

/// What the service needs of it.
impl FakeWorker {
    pub(super) fn rank(&self) -> u32 {
        self.shared.rank
    }

    pub(super) fn world_size(&self) -> u32 {
        self.shared.world_size
    }

    /// As a launcher would count: one more after every death.
    pub(super) fn generation(&self) -> u32 {
        *self.shared.deaths.borrow() as u32 + 1
    }

    /// Waits while it is stopped.
    pub(super) async fn has_a_pulse(&self) {
        // The sender lives as long as this handle.
        let _ = self.shared.stopped.subscribe().wait_for(|stopped| !stopped).await;
    }

    pub(super) fn is_mute(&self) -> bool {
        self.shared.mute.load(Ordering::Relaxed)
    }

    pub(super) fn is_loaded(&self) -> bool {
        !*self.shared.loading_hangs.borrow() && Instant::now() >= self.shared.started + self.options().load_time
    }

    /// Differs after every death.
    pub(super) fn instance(&self) -> u64 {
        self.shared.instance.wrapping_add(*self.shared.deaths.borrow())
    }

    pub(super) fn is_reachable(&self) -> bool {
        self.shared.reachable.load(Ordering::Relaxed)
    }

    pub(super) fn refusal(&self) -> Option<String> {
        lock(&self.shared.refusal).clone()
    }

    pub(super) fn take_fault(&self, step: u64) -> Option<Fault> {
        lock(&self.shared.faults).remove(&step)
    }

    pub(super) fn report(&self, violations: impl IntoIterator<Item = String>) {
        lock(&self.shared.violations).extend(violations);
    }

    /// Sees deaths from now on.
    pub(super) fn watch_deaths(&self) -> watch::Receiver<u64> {
        self.shared.deaths.subscribe()
    }

    pub(super) async fn loaded(&self) {
        tokio::time::sleep_until((self.shared.started + self.options().load_time).into()).await;
        // The sender lives as long as this handle.
        let _ = self.shared.loading_hangs.subscribe().wait_for(|hangs| !hangs).await;
    }

    pub(super) async fn released(&self) {
        self.shared.released.notified().await;
    }

    pub(super) fn count_stream(&self) {
        self.shared.streams.fetch_add(1, Ordering::Relaxed);
    }

    /// Answers how many steps there have been.
    pub(super) fn count_step(&self, num_tokens: u64) -> u64 {
        self.shared.computed_tokens.fetch_add(num_tokens, Ordering::Relaxed);
        self.shared.steps.fetch_add(1, Ordering::Relaxed) + 1
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
