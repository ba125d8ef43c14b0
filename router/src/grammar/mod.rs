//! Constrained output: from what a client asks for to one grammar that workers mask with.
//!
//! A [`Grammar`] is checked and compiled here, before its request is admitted: what is wrong with it is the client's to
//! hear, with the place in the schema or the column of the regex. What goes to the workers is text in llguidance's form,
//! which they compile again for their vocabulary. The router's own compilation uses single bytes as tokens: whether
//! a grammar is well-formed and how large it is does not depend on the vocabulary.

mod cache;
mod compiler;
mod lark;
mod regex;
mod schema;
mod vocabulary;
mod wire;

use std::borrow::Cow;
use std::fmt;

use serde_json::Value;

pub use compiler::Compiler;
pub use vocabulary::Vocabulary;
pub(crate) use wire::response_format;

/// What an output must look like, from its first to its last character.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// One JSON value that holds to a schema.
    Json(Value),
    /// A text that the whole regex matches, as if written between `^` and `$`.
    Regex(String),
    /// Rules in Lark's notation, beginning with `start`.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Put together from parts; how tool calls are bound.
    Structural(Shape),
}

/// A part of a [`Grammar::Structural`].
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// Exactly this text. A special token is not its text: see `Token`.
    Text(String),
    /// Exactly this token, which may be a special one.
    Token(u32),
    /// One JSON value that holds to `schema`. `place` is what clients call the schema, such as
    /// `tools[0].function.parameters`; errors name it.
    Json { schema: Value, place: String },
    /// A text that the whole regex matches.
    Regex(String),
    /// Rules in Lark's notation, beginning with `start`.
    Lark(String),
    /// One after the other.
    Sequence(Vec<Shape>),
    /// Any one of them; at least one.
    OneOf(Vec<Shape>),
    /// As often as the bounds say.
    Repeat { shape: Box<Shape>, least: u32, most: Option<u32> },
    /// Free text, in which a trigger, once it appears, must be followed by its part. Nothing but a trigger's own part can
    /// follow it, so no broken call can be written. Special tokens other than triggers cannot appear in the text.
    ///
    /// `required`: at least one part must appear before the output may end. `several`: parts and text may follow a part;
    /// otherwise the output ends with the first one. Parts with the same trigger are alternatives.
    Tagged { parts: Vec<Tag>, required: bool, several: bool },
}

impl Shape {
    /// The schemas in it, and what clients call them.
    fn schemas(&self) -> Vec<(&Value, &String)> {
        match self {
            Self::Json { schema, place } => vec![(schema, place)],
            Self::Sequence(shapes) | Self::OneOf(shapes) => shapes.iter().flat_map(Self::schemas).collect(),
            Self::Repeat { shape, .. } => shape.schemas(),
            Self::Tagged { parts, .. } => parts.iter().flat_map(|part| part.then.schemas()).collect(),
            Self::Text(_) | Self::Token(_) | Self::Regex(_) | Self::Lark(_) => Vec::new(),
        }
    }
}

/// One part of [`Shape::Tagged`].
#[derive(Clone, Debug, PartialEq)]
pub struct Tag {
    pub trigger: Trigger,
    /// What follows the trigger.
    pub then: Shape,
}

/// What begins a part in free text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The first appearance of this text; not empty.
    Text(String),
    /// This special token.
    Token(u32),
}

/// Why a grammar is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrammarError {
    /// What clients call the part at fault, where it is a part that has a name ([`Shape::Json`]).
    pub field: Option<String>,
    /// Where in it: a JSON pointer or the name of an inner field; empty for all of it.
    pub place: String,
    /// What, and what to do about it.
    pub problem: Cow<'static, str>,
}

impl GrammarError {
    fn new(problem: impl Into<Cow<'static, str>>) -> Self {
        Self::at("", problem)
    }

    fn at(place: impl Into<String>, problem: impl Into<Cow<'static, str>>) -> Self {
        Self { field: None, place: shortened(place.into()), problem: problem.into() }
    }

    /// A grammar that the compiler could not finish with.
    pub fn beyond(problem: &'static str) -> Self {
        Self::new(problem)
    }

    /// The same in a part that clients call `field`.
    fn of(self, field: &str) -> Self {
        Self { field: Some(field.to_owned()), ..self }
    }
}

/// A place of a length that a message can hold: its beginning and its end.
fn shortened(place: String) -> String {
    const MOST: usize = 300;
    if place.len() <= MOST {
        return place;
    }
    let boundary = |at: usize| (0..=at).rev().find(|at| place.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…{}", &place[..boundary(MOST / 2)], &place[boundary(place.len() - MOST / 2)..])
}

impl fmt::Display for GrammarError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place.as_str() {
            "" => formatter.write_str(&self.problem),
            place => write!(formatter, "at `{place}`: {}", self.problem),
        }
    }
}

impl std::error::Error for GrammarError {}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
