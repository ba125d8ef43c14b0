//! Sixteen float32 lanes, on every instruction-set level.
//!
//! A kernel is a value with [`Kernel::run`], generic over the level. It and everything that it calls is
//! `#[inline(always)]`, so that [`Simd::run`], the one function that enables the instructions, contains all of it. A part
//! of a kernel that comes in many shapes is a [`Body`]: a function for each, else there is one that takes minutes to compile.
//!
//! Safety, for this whole module: the values of a level exist only inside a kernel that `Level::run` started, and it
//! starts one only on a CPU that has the instructions. That is why arithmetic on them is safe to call.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(all(target_arch = "x86_64", not(feature = "without-avx512")))]
pub(crate) mod avx512;
pub(crate) mod portable;

/// How many lanes a vector has, on every level: what a level lacks in width it makes up by several registers.
pub const LANES: usize = 16;

/// Sixteen float32 values.
pub trait Vector: Copy {
    fn zero() -> Self;
    fn splat(x: f32) -> Self;
    /// # Safety
    /// `from` is readable for 16 float32.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `from` is readable for 16 bfloat16.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// # Safety
    /// `from` is readable for 16 bytes.
    unsafe fn load_i8(from: *const i8) -> Self;
    /// # Safety
    /// `to` is writable for 16 float32.
    unsafe fn store(self, to: *mut f32);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
    /// `self * by + plus`.
    fn mul_add(self, by: Self, plus: Self) -> Self;
    /// The nearest whole numbers, for |x| < 2^22.
    fn round(self) -> Self;
    /// `self * 2^n` for whole n, -126 <= n <= 127.
    fn scale(self, n: Self) -> Self;
    fn sum(self) -> f32;
    fn maximum(self) -> f32;
}

/// An instruction-set level.
pub trait Simd: Sized + 'static {
    type V: Vector;
    /// Sixteen pairs of bfloat16 (k, k + 1), as a packed matrix holds them: 64 bytes.
    type Pairs: Copy;
    /// What a byte is as bfloat16.
    type Bytes: Copy;
    /// A number for either half of sixteen lanes.
    type Words: Copy;

    /// Whether the CPU multiplies pairs of bfloat16 itself; elsewhere they are widened first.
    const MULTIPLIES_BF16: bool = false;
    /// Whether numbers are made of codes while products are computed, as good as for nothing.
    const DECODES_FREELY: bool = false;
    /// A tile of a matrix product with its accumulators in registers is at most this many rows high ...
    const TILE_ROWS: usize;
    /// ... and this many vectors wide, twice as many up to half the rows.
    const TILE_VECTORS: usize;

    /// Runs something with the level's instructions, as a function of its own.
    ///
    /// # Safety
    /// The CPU has the instructions; what the body itself asks for.
    unsafe fn run<B: Body<Self>>(body: B) -> B::Output;
    /// # Safety
    /// `from` is readable for 32 bfloat16.
    unsafe fn load_pairs(from: *const u16) -> Self::Pairs;
    /// Sixteen pairs of bfloat16 as float32: the first of each pair, and the second.
    ///
    /// # Safety
    /// `from` is readable for 32 bfloat16.
    unsafe fn load_halves(from: *const u16) -> (Self::V, Self::V);
    /// Asks for a cache line before it is needed. Any address may be named: nothing is read.
    #[inline(always)]
    fn prefetch(_line: *const u8) {}
    /// In each lane `plus + left.0 * right.0 + left.1 * right.1`; the pair `left` (low half first) is the same for all.
    fn dot_pairs(left: u32, right: Self::Pairs, plus: Self::V) -> Self::V;
    /// Sixteen signed 4-bit numbers as float32: of each 32-bit lane the four bits at `16 * (part % 2) + 4 * (part / 2)`;
    /// `part` < 8.
    ///
    /// # Safety
    /// `cell` is readable for 64 bytes.
    unsafe fn nibbles(cell: *const u8, part: usize) -> Self::V;
    /// Sixteen signed bytes as float32: of the cell's bytes those at `byte_at(lane, part)`; `part` < 4.
    ///
    /// # Safety
    /// `cell` is readable for 64 bytes.
    unsafe fn bytes(cell: *const u8, part: usize) -> Self::V;
    /// Rounds to nearest, ties to even; NaN stays NaN.
    ///
    /// # Safety
    /// `to` is writable for 16 bfloat16.
    unsafe fn store_bf16(from: Self::V, to: *mut u16);

    // Codes as pairs of bfloat16, where the CPU multiplies them; `numbers` and `less` are registers, to be asked for before
    // a loop.

    /// The parts `2 * pair` and `2 * pair + 1` of `nibbles`, side by side; `pair` < 4.
    ///
    /// # Safety
    /// `cell` is readable for 64 bytes.
    unsafe fn nibble_pairs(_cell: *const u8, _pair: usize) -> Self::Pairs {
        unreachable!("{NO_PAIRS}")
    }
    /// The same of unsigned numbers, `16 - less` lower.
    ///
    /// # Safety
    /// `cell` is readable for 64 bytes.
    unsafe fn nibble_pairs_less(_cell: *const u8, _pair: usize, _less: Self::Words) -> Self::Pairs {
        unreachable!("{NO_PAIRS}")
    }
    /// A byte for each lane, in either half of it.
    ///
    /// # Safety
    /// `from` is readable for 16 bytes.
    unsafe fn words(_from: *const u8) -> Self::Words {
        unreachable!("{NO_PAIRS}")
    }
    /// The parts `2 * pair` and `2 * pair + 1` of `bytes`, side by side; `pair` < 2. A byte is a sign (its highest bit) and a
    /// magnitude; a sign alone is -128. `numbers`: of `bytes_to_pairs`.
    ///
    /// # Safety
    /// `cell` is readable for 64 bytes.
    unsafe fn byte_pairs(_cell: *const u8, _pair: usize, _numbers: Self::Bytes) -> Self::Pairs {
        unreachable!("{NO_PAIRS}")
    }
    /// What `byte_pairs` looks bytes up in.
    fn bytes_to_pairs() -> Self::Bytes;
}

