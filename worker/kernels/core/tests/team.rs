//! Threads that OpenMP does not grant: their parts are computed all the same.

mod support;

use std::sync::Mutex;

use millrace_kernels_core::team::Team;

#[test]
fn every_part_is_done_when_openmp_grants_one_thread_of_four() {
    let done = Mutex::new(Vec::new());
    support::team(4).split(4, 1, 0, &|first, _| done.lock().expect("no body panics").push(first));
    assert_eq!(done.into_inner().expect("no body panics"), [0, 1, 2, 3]);
}

#[test]
fn parts_cover_everything_once_whoever_computes_them() {
    for team in [support::team(4), Team::new(None, 4)] {
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
