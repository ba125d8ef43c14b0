//! Mixtures of experts, of every level against float64, on memory that ends where rows end and is NaN before it is written.

mod support;

use std::sync::Arc;

use millrace_kernels_core::Dtype;
use millrace_kernels_core::experts::{Expert, Experts, Layer, Scratch, Tokens};
use millrace_kernels_core::level::Level;
use millrace_kernels_core::linear::{Activation, Epilogue, Linear, Weight};
use millrace_kernels_core::team::Team;
use support::{Random, near};

/// float32 weights of one expert: gate and up, then down.
struct Stored {
    up: Vec<f32>,
    down: Vec<f32>,
}

struct Case {
    tokens: usize,
    experts: usize,
    choices: usize,
    width: usize,
    size: usize,
    weigh_input: bool,
}

impl Case {
    fn random(random: &mut Random) -> Self {
        let experts = 1 + random.below(9);
        Self {
            tokens: 1 + random.below(40),
            experts,
            choices: 1 + random.below(experts.min(4)),
            width: 1 + random.below(70),
            size: 1 + random.below(40),
            weigh_input: random.below(2) == 0,
        }
    }

    /// Distinct experts of each token, mostly the same few.
    fn choose(&self, random: &mut Random) -> Vec<i64> {
        let few = self.choices + random.below(self.experts - self.choices + 1);
        let tokens = (0..self.tokens).flat_map(|_| {
            let first = random.below(few);
            (0..self.choices).map(move |choice| ((first + choice) % few).cast_signed() as i64)
        });
        tokens.collect()
    }

    /// What an expert gives for a token.
    fn expert(&self, stored: &Stored, x: &[f32], scale: f64) -> Vec<f64> {
        let product = |weight: &[f32], x: &[f64]| -> Vec<f64> {
            let rows = weight.chunks_exact(x.len());
            rows.map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
        };
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x) * scale).collect();
        let both = product(&stored.up, &x);
        let (gate, up) = both.split_at(self.size);
        let hidden: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| gate.max(0.0) * up).collect();
        product(&stored.down, &hidden)
    }
}

fn linear(level: Level, weight: &[f32], inputs: usize, gate: Option<Activation>) -> Layer {
    let epilogue = Epilogue { activation: gate, gated: gate.is_some(), out_dtype: Dtype::F32 };
    let outputs = weight.len() / inputs;
    let weight = Weight { at: weight.as_ptr().cast(), dtype: Dtype::F32, outputs, inputs };
    // SAFETY: the weight has as many rows as it says.
    Layer::Plain(Arc::new(unsafe { Linear::new(level, Team::new(None, 1), weight, None, epilogue) }))
}

#[test]
fn a_token_gets_the_weighted_sum_of_its_experts() {
    let mut random = Random::new();
    for level in Level::available() {
        for _ in 0..40 {
            let case = Case::random(&mut random);
            let stored: Vec<Stored> = (0..case.experts)
                .map(|_| Stored {
                    up: random.values(2 * case.size * case.width, 0.3),
                    down: random.values(case.width * case.size, 0.3),
                })
                .collect();
            let (x, chosen) = (random.values(case.tokens * case.width, 1.0), case.choose(&mut random));
            let weights = random.values(chosen.len(), 1.0);
            let made = stored.iter().map(|each| Expert {
                up: linear(level, &each.up, case.width, Some(Activation::Relu)),
                down: linear(level, &each.down, case.size, None),
            });
            let experts = Experts::new(level, Team::new(None, 1), made.collect(), case.weigh_input);
            let experts = experts.expect("all experts are alike");
            let rows = experts.scratch_rows(case.tokens, case.choices);
            let [mut sorted, mut hidden, mut results] =
                [case.width, case.size, case.width].map(|width| vec![f32::NAN; rows * width]);
            let mut out = vec![f32::NAN; case.tokens * case.width];
            let tokens = Tokens {
                x: x.as_ptr().cast(),
                count: case.tokens,
                choices: case.choices,
                chosen: chosen.as_ptr(),
                weights: weights.as_ptr(),
                out: out.as_mut_ptr(),
            };
            let scratch = Scratch {
                sorted: sorted.as_mut_ptr().cast(),
                hidden: hidden.as_mut_ptr().cast(),
                results: results.as_mut_ptr(),
            };
            // SAFETY: the tensors have the sizes that the case says.
            unsafe { experts.apply(tokens, scratch) }.expect("every token names experts that there are");
            for token in 0..case.tokens {
                let x = &x[token * case.width..][..case.width];
                let mut sums = vec![(0.0, 0.0); case.width];
                for choice in token * case.choices..(token + 1) * case.choices {
                    let (weight, expert) = (f64::from(weights[choice]), &stored[chosen[choice] as usize]);
                    let (input, output) = if case.weigh_input { (weight, 1.0) } else { (1.0, weight) };
                    for ((sum, size), y) in sums.iter_mut().zip(case.expert(expert, x, input)) {
                        *sum += output * y;
                        *size += (output * y).abs();
                    }
                }
                for (found, (sum, size)) in out[token * case.width..].iter().zip(sums) {
                    near(*found, sum, 1e-6, 1e-5 * (1.0 + size));
                }
            }
        }
    }
}

#[test]
fn an_expert_that_there_is_not_is_refused() {
    let level = Level::best();
    let weight = [1.0_f32; 8];
    let expert =
        || Expert { up: linear(level, &weight, 2, Some(Activation::Relu)), down: linear(level, &weight[..4], 2, None) };
    let other = Expert { up: linear(level, &weight, 4, Some(Activation::Relu)), down: linear(level, &weight, 1, None) };
    assert!(Experts::new(level, Team::new(None, 1), vec![expert(), other], false).is_err());
    assert!(Experts::new(level, Team::new(None, 1), vec![], false).is_err());
    let experts = Experts::new(level, Team::new(None, 1), vec![expert(), expert()], false).expect("they are alike");
    let (x, weights, mut out) = ([1.0_f32; 2], [1.0_f32; 1], [0.0_f32; 2]);
    let [mut sorted, mut hidden, mut results] = [[0.0_f32; 2]; 3];
    for (id, is_known) in [(0, true), (1, true), (2, false), (-1, false)] {
        let chosen = [id];
        let tokens = Tokens {
            x: x.as_ptr().cast(),
            count: 1,
            choices: 1,
            chosen: chosen.as_ptr(),
            weights: weights.as_ptr(),
            out: out.as_mut_ptr(),
        };
        let scratch = Scratch {
            sorted: sorted.as_mut_ptr().cast(),
            hidden: hidden.as_mut_ptr().cast(),
            results: results.as_mut_ptr(),
        };
        // SAFETY: every tensor has a row of two values.
        assert_eq!(unsafe { experts.apply(tokens, scratch) }.is_ok(), is_known);
    }
}
