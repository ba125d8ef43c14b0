//! AVX2 and FMA: two registers of eight.

use std::arch::x86_64::{
    __m256, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T1, _mm_loadu_si128, _mm_prefetch, _mm256_add_epi32,
    _mm256_add_ps, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtps_epi32, _mm256_div_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_round_ps, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_slli_epi32, _mm256_storeu_ps, _mm256_sub_ps,
};

use super::{LANES, Simd, Vector, to_bf16};

/// Each `unsafe` below: the CPU has the instructions, by the module's rule (see `simd`); a pointer is good by the
/// caller's promise.
#[derive(Clone, Copy)]
pub(crate) struct Registers(__m256, __m256);

macro_rules! lanewise {
    ($($name:ident = $instruction:ident;)*) => {
        $(
            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                // SAFETY: the module's rule.
                unsafe { Self($instruction(self.0, other.0), $instruction(self.1, other.1)) }
            }
        )*
    };
}

impl Registers {
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut array = [0.0; LANES];
        // SAFETY: the array has sixteen places.
        unsafe { self.store(array.as_mut_ptr()) };
        array
    }
}

/// `x * 2^n` for whole n, -126 <= n <= 127.
#[inline(always)]
fn scale_half(x: __m256, n: __m256) -> __m256 {
    // SAFETY: the module's rule.
    unsafe {
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
    }
}

impl Vector for Registers {
    lanewise! {
        add = _mm256_add_ps;
        sub = _mm256_sub_ps;
        mul = _mm256_mul_ps;
        div = _mm256_div_ps;
        max = _mm256_max_ps;
        min = _mm256_min_ps;
    }
    #[inline(always)]
    fn scale(self, n: Self) -> Self {
        Self(scale_half(self.0, n.0), scale_half(self.1, n.1))
    }
    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: the module's rule.
        unsafe { Self(_mm256_setzero_ps(), _mm256_setzero_ps()) }
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: the module's rule.
        unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let widen = |from: *const u16| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            Self(widen(from), widen(from.add(8)))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }
    #[inline(always)]
    fn mul_add(self, by: Self, plus: Self) -> Self {
        // SAFETY: the module's rule.
        unsafe { Self(_mm256_fmadd_ps(self.0, by.0, plus.0), _mm256_fmadd_ps(self.1, by.1, plus.1)) }
    }
    #[inline(always)]
    fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: the module's rule.
        unsafe { Self(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)) }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: the module's rule.
        let mut x = self.to_array();
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                x[i] += x[i + width];
            }
        }
        x[0]
    }
    #[inline(always)]
    fn maximum(self) -> f32 {
        self.to_array().into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

pub(crate) struct Avx2;

impl Simd for Avx2 {
    type V = Registers;
    type Pairs = (Registers, Registers);
    const TILE_ROWS: usize = 4;
    const TILE_VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn load_pairs(from: *const u16) -> Self::Pairs {
        // SAFETY: the caller's promise.
        unsafe { Self::load_halves(from) }
    }
    #[inline(always)]
    fn prefetch(line: *const u8) {
        // SAFETY: the module's rule; a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
    }
    #[inline(always)]
    unsafe fn load_halves(from: *const u16) -> (Registers, Registers) {
        use std::arch::x86_64::{_mm256_and_si256, _mm256_loadu_si256};
        // SAFETY: the caller's promise.
        unsafe {
            let (first, second) = (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(16).cast()));
            let mask = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
            let low = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x));
            let high = |x| _mm256_castsi256_ps(_mm256_and_si256(x, mask));
            (Registers(low(first), low(second)), Registers(high(first), high(second)))
        }
    }
    #[inline(always)]
    fn dot_pairs(left: u32, right: Self::Pairs, plus: Registers) -> Registers {
        let (low, high) = (f32::from_bits(left << 16), f32::from_bits(left & 0xffff_0000));
        right.0.mul_add(Registers::splat(low), right.1.mul_add(Registers::splat(high), plus))
    }
    #[inline(always)]
    unsafe fn store_bf16(from: Registers, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(from.to_array().map(to_bf16)) }
    }
}
