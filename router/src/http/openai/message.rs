//! Messages as `OpenAI`'s clients write them, and as templates see them.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::Value;

use crate::http::error::ApiError;
use crate::tokenizer::ChatMessage;

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Message {
    role: String,
    content: Option<Content>,
    name: Option<String>,
    tool_call_id: Option<String>,
    tool_calls: Option<Vec<Value>>,
}

/// A string, or a list of parts.
#[derive(Clone, Debug)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Clone, Debug, Deserialize)]
struct Part {
    r#type: String,
    text: Option<String>,
}

impl Message {
    /// A message as templates see it; `index` is its place, for errors.
    pub(super) fn into_chat(self, index: usize) -> Result<ChatMessage, ApiError> {
        if self.tool_calls.is_some_and(|calls| !calls.is_empty()) {
            let problem = "is not supported by this version of the server; send text only";
            return Err(ApiError::field(format!("messages[{index}].tool_calls"), problem));
        }
        let content = match self.content {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => joined(parts, index)?,
            None => {
                let problem = "is missing; send a string or a list of text parts";
                return Err(ApiError::field(format!("messages[{index}].content"), problem));
            }
        };
        Ok(ChatMessage { role: self.role, content, name: self.name, tool_call_id: self.tool_call_id })
    }
}

/// The text of message `index`, without anything between its parts.
fn joined(parts: Vec<Part>, index: usize) -> Result<String, ApiError> {
    let mut whole = String::new();
    for (place, part) in parts.into_iter().enumerate() {
        let field = format!("messages[{index}].content[{place}]");
        match (part.r#type.as_str(), part.text) {
            ("text", Some(text)) => whole.push_str(&text),
            ("text", None) => return Err(ApiError::field(field, "has no `text`")),
            (kind, _) => {
                return Err(ApiError::field(field, format!("has type {kind}, but this model takes text only")));
            }
        }
    }
    Ok(whole)
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Content;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string or a list of parts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
                let mut parts = Vec::new();
                while let Some(part) = items.next_element()? {
                    parts.push(part);
                }
                Ok(Content::Parts(parts))
            }
        }
        deserializer.deserialize_any(Either)
    }
}
