//! The routes, asked as clients ask them, with an engine that plays a script.

mod answers;
mod cloud;
mod deviations;
mod grammars;
mod harness;
mod openai;
mod openai_choices;
mod openapi;
mod operators;
mod refusals;
mod streams;
mod tool_choices;
mod tools;
mod transport;
