//! The process's helpers: threads that take part in what a caller does, one caller at a time.
//!
//! What they are asked for is a region: a function that each helper calls once at most, while the caller runs it too. A
//! word says which region it is, whether it is open, and how many helpers are inside. The caller closes it when its own
//! call has returned, and then waits for those who are inside. A helper that comes later finds it closed. So a region
//! must not depend on anybody's coming, and has to leave nothing undone when the caller's call returns.
//!
//! A helper looks out for the next region for a while, as kernels follow one another closely, and then sleeps: its core is
//! others' between steps.

use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::process::abort;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// There are never more helpers.
pub(crate) const MOST: usize = 1023;
/// How long a helper looks out for the next region.
const LOOK_OUT: Duration = Duration::from_micros(50);
/// How many others one wakes, the caller and each helper that was woken.
const WAKES: usize = 2;
/// How often it looks between two looks at the clock, and the caller before it lets others run.
const LOOKS: u32 = 64;

/// The word: the number of helpers inside, whether the region is open, and its number.
const INSIDE: u64 = (1 << 31) - 1;
const OPEN: u64 = 1 << 31;
const NUMBER: u64 = 1 << 32;

static WORD: AtomicU64 = AtomicU64::new(0);
static REGION: Region = Region(UnsafeCell::new(None));
static HELPERS: [Helper; MOST] = [const { Helper { sleeps: AtomicBool::new(false), thread: OnceLock::new() } }; MOST];
static STARTED: Mutex<usize> = Mutex::new(0);
static ARE_STARTED: AtomicBool = AtomicBool::new(false);
static IS_BUSY: AtomicBool = AtomicBool::new(false);

struct Helper {
    sleeps: AtomicBool,
    thread: OnceLock<Thread>,
}

/// What each of them calls, with its number.
type Body<'a> = dyn Fn(usize) + Sync + 'a;

/// What is asked for, and of how many helpers. Written by who has set `IS_BUSY`, while no region is open and nobody is
/// inside; read by who is inside.
struct Region(UnsafeCell<Option<(&'static Body<'static>, usize)>>);

// SAFETY: as its description says, nobody reads it while it is written.
unsafe impl Sync for Region {}

/// A region must come to its end: helpers may be inside, and the caller's stack is theirs.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            abort();
        }
    }
}

/// Starts helpers until there are so many, or `MOST`. Nothing changes for who wants none. Errors: the system's.
pub(crate) fn start(count: usize) -> std::io::Result<()> {
    if count == 0 {
        return Ok(());
    }
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    while *started < count.min(MOST) {
        let index = *started;
        thread::Builder::new().name(format!("kernels-{}", index + 1)).spawn(move || help(index))?;
        *started += 1;
    }
    ARE_STARTED.store(true, Ordering::Release);
    Ok(())
}

pub(crate) fn are_started() -> bool {
    ARE_STARTED.load(Ordering::Acquire)
}

/// Calls `body(0)` here and `body(1 + i)` on each of the first `count` helpers that comes meanwhile. A panic ends the
/// process. While another caller has the helpers, and within a region, nobody helps.
pub(crate) fn with(count: usize, body: &Body<'_>) {
    let _ends = AbortOnPanic;
    if IS_BUSY.swap(true, Ordering::Acquire) {
        return body(0);
    }
    // SAFETY: this caller alone has set IS_BUSY, the last region is closed and nobody is inside. Nobody calls the body
    // when this function has returned.
    unsafe {
        let body = std::mem::transmute::<&Body<'_>, &'static Body<'static>>(body);
        *REGION.0.get() = Some((body, count));
    }
    let number = (WORD.load(Ordering::Relaxed) / NUMBER).wrapping_add(1);
    WORD.store(number.wrapping_mul(NUMBER) | OPEN, Ordering::SeqCst);
    wake_some(count);
    body(0);
    WORD.fetch_and(!OPEN, Ordering::Relaxed);
    let mut looks = 0_u32;
    while WORD.load(Ordering::Acquire) & INSIDE > 0 {
        looks += 1;
        if looks.is_multiple_of(LOOKS) { thread::yield_now() } else { spin_loop() }
    }
    IS_BUSY.store(false, Ordering::Release);
}

/// Wakes a few of the first `count` helpers, who wake others: it costs each of them microseconds.
fn wake_some(count: usize) {
    // Of a helper that is about to sleep, this or its own last look sees the other.
    let sleepers = HELPERS
        .iter()
        .take(count)
        .filter(|helper| helper.sleeps.load(Ordering::SeqCst) && helper.sleeps.swap(false, Ordering::SeqCst));
    sleepers.take(WAKES).filter_map(|helper| helper.thread.get()).for_each(Thread::unpark);
}

/// A helper's life.
fn help(index: usize) {
    HELPERS[index].thread.get_or_init(thread::current);
    let mut last = 0;
    loop {
        let has_slept;
        (last, has_slept) = next(index, last);
        if !enter(last) {
            continue;
        }
        let _ends = AbortOnPanic;
        // SAFETY: the region is not written while somebody is inside, and its body lives as long.
        unsafe {
            if let Some((body, count)) = *REGION.0.get()
                && index < count
            {
                if has_slept {
                    wake_some(count);
                }
                body(1 + index);
            }
        }
        WORD.fetch_sub(1, Ordering::Release);
    }
}

/// Waits for a region other than the last one. Answers its number, and whether it has slept meanwhile.
fn next(index: usize, last: u64) -> (u64, bool) {
    let (helper, mut has_slept) = (&HELPERS[index], false);
    loop {
        let since = Instant::now();
        while since.elapsed() < LOOK_OUT {
            for _ in 0..LOOKS {
                let number = WORD.load(Ordering::Relaxed) / NUMBER;
                if number != last {
                    return (number, has_slept);
                }
                spin_loop();
            }
        }
        helper.sleeps.store(true, Ordering::SeqCst);
        if WORD.load(Ordering::SeqCst) / NUMBER == last {
            thread::park();
            has_slept = true;
        }
        helper.sleeps.store(false, Ordering::SeqCst);
    }
}

/// Whether the region of this number was still open: then this helper is inside.
fn enter(number: u64) -> bool {
    WORD.fetch_update(Ordering::Acquire, Ordering::Relaxed, |word| {
        (word / NUMBER == number && word & OPEN > 0).then_some(word + 1)
    })
    .is_ok()
}
