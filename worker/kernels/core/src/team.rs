//! Threads that share a kernel: torch's own, or the process's helpers.
//!
//! Where torch computes a part of a model itself, a region runs in the OpenMP pool that its operators use, so that there
//! are never more threads than cores, and no second pool that spins against the first. But OpenMP waits for every thread
//! of its pool, also for those whose core somebody else has. Where kernels are all that computes, helpers take part
//! instead (`Team::start_helpers`), for whom nobody waits.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::helpers;

/// `GOMP_parallel(function, data, num_threads, flags)` of libgomp: runs the function on every thread of a team.
pub type GompParallel = unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);
/// `omp_get_thread_num()`: which of the team's threads this is.
pub type GompThreadNum = unsafe extern "C" fn() -> c_int;

/// The two functions of the OpenMP library that torch has loaded.
#[derive(Clone, Copy, Debug)]
pub struct OpenMp {
    pub parallel: GompParallel,
    pub thread_num: GompThreadNum,
}

/// How many threads compute a kernel, and in whose pool. Without a pool one thread does it all.
#[derive(Clone, Copy, Debug)]
pub struct Team {
    openmp: Option<OpenMp>,
    threads: usize,
}

struct Region<'a> {
    body: &'a (dyn Fn(usize) + Sync),
    thread_num: GompThreadNum,
    entered: AtomicUsize,
}

unsafe extern "C" fn enter(data: *mut c_void) {
    // SAFETY: `Team::run` passes a region that lives until the last thread has left.
    let region = unsafe { &*data.cast_const().cast::<Region<'_>>() };
    // SAFETY: OpenMP's own function, without arguments.
    let thread = unsafe { (region.thread_num)() };
    region.entered.fetch_add(1, Ordering::Relaxed);
    (region.body)(thread as usize);
}

impl Team {
    pub const fn new(openmp: Option<OpenMp>, threads: usize) -> Self {
        let threads = if openmp.is_none() || threads == 0 { 1 } else { threads };
        Self { openmp, threads }
    }

    pub const fn threads(self) -> usize {
        self.threads
    }

    /// From here on no team of this process uses OpenMP.
    ///
    /// # Errors
    /// The system's, when it starts no thread.
    pub fn start_helpers(self) -> std::io::Result<()> {
        helpers::start(self.threads - 1)
    }

    /// Calls `body(0)` here, and `body(thread)` once on each other thread that comes; no more helpers than make so many
    /// threads as are `wanted`. One body has to do everything when the others do nothing, and they must not wait for one
    /// another: helpers may not come, and OpenMP may grant fewer threads than asked for (its limits, its dynamic mode);
    /// their bodies are then called here. A panic ends the process: there is nobody above these threads to catch it.
    fn run(self, wanted: usize, body: &(dyn Fn(usize) + Sync)) {
        match self.openmp {
            _ if helpers::are_started() => helpers::with(wanted - 1, body),
            Some(openmp) if self.threads > 1 => {
                let region = Region { body, thread_num: openmp.thread_num, entered: AtomicUsize::new(0) };
                // SAFETY: the region outlives the call, which returns when every thread has left `enter`.
                unsafe {
                    (openmp.parallel)(enter, (&raw const region).cast_mut().cast(), self.threads as c_uint, 0);
                }
                (region.entered.into_inner()..self.threads).for_each(body);
            }
            _ => body(0),
        }
    }

    /// Splits `0 .. len` evenly over the threads, in multiples of `grain`, and calls `body(first, end)` for each part.
    /// Up to `serial` the caller's thread does all of it: waking the others would cost more.
    pub fn split(self, len: usize, grain: usize, serial: usize, body: &(dyn Fn(usize, usize) + Sync)) {
        if len <= serial || self.threads == 1 {
            return body(0, len);
        }
        let part = len.div_ceil(self.threads).next_multiple_of(grain);
        self.share(len.div_ceil(part), &|index| body(index * part, ((index + 1) * part).min(len)));
    }

    /// Calls `body(task)` once for each task in `0 .. tasks`. Every thread has a range of its own, always the same for
    /// the same number of tasks, so that what it touched once stays near it; who is done early helps the others.
    pub fn share(self, tasks: usize, body: &(dyn Fn(usize) + Sync)) {
        self.share_with(tasks, &|| (), &|(), task| body(task));
    }

    /// As `share`, with something that each thread makes for itself and keeps over its tasks.
    pub fn share_with<T>(self, tasks: usize, make: &(dyn Fn() -> T + Sync), body: &(dyn Fn(&mut T, usize) + Sync)) {
        if self.threads == 1 || tasks <= 1 {
            let mut own = make();
            return (0..tasks).for_each(|task| body(&mut own, task));
        }
        let end = |thread: usize| tasks * (thread + 1) / self.threads;
        let ranges: Vec<_> =
            (0..self.threads).map(|thread| Next(AtomicUsize::new(tasks * thread / self.threads))).collect();
        self.run(tasks.min(self.threads), &|thread| {
            let mut own = make();
            for owner in (thread..self.threads).chain(0..thread) {
                loop {
                    let task = ranges[owner].0.fetch_add(1, Ordering::Relaxed);
                    if task >= end(owner) {
                        break;
                    }
                    body(&mut own, task);
                }
            }
        });
    }
}

/// The next task of a thread's range, on a cache line of its own.
#[repr(align(64))]
struct Next(AtomicUsize);
