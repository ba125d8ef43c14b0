//! Between the scheduler's plain data and the messages of `worker.proto`.
//!
//! What the router sends is right by construction. What it receives is checked before it is believed: an answer that
//! breaks the contract is a [`Malformed`](crate::Malformed) that names the field, never a panic.

mod plan;
mod result;

pub(crate) use plan::encode_plan;
pub use plan::{plan_from_proto, plan_to_proto};
pub use result::{Outline, result_from_proto, result_to_proto};
