//! Compiles grammars as requests have them compiled: one JSON value per line of standard input, a schema, a schema with its
//! name (`{"name": …, "schema": …}`) or a grammar as `/generate` takes it. Answers one line for each: `{"text": …}`, which is what workers get, or `{"error": …}`, and
//! `milliseconds`. With `--times`, the median and the 95th percentile of all that compile instead.

use std::io::{self, BufRead, Write};
use std::time::Instant;

use millrace_router::grammar::{Compiler, Grammar, GrammarError, Vocabulary};
use serde_json::{Value, json};

fn main() -> io::Result<()> {
    let only_times = std::env::args().any(|argument| argument == "--times");
    // The checks need the stack that the server's threads have.
    let thread = std::thread::Builder::new().stack_size(Compiler::STACK).spawn(move || compile_all(only_times))?;
    thread.join().map_err(|_| io::Error::other("the compiling thread panicked"))?
}

fn compile_all(only_times: bool) -> io::Result<()> {
    let compiler = Compiler::new(&Vocabulary::new([], 0));
    let (mut times, mut refused, mut out) = (Vec::new(), 0, io::stdout().lock());
    for line in io::stdin().lock().lines() {
        let value: Value = serde_json::from_str(&line?)?;
        let schema = if value.get("name").is_some() { value.get("schema") } else { None };
        let grammar = match schema {
            Some(schema) => Grammar::Json(schema.clone()),
            None => serde_json::from_value(value.clone()).unwrap_or(Grammar::Json(value)),
        };
        let begin = Instant::now();
        let outcome = compiler.compile(&grammar);
        let milliseconds = begin.elapsed().as_secs_f64() * 1e3;
        match &outcome {
            Ok(_) => times.push(milliseconds),
            Err(_) => refused += 1,
        }
        if !only_times {
            writeln!(out, "{}", report(outcome.map(|text| text.to_string()), milliseconds))?;
        }
    }
    if only_times {
        times.sort_by(f64::total_cmp);
        let percentile = |share: usize| times.get((times.len() * share).div_ceil(100).saturating_sub(1)).copied();
        let summary = json!({ "compiled": times.len(), "refused": refused, "p50_ms": percentile(50),
                              "p95_ms": percentile(95), "max_ms": percentile(100) });
        writeln!(out, "{summary}")?;
    }
    Ok(())
}

fn report(outcome: Result<String, GrammarError>, milliseconds: f64) -> Value {
    match outcome {
        Ok(text) => json!({ "text": text, "milliseconds": milliseconds }),
        Err(error) => json!({ "error": error.to_string(), "milliseconds": milliseconds }),
    }
}
