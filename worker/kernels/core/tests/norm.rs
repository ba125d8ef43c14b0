//! Norms of every level against float64, on memory that ends where the rows end.

mod support;

use millrace_kernels_core::Dtype;
use millrace_kernels_core::level::Level;
use millrace_kernels_core::norm::{Kind, Norm, Rows};
use millrace_kernels_core::simd::from_bf16;
use millrace_kernels_core::team::Team;
use support::{Random, near};

fn exact(kind: Kind, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f64> {
    let size = x.len() as f64;
    let x: Vec<f64> = x.iter().copied().map(f64::from).collect();
    let mean = if matches!(kind, Kind::Layer) { x.iter().sum::<f64>() / size } else { 0.0 };
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / size;
    let factor = (variance + 1e-5).sqrt().recip();
    let scaled = x.iter().zip(weight).map(|(x, weight)| (x - mean) * factor * f64::from(*weight));
    scaled.zip(bias).map(|(y, bias)| y + f64::from(*bias)).collect()
}

#[test]
fn sums_are_normalized_in_place_of_nothing_else() {
    let mut random = Random::new();
    for level in Level::available() {
        for kind in [Kind::Rms, Kind::Layer] {
            for _ in 0..20 {
                let (rows, width) = (1 + random.below(5), 16 * (1 + random.below(6)));
                let (weight, bias) = (random.values(width, 2.0), random.values(width, 1.0));
                let norm = Norm::new(level, Team::new(None, 1), kind, 1e-5, &weight, Some(&bias));
                let mut residual = random.values(rows * width, 3.0);
                let delta = random.bf16(rows * width, 1.0);
                let (mut wide, mut narrow) = (vec![f32::NAN; rows * width], vec![u16::MAX; rows * width]);
                let sums: Vec<f32> = residual.iter().zip(&delta).map(|(x, delta)| x + from_bf16(*delta)).collect();
                let mut call = Rows {
                    residual: residual.as_mut_ptr(),
                    delta: delta.as_ptr().cast(),
                    delta_dtype: Dtype::Bf16,
                    out: wide.as_mut_ptr().cast(),
                    out_dtype: Dtype::F32,
                    rows,
                };
                // SAFETY: every vector has rows * width values, and none overlaps another.
                unsafe { norm.add_norm(call) };
                call.delta = std::ptr::null();
                (call.out, call.out_dtype) = (narrow.as_mut_ptr().cast(), Dtype::Bf16);
                // SAFETY: the same.
                unsafe { norm.add_norm(call) };
                assert_eq!(residual, sums);
                for row in 0..rows {
                    let at = row * width..(row + 1) * width;
                    let expected = exact(kind, &sums[at.clone()], &weight, &bias);
                    for ((wide, narrow), expected) in wide[at.clone()].iter().zip(&narrow[at]).zip(expected) {
                        near(*wide, expected, 1e-6, 4e-6);
                        near(from_bf16(*narrow), expected, 2f64.powi(-8), 4e-6);
                    }
                }
            }
        }
    }
}
