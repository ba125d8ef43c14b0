//! `Chain`: operators one after the other in one call, which releases the interpreter once.
//!
//! What they read and write is named by slots, whose addresses come with each call: workspaces move when they grow.

use std::sync::Arc;

use millrace_kernels_core::attention::Tensors;
use millrace_kernels_core::linear::Linear as LinearCore;
use millrace_kernels_core::quantized::QuantizedLinear as QuantizedCore;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::attention::{Attention, Plan};
use crate::linear::Linear;
use crate::norm::Norm;
use crate::quantized::QuantizedLinear;

enum Operator {
    Norm { norm: Py<Norm>, residual: usize, delta: Option<usize>, out: usize },
    Linear { linear: Arc<LinearCore>, x: usize, out: usize },
    Quantized { linear: Arc<QuantizedCore>, x: usize, out: usize },
    Attend { attention: Py<Attention>, plan: usize, turns: Option<usize>, kv: usize, qkv: usize, out: usize },
}

#[derive(FromPyObject)]
enum AnyLinear {
    Plain(Py<Linear>),
    Quantized(Py<QuantizedLinear>),
}

/// Addresses of slots, plans of the attention, and what turns queries and keys, as `Attention.attend` takes them.
struct Given<'a> {
    slots: &'a [usize],
    plans: &'a [Py<Plan>],
    turns: &'a [(usize, usize)],
}

#[pyclass]
#[derive(Default)]
pub(crate) struct Chain {
    operators: Vec<Operator>,
    num_slots: usize,
    num_plans: usize,
    num_turns: usize,
}

#[pymethods]
impl Chain {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    /// As `Norm.add_norm`.
    #[pyo3(signature = (norm, residual, delta, out))]
    fn norm(&mut self, norm: Py<Norm>, residual: usize, delta: Option<usize>, out: usize) {
        self.knows(&[residual, delta.unwrap_or_default(), out]);
        self.operators.push(Operator::Norm { norm, residual, delta, out });
    }

    /// As `Linear.apply` or `QuantizedLinear.apply`.
    fn linear(&mut self, linear: AnyLinear, x: usize, out: usize) {
        self.knows(&[x, out]);
        self.operators.push(match linear {
            AnyLinear::Plain(linear) => Operator::Linear { linear: Arc::clone(&linear.get().core), x, out },
            AnyLinear::Quantized(linear) => Operator::Quantized { linear: Arc::clone(&linear.get().core), x, out },
        });
    }

    /// As `Attention.attend`, with the plan and the turns of these numbers (None: nothing is turned).
    #[pyo3(signature = (attention, plan, turns, kv, qkv, out))]
    fn attend(
        &mut self,
        attention: Py<Attention>,
        plan: usize,
        turns: Option<usize>,
        kv: usize,
        qkv: usize,
        out: usize,
    ) {
        self.knows(&[kv, qkv, out]);
        self.num_plans = self.num_plans.max(plan + 1);
        self.num_turns = self.num_turns.max(turns.map_or(0, |turns| turns + 1));
        self.operators.push(Operator::Attend { attention, plan, turns, kv, qkv, out });
    }

    /// All of them on so many rows. Raises `ValueError` when one has too little to go on, as the operator would.
    fn run(
        &self,
        py: Python<'_>,
        rows: usize,
        slots: Vec<usize>,
        plans: Vec<Py<Plan>>,
        turns: Vec<(usize, usize)>,
    ) -> PyResult<()> {
        if slots.len() < self.num_slots || plans.len() < self.num_plans || turns.len() < self.num_turns {
            return Err(PyValueError::new_err(format!(
                "a chain of {} slots, {} plans and {} turns got {}, {} and {}",
                self.num_slots,
                self.num_plans,
                self.num_turns,
                slots.len(),
                plans.len(),
                turns.len()
            )));
        }
        let given = Given { slots: &slots, plans: &plans, turns: &turns };
        py.detach(|| self.operators.iter().try_for_each(|operator| operator.run(rows, &given)))
            .map_err(PyValueError::new_err)
    }
}

impl Chain {
    fn knows(&mut self, slots: &[usize]) {
        self.num_slots = slots.iter().fold(self.num_slots, |most, slot| most.max(slot + 1));
    }
}

impl Operator {
    fn run(&self, rows: usize, given: &Given<'_>) -> Result<(), String> {
        let at = |slot: &usize| given.slots[*slot];
        match self {
            Self::Norm { norm, residual, delta, out } => {
                norm.get().run(at(residual), delta.as_ref().map_or(0, at), at(out), rows);
            }
            // SAFETY: the caller has checked the tensors behind the slots, as it has to for a call of each.
            Self::Linear { linear, x, out } => unsafe { linear.apply(at(x) as *const u8, rows, at(out) as *mut u8) },
            // SAFETY: as above.
            Self::Quantized { linear, x, out } => unsafe {
                linear.apply(at(x) as *const u8, rows, at(out) as *mut u8);
            },
            Self::Attend { attention, plan, turns, kv, qkv, out } => {
                let plan = &given.plans[*plan].get().0;
                if plan.num_tokens() != rows {
                    return Err(format!("a plan of {} tokens for {rows} rows", plan.num_tokens()));
                }
                let (turns, rotated) = turns.map_or((0, 0), |turns| given.turns[turns]);
                let tensors = Tensors {
                    kv: at(kv) as *mut u8,
                    qkv: at(qkv) as *const u8,
                    turns: turns as *const f32,
                    rotated,
                    out: at(out) as *mut u8,
                };
                // SAFETY: as above.
                unsafe { attention.get().0.attend(plan, tensors) }.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }
}
