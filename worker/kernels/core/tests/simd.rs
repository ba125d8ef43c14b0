//! The vector operations of every level against scalar arithmetic. All memory is as long as what is asked for, to the
//! byte, so that a sanitizer sees every load and store that goes beyond.

mod support;

use millrace_kernels_core::level::Level;
use millrace_kernels_core::simd::{Kernel, LANES, Simd, Vector, exp, from_bf16, to_bf16};
use support::{Random, near};

/// A function of two vectors, by its name: closures cannot be generic.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Add,
    Sub,
    Mul,
    Div,
    Max,
    Min,
    MulAdd,
    Exp,
}

impl Operation {
    const ALL: [Self; 8] = [Self::Add, Self::Sub, Self::Mul, Self::Div, Self::Max, Self::Min, Self::MulAdd, Self::Exp];

    fn exact(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Add => a + b,
            Self::Sub => a - b,
            Self::Mul => a * b,
            Self::Div => a / b,
            Self::Max => a.max(b),
            Self::Min => a.min(b),
            Self::MulAdd => a * b + a,
            Self::Exp => a.clamp(-87.0, 88.0).exp(),
        }
    }
}

struct Apply<'a>(Operation, &'a [f32], &'a [f32]);

impl Kernel for Apply<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Vec<f32> {
        let mut out = vec![f32::NAN; LANES];
        // SAFETY: all three have sixteen values.
        unsafe {
            let (a, b) = (S::V::load(self.1.as_ptr()), S::V::load(self.2.as_ptr()));
            let result = match self.0 {
                Operation::Add => a.add(b),
                Operation::Sub => a.sub(b),
                Operation::Mul => a.mul(b),
                Operation::Div => a.div(b),
                Operation::Max => a.max(b),
                Operation::Min => a.min(b),
                Operation::MulAdd => a.mul_add(b, a),
                Operation::Exp => exp(a),
            };
            result.store(out.as_mut_ptr());
        }
        out
    }
}

#[test]
fn arithmetic_equals_scalar_arithmetic() {
    let mut random = Random::new();
    for level in Level::available() {
        for operation in Operation::ALL {
            for size in [1e-3, 1.0, 80.0] {
                let (a, b) = (random.values(LANES, size), random.values(LANES, size));
                // SAFETY: the kernel asks for nothing but the vectors that it brings.
                let found = unsafe { level.run(Apply(operation, &a, &b)) };
                for lane in 0..LANES {
                    let (a, b) = (f64::from(a[lane]), f64::from(b[lane]));
                    // A product may round before the sum where there is no fused instruction.
                    near(found[lane], operation.exact(a, b), 2.4e-7, 1e-7 * a.abs() * b.abs().max(1.0));
                }
            }
        }
    }
}

#[test]
fn exponentials_are_right_over_their_whole_range_and_bounded_beyond() {
    for level in Level::available() {
        let mut x = -100.0;
        while x < 100.0 {
            let lanes: Vec<f32> = (0..LANES).map(|lane| x + lane as f32 * 0.0137).collect();
            // SAFETY: as above.
            let found = unsafe { level.run(Apply(Operation::Exp, &lanes, &lanes)) };
            for (found, x) in found.iter().zip(&lanes) {
                near(*found, Operation::Exp.exact(f64::from(*x), 0.0), 2.4e-7, 0.0);
            }
            x += LANES as f32 * 0.0137;
        }
        let special = [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, 0.0].repeat(4);
        // SAFETY: as above.
        let found = unsafe { level.run(Apply(Operation::Exp, &special, &special)) };
        near(found[0], (-87.0f64).exp(), 2.4e-7, 0.0);
        near(found[1], 88.0f64.exp(), 2.4e-7, 0.0);
        assert!(found[2].is_nan(), "{}: e^NaN is {}", level.name(), found[2]);
        assert_eq!(found[3].to_bits(), 1.0f32.to_bits());
    }
}

struct Reduce<'a>(&'a [f32]);

impl Kernel for Reduce<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> (f32, f32) {
        // SAFETY: sixteen values.
        let values = unsafe { S::V::load(self.0.as_ptr()) };
        (values.sum(), values.maximum())
    }
}

