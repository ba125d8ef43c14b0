//! AVX-512: one register. The second level adds the bfloat16 instructions.

use std::arch::x86_64::{
    __m256i, __m512, __m512bh, _CMP_UNORD_Q, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T1, _mm_prefetch,
    _mm256_loadu_si256, _mm256_storeu_si256, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtepi32_epi16, _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh,
    _mm512_div_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_mov_epi32,
    _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_reduce_add_ps, _mm512_reduce_max_ps,
    _mm512_roundscale_ps, _mm512_scalef_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32,
    _mm512_srli_epi32, _mm512_storeu_ps, _mm512_sub_ps,
};

use super::{Simd, Vector};

/// Each `unsafe` below: the CPU has the instructions, by the module's rule (see `simd`); a pointer is good by the
/// caller's promise.
#[derive(Clone, Copy)]
pub(crate) struct Register(__m512);

macro_rules! lanewise {
    ($($name:ident = $instruction:ident;)*) => {
        $(
            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                // SAFETY: the module's rule.
                Self(unsafe { $instruction(self.0, other.0) })
            }
        )*
    };
}

impl Vector for Register {
    lanewise! {
        add = _mm512_add_ps;
        sub = _mm512_sub_ps;
        mul = _mm512_mul_ps;
        div = _mm512_div_ps;
        max = _mm512_max_ps;
        min = _mm512_min_ps;
        scale = _mm512_scalef_ps;
    }
    #[inline(always)]
    fn zero() -> Self {
        // SAFETY: the module's rule.
        Self(unsafe { _mm512_setzero_ps() })
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: the module's rule.
        Self(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    fn mul_add(self, by: Self, plus: Self) -> Self {
        // SAFETY: the module's rule.
        Self(unsafe { _mm512_fmadd_ps(self.0, by.0, plus.0) })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: the module's rule.
        Self(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: the module's rule.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    fn maximum(self) -> f32 {
        // SAFETY: the module's rule.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
}

pub(crate) struct Avx512;

impl Simd for Avx512 {
    type V = Register;
    type Pairs = (Register, Register);
    const TILE_ROWS: usize = 12;
    const TILE_VECTORS: usize = 2;

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
    unsafe fn load_halves(from: *const u16) -> (Register, Register) {
        // SAFETY: the caller's promise.
        unsafe {
            let pairs = _mm512_loadu_si512(from.cast());
            let high = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            (Register(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))), Register(_mm512_castsi512_ps(high)))
        }
    }
    #[inline(always)]
    fn dot_pairs(left: u32, right: Self::Pairs, plus: Register) -> Register {
        let (low, high) = (f32::from_bits(left << 16), f32::from_bits(left & 0xffff_0000));
        right.0.mul_add(Register::splat(low), right.1.mul_add(Register::splat(high), plus))
    }
    #[inline(always)]
    unsafe fn store_bf16(from: Register, to: *mut u16) {
        // SAFETY: the module's rule, and the caller's promise.
        unsafe {
            let bits = _mm512_castps_si512(from.0);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(from.0, from.0);
            let chosen = _mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, is_nan, quiet));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(chosen));
        }
    }
}

pub(crate) struct Avx512Bf16;

impl Simd for Avx512Bf16 {
    type V = Register;
    type Pairs = __m512bh;
    const MULTIPLIES_BF16: bool = true;
    const TILE_ROWS: usize = Avx512::TILE_ROWS;
    const TILE_VECTORS: usize = Avx512::TILE_VECTORS;

    #[inline(always)]
    fn prefetch(line: *const u8) {
        Avx512::prefetch(line);
    }
    #[inline(always)]
    unsafe fn load_halves(from: *const u16) -> (Register, Register) {
        // SAFETY: the caller's promise; this level has all that the other one has.
        unsafe { Avx512::load_halves(from) }
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u16) -> __m512bh {
        // SAFETY: the caller's promise; a register of pairs is 64 plain bytes.
        unsafe { from.cast::<__m512bh>().read_unaligned() }
    }
    #[inline(always)]
    fn dot_pairs(left: u32, right: __m512bh, plus: Register) -> Register {
        // SAFETY: the module's rule; a register of pairs is 64 plain bytes.
        unsafe {
            let left: __m512bh = std::mem::transmute(_mm512_set1_epi32(left.cast_signed()));
            Register(_mm512_dpbf16_ps(plus.0, left, right))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(from: Register, to: *mut u16) {
        // SAFETY: the module's rule, and the caller's promise; sixteen bfloat16 are 32 plain bytes.
        unsafe {
            let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(from.0));
            _mm256_storeu_si256(to.cast(), rounded);
        }
    }
}
