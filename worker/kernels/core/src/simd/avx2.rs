//! AVX2 and FMA: two registers of eight.

use std::arch::x86_64::{
    __m256, __m256i, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T1, _mm_cvtsi32_si128, _mm_loadu_si128,
    _mm_prefetch, _mm_srli_si128, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_castsi256_ps,
    _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32, _mm256_cvtps_epi32, _mm256_div_ps,
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_round_ps,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_shuffle_epi8, _mm256_sll_epi32, _mm256_slli_epi32,
    _mm256_srai_epi32, _mm256_storeu_ps, _mm256_sub_ps,
};

use super::{BYTE_SHUFFLES, Body, LANES, Simd, Vector, nibble_at, to_bf16};

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

// Functions, not closures: closures are not always inlined, and then lack the level's instructions, which costs twentyfold.

/// The lower half of each lane, a bfloat16, as float32.
#[inline(always)]
fn lower_halves(lanes: __m256i) -> __m256 {
    // SAFETY: the module's rule.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(lanes)) }
}

/// The same of the upper half.
#[inline(always)]
fn upper_halves(lanes: __m256i) -> __m256 {
    // SAFETY: the module's rule.
    unsafe { _mm256_castsi256_ps(_mm256_and_si256(lanes, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()))) }
}

/// Eight signed bytes as float32; `order` says where each is.
///
/// # Safety
/// Both are readable for 32 bytes.
#[inline(always)]
unsafe fn half_of_bytes(from: *const u8, order: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let high = _mm256_shuffle_epi8(_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(order.cast()));
        _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(high))
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
            let first = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let second = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast()));
            Self(lower_halves(first), lower_halves(second))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            let (low, high) = (_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)));
            Self(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
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
    type Bytes = ();
    type Words = ();
    const TILE_ROWS: usize = 4;
    const TILE_VECTORS: usize = 1;

    #[inline]
    unsafe fn run<B: Body<Self>>(body: B) -> B::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn with<B: Body<Avx2>>(body: B) -> B::Output {
            // SAFETY: the caller's promise.
            unsafe { body.run() }
        }
        // SAFETY: the caller's promise.
        unsafe { with(body) }
    }
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
        // SAFETY: the caller's promise.
        unsafe {
            let (first, second) = (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(16).cast()));
            let low = Registers(lower_halves(first), lower_halves(second));
            (low, Registers(upper_halves(first), upper_halves(second)))
        }
    }
    #[inline(always)]
    fn dot_pairs(left: u32, right: Self::Pairs, plus: Registers) -> Registers {
        let (low, high) = (f32::from_bits(left << 16), f32::from_bits(left & 0xffff_0000));
        right.0.mul_add(Registers::splat(low), right.1.mul_add(Registers::splat(high), plus))
    }
    #[inline(always)]
    unsafe fn nibbles(cell: *const u8, part: usize) -> Registers {
        // SAFETY: the caller's promise.
        unsafe {
            let up = _mm_cvtsi32_si128(28 - nibble_at(part));
            let (first, second) = (_mm256_loadu_si256(cell.cast()), _mm256_loadu_si256(cell.add(32).cast()));
            let (first, second) = (_mm256_sll_epi32(first, up), _mm256_sll_epi32(second, up));
            let (first, second) = (_mm256_srai_epi32::<28>(first), _mm256_srai_epi32::<28>(second));
            Registers(_mm256_cvtepi32_ps(first), _mm256_cvtepi32_ps(second))
        }
    }
    #[inline(always)]
    unsafe fn bytes(cell: *const u8, part: usize) -> Registers {
        let order = BYTE_SHUFFLES[part].as_ptr();
        // SAFETY: the caller's promise, for either half of the cell; a shuffle has 64 places.
        unsafe { Registers(half_of_bytes(cell, order), half_of_bytes(cell.add(32), order.add(32))) }
    }
    #[inline(always)]
    fn bytes_to_pairs() {}
    #[inline(always)]
    unsafe fn store_bf16(from: Registers, to: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(from.to_array().map(to_bf16)) }
    }
}
