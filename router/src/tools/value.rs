//! JSON values that come in pieces.

use std::fmt::Write;

/// How far a JSON object or list reaches. What is in it is passed on as it is, but for what models write and JSON does not
/// know: control characters in strings, and Python's constants.
#[derive(Clone, Debug, Default)]
pub(super) struct Extent {
    depth: usize,
    string: Option<Escaped>,
    /// The letters so far of what may be a constant.
    word: String,
}

/// Whether the next character of a string is escaped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Escaped(bool);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    Inside,
    /// That character was the last.
    Last,
    /// That character cannot stand here.
    Broken,
}

/// The beginning of an object, up to where it is certain that one follows: braces alone also begin other things.
#[derive(Clone, Debug, Default)]
pub(super) struct Opening(String);

/// What a character makes of an opening.
#[derive(Debug)]
pub(super) enum Opened {
    NotYet,
    /// The object so far, as JSON; whether it is over already.
    Object(Extent, String, Reach),
    No,
}

impl Opening {
    /// Behind `{`.
    pub(super) fn push(&mut self, c: char) -> Opened {
        self.0.push(c);
        if c.is_ascii_whitespace() {
            return Opened::NotYet;
        }
        if c != '"' && c != '}' {
            return Opened::No;
        }
        let (mut extent, mut out) = (Extent::default(), String::new());
        extent.push('{', &mut out);
        let mut reach = Reach::Inside;
        for c in std::mem::take(&mut self.0).chars() {
            reach = extent.push(c, &mut out);
        }
        Opened::Object(extent, out, reach)
    }
}

impl Escaped {
    /// Whether `c` ends the string.
    pub(super) fn ends(&mut self, c: char) -> bool {
        if self.0 {
            self.0 = false;
            return false;
        }
        self.0 = c == '\\';
        c == '"'
    }
}

impl Extent {
    /// The next character; `out` gets it as JSON has it.
    pub(super) fn push(&mut self, c: char, out: &mut String) -> Reach {
        if let Some(escaped) = &mut self.string {
            let was_escaped = escaped.0;
            if escaped.ends(c) {
                self.string = None;
            }
            push_string_character(c, was_escaped, out);
            return Reach::Inside;
        }
        if c.is_ascii_alphabetic() {
            self.word.push(c);
            return Reach::Inside;
        }
        out.push_str(constant(&self.word));
        self.word.clear();
        match c {
            '"' => self.string = Some(Escaped::default()),
            '{' | '[' => self.depth += 1,
            '}' | ']' => self.depth = self.depth.saturating_sub(1),
            ':' | ',' | '+' | '-' | '.' | '_' => {}
            _ if c.is_ascii_digit() || c.is_ascii_whitespace() => {}
            _ => return Reach::Broken,
        }
        out.push(c);
        if self.depth == 0 { Reach::Last } else { Reach::Inside }
    }
}

/// Python's constants as JSON's; other words as they are.
fn constant(word: &str) -> &str {
    match word {
        "True" => "true",
        "False" => "false",
        "None" => "null",
        word => word,
    }
}

fn push_string_character(c: char, was_escaped: bool, out: &mut String) {
    match c {
        c if !c.is_control() || c == '\u{7F}' || c > '\u{7F}' => out.push(c),
        // The backslash before it is there already.
        '\n' if was_escaped => out.push('n'),
        _ if was_escaped => out.push('\\'),
        c => escape(c, out),
    }
}

/// One character of a JSON string that means itself.
pub(super) fn escape(c: char, out: &mut String) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if c < ' ' => write!(out, "\\u{:04x}", u32::from(c)).expect("strings take all that is written"),
        c => out.push(c),
    }
}

/// What stands between the quotes, as text; `None` if it is no JSON string.
pub(super) fn unquoted(raw: &str) -> Option<String> {
    serde_json::from_str(&format!("\"{raw}\"")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(text: &str) -> (String, Reach) {
        let (mut extent, mut out, mut reach) = (Extent::default(), String::new(), Reach::Inside);
        for c in text.chars() {
            reach = extent.push(c, &mut out);
            if reach != Reach::Inside {
                break;
            }
        }
        (out, reach)
    }

    #[test]
    fn an_extent_ends_with_its_last_bracket() {
        let text = r#"{"a": ["}", {"b\"]": -1.5e3}], "c": true}"#;
        assert_eq!(through(&format!("{text} more")), (text.to_owned(), Reach::Last));
        assert_eq!(through(r#"{"a": 1"#).1, Reach::Inside);
        let python = r#"{"a": [True, False,None], "True": 1e5}"#;
        assert_eq!(through(python).0, r#"{"a": [true, false,null], "True": 1e5}"#);
        assert_eq!(through(r#"{"a": <"#).1, Reach::Broken);
    }

    #[test]
    fn control_characters_in_strings_are_escaped() {
        let (out, _) = through("{\"a\": \"x\ny\\\tz\u{1}\"}");
        assert_eq!(out, r#"{"a": "x\ny\\z\u0001"}"#);
        assert!(serde_json::from_str::<serde_json::Value>(&out).is_ok());
    }
}
