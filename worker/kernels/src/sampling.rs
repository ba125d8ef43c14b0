//! `Sampler`: the next token of every row of a step.

use millrace_kernels_core::sampling::{Limits, Parameters, Penalties, Row, Sampler as Core, Step, Watermark};
use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::machine::Machine;

/// Columns of a row's parameters that are numbers: see `parameters`.
const NUMBERS: usize = 8;
/// Columns of those that are whole.
const WHOLE: usize = 4;
/// Columns of a row in a step: two words of noise, the token before, how many tokens it has.
const OF_STEP: usize = 4;

const WATERMARK: i64 = 1;
const PENALTIES: i64 = 2;
const NARROWING: i64 = 4;
const DRAWS: i64 = 8;

#[pyclass(frozen)]
pub(crate) struct Sampler {
    core: Core,
}

/// Counts of the best tokens of each row (int64), their ids (int64) and logprobs (float32).
type Tops<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>, Bound<'py, PyBytes>);

#[pymethods]
impl Sampler {
    /// `watermark`: the largest word of a green token, with its highest bit flipped, and what green tokens gain.
    #[new]
    fn new(machine: Machine, watermark: (i32, f32)) -> Self {
        let watermark = Watermark { largest: watermark.0, delta: watermark.1 };
        Self { core: Core::new(machine.level, machine.team, watermark) }
    }

    /// Chooses a token of each of R rows. `scores`: address of float32 [R, V], R and V. `parameters`: float32 [R, 8] and int64
    /// [R, 4]; `step`: int64 [R, 4]; `counts`: addresses of two float32 [rows, V], or zeros where no row is penalized.
    /// `out`: addresses of int64 [R] and float32 [R]. Answers the best tokens of the rows that ask.
    fn sample<'py>(
        &self,
        py: Python<'py>,
        scores: (usize, usize, usize),
        parameters: (PyBuffer<f32>, PyBuffer<i64>),
        step: PyBuffer<i64>,
        counts: (usize, usize),
        out: (usize, usize),
    ) -> PyResult<Option<Tops<'py>>> {
        let (address, count, vocabulary) = scores;
        let numbers = columns::<f32, NUMBERS>(py, &parameters.0, count)?;
        let whole = columns::<i64, WHOLE>(py, &parameters.1, count)?;
        let of_step = columns::<i64, OF_STEP>(py, &step, count)?;
        if vocabulary == 0 || vocabulary > u32::MAX as usize {
            return Err(PyValueError::new_err(format!("there are no {vocabulary} tokens")));
        }
        let row = |at: usize| -> PyResult<Row> {
            let parameters = parameters_of(numbers[at], whole[at])?;
            if parameters.penalties.is_some() && (counts.0 == 0 || counts.1 == 0) {
                return Err(PyValueError::new_err(format!("row {at} is penalized for tokens that nobody counts")));
            }
            let place = whole[at][3] as usize * vocabulary;
            let [first, second, previous, length] = of_step[at];
            Ok(Row {
                parameters,
                keys: [first as u32, second as u32],
                previous: previous as u32,
                length: length as usize,
                counts: (counts.0 as *const f32).wrapping_add(place),
                output_counts: (counts.1 as *const f32).wrapping_add(place),
            })
        };
        let rows = Rows((0..count).map(row).collect::<PyResult<_>>()?);
        let tops = py.detach(|| {
            let step = Step {
                scores: address as *const f32,
                vocabulary,
                rows: rows.all(),
                ids: out.0 as *mut i64,
                logprobs: out.1 as *mut f32,
            };
            // SAFETY: the caller has checked the tensors behind the addresses.
            unsafe { self.core.sample(step) }
        });
        if tops.is_empty() {
            return Ok(None);
        }
        let mut found = vec![0_i64; count];
        for top in &tops {
            found[top.row] += 1;
        }
        let ids: Vec<u8> = tops.iter().flat_map(|top| (top.id.cast_signed() as i64).to_ne_bytes()).collect();
        let logprobs: Vec<u8> = tops.iter().flat_map(|top| top.logprob.to_ne_bytes()).collect();
        let found: Vec<u8> = found.into_iter().flat_map(i64::to_ne_bytes).collect();
        Ok(Some((PyBytes::new(py, &found), PyBytes::new(py, &ids), PyBytes::new(py, &logprobs))))
    }
}

/// What the rows point to belongs to tensors that the caller keeps.
struct Rows(Vec<Row>);

// SAFETY: plain addresses.
unsafe impl Sync for Rows {}

impl Rows {
    fn all(&self) -> &[Row] {
        &self.0
    }
}

/// Temperature, top-p, typical-p, -log(min-p), penalties for repetition, frequency, presence, count; features, top-k, how many
/// of the best, the row among the counts.
fn parameters_of(numbers: [f32; NUMBERS], whole: [i64; WHOLE]) -> PyResult<Parameters> {
    let [temperature, top_p, typical_p, spread, repetition, frequency, presence, count] = numbers;
    let [features, top_k, top, row] = whole;
    let wrong =
        || PyValueError::new_err(format!("no row has features {features}, top-k {top_k}, {top} best, row {row}"));
    let has = |feature: i64| features & feature != 0;
    let limits = Limits { top_k: usize::try_from(top_k).map_err(|_| wrong())?, top_p, typical_p, spread };
    usize::try_from(row).map_err(|_| wrong())?;
    Ok(Parameters {
        watermark: has(WATERMARK),
        penalties: has(PENALTIES).then_some(Penalties { repetition, frequency, presence, count }),
        temperature,
        limits: has(NARROWING).then_some(limits),
        draws: has(DRAWS),
        top: usize::try_from(top).map_err(|_| wrong())?,
    })
}

/// The rows of a contiguous array [rows, N].
fn columns<'a, T: Element, const N: usize>(
    _py: Python<'a>,
    buffer: &'a PyBuffer<T>,
    rows: usize,
) -> PyResult<&'a [[T; N]]> {
    let values =
        buffer.as_slice_ptr().ok_or_else(|| PyValueError::new_err("a step's columns have to be contiguous"))?;
    // SAFETY: nobody writes to them while this thread holds the interpreter.
    let (all, rest) = unsafe { values.as_ref() }.as_chunks::<N>();
    if all.len() != rows || !rest.is_empty() {
        return Err(PyValueError::new_err(format!("{rows} rows have {N} columns each, not {} values", values.len())));
    }
    Ok(all)
}
