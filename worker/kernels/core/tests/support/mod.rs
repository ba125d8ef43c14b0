//! What the tests of this crate share: numbers that differ from run to run, and comparison with float64.
#![allow(dead_code)] // each test program uses its own part

use std::collections::hash_map::RandomState;
use std::ffi::{c_int, c_uint, c_void};
use std::hash::{BuildHasher, Hasher};

use millrace_kernels_core::team::{OpenMp, Team};

unsafe extern "C" fn on_this_thread(
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

/// A team that splits work for `threads` threads and is granted one.
pub(crate) fn team(threads: usize) -> Team {
    Team::new(Some(OpenMp { parallel: on_this_thread, thread_num: zero }), threads)
}

/// xorshift64* (Vigna 2016).
pub(crate) struct Random(u64);

impl Random {
    /// A seed of the process's own, or `MILLRACE_SEED`; it is printed, and shown when the test fails.
    pub(crate) fn new() -> Self {
        let seed = std::env::var("MILLRACE_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| RandomState::new().build_hasher().finish());
        #[expect(clippy::print_stdout)] // tests talk to whoever reads why they failed
        {
            println!("MILLRACE_SEED={seed}");
        }
        Self(seed | 1)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.bits() >> 16) as usize % end
    }

    /// Between -size and size.
    pub(crate) fn value(&mut self, size: f32) -> f32 {
        ((self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0) * size
    }

    pub(crate) fn values(&mut self, len: usize, size: f32) -> Vec<f32> {
        (0..len).map(|_| self.value(size)).collect()
    }

    pub(crate) fn bf16(&mut self, len: usize, size: f32) -> Vec<u16> {
        (0..len).map(|_| millrace_kernels_core::simd::to_bf16(self.value(size))).collect()
    }
}

/// `found` is within `relative` of `exact`, and `absolute` near zero.
#[track_caller]
pub(crate) fn near(found: f32, exact: f64, relative: f64, absolute: f64) {
    let error = (f64::from(found) - exact).abs();
    assert!(error <= absolute + relative * exact.abs(), "{found} instead of {exact}");
}
