//! Products with weights of 8 and 4 bits, of every level against float64, on memory that ends where rows and weights end.

mod support;

use millrace_kernels_core::Dtype;
use millrace_kernels_core::level::Level;
use millrace_kernels_core::linear::Epilogue;
use millrace_kernels_core::quantized::{Codes, QuantizedLinear, Weight};
use millrace_kernels_core::simd::from_bf16;
use millrace_kernels_core::team::Team;
use support::{Random, near};

/// A weight's tensors.
struct Stored {
    codes: Vec<u8>,
    scales: Vec<f32>,
    zeros: Vec<u8>,
}

struct Case {
    bits: Codes,
    rows: usize,
    outputs: usize,
    inputs: usize,
    group: usize,
}

impl Case {
    fn random(random: &mut Random) -> Self {
        let bits = if random.below(2) == 0 { Codes::Eight } else { Codes::Four };
        let (rows, outputs) = (1 + random.below(40), 1 + random.below(100));
        Self { bits, rows, outputs, inputs: 1 + random.below(150), group: [8, 32, 4096][random.below(3)] }
    }

    fn groups(&self) -> usize {
        self.inputs.div_ceil(self.group)
    }

    fn draw(&self, random: &mut Random) -> Stored {
        let row = if self.bits == Codes::Eight { self.inputs } else { self.inputs.div_ceil(2) };
        let factors = self.outputs * self.groups();
        Stored {
            codes: (0..self.outputs * row).map(|_| random.bits() as u8).collect(),
            scales: random.values(factors, 0.1),
            zeros: (0..factors).map(|_| random.below(17) as u8).collect(),
        }
    }

    fn number(&self, stored: &Stored, output: usize, input: usize) -> f64 {
        let factor = output * self.groups() + input / self.group;
        let code = if self.bits == Codes::Eight {
            f64::from(stored.codes[output * self.inputs + input].cast_signed())
        } else {
            let both = stored.codes[output * self.inputs.div_ceil(2) + input / 2];
            f64::from(both >> (4 * (input % 2)) & 15) - f64::from(stored.zeros[factor])
        };
        code * f64::from(stored.scales[factor])
    }
}

#[test]
fn products_are_those_of_the_numbers_that_codes_stand_for() {
    let mut random = Random::new();
    for level in Level::available() {
        for _ in 0..60 {
            let case = Case::random(&mut random);
            let stored = case.draw(&mut random);
            let x = random.bf16(case.rows * case.inputs, 1.0);
            let weight = Weight {
                at: stored.codes.as_ptr(),
                codes: case.bits,
                outputs: case.outputs,
                inputs: case.inputs,
                group: case.group,
                scales: stored.scales.as_ptr().cast(),
                scale_dtype: Dtype::F32,
                zeros: if case.bits == Codes::Four { stored.zeros.as_ptr() } else { std::ptr::null() },
            };
            assert!(QuantizedLinear::supports(case.outputs, case.inputs, case.group, false));
            let epilogue = Epilogue { activation: None, gated: false, out_dtype: Dtype::F32 };
            let mut out = vec![f32::NAN; case.rows * case.outputs];
            // SAFETY: the tensors have the sizes that the weight says, and the rows theirs.
            unsafe {
                let team = Team::new(None, 1);
                let linear = QuantizedLinear::new(level, team, weight, None, epilogue, Dtype::Bf16);
                linear.apply(x.as_ptr().cast(), case.rows, out.as_mut_ptr().cast());
            }
            for (place, found) in out.iter().enumerate() {
                let (row, output) = (place / case.outputs, place % case.outputs);
                let products = (0..case.inputs).map(|input| {
                    f64::from(from_bf16(x[row * case.inputs + input])) * case.number(&stored, output, input)
                });
                let (sum, size) =
                    products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()));
                near(*found, sum, 1e-6, 1e-5 * (1.0 + size));
            }
        }
    }
}

#[test]
fn groups_that_end_within_a_cell_are_refused() {
    assert!(QuantizedLinear::supports(3, 100, 8, false));
    assert!(QuantizedLinear::supports(3, 100, 100, false));
    for (outputs, inputs, group, gated) in [(3, 100, 12, false), (3, 100, 0, false), (0, 8, 8, false), (3, 8, 8, true)]
    {
        assert!(!QuantizedLinear::supports(outputs, inputs, group, gated));
    }
}
