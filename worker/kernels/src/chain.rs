//! `Chain`: operators one after the other in one call, which releases the interpreter once.
//!
//! What they read and write is named by slots, whose addresses come with each call: workspaces move when they grow.

use std::sync::Arc;

use millrace_kernels_core::Dtype;
use millrace_kernels_core::attention::Tensors;
use millrace_kernels_core::linear::{Linear as LinearCore, Lookup};
use millrace_kernels_core::quantized::QuantizedLinear as QuantizedCore;
use millrace_kernels_core::rows::{self, Picked, Sum};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::attention::{Attention, Plan};
use crate::linear::Linear;
use crate::machine::{Machine, dtype};
use crate::norm::Norm;
use crate::quantized::QuantizedLinear;

enum Operator {
    Pick { table: usize, dtype: Dtype, width: usize, scale: f32, out: usize },
    Lookup { linear: Arc<LinearCore>, table: usize, first: i64, scale: f32, out: usize },
    Add { x: usize, delta: usize, width: usize },
    Norm { norm: Py<Norm>, residual: usize, delta: Option<usize>, out: usize },
    Linear { linear: Arc<LinearCore>, x: usize, out: usize },
    Quantized { linear: Arc<QuantizedCore>, x: usize, out: usize },
    Attend { attention: Py<Attention>, plan: usize, turns: Option<(usize, usize)>, kv: usize, qkv: usize, out: usize },
}

#[derive(FromPyObject)]
enum AnyLinear {
    Plain(Py<Linear>),
    Quantized(Py<QuantizedLinear>),
}

/// Addresses of slots, plans of the attention, and of each table its address, its rows and the address of the numbers
/// of those that are wanted.
struct Given<'a> {
    rows: usize,
    slots: &'a [usize],
    plans: &'a [Py<Plan>],
    tables: &'a [(usize, usize, usize)],
}

#[pyclass]
pub(crate) struct Chain {
    machine: Machine,
    operators: Vec<Operator>,
    num_slots: usize,
    num_plans: usize,
    num_tables: usize,
}

#[pymethods]
impl Chain {
    #[new]
    fn new(machine: Machine) -> Self {
        Self { machine, operators: Vec::new(), num_slots: 0, num_plans: 0, num_tables: 0 }
    }

    /// Rows of a table of so many columns, as float32, times `scale`.
    fn pick(&mut self, table: usize, dtype_name: &str, width: usize, scale: f32, out: usize) -> PyResult<()> {
        self.knows(&[out]);
        self.num_tables = self.num_tables.max(table + 1);
        self.operators.push(Operator::Pick { table, dtype: dtype(dtype_name)?, width, scale, out });
        Ok(())
    }

    /// As `Linear.lookup`, of the rows whose numbers come with this table.
    fn lookup(&mut self, linear: Py<Linear>, table: usize, first: i64, scale: f32, out: usize) -> PyResult<()> {
        let linear = Arc::clone(&linear.get().core);
        if linear.is_gated() {
            return Err(PyValueError::new_err("rows of a weight with a gate cannot be looked up"));
        }
        self.knows(&[out]);
        self.num_tables = self.num_tables.max(table + 1);
        self.operators.push(Operator::Lookup { linear, table, first, scale, out });
        Ok(())
    }

    /// x += delta, float32 rows of `width`.
    fn add(&mut self, x: usize, delta: usize, width: usize) {
        self.knows(&[x, delta]);
        self.operators.push(Operator::Add { x, delta, width });
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

    /// As `Attention.attend`, with the plan of this number and the turns in this slot, so many of each row (None: nothing
    /// is turned).
    #[pyo3(signature = (attention, plan, turns, kv, qkv, out))]
    fn attend(
        &mut self,
        attention: Py<Attention>,
        plan: usize,
        turns: Option<(usize, usize)>,
        kv: usize,
        qkv: usize,
        out: usize,
    ) {
        self.knows(&[kv, qkv, out, turns.map_or(0, |(slot, _)| slot)]);
        self.num_plans = self.num_plans.max(plan + 1);
        self.operators.push(Operator::Attend { attention, plan, turns, kv, qkv, out });
    }

    /// All of them on so many rows. Raises `ValueError` when one has too little to go on, as the operator would.
    fn run(
        &self,
        py: Python<'_>,
        rows: usize,
        slots: Vec<usize>,
        plans: Vec<Py<Plan>>,
        tables: Vec<(usize, usize, usize)>,
    ) -> PyResult<()> {
        if slots.len() < self.num_slots || plans.len() < self.num_plans || tables.len() < self.num_tables {
            return Err(PyValueError::new_err(format!(
                "a chain of {} slots, {} plans and {} tables got {}, {} and {}",
                self.num_slots,
                self.num_plans,
                self.num_tables,
                slots.len(),
                plans.len(),
                tables.len()
            )));
        }
        let given = Given { rows, slots: &slots, plans: &plans, tables: &tables };
        py.detach(|| self.operators.iter().try_for_each(|operator| operator.run(self.machine, &given)))
            .map_err(PyValueError::new_err)
    }
}

impl Chain {
    fn knows(&mut self, slots: &[usize]) {
        self.num_slots = slots.iter().fold(self.num_slots, |most, slot| most.max(slot + 1));
    }
}

impl Operator {
    fn run(&self, machine: Machine, given: &Given<'_>) -> Result<(), String> {
        let (at, rows) = (|slot: &usize| given.slots[*slot], given.rows);
        match self {
            Self::Pick { table, dtype, width, scale, out } => {
                let (table, table_rows, numbers) = given.tables[*table];
                let picked = Picked {
                    table: table as *const u8,
                    dtype: *dtype,
                    rows: table_rows,
                    width: *width,
                    scale: *scale,
                    numbers: numbers as *const i64,
                    count: rows,
                    out: at(out) as *mut f32,
                };
                // SAFETY: the caller has checked the tensors behind the addresses.
                unsafe { rows::pick(machine.team, picked) }.map_err(|error| error.to_string())?;
            }
            Self::Lookup { linear, table, first, scale, out } => {
                let ids = given.tables[*table].2 as *const i64;
                let lookup = Lookup { ids, count: rows, first: *first, scale: *scale, out: at(out) as *mut f32 };
                // SAFETY: as above; there is no gate.
                unsafe { linear.lookup(lookup) }
            }
            Self::Add { x, delta, width } => {
                let sum = Sum { x: at(x) as *mut f32, delta: at(delta) as *const f32, rows, width: *width };
                // SAFETY: as above.
                unsafe { rows::add(machine.team, sum) }
            }
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
                let (turns, rotated) = turns.map_or((0, 0), |(slot, rotated)| (at(&slot), rotated));
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
