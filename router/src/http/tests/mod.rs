//! The routes, asked as clients ask them, with an engine that plays a script.

mod answers;
mod cloud;
mod deviations;
mod fuzz;
mod grammars;
mod harness;
mod openai;
mod openai_choices;
mod openapi;
mod operators;
mod overload;
mod places;
mod refusals;
mod security;
mod streams;
mod tenants;
mod tool_choices;
mod tools;
mod transport;