#[test]
fn sums_and_maxima_are_over_all_lanes() {
    let mut random = Random::new();
    for level in Level::available() {
        for lane in 0..LANES {
            let mut values = random.values(LANES, 1.0);
            values[lane] = 3.0;
            // SAFETY: the kernel asks for nothing but the vector that it brings.
            let (sum, maximum) = unsafe { level.run(Reduce(&values)) };
            near(sum, values.iter().copied().map(f64::from).sum(), 1e-6, 1e-6);
            assert_eq!(maximum.to_bits(), 3.0f32.to_bits());
        }
    }
}

struct Round<'a>(&'a [f32]);

impl Kernel for Round<'_> {
    type Output = (Vec<u16>, Vec<f32>);

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> (Vec<u16>, Vec<f32>) {
        let (mut bits, mut back) = (vec![0; LANES], vec![f32::NAN; LANES]);
        // SAFETY: all have sixteen values.
        unsafe {
            S::store_bf16(S::V::load(self.0.as_ptr()), bits.as_mut_ptr());
            S::V::load_bf16(bits.as_ptr()).store(back.as_mut_ptr());
        }
        (bits, back)
    }
}

#[test]
fn bfloat16_is_rounded_to_nearest_even_on_every_level() {
    let mut random = Random::new();
    for level in Level::available() {
        for _ in 0..1000 {
            let mut values: Vec<f32> = (0..LANES).map(|_| f32::from_bits(random.bits() as u32)).collect();
            // Halfway between two neighbours, both ways; and what has no neighbours.
            let half = f32::from_bits((random.bits() as u32 & 0xffff_0000) | 0x8000);
            values[..4].copy_from_slice(&[half, f32::INFINITY, f32::NAN, f32::MAX]);
            // SAFETY: the kernel asks for nothing but the vector that it brings.
            let (bits, back) = unsafe { level.run(Round(&values)) };
            for lane in 0..LANES {
                let x = values[lane];
                if x.is_nan() {
                    assert!(back[lane].is_nan(), "{}: {x} became {}", level.name(), back[lane]);
                } else if x.is_subnormal() {
                    // The CPU's own instruction takes numbers below 2^-126 for zero.
                    assert!(bits[lane] == to_bf16(x) || from_bf16(bits[lane]).abs() == 0.0, "{}: {x:e}", level.name());
                } else {
                    assert_eq!(bits[lane], to_bf16(x), "{}: {x:e}", level.name());
                    assert_eq!(back[lane].to_bits(), from_bf16(bits[lane]).to_bits());
                }
            }
        }
    }
}

struct Dot<'a> {
    left: u32,
    right: &'a [u16],
    plus: &'a [f32],
}

impl Kernel for Dot<'_> {
    type Output = (Vec<f32>, Vec<f32>, Vec<f32>);

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Self::Output {
        let mut out = (vec![f32::NAN; LANES], vec![f32::NAN; LANES], vec![f32::NAN; LANES]);
        // SAFETY: sixteen pairs, sixteen values.
        unsafe {
            let plus = S::V::load(self.plus.as_ptr());
            S::dot_pairs(self.left, S::load_pairs(self.right.as_ptr()), plus).store(out.0.as_mut_ptr());
            let (first, second) = S::load_halves(self.right.as_ptr());
            first.store(out.1.as_mut_ptr());
            second.store(out.2.as_mut_ptr());
        }
        out
    }
}

#[test]
fn pairs_of_bfloat16_are_multiplied_and_summed() {
    let mut random = Random::new();
    for level in Level::available() {
        for _ in 0..200 {
            let (left, right, plus) = (random.bf16(2, 4.0), random.bf16(2 * LANES, 4.0), random.values(LANES, 4.0));
            let both = u32::from(left[0]) | u32::from(left[1]) << 16;
            // SAFETY: the kernel asks for nothing but the memory that it brings.
            let (dot, first, second) = unsafe { level.run(Dot { left: both, right: &right, plus: &plus }) };
            for lane in 0..LANES {
                let pair = [right[2 * lane], right[2 * lane + 1]].map(from_bf16);
                assert_eq!([first[lane], second[lane]].map(f32::to_bits), pair.map(f32::to_bits));
                let products = [0, 1].map(|i| f64::from(from_bf16(left[i])) * f64::from(pair[i]));
                let exact = f64::from(plus[lane]) + products[0] + products[1];
                near(dot[lane], exact, 0.0, 2.4e-7 * (f64::from(plus[lane]).abs() + 32.0));
            }
        }
    }
}
