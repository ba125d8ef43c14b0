//! Rows picked from tables, and sums of rows, on memory that ends where the rows end.

mod support;

use millrace_kernels_core::Dtype;
use millrace_kernels_core::rows::{NoSuchRow, Picked, Sum, add, pick};
use millrace_kernels_core::simd::from_bf16;
use millrace_kernels_core::team::Team;
use support::{Random, team};

const ALONE: Team = Team::new(None, 1);

#[test]
fn many_rows_are_divided_among_threads() {
    let (width, count) = (1000, 101);
    let table: Vec<f32> = (0..5 * width).map(|at| at as f32).collect();
    let numbers: Vec<i64> = (0..count).map(|place| place % 5).collect();
    let mut out = vec![f32::NAN; numbers.len() * width];
    let picked = Picked {
        table: table.as_ptr().cast(),
        dtype: Dtype::F32,
        rows: 5,
        width,
        scale: 1.0,
        numbers: numbers.as_ptr(),
        count: numbers.len(),
        out: out.as_mut_ptr(),
    };
    // SAFETY: each vector has as many values as said.
    unsafe { pick(team(3), picked) }.expect("rows of the table");
    let expected: Vec<f32> = (0..out.len()).map(|at| table[(at / width % 5) * width + at % width]).collect();
    assert_eq!(bits(&out), bits(&expected));
    // SAFETY: both have so many values.
    unsafe { add(team(3), Sum { x: out.as_mut_ptr(), delta: expected.as_ptr(), rows: numbers.len(), width }) };
    let twice: Vec<f32> = expected.iter().map(|x| x + x).collect();
    assert_eq!(bits(&out), bits(&twice));
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().copied().map(f32::to_bits).collect()
}

#[test]
fn rows_are_picked_by_their_numbers_and_scaled() {
    let mut random = Random::new();
    for _ in 0..50 {
        let (rows, width, count) = (1 + random.below(9), 1 + random.below(70), random.below(9));
        let numbers: Vec<i64> = (0..count).map(|_| i64::try_from(random.below(rows)).expect("few rows")).collect();
        let (wide, narrow) = (random.values(rows * width, 2.0), random.bf16(rows * width, 2.0));
        for (table, dtype) in [(wide.as_ptr().cast::<u8>(), Dtype::F32), (narrow.as_ptr().cast(), Dtype::Bf16)] {
            for scale in [1.0, random.value(3.0)] {
                let mut out = vec![f32::NAN; count * width];
                let numbers_at = numbers.as_ptr();
                let picked =
                    Picked { table, dtype, rows, width, scale, numbers: numbers_at, count, out: out.as_mut_ptr() };
                // SAFETY: each vector has as many values as said.
                unsafe { pick(ALONE, picked) }.unwrap();
                for (place, number) in numbers.iter().enumerate() {
                    for column in 0..width {
                        let at = usize::try_from(*number).expect("a row") * width + column;
                        let value = if dtype == Dtype::F32 { wide[at] } else { from_bf16(narrow[at]) };
                        assert_eq!(out[place * width + column].to_bits(), (scale * value).to_bits());
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_that_is_not_there_is_named_and_nothing_written() {
    let (table, mut out) = ([1.0_f32; 6], [7.0_f32; 4]);
    for number in [-1, 3, i64::MIN, i64::MAX] {
        let numbers = [0, number];
        let picked = Picked {
            table: table.as_ptr().cast(),
            dtype: Dtype::F32,
            rows: 3,
            width: 2,
            scale: 1.0,
            numbers: numbers.as_ptr(),
            count: 2,
            out: out.as_mut_ptr(),
        };
        // SAFETY: as said.
        assert_eq!(unsafe { pick(ALONE, picked) }, Err(NoSuchRow { number, rows: 3 }));
        assert_eq!(out.map(f32::to_bits), [7.0_f32.to_bits(); 4]);
    }
}

#[test]
fn sums_are_those_of_each_value() {
    let mut random = Random::new();
    for _ in 0..20 {
        let (rows, width) = (random.below(7), 1 + random.below(90));
        let (mut x, delta) = (random.values(rows * width, 2.0), random.values(rows * width, 2.0));
        let expected: Vec<f32> = x.iter().zip(&delta).map(|(x, delta)| x + delta).collect();
        // SAFETY: both have so many values.
        unsafe { add(ALONE, Sum { x: x.as_mut_ptr(), delta: delta.as_ptr(), rows, width }) };
        assert_eq!(x, expected);
    }
}
