//! JSON schemas: refused where they cannot be held to, and rewritten as llguidance takes them.
//!
//! llguidance skips keywords that its draft does not know and rounds what it computes in floating point. What it gets from
//! here has neither: every keyword that restricts is one it implements, every reference is to a definition at the
//! top, and what only describes is gone. The rewriting may narrow a schema, never widen it.

mod constants;
mod endings;
mod exclusive;
mod keywords;
mod needed;
mod strings;
#[cfg(test)]
mod tests;
mod weight;

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::GrammarError;
use constants::Steps;
use keywords::{Inner, Keyword, Plain};
pub(super) use needed::{alone, needed};
use weight::{Weighing, Weight};

/// What may stand between two parts of a JSON text: a bound, so that no output is all whitespace.
const WHITESPACE: &str = r"\x20{1,2}|\x20{0,2}\r?\n[\x20\x09]{0,40}";
/// Letters that may follow a backslash. Without `u`: an escape could spell a key that the schema gives another meaning.
const ESCAPES: &str = "nrbtf\\\"";

/// Schemas within schemas, references included when they are first followed: bounds every recursion that follows.
const MAX_DEPTH: usize = 100;
/// Schemas of one document.
const MAX_SCHEMAS: usize = 5_000;
/// Properties of one object.
const MAX_PROPERTIES: usize = 1_000;
/// Values of all enums of one document.
const MAX_ENUM_VALUES: usize = 10_000;
/// Options of one `oneOf`, which are compared with each other.
const MAX_EXCLUSIVE: usize = 100;
/// Regexes of one document that must be built to see whether they allow anything.
const MAX_REGEXES: usize = 256;
/// Patterns of one object, which must not overlap and are compared with each other.
const MAX_PATTERN_PROPERTIES: usize = 8;
/// The same of one document.
const MAX_ALL_PATTERN_PROPERTIES: usize = 64;

/// The schema as llguidance takes it.
pub(super) fn prepare(schema: &Value) -> Result<Value, GrammarError> {
    let Value::Object(fields) = schema else {
        return Err(GrammarError::new("must be a JSON schema: an object"));
    };
    let mut document = Document::new(schema);
    let (mut rewritten, _) = document.object(fields, "", 0)?;
    if document.is_recursive && !endings::can_end(&rewritten, &document.definitions) {
        return Err(GrammarError::new("can never be complete: it requires itself within itself"));
    }
    if !document.definitions.is_empty() {
        rewritten.insert("$defs".to_owned(), Value::Object(document.definitions));
    }
    let writing = json!({ "whitespace_pattern": WHITESPACE, "json_allowed_escapes": ESCAPES });
    rewritten.insert("x-guidance".to_owned(), writing);
    Ok(Value::Object(rewritten))
}

/// Where a schema has a `oneOf` whose options are not certain to exclude each other; some of these places at most.
pub(super) fn overlapping(root: &Value) -> Vec<String> {
    const MOST: usize = 3;
    let mut found = Vec::new();
    let mut left = vec![(String::new(), root)];
    while let Some((place, value)) = left.pop().filter(|_| found.len() < MOST) {
        let options = value.get("oneOf").and_then(Value::as_array);
        if options.is_some_and(|options| options.len() <= MAX_EXCLUSIVE && !exclusive::are_exclusive(root, options)) {
            found.push(format!("{place}/oneOf"));
        }
        match value {
            Value::Object(fields) => {
                left.extend(fields.iter().rev().map(|(name, field)| (format!("{place}/{}", escaped(name)), field)));
            }
            Value::Array(items) => {
                left.extend(items.iter().enumerate().rev().map(|(index, item)| (format!("{place}/{index}"), item)));
            }
            _ => {}
        }
    }
    found
}

