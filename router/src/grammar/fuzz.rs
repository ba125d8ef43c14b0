//! Schemas, regexes and rules that are nearly right: each is compiled or refused in words.

use serde_json::Value;

use super::tests::vocabulary;
use super::*;
use crate::mutate::{Dice, cases};

const SCHEMAS: &str = include_str!("../../tests/fuzz/schemas.jsonl");
const RULES: &str = include_str!("../../tests/fuzz/rules.txt");

fn grammar(dice: &mut Dice) -> Grammar {
    let corpus: Vec<&str> = if dice.roll(2) == 0 { SCHEMAS.lines().collect() } else { RULES.lines().collect() };
    let (first, other) = (*dice.pick(&corpus), *dice.pick(&corpus));
    let mutated = String::from_utf8_lossy(&dice.mutate(first.as_bytes(), other.as_bytes())).into_owned();
    match serde_json::from_str::<Value>(&mutated) {
        Ok(schema) => Grammar::Json(schema),
        Err(_) => match dice.roll(3) {
            0 => Grammar::Regex(mutated),
            1 => Grammar::Lark(mutated),
            _ => Grammar::Lark(
                RULES.lines().take(1 + dice.roll(8)).chain([mutated.as_str()]).collect::<Vec<_>>().join("\n"),
            ),
        },
    }
}

fn compile_all() {
    let compiler = Compiler::new(&vocabulary());
    let (mut dice, mut taken) = (Dice::new(4), 0);
    let count = cases(600);
    for _ in 0..count {
        match compiler.compile(&grammar(&mut dice)) {
            Ok(_) => taken += 1,
            Err(error) => assert!(!error.to_string().is_empty() && error.to_string().len() < 5_000, "{error}"),
        }
    }
    assert!(taken * 50 > count, "{taken} of {count}");
}

#[test]
fn whatever_a_grammar_is_it_is_compiled_or_refused() {
    let thread = std::thread::Builder::new().stack_size(Compiler::STACK);
    thread.spawn(compile_all).unwrap().join().unwrap();
}
