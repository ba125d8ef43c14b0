//! Chat templates: Jinja as Hugging Face transformers runs it.

use std::sync::LazyLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use regex::Regex;
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};
use time::OffsetDateTime;
use time::format_description::parse_strftime_borrowed;

use super::chat::ChatMessage;

const NAME: &str = "chat_template";

/// A compiled template and the tokens it is told.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    pub(super) fn compile(source: &str, bos_token: Option<String>, eos_token: Option<String>) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        // The library's slices panic when they step backwards through an empty list.
        let source = without_generation_blocks(source).replace("[::-1]", "|reverse");
        environment.add_template_owned(NAME, source)?;
        Ok(Self { environment, bos_token, eos_token })
    }

    /// The prompt, with the header of the assistant's turn at its end.
    pub(super) fn render(&self, messages: &[ChatMessage]) -> Result<String, Error> {
        self.environment.get_template(NAME)?.render(context! {
            messages => Value::from(Serde(messages)),
            // A token that a model does not have is undefined, which renders as nothing; none would render as a word.
            bos_token => self.bos_token.as_ref().map_or(Value::UNDEFINED, Value::from),
            eos_token => self.eos_token.as_ref().map_or(Value::UNDEFINED, Value::from),
            add_generation_prompt => true,
        })
    }
}

/// `{% generation %}` marks the assistant's words for training; it renders its content.
fn without_generation_blocks(source: &str) -> String {
    static BLOCK: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("a constant pattern"));
    let replace = |found: &regex::Captures<'_>| {
        let tag = if found.get(2).is_some() { "endif" } else { "if true" };
        format!("{{%{} {tag} {}%}}", &found[1], &found[3])
    };
    BLOCK.replace_all(source, replace).into_owned()
}

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Local time; UTC where the system does not tell the offset to a program with threads.
fn strftime_now(format: &str) -> Result<String, Error> {
    let failed = |reason: String| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {reason}"));
    let format = parse_strftime_borrowed(format).map_err(|error| failed(error.to_string()))?;
    let now = OffsetDateTime::now_local().unwrap_or_else(|_| OffsetDateTime::now_utc());
    now.format(&format).map_err(|error| failed(error.to_string()))
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`: no HTML escapes, keys in their order.
#[expect(clippy::needless_pass_by_value, reason = "the signature of a filter")]
fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut text = Vec::new();
    let result = match indent {
        Some(width) => {
            let spaces = " ".repeat(width);
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, PythonFormatter)),
    };
    result.map_err(failed)?;
    String::from_utf8(text).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// One line with a space behind each comma and colon.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_f64<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, value: f64) -> std::io::Result<()> {
        CompactFormatter.write_f64(writer, value)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Case {
        template: String,
        conversation: String,
        messages: Vec<ChatMessage>,
        expected: Option<String>,
    }

    /// transformers' answers to the same templates and conversations (`router/tests/chat_templates/render.py`).
    #[test]
    fn templates_render_as_transformers_renders_them() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat_templates");
        let cases = std::fs::read_to_string(folder.join("expected.json")).unwrap();
        let cases: Vec<Case> = serde_json::from_str(&cases).unwrap();
        assert!(cases.len() > 40);
        for case in cases {
            let source = std::fs::read_to_string(folder.join(&case.template)).unwrap();
            let template = ChatTemplate::compile(&source, Some("<s>".to_owned()), Some("</s>".to_owned()));
            let rendered = template.unwrap().render(&case.messages);
            let described = format!("{} of {}: {rendered:?}", case.conversation, case.template);
            assert_eq!(rendered.ok(), case.expected, "{described}");
        }
    }

    fn render(source: &str) -> Result<String, Error> {
        ChatTemplate::compile(source, None, None)?.render(&[])
    }

    #[test]
    fn a_template_can_refuse_with_its_own_words() {
        let error = render("{{ raise_exception('after your turn') }}").unwrap_err();
        assert!(error.to_string().contains("after your turn"), "{error}");
    }

    #[test]
    fn the_date_is_formatted_as_python_does() {
        let now = OffsetDateTime::now_utc().year();
        let year = render("{{ strftime_now('%Y') }}").unwrap();
        assert!((now - 1..=now + 1).contains(&year.parse().unwrap()), "{year}");
        let date = render("{{ strftime_now('%d %b %Y') }}").unwrap();
        assert_eq!(date.split(' ').map(str::len).collect::<Vec<_>>(), [2, 3, 4], "{date}");
        assert!(render("{{ strftime_now('%') }}").is_err());
    }

    #[test]
    fn absent_tokens_are_empty_text() {
        assert_eq!(render("[{{ bos_token }}{{ eos_token }}]").unwrap(), "[]");
    }
}
