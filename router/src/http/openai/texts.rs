//! Fields that hold one text or several.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

use crate::validation::Prompt;

/// A string, or a list of strings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OneOrMany(pub(super) Vec<String>);

/// One or several prompts, as text or as token ids.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::http) struct Prompts(pub(super) Vec<Prompt>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = OneOrMany;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string or a list of strings")
            }

            fn visit_str<E>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<OneOrMany, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = items.next_element()? {
                    texts.push(text);
                }
                Ok(OneOrMany(texts))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Ids(Vec<u32>),
            Texts(Vec<String>),
            Lists(Vec<Vec<u32>>),
        }
        let expected = "a string, a list of strings, a list of token ids, or a list of lists of token ids";
        Ok(Self(
            match Form::deserialize(deserializer).map_err(|_| de::Error::custom(format!("expected {expected}")))? {
                Form::Text(text) => vec![Prompt::Text(text)],
                // An empty list is a list of no prompts.
                Form::Ids(ids) if ids.is_empty() => Vec::new(),
                Form::Ids(ids) => vec![Prompt::Ids(ids)],
                Form::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
                Form::Lists(lists) => lists.into_iter().map(Prompt::Ids).collect(),
            },
        ))
    }
}