/// Why a level lacks what others are asked for.
const NO_PAIRS: &str = "this level multiplies float32";

/// Where the four bits of a part begin in a lane: parts 2i and 2i + 1 lie at the same place of its two halves.
#[inline(always)]
#[expect(clippy::cast_possible_wrap)] // below 32
pub(crate) const fn nibble_at(part: usize) -> i32 {
    (16 * (part % 2) + 4 * (part / 2)) as i32
}

/// Where a cell has the byte of a lane and a part: a quarter of a register holds four lanes, of each the first two parts
/// side by side, then the other two.
#[inline(always)]
pub(crate) const fn byte_at(lane: usize, part: usize) -> usize {
    lane / 4 * 16 + part / 2 * 8 + lane % 4 * 2 + part % 2
}

/// The same within a quarter of a register, as a shuffle takes it: each byte to the highest of its lane, zero below.
#[cfg(target_arch = "x86_64")]
const fn byte_shuffle(part: usize) -> [u8; 64] {
    let (mut order, mut lane) = ([0x80; 64], 0);
    while lane < LANES {
        order[4 * lane + 3] = (byte_at(lane, part) % 16) as u8;
        lane += 1;
    }
    order
}

/// `byte_shuffle` of each part.
#[cfg(target_arch = "x86_64")]
static BYTE_SHUFFLES: [[u8; 64]; 4] = [byte_shuffle(0), byte_shuffle(1), byte_shuffle(2), byte_shuffle(3)];

/// Something that is compiled for a level.
pub trait Body<S: Simd> {
    type Output;
    /// # Safety
    /// Only `Simd::run` may call it. Implementations are `#[inline(always)]`.
    unsafe fn run(self) -> Self::Output;
}

/// A kernel as a body.
pub(crate) struct Whole<K>(pub(crate) K);

impl<S: Simd, K: Kernel> Body<S> for Whole<K> {
    type Output = K::Output;

    #[inline(always)]
    unsafe fn run(self) -> K::Output {
        // SAFETY: the caller's promise.
        unsafe { self.0.run::<S>() }
    }
}

/// Something that is compiled for every level.
pub trait Kernel {
    type Output;
    /// # Safety
    /// Only `Simd::run` may call it. Implementations are `#[inline(always)]`.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// e^x to 2 units in the last place, from -87 (below: e^-87) to 88. Cephes' polynomial (S. Moshier, `expf`).
#[inline(always)]
pub fn exp<V: Vector>(x: V) -> V {
    const COEFFICIENTS: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    // The bounds stand first: then what is not a number stays so on every level.
    let x = V::splat(88.0).min(V::splat(-87.0).max(x));
    let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
    // ln 2 in two parts, so that the remainder keeps its last bits.
    let r = n.mul_add(V::splat(-0.693_359_4), x);
    let r = n.mul_add(V::splat(2.121_944_4e-4), r);
    let mut p = V::splat(COEFFICIENTS[0]);
    for c in &COEFFICIENTS[1..] {
        p = p.mul_add(r, V::splat(*c));
    }
    p.mul_add(r.mul(r), r.add(V::splat(1.0))).scale(n)
}

/// A number as float32: what `load` does for sixteen.
#[inline(always)]
pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to nearest, ties to even; NaN stays NaN.
#[inline(always)]
pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16 }
}
