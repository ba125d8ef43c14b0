//! Threads that OpenMP does not grant: their parts are computed all the same.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Mutex;

use millrace_kernels_core::team::{OpenMp, Team};

unsafe extern "C" fn only_this_thread(
    function: unsafe extern "C" fn(*mut c_void),
    data: *mut c_void,
    _threads: c_uint,
    _flags: c_uint,
) {
    // SAFETY: as the caller says.
    unsafe { function(data) }
}

unsafe extern "C" fn zero() -> c_int {
    0
}

fn refused() -> Team {
    Team::new(Some(OpenMp { parallel: only_this_thread, thread_num: zero }), 4)
}

#[test]
fn every_part_is_done_when_openmp_grants_one_thread_of_four() {
    let done = Mutex::new(Vec::new());
    refused().split(4, 1, 0, &|first, _| done.lock().expect("no body panics").push(first));
    assert_eq!(done.into_inner().expect("no body panics"), [0, 1, 2, 3]);
}

#[test]
fn parts_cover_everything_once_whoever_computes_them() {
    for team in [refused(), Team::new(None, 4)] {
        for (len, grain) in [(0, 1), (1, 1), (7, 2), (64, 16), (100, 16)] {
            let counts = Mutex::new(vec![0; len]);
            team.split(len, grain, 0, &|first, end| {
                counts.lock().expect("no body panics")[first..end].iter_mut().for_each(|count| *count += 1);
            });
            assert_eq!(counts.into_inner().expect("no body panics"), vec![1; len]);
            let tasks = Mutex::new(vec![0; len]);
            team.share(len, &|task| tasks.lock().expect("no body panics")[task] += 1);
            assert_eq!(tasks.into_inner().expect("no body panics"), vec![1; len]);
        }
    }
}
