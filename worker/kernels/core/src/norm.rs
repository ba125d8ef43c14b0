//! The residual stream and its norms: `add_norm` in one pass.

use crate::Dtype;
use crate::level::Level;
use crate::simd::{Kernel, LANES, Simd, Vector};
use crate::team::Team;

/// How many values are normalized by one thread before others are woken.
const SERIAL_VALUES: usize = 48 * 1024;

/// Which norm, over rows of `width` values.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019).
    Rms,
    /// (x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016).
    Layer,
}

/// A norm's parameters, padded to whole vectors by zeros.
#[derive(Clone, Debug)]
pub struct Norm {
    level: Level,
    team: Team,
    kind: Kind,
    eps: f32,
    width: usize,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// What one call works on: rows of `width` values, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// float32, the stream. Overwritten by `residual + delta` where there is a delta.
    pub residual: *mut f32,
    /// The update that is not yet added, or null.
    pub delta: *const u8,
    pub delta_dtype: Dtype,
    /// Receives the normalized rows.
    pub out: *mut u8,
    pub out_dtype: Dtype,
    pub rows: usize,
}

// SAFETY: plain addresses; threads get disjoint rows.
unsafe impl Sync for Rows {}

impl Norm {
    /// `weight` and `bias` have `width` values each; the width is a multiple of 16.
    pub fn new(level: Level, team: Team, kind: Kind, eps: f32, weight: &[f32], bias: Option<&[f32]>) -> Self {
        let width = weight.len();
        assert!(width.is_multiple_of(LANES), "a norm's width of {width} is not a multiple of {LANES}");
        let bias = bias.map_or_else(|| vec![0.0; width], <[f32]>::to_vec);
        Self { level, team, kind, eps, width, weight: weight.to_vec(), bias }
    }

    /// Adds the delta to the residual, in place, and writes the norm of the sum.
    ///
    /// # Safety
    /// The pointers of `rows` are good for `rows.rows * width` values of their dtypes and do not overlap.
    pub unsafe fn add_norm(&self, rows: Rows) {
        let serial = SERIAL_VALUES / self.width;
        self.team.split(rows.rows, 1, serial, &|first, end| {
            // SAFETY: the caller's promise; the rows of two threads are different ones.
            unsafe { self.level.run(Part { norm: self, rows, first, end }) }
        });
    }
}

struct Part<'a> {
    norm: &'a Norm,
    rows: Rows,
    first: usize,
    end: usize,
}

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = self.norm.width;
        for row in self.first..self.end {
            let at = row * width;
            // SAFETY: rows below `rows.rows` lie within the tensors.
            unsafe {
                let x = self.rows.residual.add(at);
                if !self.rows.delta.is_null() {
                    let delta = self.rows.delta.add(at * self.rows.delta_dtype.bytes());
                    add::<S>(x, delta, self.rows.delta_dtype, width);
                }
                let out = self.rows.out.add(at * self.rows.out_dtype.bytes());
                normalize::<S>(self.norm, x, out, self.rows.out_dtype);
            }
        }
    }
}

/// Sixteen values of either dtype.
///
/// # Safety
/// `from` is readable for them.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd>(from: *const u8, dtype: Dtype, index: usize) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            Dtype::F32 => S::V::load(from.cast::<f32>().add(index)),
            Dtype::Bf16 => S::V::load_bf16(from.cast::<u16>().add(index)),
        }
    }
}

/// Writes sixteen values in either dtype.
///
/// # Safety
/// `to` is writable for them.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(values: S::V, to: *mut u8, dtype: Dtype, index: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            Dtype::F32 => values.store(to.cast::<f32>().add(index)),
            Dtype::Bf16 => S::store_bf16(values, to.cast::<u16>().add(index)),
        }
    }
}

#[inline(always)]
unsafe fn add<S: Simd>(x: *mut f32, delta: *const u8, dtype: Dtype, width: usize) {
    for i in (0..width).step_by(LANES) {
        // SAFETY: both have `width` values, a multiple of the lanes.
        unsafe { S::V::load(x.add(i)).add(load::<S>(delta, dtype, i)).store(x.add(i)) }
    }
}

#[inline(always)]
unsafe fn normalize<S: Simd>(norm: &Norm, x: *const f32, out: *mut u8, dtype: Dtype) {
    let width = norm.width;
    // SAFETY: all have `width` values, a multiple of the lanes.
    unsafe {
        let mut mean = 0.0;
        if matches!(norm.kind, Kind::Layer) {
            let mut sum = S::V::zero();
            for i in (0..width).step_by(LANES) {
                sum = sum.add(S::V::load(x.add(i)));
            }
            mean = sum.sum() / width as f32;
        }
        let shift = S::V::splat(mean);
        let mut squares = S::V::zero();
        for i in (0..width).step_by(LANES) {
            let centred = S::V::load(x.add(i)).sub(shift);
            squares = centred.mul_add(centred, squares);
        }
        let factor = S::V::splat(1.0 / (squares.sum() / width as f32 + norm.eps).sqrt());
        for i in (0..width).step_by(LANES) {
            let scaled = S::V::load(x.add(i)).sub(shift).mul(factor);
            let (weight, bias) = (S::V::load(norm.weight.as_ptr().add(i)), S::V::load(norm.bias.as_ptr().add(i)));
            store::<S>(scaled.mul_add(weight, bias), out, dtype, i);
        }
    }
}
