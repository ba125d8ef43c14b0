//! Activation functions, sixteen values at a time, to a few units in the last place of float32.

use crate::simd::{Vector, exp};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// x / (1 + e^-x).
    Silu,
    Relu,
    /// max(x, 0)^2.
    Relu2,
    /// x * Phi(x), Phi the normal distribution function.
    Gelu,
    /// The same with tanh in place of Phi (Hendrycks and Gimpel 2016).
    GeluTanh,
    /// x / (1 + e^(-alpha x)) of x up to `limit`; what it gates is cut off at `limit` on both sides, and gains 1.
    ClampedGlu {
        alpha: f32,
        limit: f32,
    },
}

impl Activation {
    /// NaN stays NaN.
    #[inline(always)]
    pub(crate) fn of<V: Vector>(self, x: V) -> V {
        match self {
            Self::Silu => sigmoid_times(x, x),
            Self::Relu => V::zero().max(x),
            Self::Relu2 => {
                let positive = V::zero().max(x);
                positive.mul(positive)
            }
            Self::Gelu => gelu(x),
            Self::GeluTanh => {
                // (1 + tanh u) / 2 = 1 / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
                let cubed = x.mul(x).mul(x);
                let twice = cubed.mul_add(V::splat(0.044_715), x).mul(V::splat(1.595_769_2));
                sigmoid_times(twice, x)
            }
            Self::ClampedGlu { alpha, limit } => {
                let x = V::splat(limit).min(x);
                sigmoid_times(x.mul(V::splat(alpha)), x)
            }
        }
    }

    /// What `gate` lets through of `up`.
    #[inline(always)]
    pub(crate) fn join<V: Vector>(self, gate: V, up: V) -> V {
        let up = match self {
            Self::ClampedGlu { limit, .. } => V::splat(limit).min(V::splat(-limit).max(up)).add(V::splat(1.0)),
            _ => up,
        };
        self.of(gate).mul(up)
    }
}

/// `y / (1 + e^-x)`.
#[inline(always)]
fn sigmoid_times<V: Vector>(x: V, y: V) -> V {
    y.div(V::splat(1.0).add(exp(V::zero().sub(x))))
}

/// `max(x, 0) - |x| * Phi(-|x|)`; Phi by the error function's formula 7.1.26 of Abramowitz and Stegun (error 1.5e-7).
#[inline(always)]
fn gelu<V: Vector>(x: V) -> V {
    const COEFFICIENTS: [f32; 4] = [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
    let size = x.max(V::zero().sub(x));
    let z = size.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = V::splat(1.0).div(z.mul_add(V::splat(0.327_591_1), V::splat(1.0)));
    let mut p = V::splat(1.061_405_4);
    for c in COEFFICIENTS {
        p = p.mul_add(t, V::splat(c));
    }
    let tail = p.mul(t).mul(exp(V::zero().sub(z.mul(z)))).mul(V::splat(0.5));
    V::zero().max(x).sub(size.mul(tail))
}
