//! Numbers and constants of a schema. llguidance computes numbers as 64-bit floats: here it is seen to that this
//! changes nothing, or only narrows.

use serde_json::{Map, Value, json};

use crate::grammar::GrammarError;

/// Characters of a string.
pub(super) const MAX_LENGTH: u64 = 100_000;
/// Items of an array, properties of an object.
pub(super) const MAX_ITEMS: u64 = 10_000;
/// Up to here integers and what is next to them have exact floats.
const EXACT: u64 = (1 << 53) - 1;
/// No limit lies farther from 0. Integers without limits get this one: a model that has begun to repeat a digit comes
/// to an end.
const FARTHEST: f64 = 1e18;

/// States of an automaton that divides: the step's digits as an integer.
const MAX_STEP: u64 = 10_000;

/// All values of `multipleOf` in a document, any of which may be merged with another: a bound for their common multiple.
#[derive(Debug, Default)]
pub(super) struct Steps {
    met: Vec<Decimal>,
}

/// `digits * 10^-exponent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Decimal {
    digits: u64,
    exponent: u32,
}

impl Steps {
    pub(super) fn take(&mut self, step: &Value, place: &str) -> Result<(), GrammarError> {
        let refused = |problem: String| Err(GrammarError::at(place, problem));
        let Some(decimal) = Decimal::of(step).filter(|decimal| decimal.digits <= MAX_STEP) else {
            return refused(format!("has too many digits; as an integer they may be at most {MAX_STEP}"));
        };
        if self.met.contains(&decimal) {
            return Ok(());
        }
        self.met.push(decimal);
        let exponent = self.met.iter().map(|met| met.exponent).max().unwrap_or(0);
        let scaled = |met: &Decimal| met.digits.saturating_mul(10_u64.saturating_pow(exponent - met.exponent));
        let common = self.met.iter().map(scaled).fold(1, least_common_multiple);
        // Two steps that never meet in one number would be fine, but who merges schemas is known only later.
        if self.met.len() > 1 && common > MAX_STEP {
            return refused(format!("has a common multiple with the other steps that is too large ({common})"));
        }
        Ok(())
    }
}

impl Decimal {
    fn of(number: &Value) -> Option<Self> {
        // The shortest form that reads as the same float; never with an exponent for what is neither tiny nor huge.
        let text = number.as_f64().map(|float| float.to_string())?;
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
        let digits = format!("{whole}{fraction}").parse().ok()?;
        Some(Self { digits, exponent: u32::try_from(fraction.len()).ok()? })
    }
}

fn least_common_multiple(a: u64, b: u64) -> u64 {
    let (mut divisor, mut rest) = (a, b);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    (a / divisor.max(1)).saturating_mul(b)
}

/// Which side of numbers a limit bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    Lower,
    Upper,
    Step,
}

/// `minimum` and its like. One without an exact float becomes one within that has.
pub(super) fn limit(value: &Value, limit: Limit, place: &str) -> Result<Value, GrammarError> {
    let refused = |problem: &'static str| Err(GrammarError::at(place, problem));
    match (value, limit) {
        // Draft 4: whether `minimum` itself is excluded.
        (Value::Bool(_), Limit::Lower | Limit::Upper) if place.ends_with("imum") => Ok(value.clone()),
        (Value::Number(number), Limit::Step) => match number.as_f64() {
            Some(step) if step > 0.0 => Ok(value.clone()),
            _ => refused("must be greater than 0"),
        },
        (Value::Number(number), side) => {
            let Some(float) = number.as_f64().filter(|float| float.is_finite()) else {
                return refused("must be a number that fits 64 bits");
            };
            if is_exact(value) {
                return Ok(value.clone());
            }
            // From here on floats lie further apart than integers.
            match side {
                Limit::Lower if float < 0.0 => Ok(json!(float.max(-FARTHEST).next_up())),
                Limit::Upper if float > 0.0 => Ok(json!(float.min(FARTHEST).next_down())),
                _ => refused("lies where integers have no exact float; it must be within 2^53"),
            }
        }
        _ => refused("must be a number"),
    }
}

/// `minLength` and its like.
pub(super) fn count(value: &Value, most: u64, place: &str) -> Result<Value, GrammarError> {
    match value.as_u64() {
        Some(count) if count <= most => Ok(value.clone()),
        Some(_) => Err(GrammarError::at(place, format!("must be at most {most}"))),
        None => Err(GrammarError::at(place, "must be a whole number, 0 or more")),
    }
}

/// `enum`.
pub(super) fn list(constants: &[Value], place: &str) -> Result<Value, GrammarError> {
    let checked = constants.iter().enumerate().map(|(index, value)| one(value, &format!("{place}/{index}")));
    checked.collect::<Result<Vec<_>, _>>().map(Value::Array)
}

/// `const`.
pub(super) fn one(value: &Value, place: &str) -> Result<Value, GrammarError> {
    check_constant(value, place)?;
    Ok(value.clone())
}

fn check_constant(value: &Value, place: &str) -> Result<(), GrammarError> {
    match value {
        Value::Number(_) if !is_exact(value) => {
            let problem = "is a number with more digits than readers of JSON keep; write it as a string";
            Err(GrammarError::at(place, problem))
        }
        Value::String(text) if text.chars().any(is_unwritable) => {
            Err(GrammarError::at(place, "has a control character that this server does not write; leave it out"))
        }
        Value::Array(items) => items.iter().try_for_each(|item| check_constant(item, place)),
        Value::Object(fields) => fields.values().try_for_each(|field| check_constant(field, place)),
        _ => Ok(()),
    }
}

/// JSON writes these as `\u….`, and escapes of that form are left out.
fn is_unwritable(character: char) -> bool {
    character.is_ascii_control() && !matches!(character, '\n' | '\r' | '\t' | '\u{8}' | '\u{c}')
}

/// Whether a number means the same as a float. Fractions always do: readers take the nearest float as well.
fn is_exact(number: &Value) -> bool {
    match (number.as_i64(), number.as_u64(), number.as_f64()) {
        (Some(integer), _, _) => integer.unsigned_abs() <= EXACT,
        (None, Some(integer), _) => integer <= EXACT,
        (None, None, Some(float)) => float.abs() < EXACT as f64,
        _ => false,
    }
}

/// Gives integers without limits their bound. Beside what names values or takes steps there is nothing to bound.
pub(super) fn bound_integers(fields: &mut Map<String, Value>) {
    let has = |fields: &Map<String, Value>, names: &[&str]| names.iter().any(|name| fields.contains_key(*name));
    if fields.get("type") != Some(&json!("integer")) || has(fields, &["enum", "const", "multipleOf"]) {
        return;
    }
    if !has(fields, &["minimum", "exclusiveMinimum"]) {
        fields.insert("minimum".to_owned(), json!(-FARTHEST));
    }
    if !has(fields, &["maximum", "exclusiveMaximum"]) {
        fields.insert("maximum".to_owned(), json!(FARTHEST));
    }
}
