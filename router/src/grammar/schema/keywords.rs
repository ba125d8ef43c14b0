//! What each keyword means for a grammar.

use serde_json::{Map, Value};

use super::constants::{self, Limit, MAX_ITEMS, MAX_LENGTH};
use super::strings;
use super::weight::Weight;
use crate::grammar::GrammarError;

/// What to do with a keyword.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keyword {
    /// Taken as it is.
    Kept,
    /// Restricts, and cannot be held to; but for the value that restricts nothing.
    Refused(Neutral),
    /// Says something to readers only, as do all names that no draft knows.
    Annotation,
    /// Gives a schema an address.
    Identity,
    /// Has values inside.
    Plain(Plain),
    /// Has schemas inside.
    Inner(Inner),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plain {
    Enum,
    Const,
    Limit(Limit),
    Count(u64),
    Pattern,
    Required,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inner {
    /// One; or several, as `items` was written before draft 2020-12.
    Schema,
    Schemas,
    All,
    Any,
    One,
    Properties,
    PatternProperties,
    Reference,
}

impl Plain {
    pub(super) fn rewrite(self, value: &Value, place: &str) -> Result<Value, GrammarError> {
        match self {
            Self::Enum => constants::list(filled(value, place)?, place),
            Self::Const => constants::one(value, place),
            Self::Limit(limit) => constants::limit(value, limit, place),
            Self::Count(most) => constants::count(value, most, place),
            Self::Pattern => strings::pattern(value, place),
            Self::Required => names(value, place),
        }
    }
}

/// The value with which a keyword says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Neutral {
    None,
    False,
    True,
}

/// Keywords of all drafts from 4 to 2020-12.
pub(super) fn lookup(name: &str) -> Keyword {
    match name {
        "type" | "format" => Keyword::Kept,
        "allOf" => Keyword::Inner(Inner::All),
        "anyOf" => Keyword::Inner(Inner::Any),
        "oneOf" => Keyword::Inner(Inner::One),
        "$ref" => Keyword::Inner(Inner::Reference),
        "const" => Keyword::Plain(Plain::Const),
        "enum" => Keyword::Plain(Plain::Enum),
        "items" | "additionalItems" | "additionalProperties" => Keyword::Inner(Inner::Schema),
        "prefixItems" => Keyword::Inner(Inner::Schemas),
        "properties" => Keyword::Inner(Inner::Properties),
        "patternProperties" => Keyword::Inner(Inner::PatternProperties),
        "required" => Keyword::Plain(Plain::Required),
        "minItems" | "maxItems" | "minProperties" | "maxProperties" => Keyword::Plain(Plain::Count(MAX_ITEMS)),
        "minLength" | "maxLength" => Keyword::Plain(Plain::Count(MAX_LENGTH)),
        "pattern" => Keyword::Plain(Plain::Pattern),
        "minimum" | "exclusiveMinimum" => Keyword::Plain(Plain::Limit(Limit::Lower)),
        "maximum" | "exclusiveMaximum" => Keyword::Plain(Plain::Limit(Limit::Upper)),
        "multipleOf" => Keyword::Plain(Plain::Limit(Limit::Step)),
        "uniqueItems" => Keyword::Refused(Neutral::False),
        "propertyNames" | "unevaluatedItems" | "unevaluatedProperties" => Keyword::Refused(Neutral::True),
        "not" | "if" | "then" | "else" | "contains" | "minContains" | "maxContains" | "dependencies"
        | "dependentRequired" | "dependentSchemas" | "$dynamicRef" | "$recursiveRef" => Keyword::Refused(Neutral::None),
        "$id" | "$anchor" | "id" => Keyword::Identity,
        _ => Keyword::Annotation,
    }
}

pub(super) fn refuse(name: &str, value: &Value, neutral: Neutral, place: &str) -> Result<(), GrammarError> {
    match (neutral, value) {
        (Neutral::False, Value::Bool(false)) | (Neutral::True, Value::Bool(true)) => Ok(()),
        _ => Err(GrammarError::at(
            place,
            format!("`{name}` is not supported; leave it out and check the output yourself"),
        )),
    }
}

/// References are to places in the document, whatever names it gives its parts.
pub(super) fn check_identity(name: &str, value: &Value, place: &str) -> Result<(), GrammarError> {
    if !place.is_empty() && value.is_string() {
        return Err(GrammarError::at(place, format!("`{name}` is supported at the top of a schema only")));
    }
    Ok(())
}

const TYPES: [&str; 7] = ["null", "boolean", "number", "integer", "string", "array", "object"];

/// What a schema's own keywords weigh.
pub(super) fn weight(fields: &Map<String, Value>, place: &str) -> Result<Weight, GrammarError> {
    let regexes = ["pattern", "format"].iter().filter(|name| fields.contains_key(**name)).count();
    let properties = fields.get("properties").and_then(Value::as_object).map_or(0, Map::len);
    let required = fields.get("required").and_then(Value::as_array).map_or(0, Vec::len);
    Ok(Weight { ways: types(fields, place)?, regexes, optional: properties.saturating_sub(required) })
}

/// How many types a schema names.
fn types(fields: &Map<String, Value>, place: &str) -> Result<usize, GrammarError> {
    let refused = || {
        let problem = format!("must be one of {}, or a list of them", TYPES.join(", "));
        Err(GrammarError::at(format!("{place}/type"), problem))
    };
    let is_known = |name: &Value| name.as_str().is_some_and(|name| TYPES.contains(&name));
    match fields.get("type") {
        None => Ok(1),
        Some(name @ Value::String(_)) if is_known(name) => Ok(1),
        Some(Value::Array(names)) if !names.is_empty() && names.iter().all(is_known) => Ok(names.len()),
        Some(_) => refused(),
    }
}

/// A list with something in it.
pub(super) fn filled<'a>(value: &'a Value, place: &str) -> Result<&'a [Value], GrammarError> {
    match value {
        Value::Array(items) if !items.is_empty() => Ok(items),
        _ => Err(GrammarError::at(place, "must be a list with at least one entry")),
    }
}

/// `required`.
fn names(value: &Value, place: &str) -> Result<Value, GrammarError> {
    match value {
        Value::Array(names) if names.iter().all(Value::is_string) => Ok(value.clone()),
        _ => Err(GrammarError::at(place, "must be a list of property names")),
    }
}

/// A grammar cannot know whether a key that it leaves open comes twice; readers of JSON count such keys once.
pub(super) fn check_min_properties(fields: &Map<String, Value>, place: &str) -> Result<(), GrammarError> {
    let Some(least) = fields.get("minProperties").and_then(Value::as_u64) else { return Ok(()) };
    let required = fields.get("required").and_then(Value::as_array);
    let mut required: Vec<&str> = required.into_iter().flatten().filter_map(Value::as_str).collect();
    required.sort_unstable();
    required.dedup();
    let is_closed = fields.get("additionalProperties") == Some(&Value::Bool(false))
        && fields.get("patternProperties").and_then(Value::as_object).is_none_or(Map::is_empty);
    if is_closed || least <= required.len() as u64 + 1 {
        return Ok(());
    }
    let problem = "is supported up to one more than the number of `required` properties, unless \
                   `additionalProperties` is false; require properties by name";
    Err(GrammarError::at(format!("{place}/minProperties"), problem))
}
