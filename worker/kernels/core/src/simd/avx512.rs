//! AVX-512: one register. The second level adds the bfloat16 instructions.

use std::arch::x86_64::{
    __m256i, __m512, __m512bh, __m512i, _CMP_UNORD_Q, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T1,
    _mm_cvtsi32_si128, _mm_loadu_si128, _mm_prefetch, _mm256_loadu_si256, _mm256_storeu_si256, _mm512_add_epi16,
    _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cmp_ps_mask,
    _mm512_cvtepi8_epi32, _mm512_cvtepi32_epi16, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtepu16_epi32,
    _mm512_cvtneps_pbh, _mm512_div_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_mov_epi32, _mm512_max_epi8, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_or_si512,
    _mm512_permutex2var_epi8, _mm512_permutexvar_epi16, _mm512_permutexvar_ps, _mm512_reduce_add_ps,
    _mm512_reduce_max_ps, _mm512_roundscale_ps, _mm512_scalef_ps, _mm512_set1_epi8, _mm512_set1_epi16,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_shuffle_epi8, _mm512_slli_epi32, _mm512_srai_epi32,
    _mm512_srl_epi16, _mm512_srl_epi32, _mm512_srli_epi32, _mm512_storeu_ps, _mm512_sub_epi8, _mm512_sub_ps,
    _mm512_ternarylogic_epi32, _mm512_unpackhi_epi8, _mm512_unpacklo_epi8,
};

use super::{BYTE_SHUFFLES, Body, LANES, Simd, Vector, nibble_at};

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
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))) }
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

/// Signed 4-bit numbers by their bits.
const NIBBLES: [f32; LANES] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0];

/// The same in bfloat16, twice.
static NIBBLES_BF16: [u16; 2 * LANES] = {
    let mut table = [0; 2 * LANES];
    let mut bits = 0;
    while bits < table.len() {
        table[bits] = (NIBBLES[bits % LANES].to_bits() >> 16) as u16;
        bits += 1;
    }
    table
};

/// -16 to 15 in bfloat16.
static FROM_LIFTED: [u16; 2 * LANES] = {
    let mut table = [0; 2 * LANES];
    let mut place = 0;
    while place < table.len() {
        table[place] = ((place as f32 - 16.0).to_bits() >> 16) as u16;
        place += 1;
    }
    table
};

/// 0 to 127 in bfloat16: their lower bytes, then their higher ones, each in two halves.
static MAGNITUDES: [[[u8; 64]; 2]; 2] = {
    let (mut table, mut number) = ([[[0; 64]; 2]; 2], 0_u16);
    while number < 128 {
        let bits = ((number as f32).to_bits() >> 16) as u16;
        let (half, place) = (number as usize / 64, number as usize % 64);
        (table[0][half][place], table[1][half][place]) = (bits as u8, (bits >> 8) as u8);
        number += 1;
    }
    table
};
/// The higher byte of 128 in bfloat16; the lower one is 0.
const HIGH_OF_128: i8 = 0x43;
/// `a | b & c`, as `ternarylogic` numbers functions of three bits.
const OR_AND: i32 = 0xf8;

pub(crate) struct Avx512;

impl Simd for Avx512 {
    type V = Register;
    type Pairs = (Register, Register);
    type Bytes = ();
    type Words = ();
    const DECODES_FREELY: bool = true;
    const TILE_ROWS: usize = 12;
    const TILE_VECTORS: usize = 2;

    #[inline]
    unsafe fn run<B: Body<Self>>(body: B) -> B::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")]
        unsafe fn with<B: Body<Avx512>>(body: B) -> B::Output {
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
    unsafe fn nibbles(cell: *const u8, part: usize) -> Register {
        // SAFETY: the caller's promise. The permutation takes the lowest four bits of a lane and no others.
        unsafe {
            let lanes = _mm512_srl_epi32(_mm512_loadu_si512(cell.cast()), _mm_cvtsi32_si128(nibble_at(part)));
            Register(_mm512_permutexvar_ps(lanes, _mm512_loadu_ps(NIBBLES.as_ptr())))
        }
    }
    #[inline(always)]
    unsafe fn bytes(cell: *const u8, part: usize) -> Register {
        // SAFETY: the caller's promise.
        unsafe {
            let order = _mm512_loadu_si512(BYTE_SHUFFLES[part].as_ptr().cast());
            let high = _mm512_shuffle_epi8(_mm512_loadu_si512(cell.cast()), order);
            Register(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(high)))
        }
    }
    #[inline(always)]
    fn bytes_to_pairs() {}
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
    type Bytes = [__m512i; 4];
    type Words = __m512i;
    const MULTIPLIES_BF16: bool = true;
    const DECODES_FREELY: bool = true;
    const TILE_ROWS: usize = Avx512::TILE_ROWS;
    const TILE_VECTORS: usize = Avx512::TILE_VECTORS;

