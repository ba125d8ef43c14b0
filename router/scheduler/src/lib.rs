//! The pure core of Millrace: it owns every sequence and every KV page, and decides what each step computes.
mod plan;

pub use plan::*;