/// A schema and all that it refers to, while it is rewritten.
struct Document<'a> {
    root: &'a Value,
    /// Whether a schema with `properties` and without `type` may be taken to mean objects, as the original took it. Beside
    /// `oneOf` it would be wrong: what fits one option of a narrowed schema may fit two of the schema as written.
    narrows: bool,
    /// Whether an object with `properties` and without `additionalProperties` has these only, as the original had it. Where
    /// schemas are merged it would be wrong: the other one may name further properties.
    closes: bool,
    /// The new names of what is referred to, by the reference as written, and what each weighs.
    names: HashMap<String, (String, Weight)>,
    definitions: Map<String, Value>,
    /// Something refers to what it is a part of.
    is_recursive: bool,
    schemas: usize,
    enum_values: usize,
    regexes: usize,
    pattern_properties: usize,
    steps: Steps,
}

impl<'a> Document<'a> {
    fn new(root: &'a Value) -> Self {
        Self {
            root,
            narrows: !any_object(root, &|fields| fields.contains_key("oneOf")),
            closes: !any_object(root, &merges),
            names: HashMap::new(),
            definitions: Map::new(),
            is_recursive: false,
            schemas: 0,
            enum_values: 0,
            regexes: 0,
            pattern_properties: 0,
            steps: Steps::default(),
        }
    }

    /// A schema rewritten, and what it weighs.
    fn schema(&mut self, schema: &Value, place: &str, depth: usize) -> Result<(Value, Weight), GrammarError> {
        match schema {
            Value::Bool(_) => Ok((schema.clone(), Weight::NONE)),
            Value::Object(fields) => {
                let (rewritten, weight) = self.object(fields, place, depth)?;
                Ok((Value::Object(rewritten), weight))
            }
            _ => Err(GrammarError::at(place, "must be a schema: an object, `true` or `false`")),
        }
    }

    fn object(
        &mut self,
        fields: &Map<String, Value>,
        place: &str,
        depth: usize,
    ) -> Result<(Map<String, Value>, Weight), GrammarError> {
        self.schemas += 1;
        allow(self.schemas, MAX_SCHEMAS, "schemas", place)?;
        if depth >= MAX_DEPTH {
            return Err(GrammarError::at(place, format!("lies deeper than {MAX_DEPTH} schemas; make it flatter")));
        }
        let mut rewritten = Map::new();
        let mut weight = Weighing::new(keywords::weight(fields, place)?);
        for (name, value) in fields {
            let inner = format!("{place}/{}", escaped(name));
            match keywords::lookup(name) {
                Keyword::Kept => {
                    rewritten.insert(name.clone(), value.clone());
                }
                Keyword::Refused(neutral) => keywords::refuse(name, value, neutral, &inner)?,
                Keyword::Annotation => {}
                Keyword::Identity => keywords::check_identity(name, value, place)?,
                Keyword::Plain(plain) => {
                    self.count_plain(plain, value, &inner)?;
                    rewritten.insert(name.clone(), plain.rewrite(value, &inner)?);
                }
                Keyword::Inner(applied) => {
                    let name = self.without_exclusion(applied, name, fields);
                    rewritten.insert(name.to_owned(), self.inner(applied, value, (&inner, depth), &mut weight)?);
                }
            }
        }
        self.whole(fields, &mut rewritten, place)?;
        Ok((rewritten, weight.finish(place)?))
    }