    #[inline]
    unsafe fn run<B: Body<Self>>(body: B) -> B::Output {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi")]
        unsafe fn with<B: Body<Avx512Bf16>>(body: B) -> B::Output {
            // SAFETY: the caller's promise.
            unsafe { body.run() }
        }
        // SAFETY: the caller's promise.
        unsafe { with(body) }
    }
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
            // The last operand may be a broadcast of memory.
            Register(_mm512_dpbf16_ps(plus.0, right, left))
        }
    }
    #[inline(always)]
    unsafe fn nibbles(cell: *const u8, part: usize) -> Register {
        // SAFETY: the caller's promise; this level has all that the other one has.
        unsafe { Avx512::nibbles(cell, part) }
    }
    #[inline(always)]
    unsafe fn nibble_pairs(cell: *const u8, pair: usize) -> __m512bh {
        // SAFETY: the caller's promise; a register of pairs is 64 plain bytes. The permutation takes the lowest five bits
        // of a word, and the table says the same for either value of the fifth.
        unsafe {
            let words = _mm512_srl_epi16(_mm512_loadu_si512(cell.cast()), _mm_cvtsi32_si128(nibble_at(2 * pair)));
            std::mem::transmute(_mm512_permutexvar_epi16(words, _mm512_loadu_si512(NIBBLES_BF16.as_ptr().cast())))
        }
    }
    #[inline(always)]
    unsafe fn nibble_pairs_less(cell: *const u8, pair: usize, less: __m512i) -> __m512bh {
        // SAFETY: the caller's promise; a register of pairs is 64 plain bytes.
        unsafe {
            let words = _mm512_srl_epi16(_mm512_loadu_si512(cell.cast()), _mm_cvtsi32_si128(nibble_at(2 * pair)));
            let lifted = _mm512_add_epi16(_mm512_and_si512(words, _mm512_set1_epi16(15)), less);
            std::mem::transmute(_mm512_permutexvar_epi16(lifted, _mm512_loadu_si512(FROM_LIFTED.as_ptr().cast())))
        }
    }
    #[inline(always)]
    unsafe fn words(from: *const u8) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe {
            let lanes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            _mm512_or_si512(lanes, _mm512_slli_epi32::<16>(lanes))
        }
    }
    #[inline(always)]
    unsafe fn bytes(cell: *const u8, part: usize) -> Register {
        // SAFETY: the caller's promise; this level has all that the other one has.
        unsafe { Avx512::bytes(cell, part) }
    }
    #[inline(always)]
    unsafe fn byte_pairs(cell: *const u8, pair: usize, numbers: [__m512i; 4]) -> __m512bh {
        // SAFETY: the caller's promise; a register of pairs is 64 plain bytes. The permutation takes the lowest seven bits
        // of a byte: its magnitude.
        unsafe {
            let bytes = _mm512_loadu_si512(cell.cast());
            let low = _mm512_permutex2var_epi8(numbers[0], bytes, numbers[1]);
            let high = _mm512_permutex2var_epi8(numbers[2], bytes, numbers[3]);
            let high = _mm512_ternarylogic_epi32::<OR_AND>(high, bytes, _mm512_set1_epi8(i8::MIN));
            // All ones for -128. A comparison would take the place of a product.
            let least = _mm512_sub_epi8(bytes, _mm512_max_epi8(bytes, _mm512_set1_epi8(-i8::MAX)));
            let high = _mm512_ternarylogic_epi32::<OR_AND>(high, least, _mm512_set1_epi8(HIGH_OF_128));
            let pairs = if pair == 0 { _mm512_unpacklo_epi8(low, high) } else { _mm512_unpackhi_epi8(low, high) };
            std::mem::transmute::<__m512i, __m512bh>(pairs)
        }
    }
    #[inline(always)]
    fn bytes_to_pairs() -> [__m512i; 4] {
        // SAFETY: the module's rule; each half has 64 bytes.
        unsafe {
            let half = |of: &[u8; 64]| _mm512_loadu_si512(of.as_ptr().cast());
            [half(&MAGNITUDES[0][0]), half(&MAGNITUDES[0][1]), half(&MAGNITUDES[1][0]), half(&MAGNITUDES[1][1])]
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
