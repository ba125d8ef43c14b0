//! Writes grammars down in llguidance's form.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{Grammar, GrammarError, Shape, Tag, Trigger, regex, schema};

/// Texts of one choice.
const MAX_CHOICES: usize = 10_000;

/// A grammar's text for workers. All checks that do not need a compilation have been made.
pub(super) fn text(grammar: &Grammar) -> Result<String, GrammarError> {
    match grammar {
        Grammar::Json(value) => {
            let schema = schema::prepare(value)?;
            Ok(json!({ "grammars": [{ "json_schema": schema }] }).to_string())
        }
        Grammar::Regex(pattern) => Ok(format!("start: {}", regex_literal(pattern)?)),
        Grammar::Lark(rules) => own_rules(rules),
        Grammar::Choice(texts) => choice(texts),
        Grammar::Structural(shape) => Ok(Writer::default().document(shape)?),
    }
}

fn choice(texts: &[String]) -> Result<String, GrammarError> {
    if texts.is_empty() || texts.len() > MAX_CHOICES {
        let problem = format!("has {} choices; it must have from 1 to {MAX_CHOICES}", texts.len());
        return Err(GrammarError::new(problem));
    }
    let literals: Vec<String> = texts.iter().map(|text| literal(text)).collect();
    Ok(format!("start: {}", literals.join(" | ")))
}

/// Lark's strings are JSON's, but for bytes that only regexes can write.
fn literal(text: &str) -> String {
    let quoted = Value::String(text.to_owned()).to_string();
    // Raw, it would end the string for llguidance's lexer.
    quoted.replace('\x7f', "\\u007f")
}

fn regex_literal(pattern: &str) -> Result<String, GrammarError> {
    Ok(format!("/{}/", regex::prepare(pattern)?))
}

/// A client's own rules. Schemas within them keep to the same rules as schemas alone.
fn own_rules(rules: &str) -> Result<String, GrammarError> {
    const KEYWORD: &str = "%json";
    if rules.trim_start().starts_with('{') {
        return Err(GrammarError::new("must be rules in Lark's notation, such as `start: \"yes\" | \"no\"`"));
    }
    if let Some(problem) = unsupported(rules) {
        return Err(GrammarError::new(problem));
    }
    let mut written = String::with_capacity(rules.len());
    let mut rest = rules;
    while let Some(begin) = rest.find(KEYWORD) {
        let (before, after) = rest.split_at(begin + KEYWORD.len());
        written.push_str(before);
        rest = after;
        let mut values = serde_json::Deserializer::from_str(after).into_iter::<Value>();
        // What is no JSON stands in a comment or a string, or llguidance says what is wrong with it.
        if let Some(Ok(value)) = values.next() {
            let line = rules[..rules.len() - after.len()].lines().count();
            let schema = schema::prepare(&value).map_err(|error| GrammarError {
                problem: format!("{} (in the %json of line {line})", error.problem).into(),
                ..error
            })?;
            write!(written, " {schema}").expect("strings take all that is written");
            rest = &after[values.byte_offset()..];
        }
    }
    written.push_str(rest);
    Ok(written)
}

/// The first thing in rules that is not supported, and its place. Combining languages other than by sequence, choice and
/// repetition has no useful bound; some attributes of rules are for an engine that does more than to mask.
fn unsupported(rules: &str) -> Option<String> {
    const IGNORED: [&str; 3] = ["temperature", "capture", "stop_capture"];
    let bare = bare(rules);
    let place = |at: usize| {
        let line = bare[..at].rsplit('\n').next().unwrap_or_default();
        format!("in line {}, column {}", bare[..at].matches('\n').count() + 1, line.chars().count() + 1)
    };
    if let Some(at) = bare.find(['&', '~']) {
        return Some(format!("uses `&` or `~` {}; only sequences, `|` and repetitions are supported", place(at)));
    }
    for (open, _) in bare.match_indices('[') {
        let segment = bare[open + 1..].split('[').next().unwrap_or_default();
        // Elsewhere brackets hold what may be missing.
        let Some((inner, _)) = segment.split_once(']').filter(|(_, behind)| behind.trim_start().starts_with(':'))
        else {
            continue;
        };
        let mut names = inner.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        if let Some(name) = names.find(|name| IGNORED.contains(name)) {
            let problem =
                format!("uses the attribute `{name}` {}, which has no effect here; leave it out", place(open));
            return Some(problem);
        }
    }
    None
}

