//! Ranks as threads over one memory: what each reads is of the round that it is in.

mod support;

use std::convert::Infallible;
use std::thread;

use millrace_kernels_core::exchange::{Ended, Exchange, Gather, SLOT_BYTES, Verdict, shared_bytes};
use support::Random;

/// Aligned as the exchange wants it.
#[repr(align(128))]
#[derive(Clone, Copy)]
struct Line(#[expect(dead_code)] [u8; 128]);

#[derive(Clone, Copy)]
struct Address(usize);

#[expect(clippy::unnecessary_wraps)] // in other programs somebody does
fn nobody_dies() -> Result<(), Infallible> {
    Ok(())
}

/// What rank `rank` brings to a round.
fn value(rank: usize, round: usize, at: usize) -> f32 {
    (rank * 1000 + round * 10 + at % 7) as f32
}

fn sum_of(size: usize, round: usize, at: usize) -> f32 {
    (0..size).map(|rank| value(rank, round, at)).sum()
}

fn rounds_of(end: &mut Exchange, (rank, size): (usize, usize), counts: &[usize]) {
    for (round, &count) in counts.iter().enumerate() {
        let mut x: Vec<f32> = (0..count).map(|at| value(rank, round, at)).collect();
        let mut out = vec![f32::NAN; if rank == 0 { size * count } else { 0 }];
        let gather = Gather { x: x.as_ptr().cast(), rows: 1, row_bytes: 4 * count, out: out.as_mut_ptr().cast() };
        // SAFETY: `x` has `count` values, `out` as many of every rank on rank 0.
        unsafe {
            end.gather(gather, &nobody_dies).expect("infallible");
            end.sum(x.as_mut_ptr(), count, &nobody_dies).expect("infallible");
        }
        assert!(x.iter().enumerate().all(|(at, x)| x.to_bits() == sum_of(size, round, at).to_bits()));
        for (at, gathered) in out.iter().enumerate() {
            assert_eq!(gathered.to_bits(), value(at / count, round, at % count).to_bits());
        }
        x.fill(rank as f32 + 5.0);
        // SAFETY: as above.
        unsafe { end.broadcast(x.as_mut_ptr().cast(), 4 * count, &nobody_dies).expect("nobody leaves") };
        assert!(x.iter().all(|x| x.to_bits() == 5.0f32.to_bits()));
    }
}

#[test]
fn rounds_never_mix() {
    let mut random = Random::new();
    for size in [2, 3] {
        let mut counts: Vec<usize> = (0..40).map(|_| 1 + random.below(300)).collect();
        counts.extend([SLOT_BYTES / 4, SLOT_BYTES / 4 + 1, 2 * SLOT_BYTES / 4 + 9]);
        let mut memory = vec![Line([0; 128]); shared_bytes(size) / 128];
        let address = Address(memory.as_mut_ptr() as usize);
        thread::scope(|scope| {
            for rank in 0..size {
                let counts = &counts;
                scope.spawn(move || {
                    let Address(address) = address;
                    // SAFETY: the memory is as long as the exchange says, and outlives the threads.
                    let mut end = unsafe { Exchange::new(address as *mut u8, rank, size) };
                    rounds_of(&mut end, (rank, size), counts);
                });
            }
        });
    }
}

#[test]
fn who_waits_for_nobody_ends_with_the_error_that_it_is_told() {
    let mut memory = vec![Line([0; 128]); shared_bytes(2) / 128];
    // SAFETY: as above.
    let mut end = unsafe { Exchange::new(memory.as_mut_ptr().cast(), 0, 2) };
    let mut x = [1.0f32; 4];
    // SAFETY: four values.
    let ended = unsafe { end.sum(x.as_mut_ptr(), 4, &|| Err("gone")) };
    assert_eq!(ended, Err(Ended::Gone("gone")));
}

/// One rank's part of a step: sums until it is done, or fails before the sum of number `fails_at`; how it ended for it.
fn step_of(end: &mut Exchange, (rank, size): (usize, usize), counts: &[usize], fails_at: Option<usize>) -> u8 {
    for (round, &count) in counts.iter().enumerate() {
        if fails_at == Some(round) {
            return 2 + rank as u8;
        }
        let mut x: Vec<f32> = (0..count).map(|at| value(rank, round, at)).collect();
        // SAFETY: `x` has `count` values.
        match unsafe { end.sum(x.as_mut_ptr(), count, &nobody_dies) } {
            Ok(()) => assert_eq!(x[count - 1].to_bits(), sum_of(size, round, count - 1).to_bits()),
            Err(Ended::Left(left)) => {
                assert_ne!(left, rank);
                return 1;
            }
        }
    }
    if fails_at.is_some() { 2 + rank as u8 } else { 0 }
}

/// Steps in which nobody, one or several ranks fail, each anywhere: all know it, and the next step is not disturbed.
#[test]
fn a_step_that_fails_on_one_rank_fails_on_all_and_the_next_does_not() {
    for size in [2, 3] {
        let mut random = Random::new();
        let steps: Vec<(Vec<usize>, Vec<Option<usize>>)> = (0..300)
            .map(|_| {
                let counts: Vec<usize> = (0..random.below(6)).map(|_| 1 + random.below(60)).collect();
                let fails = (0..size).map(|_| (random.below(4) == 0).then(|| random.below(counts.len() + 1))).collect();
                (counts, fails)
            })
            .collect();
        let mut memory = vec![Line([0; 128]); shared_bytes(size) / 128];
        let address = Address(memory.as_mut_ptr() as usize);
        thread::scope(|scope| {
            for rank in 0..size {
                let steps = &steps;
                scope.spawn(move || {
                    let Address(address) = address;
                    // SAFETY: as above.
                    let mut end = unsafe { Exchange::new(address as *mut u8, rank, size) };
                    for (counts, fails) in steps {
                        end.begin_step();
                        let outcome = step_of(&mut end, (rank, size), counts, fails[rank]);
                        let verdict = end.end_step(outcome, &nobody_dies).expect("infallible");
                        check(verdict, fails);
                    }
                });
            }
        });
    }
}

/// The worst is that of a rank that failed by itself. Of several, those that came to it.
fn check(verdict: Verdict, fails: &[Option<usize>]) {
    match fails.iter().flatten().count() {
        0 => assert_eq!(verdict, Verdict { outcome: 0, rank: 0 }),
        _ => assert!(verdict.outcome == 2 + verdict.rank as u8 && fails[verdict.rank].is_some(), "{verdict:?}"),
    }
}
