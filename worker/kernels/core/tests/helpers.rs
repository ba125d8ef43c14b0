//! Helpers: whoever takes part, everything is computed once. A process has them or not, so these tests have their own.

use std::collections::BTreeSet;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use millrace_kernels_core::team::{OpenMp, Team};

unsafe extern "C" fn never(_: unsafe extern "C" fn(*mut c_void), _: *mut c_void, _: c_uint, _: c_uint) {
    unreachable!("OpenMP is used beside helpers");
}

unsafe extern "C" fn zero() -> c_int {
    0
}

fn team(threads: usize) -> Team {
    let team = Team::new(Some(OpenMp { parallel: never, thread_num: zero }), threads);
    team.start_helpers().expect("threads are started");
    team
}

/// More threads than cores, so that some come late or not at all.
fn teams() -> [Team; 4] {
    [1, 2, 3, 9].map(team)
}

/// How often each of `len` things was done.
struct Counts(Vec<AtomicUsize>);

impl Counts {
    fn new(len: usize) -> Self {
        Self((0..len).map(|_| AtomicUsize::new(0)).collect())
    }

    fn add(&self, index: usize) {
        self.0[index].fetch_add(1, Ordering::Relaxed);
    }

    fn are(&self, expected: usize) -> bool {
        self.0.iter().all(|count| count.load(Ordering::Relaxed) == expected)
    }
}

#[test]
fn parts_cover_everything_once_whoever_computes_them() {
    for team in teams() {
        for (len, grain) in [(0, 1), (1, 1), (7, 2), (64, 16), (100, 16)] {
            let (parts, tasks) = (Counts::new(len), Counts::new(len));
            team.split(len, grain, 0, &|first, end| (first..end).for_each(|index| parts.add(index)));
            team.share(len, &|task| tasks.add(task));
            assert!(parts.are(1) && tasks.are(1), "{team:?}, {len} in multiples of {grain}");
        }
    }
}

/// What a region wrote is there when it ends, and no helper does anything in it later; whether they sleep or look out.
#[test]
fn regions_follow_one_another_closely_and_after_pauses() {
    for team in teams() {
        for round in 1..=20_000_usize {
            if round % 1000 == 0 {
                thread::sleep(Duration::from_millis(1)); // helpers fall asleep
            }
            let mut written = [0; 40];
            let start = AtomicUsize::new(written.as_mut_ptr() as usize);
            team.share(written.len(), &|task| {
                let place = start.load(Ordering::Relaxed) as *mut usize;
                // SAFETY: each task has a place of its own in what outlives the region.
                unsafe { *place.add(task) = round + task };
            });
            assert!(written.iter().enumerate().all(|(task, value)| *value == round + task));
        }
    }
}

#[test]
fn callers_at_the_same_time_and_within_a_region_get_everything_done() {
    let team = team(4);
    let counts = Counts::new(1000);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    team.share(100, &|outer| team.share(10, &|inner| counts.add(outer * 10 + inner)));
                }
            });
        }
    });
    assert!(counts.are(800));
}

#[test]
fn what_a_thread_makes_for_itself_is_kept_over_its_tasks() {
    for team in teams() {
        let seen = Mutex::new(0);
        let made = AtomicUsize::new(0);
        let make = || {
            made.fetch_add(1, Ordering::Relaxed);
            0
        };
        team.share_with(1000, &make, &|own: &mut usize, _| {
            *own += 1;
            *seen.lock().expect("no body panics") += 1;
        });
        assert_eq!(seen.into_inner().expect("no body panics"), 1000);
        assert!((1..=team.threads()).contains(&made.into_inner()));
    }
}

#[test]
fn helpers_take_part() {
    let team = team(3);
    let names = Mutex::new(BTreeSet::new());
    let deadline = Instant::now() + Duration::from_secs(60);
    // Tasks that sleep give the others time to come; the helpers of a process serve one region at a time, and other
    // tests have regions too.
    while names.lock().expect("no body panics").len() < 3 {
        assert!(Instant::now() < deadline, "{names:?}");
        team.share(30, &|_| {
            thread::sleep(Duration::from_micros(100));
            names.lock().expect("no body panics").insert(thread::current().name().map(str::to_owned));
        });
    }
}

#[test]
fn there_are_helpers_up_to_a_limit() {
    let (team, counts) = (team(1100), Counts::new(5000));
    team.share(5000, &|task| counts.add(task));
    assert!(counts.are(1));
}
