//! Millrace's router: HTTP in, step plans out, text back.

pub mod app;
pub mod config;
mod connections;
pub mod detokenize;
pub mod drain;
pub mod engine;
pub mod grammar;
pub mod health;
pub mod http;
pub mod launcher;
pub mod overload;
pub mod request;
pub mod telemetry;
pub mod tenants;
pub mod tokenizer;
pub mod tools;
pub mod validation;

/// Inputs made of a kept corpus, for the tests that read anything.
#[cfg(test)]
#[path = "../tests/fuzz/mutate.rs"]
mod mutate;
