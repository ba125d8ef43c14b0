//! Any CPU: arrays of sixteen, which the compiler makes into what vectors there are.

use super::{Body, LANES, Simd, Vector, byte_at, from_bf16, nibble_at, to_bf16};

#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Array([f32; LANES]);

impl Array {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Vector for Array {
    #[inline(always)]
    fn zero() -> Self {
        Self([0.0; LANES])
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[u16; LANES]>().read_unaligned() }.map(from_bf16))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn mul_add(self, by: Self, plus: Self) -> Self {
        // Two roundings: without the instruction a fused one is a call into a library.
        self.zip(by, |a, b| a * b).add(plus)
    }
    #[inline(always)]
    fn round(self) -> Self {
        // Adding 1.5 * 2^23 leaves no bits for a fraction.
        Self(self.0.map(|x| (x + 12_582_912.0) - 12_582_912.0))
    }
    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        self.zip(n, |x, n| x * f32::from_bits(((n as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut x = self.0;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                x[i] += x[i + width];
            }
        }
        x[0]
    }
    #[inline(always)]
    fn maximum(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
}

pub(crate) struct Portable;

impl Simd for Portable {
    type V = Array;
    type Pairs = (Array, Array);
    type Bytes = ();
    type Words = ();
    const TILE_ROWS: usize = 2;
    const TILE_VECTORS: usize = 1;

    #[inline(never)]
    unsafe fn run<B: Body<Self>>(body: B) -> B::Output {
        // SAFETY: the caller's promise.
        unsafe { body.run() }
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u16) -> Self::Pairs {
        // SAFETY: the caller's promise.
        unsafe { Self::load_halves(from) }
    }
    #[inline(always)]
    unsafe fn load_halves(from: *const u16) -> (Array, Array) {
        // SAFETY: the caller's promise.
        let pairs = unsafe { from.cast::<[u32; LANES]>().read_unaligned() };
        let (low, high) = (pairs.map(|x| f32::from_bits(x << 16)), pairs.map(|x| f32::from_bits(x & 0xffff_0000)));
        (Array(low), Array(high))
    }
    #[inline(always)]
    fn dot_pairs(left: u32, right: Self::Pairs, plus: Array) -> Array {
        let (low, high) = (f32::from_bits(left << 16), f32::from_bits(left & 0xffff_0000));
        right.0.mul_add(Array::splat(low), right.1.mul_add(Array::splat(high), plus))
    }
    #[inline(always)]
    unsafe fn nibbles(cell: *const u8, part: usize) -> Array {
        // SAFETY: the caller's promise.
        let lanes = unsafe { cell.cast::<[i32; LANES]>().read_unaligned() };
        Array(lanes.map(|lane| ((lane << (28 - nibble_at(part))) >> 28) as f32))
    }
    #[inline(always)]
    unsafe fn bytes(cell: *const u8, part: usize) -> Array {
        // SAFETY: the caller's promise.
        let bytes = unsafe { cell.cast::<[i8; 4 * LANES]>().read_unaligned() };
        Array(std::array::from_fn(|lane| f32::from(bytes[byte_at(lane, part)])))
    }
    #[inline(always)]
    fn bytes_to_pairs() {}
    #[inline(always)]
    unsafe fn store_bf16(from: Array, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(from.0.map(to_bf16)) }
    }
}
