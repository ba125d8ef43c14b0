//! What a body takes when it is read: a few bytes of JSON can become hundreds, so that it is reckoned before.
//!
//! The sizes are those of values, and of lists and objects as they grow; texts and numbers of fields with types of
//! their own take less. Nothing is kept meanwhile.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// What a body may take, for each byte that bodies may have, and what any may.
pub(super) const FOLD: usize = 16;
const ANYWAY: usize = 64 << 10;
/// No JSON takes more, for each of its bytes: a list in a list in a list is two bytes each.
const WORST: usize = 160;

const VALUE: usize = size_of::<Value>();
/// With its key, its hash and its place in the index.
const ENTRY: usize = VALUE + size_of::<String>() + 3 * size_of::<usize>();
/// What is made room for at first.
const FIRST: usize = 4;
/// What an allocation takes beside.
const BLOCK: usize = 16;

/// What reading a body may take where bodies may have so many bytes.
pub(super) fn limit(payload_limit: usize) -> usize {
    payload_limit.saturating_mul(FOLD).saturating_add(ANYWAY)
}

/// Whether `json` can be read within `limit` bytes. What is no JSON can: its reader stops where this does.
pub(super) fn fits(json: &[u8], limit: usize) -> bool {
    if json.len() <= limit / WORST {
        return true;
    }
    let mut left = Left(limit);
    let read = Weighed(&mut left).deserialize(&mut serde_json::Deserializer::from_slice(json));
    read.is_ok() || left.0 > 0
}

/// Bytes that may still be taken; none: it was too much.
struct Left(usize);

impl Left {
    fn take<E: Error>(&mut self, bytes: usize) -> Result<(), E> {
        self.0 = self.0.saturating_sub(bytes);
        if self.0 == 0 { Err(E::custom("too much")) } else { Ok(()) }
    }

    /// The `len`-th item has come, of `size` bytes: whenever there is no room, it is doubled.
    fn grow<E: Error>(&mut self, len: usize, size: usize) -> Result<(), E> {
        match len {
            1 => self.take(FIRST * size + BLOCK),
            _ if len > FIRST && (len - 1).is_power_of_two() => self.take((len - 1) * size),
            _ => Ok(()),
        }
    }

    fn text<E: Error>(&mut self, text: &str) -> Result<(), E> {
        if text.is_empty() { Ok(()) } else { self.take(text.len() + BLOCK) }
    }
}

struct Weighed<'a>(&'a mut Left);

impl<'de> DeserializeSeed<'de> for Weighed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Weighed<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.text(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut len = 0;
        while items.next_element_seed(Weighed(&mut *self.0))?.is_some() {
            len += 1;
            self.0.grow(len, VALUE)?;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let mut len = 0;
        while fields.next_key_seed(Weighed(&mut *self.0))?.is_some() {
            fields.next_value_seed(Weighed(&mut *self.0))?;
            len += 1;
            self.0.grow(len, ENTRY)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes that a value holds beyond its own. Maps tell no capacity: what it is at least.
    fn held(value: &Value) -> usize {
        match value {
            Value::String(text) => text.capacity(),
            Value::Array(items) => items.capacity() * VALUE + items.iter().map(held).sum::<usize>(),
            Value::Object(fields) => {
                let keys = fields.keys().map(String::capacity).sum::<usize>();
                fields.len() * (VALUE + size_of::<String>() + 8) + keys + fields.values().map(held).sum::<usize>()
            }
            _ => 0,
        }
    }

    fn weight(json: &[u8]) -> usize {
        let mut left = Left(usize::MAX);
        Weighed(&mut left).deserialize(&mut serde_json::Deserializer::from_slice(json)).unwrap();
        usize::MAX - left.0
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z\"\\\\é]{0,9}".prop_map(Value::from)
        ];
        leaf.prop_recursive(5, 200, 9, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..9).prop_map(Value::from),
                prop::collection::vec(("[a-z]{0,3}", inner), 0..9)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_reckoned_is_no_less_than_what_is_held(value in json()) {
            let text = serde_json::to_vec(&value).unwrap();
            let read: Value = serde_json::from_slice(&text).unwrap();
            prop_assert!(weight(&text) >= held(&read), "{} {}", weight(&text), held(&read));
            prop_assert!(weight(&text) <= WORST * text.len());
            prop_assert!(fits(&text, weight(&text) + 1));
        }
    }

    #[test]
    fn what_takes_too_much_is_noticed_and_what_is_long_only_is_not() {
        let limit = limit(100_000);
        let of = |piece: &str| format!("{{\"x\":[{}0]}}", piece.repeat(99_000 / piece.len())).into_bytes();
        for hostile in ["[1],", "[[[[[[]]]]]],", "{\"\":1},", "{\"a\":{}},", "1,", "\"\","] {
            assert!(!fits(&of(hostile), limit), "{hostile}");
        }
        let message = format!("{{\"role\":\"user\",\"content\":\"{}\"}},", "hello ".repeat(10));
        for honest in [
            message.as_str(),
            "\"a text of some length\",",
            "\"a\u{e9}\\n and so on and so on, at length\",",
            "12345678,",
        ] {
            assert!(fits(&of(honest), limit), "{honest}");
        }
        // What cannot be read is refused by who reads it.
        assert!(fits(&b"[".repeat(90_000), limit) && fits(b"{\"x\": nothing", limit) && fits(b"", limit));
    }
}
