//! Compiles grammars to see that workers can, within bounds.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher, ParserFactory};

use serde_json::Value;

use super::cache::Cache;
use super::{Grammar, GrammarError, Vocabulary, lark, schema};

/// Bytes of a grammar's text.
const MAX_TEXT: usize = 128 << 10;
const CACHE_ENTRIES: usize = 256;
const CACHE_BYTES: usize = 8 << 20;
/// Schemas of one grammar that are tried alone to find the one at fault.
const MAX_LOCATED: usize = 16;
/// Characters of what llguidance says about a grammar that it cannot compile.
const MAX_REASON: usize = 500;

const TOO_MUCH: &str = "is more than the grammar compiler can take; simplify it";

/// How every error begins that says that no output would do.
const NOTHING_FITS: &str = "allows no ";

const NOTHING: &str = "allows no output at all: something in it contradicts itself, or never ends";

/// llguidance compiles `oneOf` only as `anyOf`.
const NOT_EXCLUSIVE: &str = "has a `oneOf` of which two options may fit one value; options must exclude each other by their types, or by a required \
     property with another `const` in each; else use `anyOf`";

/// Where llguidance gives up on asking whether any string fits.
const HARD_STRING: &str = "has a string whose `pattern`, `format` and lengths are together too hard to check; simplify \
                           the pattern, or leave the lengths out";

/// Shared by all threads.
pub struct Compiler {
    factory: ParserFactory,
    cache: Mutex<Cache>,
}

impl Compiler {
    pub fn new(vocabulary: &Vocabulary) -> Self {
        // Slices speed up masks over large vocabularies; here there is none.
        let mut factory = ParserFactory::new(vocabulary.tokens(), InferenceCapabilities::default(), &[])
            .expect("a vocabulary of bytes suits every slicing");
        factory.quiet();
        *factory.limits_mut() = limits();
        Self { factory, cache: Mutex::new(Cache::new(CACHE_ENTRIES, CACHE_BYTES)) }
    }

    /// The grammar as workers take it. Computes: milliseconds as a rule, far longer for what is made to be hard, so call it
    /// on a thread that nobody waits for, with [`Compiler::STACK`] to spare.
    pub fn compile(&self, grammar: &Grammar) -> Result<Arc<str>, GrammarError> {
        let text = lark::text(grammar)?;
        if text.len() > MAX_TEXT {
            let problem = format!("has {} bytes, but at most {MAX_TEXT} are allowed; make it smaller", text.len());
            return Err(GrammarError::new(problem));
        }
        let known = self.cache().get(&text);
        let compiled = known.unwrap_or_else(|| {
            let text: Arc<str> = text.into();
            let verdict = self.try_out(&text);
            self.cache().put(Arc::clone(&text), verdict.clone());
            verdict.map(|()| text)
        });
        compiled.map_err(|error| self.located(grammar, error))
    }

    /// The same error with its place, as far as that can be found out.
    fn located(&self, grammar: &Grammar, error: GrammarError) -> GrammarError {
        match grammar {
            Grammar::Json(schema) if error.problem == NOT_EXCLUSIVE => {
                GrammarError::at(schema::overlapping(schema).join("` or `"), error.problem)
            }
            Grammar::Json(schema) if error.problem.starts_with(NOTHING_FITS) => self.deepest(schema, error),
            Grammar::Structural(shape) => {
                let alone = |(schema, place): (&Value, &String)| {
                    self.compile(&Grammar::Json(schema.clone())).err().map(|error| error.of(place))
                };
                shape.schemas().into_iter().take(MAX_LOCATED).find_map(alone).unwrap_or(error)
            }
            _ => error,
        }
    }

    /// The error of the innermost part that allows nothing, as far as parts can be tried alone.
    fn deepest(&self, root: &Value, mut error: GrammarError) -> GrammarError {
        let (mut schema, mut place, mut left) = (root, String::new(), MAX_LOCATED);
        let mut refusal = |part: &Value| {
            left = left.checked_sub(1)?;
            let text = lark::text(&Grammar::Json(schema::alone(root, part))).ok()?;
            self.try_out(&text).err().filter(|refused| refused.problem.starts_with(NOTHING_FITS))
        };
        loop {
            let parts = schema::needed(root, schema, &place).into_iter();
            let mut refused = parts.filter_map(|(inner, part)| Some((part, inner, refusal(part)?)));
            let Some(deeper) = refused.next() else { break };
            (schema, place, error) = deeper;
        }
        GrammarError::at(place, error.problem)
    }

    /// Bytes of stack that the deepest grammar may take.
    pub const STACK: usize = 64 << 20;

    fn try_out(&self, text: &str) -> Result<(), GrammarError> {
        let grammar = TopLevelGrammar::from_lark_or_grammar_list(text)
            .map_err(|error| GrammarError::new(reason(&error.to_string())))?;
        let parser = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.factory.create_parser(grammar)));
        let parser = parser.map_err(|_| GrammarError::new(TOO_MUCH))?;
        let parser = parser.map_err(|error| GrammarError::new(reason(&format!("{error:#}"))))?;
        let mut matcher = Matcher::new(Ok(parser));
        match matcher.compute_mask() {
            Ok(first) if !first.is_zero() => Ok(()),
            Ok(_) => Err(GrammarError::new(NOTHING)),
            Err(error) => Err(match error.to_string().as_str() {
                "NoExtension" | "NoExtensionBias" => GrammarError::new(NOTHING),
                "LexerTooComplex" | "ParserTooComplex" => GrammarError::new(TOO_MUCH),
                said => GrammarError::new(reason(said)),
            }),
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Compiler {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Compiler").field("cache", &self.cache).finish_non_exhaustive()
    }
}

/// Tighter than llguidance's own where its speed notes leave more than a few tens of milliseconds.
fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        max_lexer_states: 50_000,
        // As workers have it; the only bound on grammars that read a text in ever more ways.
        step_max_items: 10_000,
        verbose_errors: false,
        precompute_large_lexemes: false,
        ..ParserLimits::default()
    }
}

/// What llguidance said, without its pictures and traces.
fn reason(error: &str) -> String {
    const UNSATISFIABLE: &str = "Unsatisfiable schema: ";
    let said = error.split("\n<backtrace>").next().unwrap_or_default();
    let line = said.lines().next().unwrap_or_default().trim();
    let short: String = line.chars().take(MAX_REASON).collect();
    if short.starts_with("oneOf constraints are not supported") {
        return NOT_EXCLUSIVE.to_owned();
    }
    if short.starts_with("Unable to determine if regex is empty") {
        return HARD_STRING.to_owned();
    }
    if let Some(why) = short.strip_prefix(UNSATISFIABLE) {
        return format!("allows no value at all: {}", why.replace(UNSATISFIABLE, ""));
    }
    if short.starts_with("panic:") { TOO_MUCH.to_owned() } else { format!("cannot be compiled: {short}") }
}
