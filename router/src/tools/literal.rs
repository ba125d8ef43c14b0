//! Python literals that come in pieces, as JSON.

use super::pythonic::is_name;
use super::value::escape;

/// A Python literal on its way to JSON.
#[derive(Debug, Default)]
pub(super) struct Value {
    /// Open brackets, innermost last.
    depth: Vec<Bracket>,
    string: Option<Text>,
    word: String,
    /// A comma that is written when something follows it.
    owes_comma: bool,
    /// Whether a value stands in the innermost bracket since the last comma or colon.
    is_whole: bool,
    /// Whether that value is a string, as JSON wants its keys.
    is_text: bool,
}

/// An open bracket.
#[derive(Debug)]
struct Bracket {
    close: char,
    /// In a dictionary: whether a key and its colon have come since the last comma.
    has_key: bool,
}

/// A Python string.
#[derive(Debug)]
struct Text {
    quote: char,
    is_escaped: bool,
}

impl Value {
    /// Whether `c`, which is a comma or a parenthesis of the call then, ends the value; `None` if no literal goes on so.
    pub(super) fn push(&mut self, c: char, out: &mut String) -> Option<bool> {
        if let Some(text) = &mut self.string {
            if text.push(c, out) {
                self.string = None;
                (self.is_whole, self.is_text) = (true, true);
            }
            return Some(false);
        }
        if is_name(c) || matches!(c, '+' | '-' | '.') {
            if self.is_whole {
                return None;
            }
            self.word.push(c);
            return Some(false);
        }
        if !self.word.is_empty() {
            self.say_word(c == ':', out)?;
        }
        match c {
            c if c.is_ascii_whitespace() => {}
            '"' | '\'' if !self.is_whole => {
                self.pay(out);
                self.string = Some(Text { quote: c, is_escaped: false });
                out.push('"');
            }
            '[' | '(' | '{' if !self.is_whole => {
                self.pay(out);
                self.depth.push(Bracket { close: if c == '{' { '}' } else { ']' }, has_key: false });
                out.push(if c == '{' { '{' } else { '[' });
            }
            ',' | ')' if self.depth.is_empty() => return self.is_whole.then_some(true),
            ',' if self.is_whole => {
                let inner = self.depth.last_mut()?;
                // JSON has no sets.
                if inner.close == '}' && !std::mem::take(&mut inner.has_key) {
                    return None;
                }
                self.is_whole = false;
                self.owes_comma = true;
            }
            ':' if self.is_whole && self.is_text => {
                let inner = self.depth.last_mut().filter(|inner| inner.close == '}' && !inner.has_key)?;
                inner.has_key = true;
                self.is_whole = false;
                out.push(c);
            }
            ']' | ')' | '}' => {
                self.owes_comma = false;
                let inner = self.depth.pop().filter(|inner| (inner.close == '}') == (c == '}'))?;
                // A key without its value, or a value without a key.
                if c == '}' && inner.has_key != self.is_whole {
                    return None;
                }
                out.push(inner.close);
                (self.is_whole, self.is_text) = (true, false);
            }
            _ => return None,
        }
        Some(false)
    }

    /// A number or a constant; as a key it is written as a string.
    fn say_word(&mut self, is_key: bool, out: &mut String) -> Option<()> {
        self.pay(out);
        let quote = if is_key { "\"" } else { "" };
        for part in [quote, &literal(&std::mem::take(&mut self.word))?, quote] {
            out.push_str(part);
        }
        (self.is_whole, self.is_text) = (true, is_key);
        Some(())
    }

    fn pay(&mut self, out: &mut String) {
        if std::mem::take(&mut self.owes_comma) {
            out.push(',');
        }
    }
}

impl Text {
    /// Whether `c` ends the string.
    fn push(&mut self, c: char, out: &mut String) -> bool {
        if self.is_escaped {
            self.is_escaped = false;
            match c {
                'n' | 'r' | 't' | 'b' | 'f' | 'u' | '"' | '\\' => out.extend(['\\', c]),
                '\'' => out.push('\''),
                // Its two digits follow; without them it is no JSON, as it is no Python.
                'x' => out.push_str("\\u00"),
                '\n' => {}
                c => {
                    out.push_str("\\\\");
                    escape(c, out);
                }
            }
            return false;
        }
        match c {
            '\\' => self.is_escaped = true,
            c if c == self.quote => out.push('"'),
            c => escape(c, out),
        }
        c == self.quote && !self.is_escaped
    }
}

/// A word of Python in JSON.
fn literal(word: &str) -> Option<String> {
    match word {
        "True" | "true" => Some("true".to_owned()),
        "False" | "false" => Some("false".to_owned()),
        "None" | "null" => Some("null".to_owned()),
        number => {
            let plain = number.replace('_', "");
            let plain = plain.strip_prefix('+').unwrap_or(&plain);
            if serde_json::from_str::<serde_json::Number>(plain).is_ok() {
                return Some(plain.to_owned());
            }
            let number = plain.parse::<f64>().ok().filter(|number| number.is_finite())?;
            Some(serde_json::Number::from_f64(number)?.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a literal and what stands behind it become; `None` if it is none.
    fn json(literal: &str) -> Option<String> {
        let (mut value, mut out) = (Value::default(), String::new());
        for c in format!("{literal})").chars() {
            if value.push(c, &mut out)? {
                return Some(out);
            }
        }
        None
    }

    #[test]
    fn what_json_cannot_say_is_no_argument() {
        for (literal, expected) in [
            ("{1: 'a', True: [2,], }", r#"{"1":"a","true":[2]}"#),
            ("{'a': {}, 'b': (1, [])}", r#"{"a":{},"b":[1,[]]}"#),
            ("-1_000", "-1000"),
            (r"'\x41\u00e9'", r#""\u0041\u00e9""#),
        ] {
            assert_eq!(json(literal).as_deref(), Some(expected));
            assert!(serde_json::from_str::<serde_json::Value>(expected).is_ok());
        }
        for literal in
            ["{1, 2}", "{'a'}", "{'a': 1, 2}", "{'a':}", "['a': 1]", "{(1, 2): 3}", "{'a': 'b': 1}", "'a': 1"]
        {
            assert_eq!(json(literal), None, "{literal}");
        }
    }
}