    /// `anyOf` for a `oneOf` that says no more.
    fn without_exclusion<'b>(&self, keyword: Inner, name: &'b str, fields: &Map<String, Value>) -> &'b str {
        let options = fields.get(name).and_then(Value::as_array);
        let is_plain = |options: &Vec<Value>| {
            options.len() <= MAX_EXCLUSIVE
                && exclusive::are_exclusive(self.root, options)
                && !fields.contains_key("anyOf")
        };
        if keyword == Inner::One && options.is_some_and(is_plain) { "anyOf" } else { name }
    }

    /// A keyword that has schemas inside.
    fn inner(
        &mut self,
        keyword: Inner,
        value: &Value,
        (place, depth): (&str, usize),
        weight: &mut Weighing,
    ) -> Result<Value, GrammarError> {
        let (rewritten, met) = match (keyword, value) {
            (Inner::Schema, Value::Array(items)) if place.ends_with("/items") => self.list(items, place, depth)?,
            (Inner::Schema, value) => {
                let (rewritten, met) = self.schema(value, place, depth + 1)?;
                (rewritten, vec![met])
            }
            (Inner::Properties, value) => self.properties(value, place, depth)?,
            (Inner::PatternProperties, value) => self.patterns(value, place, depth)?,
            (Inner::Reference, value) => {
                let (target, met) = self.reference(value, place, depth)?;
                (Value::String(target), vec![met])
            }
            (Inner::One, Value::Array(options)) if options.len() > MAX_EXCLUSIVE => {
                let problem = format!("has {} options, but at most {MAX_EXCLUSIVE} are allowed", options.len());
                return Err(GrammarError::at(place, problem));
            }
            (Inner::Schemas | Inner::All | Inner::Any | Inner::One, value) => {
                self.list(keywords::filled(value, place)?, place, depth)?
            }
        };
        weight.take(keyword, &met);
        Ok(rewritten)
    }

    /// What depends on several keywords of one schema.
    fn whole(
        &mut self,
        fields: &Map<String, Value>,
        rewritten: &mut Map<String, Value>,
        place: &str,
    ) -> Result<(), GrammarError> {
        if let Some(format) = fields.get("format") {
            if strings::applies(fields) {
                self.count_plain(Plain::Pattern, format, place)?;
                strings::known_format(format, &format!("{place}/format"))?;
            } else {
                rewritten.remove("format");
            }
        }
        keywords::check_min_properties(fields, place)?;
        constants::bound_integers(rewritten);
        if let Some(step) = rewritten.get("multipleOf") {
            self.steps.take(step, &format!("{place}/multipleOf"))?;
        }
        let says_more = ["additionalProperties", "patternProperties", "minProperties"];
        if self.closes && fields.contains_key("properties") && !says_more.iter().any(|name| fields.contains_key(*name))
        {
            rewritten.insert("additionalProperties".to_owned(), Value::Bool(false));
        }
        let is_open = !["type", "enum", "const"].iter().any(|name| rewritten.contains_key(*name));
        if self.narrows && is_open && rewritten.contains_key("properties") {
            rewritten.insert("type".to_owned(), json!("object"));
        }
        Ok(())
    }

    fn list(&mut self, items: &[Value], place: &str, depth: usize) -> Result<(Value, Vec<Weight>), GrammarError> {
        let (mut list, mut weights) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
        for (index, item) in items.iter().enumerate() {
            let (item, met) = self.schema(item, &format!("{place}/{index}"), depth + 1)?;
            list.push(item);
            weights.push(met);
        }
        Ok((Value::Array(list), weights))
    }

    fn properties(&mut self, value: &Value, place: &str, depth: usize) -> Result<(Value, Vec<Weight>), GrammarError> {
        let Value::Object(properties) = value else {
            return Err(GrammarError::at(place, "must be an object of schemas"));
        };
        if properties.len() > MAX_PROPERTIES {
            let problem = format!("has {} entries, but at most {MAX_PROPERTIES} are allowed", properties.len());
            return Err(GrammarError::at(place, problem));
        }
        let (mut rewritten, mut weights) = (Map::new(), Vec::new());
        for (name, schema) in properties {
            let (schema, met) = self.schema(schema, &format!("{place}/{}", escaped(name)), depth + 1)?;
            rewritten.insert(name.clone(), schema);
            weights.push(met);
        }
        Ok((Value::Object(rewritten), weights))
    }

    fn patterns(&mut self, value: &Value, place: &str, depth: usize) -> Result<(Value, Vec<Weight>), GrammarError> {
        let (rewritten, weight) = self.properties(value, place, depth)?;
        let Value::Object(patterns) = rewritten else { return Ok((rewritten, weight)) };
        if patterns.len() > MAX_PATTERN_PROPERTIES {
            let problem = format!("has {} entries, but at most {MAX_PATTERN_PROPERTIES} are allowed", patterns.len());
            return Err(GrammarError::at(place, problem));
        }
        self.pattern_properties += patterns.len();
        allow(self.pattern_properties, MAX_ALL_PATTERN_PROPERTIES, "patterns of properties", place)?;
        let rewrite = |(pattern, schema): (String, Value)| {
            let place = format!("{place}/{}", escaped(&pattern));
            Ok((strings::searched(&pattern, &place)?, schema))
        };
        let patterns = patterns.into_iter().map(rewrite).collect::<Result<Map<_, _>, _>>()?;
        Ok((Value::Object(patterns), weight))
    }

    /// A reference's new form. What it refers to is rewritten when it is first met, within whatever refers to it: that
    /// is the order in which llguidance descends, so the depth counted here is the depth of its stack.
    fn reference(&mut self, value: &Value, place: &str, depth: usize) -> Result<(String, Weight), GrammarError> {
        let Value::String(reference) = value else {
            return Err(GrammarError::at(place, "must be a string, such as `#/$defs/name`"));
        };
        if reference == "#" {
            self.is_recursive = true;
            return Ok(("#".to_owned(), Weight::NONE));
        }
        if let Some((name, weight)) = self.names.get(reference) {
            self.is_recursive |= !self.definitions.contains_key(name);
            return Ok((format!("#/$defs/{name}"), *weight));
        }
        let pointer = reference.strip_prefix('#').filter(|pointer| pointer.starts_with('/')).ok_or_else(|| {
            let problem = format!(
                "refers to `{}`, but only references within the schema are followed, such as `#/$defs/name`",
                shortened(reference)
            );
            GrammarError::at(place, problem)
        })?;
        let target = self.root.pointer(&unescaped(pointer)).ok_or_else(|| {
            GrammarError::at(place, format!("refers to `{}`, where there is nothing", shortened(reference)))
        })?;
        let name = format!("d{}", self.names.len());
        self.names.insert(reference.clone(), (name.clone(), Weight::NONE));
        let (rewritten, weight) = self.schema(target, pointer, depth + 1)?;
        self.names.insert(reference.clone(), (name.clone(), weight));
        self.definitions.insert(name.clone(), rewritten);
        Ok((format!("#/$defs/{name}"), weight))
    }

    fn count_plain(&mut self, keyword: Plain, value: &Value, place: &str) -> Result<(), GrammarError> {
        match keyword {
            Plain::Enum => self.enum_values += value.as_array().map_or(0, Vec::len),
            Plain::Pattern => self.regexes += 1,
            _ => {}
        }
        allow(self.enum_values, MAX_ENUM_VALUES, "values of enums", place)?;
        allow(self.regexes, MAX_REGEXES, "patterns and formats", place)
    }
}