/// Rules with blanks for strings, regexes and comments, which may hold anything.
fn bare(rules: &str) -> String {
    /// What the characters at hand belong to.
    #[derive(Clone, Copy, PartialEq)]
    enum In {
        Rules,
        Until(char),
    }
    let mut within = In::Rules;
    let mut bare = String::with_capacity(rules.len());
    let mut characters = rules.chars().peekable();
    while let Some(character) = characters.next() {
        let was_within = within;
        within = match (within, character) {
            (In::Rules, '#') => In::Until('\n'),
            (In::Rules, '/') if characters.peek() == Some(&'/') => In::Until('\n'),
            (In::Rules, '"' | '/') => In::Until(character),
            (In::Until(end), _) if character == end => In::Rules,
            (In::Until('"' | '/'), '\\') => {
                bare.extend(characters.next().map(|_| ' '));
                within
            }
            _ => within,
        };
        let is_bare = (was_within, within) == (In::Rules, In::Rules) || character == '\n';
        bare.push(if is_bare { character } else { ' ' });
    }
    bare
}

/// Collects the rules of a structural grammar.
#[derive(Default)]
struct Writer {
    rules: String,
    count: usize,
    /// Rules that clients wrote, as grammars of their own.
    further: Vec<Value>,
    has_text: bool,
}

impl Writer {
    fn document(mut self, shape: &Shape) -> Result<String, GrammarError> {
        let start = self.shape(shape)?;
        let text = if self.has_text { "TEXT: /(.|\\n)*/\n" } else { "" };
        let main = format!("start: {start}\n{text}{}", self.rules);
        if self.further.is_empty() {
            return Ok(main);
        }
        let mut grammars = vec![json!({ "name": "main", "lark_grammar": main })];
        grammars.extend(self.further);
        Ok(json!({ "grammars": grammars }).to_string())
    }

    /// An expression for a shape; its rules are added as needed.
    fn shape(&mut self, shape: &Shape) -> Result<String, GrammarError> {
        Ok(match shape {
            Shape::Text(text) => literal(text),
            Shape::Token(id) => format!("<[{id}]>"),
            Shape::Json { schema, place } => {
                let schema = schema::prepare(schema).map_err(|error| error.of(place))?;
                self.rule(&format!("%json {schema}"))
            }
            Shape::Regex(pattern) => regex_literal(pattern)?,
            Shape::Lark(rules) => {
                let name = format!("further_{}", self.further.len());
                self.further.push(json!({ "name": name, "lark_grammar": own_rules(rules)? }));
                format!("@{name}")
            }
            Shape::Sequence(shapes) => format!("({})", self.all(shapes)?.join(" ")),
            Shape::OneOf(shapes) => format!("({})", self.all(shapes)?.join(" | ")),
            Shape::Repeat { shape, least, most } => {
                let inner = self.shape(shape)?;
                format!("({inner}){}", bounds(*least, *most))
            }
            Shape::Tagged { parts, required, several } => self.tagged(parts, *required, *several)?,
        })
    }

    fn all(&mut self, shapes: &[Shape]) -> Result<Vec<String>, GrammarError> {
        shapes.iter().map(|shape| self.shape(shape)).collect()
    }

    /// A lazy lexeme ends the text as soon as its trigger is complete: from there on only the part can follow.
    fn tagged(&mut self, parts: &[Tag], required: bool, several: bool) -> Result<String, GrammarError> {
        self.has_text = true;
        let mut options = Vec::new();
        let mut taken: Vec<&Trigger> = Vec::new();
        for part in parts {
            if taken.contains(&&part.trigger) {
                continue;
            }
            taken.push(&part.trigger);
            let same = parts.iter().filter(|other| other.trigger == part.trigger);
            let then: Vec<String> = same.map(|other| self.shape(&other.then)).collect::<Result<_, _>>()?;
            let then = then.join(" | ");
            options.push(match &part.trigger {
                Trigger::Token(id) => self.rule(&format!("TEXT <[{id}]> ({then})")),
                Trigger::Text(text) => {
                    let head = self.named("[lazy]", &format!("TEXT {}", literal(text)));
                    self.rule(&format!("{head} ({then})"))
                }
            });
        }
        let options = options.join(" | ");
        Ok(match (required, several) {
            (false, true) => format!("(({options})* TEXT)"),
            (true, true) => format!("(({options})+ TEXT)"),
            // Text behind the only part could hold a trigger again, so there is none.
            (false, false) => format!("({options} | TEXT)"),
            (true, false) => format!("({options})"),
        })
    }

    fn rule(&mut self, body: &str) -> String {
        self.named("", body)
    }

    fn named(&mut self, attributes: &str, body: &str) -> String {
        self.count += 1;
        let name = format!("part_{}", self.count);
        writeln!(self.rules, "{name}{attributes}: {body}").expect("strings take all that is written");
        name
    }
}

fn bounds(least: u32, most: Option<u32>) -> String {
    match (least, most) {
        (0, None) => "*".to_owned(),
        (1, None) => "+".to_owned(),
        (least, None) => format!("{{{least},}}"),
        (least, Some(most)) => format!("{{{least},{most}}}"),
    }
}
