//! Regexes: checked with the place of what is wrong, and rewritten for a grammar's text.

use llguidance::regex_to_lark;
use regex_syntax::ast::{self, AssertionKind, Ast, RepetitionKind, RepetitionRange};
use regex_syntax::hir;

use super::GrammarError;

/// Bytes of one regex.
const MAX_LENGTH: usize = 32 << 10;
/// Times that a part may be repeated by number.
const MAX_REPETITIONS: u32 = 10_000;
/// The same for repetitions within repetitions, multiplied.
const MAX_NESTED: u64 = 1_000_000;
/// Groups within groups.
const MAX_DEPTH: u32 = 100;

/// A regex as it stands between slashes in a grammar. `\d`, `\w` and `\s` mean ASCII, as in the original's regexes.
pub(super) fn prepare(pattern: &str) -> Result<String, GrammarError> {
    check(pattern)?;
    Ok(regex_to_lark(pattern, "dws"))
}

/// A regex whose negated classes leave out what either ASCII or Unicode readers count in: a text that it matches, both
/// kinds match. `\d` and `\w` mean ASCII to llguidance where a schema has them.
pub(super) fn narrowed(pattern: &str) -> String {
    let mut written = String::with_capacity(pattern.len());
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            written.push(character);
            continue;
        }
        match characters.next() {
            Some('D') => written.push_str(r"[^\p{Nd}]"),
            Some('W') => written.push_str(r"[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]"),
            Some('s') => written.push_str(r"[ \t\n\r\f\v]"),
            Some('S') => written.push_str(r"[^\p{White_Space}\x1c-\x1f\u{feff}]"),
            Some(other) => written.extend(['\\', other]),
            None => written.push('\\'),
        }
    }
    written
}

/// What can be known without compiling it.
pub(super) fn check(pattern: &str) -> Result<(), GrammarError> {
    if pattern.is_empty() {
        return Err(GrammarError::new("must not be empty: it would allow nothing but an empty text"));
    }
    if pattern.len() > MAX_LENGTH {
        let problem = format!("has {} bytes, but a regex may have at most {MAX_LENGTH}", pattern.len());
        return Err(GrammarError::new(problem));
    }
    let parsed = ast::parse::ParserBuilder::new().nest_limit(MAX_DEPTH).build().parse(pattern);
    let ast = parsed.map_err(|error| unfit(&error.kind().to_string(), error.span()))?;
    hir::translate::Translator::new()
        .translate(pattern, &ast)
        .map_err(|error| unfit(&error.kind().to_string(), error.span()))?;
    ast::visit(&ast, Checks { repeated: vec![1] })
}

fn unfit(problem: &str, span: &ast::Span) -> GrammarError {
    let ast::Position { line, column, .. } = span.start;
    let line = if line > 1 { format!("line {line}, ") } else { String::new() };
    GrammarError::new(format!("is no regex that can be used: {problem} ({line}column {column})"))
}

/// Finds what parses and has no meaning or no bound for a grammar.
struct Checks {
    /// How often the part at hand may come, for each repetition around it.
    repeated: Vec<u64>,
}

impl ast::Visitor for Checks {
    type Output = ();
    type Err = GrammarError;

    fn finish(self) -> Result<(), GrammarError> {
        Ok(())
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), GrammarError> {
        match ast {
            Ast::Assertion(assertion) if !is_anchor(&assertion.kind) => {
                Err(unfit("word boundaries are not supported", &assertion.span))
            }
            Ast::Flags(flags) => Err(unfit("flags for the rest of a regex are not supported", &flags.span)),
            Ast::Repetition(repetition) => {
                let times = times(&repetition.op.kind);
                let around = self.repeated.last().copied().unwrap_or(1);
                let nested = around.saturating_mul(u64::from(times.max(1)));
                if times > MAX_REPETITIONS || nested > MAX_NESTED {
                    let problem = format!(
                        "repeats too often; at most {MAX_REPETITIONS} times, and {MAX_NESTED} with what is around it"
                    );
                    return Err(unfit(&problem, &repetition.op.span));
                }
                self.repeated.push(nested);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn visit_class_set_item_pre(&mut self, item: &ast::ClassSetItem) -> Result<(), GrammarError> {
        match item {
            // To other regex languages a bracket within a class is a character.
            ast::ClassSetItem::Bracketed(inner) => {
                Err(unfit("a class within a class is not supported; write `\\[` for a bracket", &inner.span))
            }
            ast::ClassSetItem::Ascii(inner) => Err(unfit("named classes are not supported", &inner.span)),
            _ => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(&mut self, operation: &ast::ClassSetBinaryOp) -> Result<(), GrammarError> {
        Err(unfit("operations on classes are not supported; write `\\&` or `\\-`", &operation.span))
    }

    fn visit_post(&mut self, ast: &Ast) -> Result<(), GrammarError> {
        if matches!(ast, Ast::Repetition(_)) {
            self.repeated.pop();
        }
        Ok(())
    }
}

/// The whole text must match, so these two say what holds anyway.
fn is_anchor(kind: &AssertionKind) -> bool {
    matches!(
        kind,
        AssertionKind::StartLine | AssertionKind::EndLine | AssertionKind::StartText | AssertionKind::EndText
    )
}

/// The largest number that a repetition names.
fn times(kind: &RepetitionKind) -> u32 {
    match kind {
        RepetitionKind::Range(
            RepetitionRange::Exactly(times) | RepetitionRange::AtLeast(times) | RepetitionRange::Bounded(_, times),
        ) => *times,
        RepetitionKind::ZeroOrOne | RepetitionKind::ZeroOrMore | RepetitionKind::OneOrMore => 1,
    }
}