/// Refuses what is one too many of a kind.
fn allow(count: usize, most: usize, kind: &str, place: &str) -> Result<(), GrammarError> {
    if count > most {
        let problem = format!("is too much: a schema may have at most {most} {kind} in all");
        return Err(GrammarError::at(place, problem));
    }
    Ok(())
}

/// Whether `holds` of any object in a document, be it a schema or not.
fn any_object(value: &Value, holds: &dyn Fn(&Map<String, Value>) -> bool) -> bool {
    match value {
        Value::Object(fields) => holds(fields) || fields.values().any(|field| any_object(field, holds)),
        Value::Array(items) => items.iter().any(|item| any_object(item, holds)),
        _ => false,
    }
}

/// Whether a schema is one of several that a value must hold to at once; `oneOf` asks what each of them leaves out.
fn merges(fields: &Map<String, Value>) -> bool {
    const OF_OBJECTS: [&str; 4] = ["properties", "required", "additionalProperties", "patternProperties"];
    let is_applied = ["$ref", "anyOf", "allOf"].iter().filter(|name| fields.contains_key(**name)).count();
    let is_list = fields.get("allOf").and_then(Value::as_array).is_some_and(|all| all.len() > 1);
    let has_own = OF_OBJECTS.iter().any(|name| fields.contains_key(*name));
    fields.contains_key("oneOf") || is_list || is_applied > 1 || (is_applied > 0 && has_own)
}

/// A name as it stands in a JSON pointer (RFC 6901).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// A JSON pointer as it stands in a URI's fragment: percent signs come before bytes.
fn unescaped(fragment: &str) -> String {
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = hex.filter(|_| first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}
