//! The pure core of Millrace: it owns every sequence and every KV page, and decides what each step computes.
//!
//! One [`Scheduler`], no input or output, no clock, no threads. The engine's loop is four calls: [`Scheduler::submit`] what
//! came, send what [`Scheduler::schedule`] plans, [`Scheduler::apply`] what comes back, hand out the events.
mod apply;
mod event;
mod fairness;
mod guests;
mod integrity;
mod joining;
mod lanes;
mod page_table;
mod paging;
mod plan;
mod planning;
mod policy;
mod pool;
mod prefix;
mod request;
mod rows;
mod scheduler;
mod sequence;
mod shortage;
mod suspects;
mod switch;
mod trials;
mod window;

pub use event::{FinishReason, GenerationEvent, WrongResult};
pub use guests::{StepPart, Terms};
pub use plan::*;
pub use policy::JoinReason;
pub use request::{Capacity, Config, Refused, Request, Share, Stats, TenantId};
pub use scheduler::Scheduler;
