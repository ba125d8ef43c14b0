//! Chat templates: Jinja as Hugging Face transformers runs it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::LazyLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind, escape_formatter};
use minijinja_contrib::pycompat::unknown_method_callback;
use regex::Regex;
use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Value as Json, json};
use time::OffsetDateTime;
use time::format_description::parse_strftime_borrowed;

const NAME: &str = "chat_template";

/// A compiled template and the tokens it is told.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    content: ContentForm,
    knows_developer: bool,
}

/// One rendering.
#[derive(Clone, Debug, Default)]
pub(super) struct Scene {
    pub(super) messages: Vec<Json>,
    pub(super) tools: Option<Json>,
    pub(super) documents: Option<Json>,
    /// They win over everything else, as in transformers.
    pub(super) variables: BTreeMap<String, Json>,
    /// Whether the header of the assistant's turn ends it.
    pub(super) opens: bool,
}

/// What a template takes as the content of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ContentForm {
    Text,
    Parts,
    Either,
}

impl ChatTemplate {
    pub(super) fn compile(source: &str, special_tokens: &BTreeMap<String, String>) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.add_test("iterable", is_iterable);
        environment.set_formatter(|out, state, value| {
            if value.is_none() { Ok(out.write_str("None")?) } else { escape_formatter(out, state, value) }
        });
        let knows_developer = source.contains("developer");
        // The library's slices panic when they step backwards through an empty list.
        let source = without_generation_blocks(source).replace("[::-1]", "|reverse");
        environment.add_template_owned(NAME, source)?;
        let special_tokens = special_tokens.clone();
        let mut template = Self { environment, special_tokens, content: ContentForm::Text, knows_developer };
        template.content = template.probe();
        Ok(template)
    }

    /// Which forms of content it shows as they should be shown.
    fn probe(&self) -> ContentForm {
        const WORD: &str = "probe7c1f";
        let shows = |content: Json| {
            let messages = vec![json!({ "role": "user", "content": content })];
            let rendered = self.render(&Scene { messages, opens: true, ..Scene::default() });
            rendered.is_ok_and(|text| text.contains(WORD) && !text.contains("'text'") && !text.contains("\"text\""))
        };
        match (shows(json!(WORD)), shows(json!([{ "type": "text", "text": WORD }]))) {
            (true, true) => ContentForm::Either,
            (false, true) => ContentForm::Parts,
            (_, false) => ContentForm::Text,
        }
    }

    /// Messages in the form that this template takes.
    pub(super) fn adapt(&self, messages: &mut [Json]) {
        alias_reasoning(messages);
        for message in messages.iter_mut().filter_map(Json::as_object_mut) {
            if let Some(content) = message.get_mut("content") {
                match (self.content, &content) {
                    (ContentForm::Text, Json::Array(parts)) => *content = Json::String(joined(parts)),
                    (ContentForm::Parts, Json::String(text)) => *content = json!([{ "type": "text", "text": text }]),
                    _ => {}
                }
            }
            if !self.knows_developer && message.get("role").is_some_and(|role| role == "developer") {
                message.insert("role".to_owned(), json!("system"));
            }
        }
    }

    /// The prompt. Arguments of calls are objects to most templates, and text, as clients send them, to the others.
    pub(super) fn render(&self, scene: &Scene) -> Result<String, Error> {
        let Some(parsed) = with_parsed_arguments(&scene.messages) else { return self.render_as_is(scene) };
        let parsed = Scene { messages: parsed, ..scene.clone() };
        self.render_as_is(&parsed).or_else(|error| self.render_as_is(scene).map_err(|_| error))
    }

    fn render_as_is(&self, scene: &Scene) -> Result<String, Error> {
        // A token that a model does not have is undefined, which renders as nothing; none would render as a word.
        let tokens = self.special_tokens.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str())));
        let mut variables: BTreeMap<&str, Value> = tokens.collect();
        let given = |value: &Option<Json>| value.as_ref().map_or(Value::from(()), |value| Value::from(Serde(value)));
        variables.insert("messages", Value::from(Serde(&scene.messages)));
        variables.insert("tools", given(&scene.tools));
        variables.insert("documents", given(&scene.documents));
        variables.insert("add_generation_prompt", Value::from(scene.opens));
        variables.extend(scene.variables.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value)))));
        self.environment.get_template(NAME)?.render(Value::from(variables))
    }
}

/// Templates read what a model thought under several names; as transformers does, it stands under the two common ones.
fn alias_reasoning(messages: &mut [Json]) {
    for message in messages.iter_mut().filter_map(Json::as_object_mut) {
        let names = ["reasoning_content", "thinking", "reasoning"];
        let Some(thought) = names.iter().find_map(|name| message.get(*name).filter(|value| !value.is_null())) else {
            continue;
        };
        let thought = thought.clone();
        let mut aliased = serde_json::Map::new();
        aliased.insert("thinking".to_owned(), thought.clone());
        aliased.append(message);
        aliased.insert("reasoning_content".to_owned(), thought);
        *message = aliased;
    }
}

/// The texts of a message's parts, without anything between them.
fn joined(parts: &[Json]) -> String {
    parts.iter().filter_map(|part| part["text"].as_str()).collect()
}

/// The messages with the arguments of calls as objects, if there are any that are written as text.
fn with_parsed_arguments(messages: &[Json]) -> Option<Vec<Json>> {
    let mut parsed = messages.to_vec();
    let mut is_changed = false;
    let calls = parsed.iter_mut().filter_map(|message| message.get_mut("tool_calls")?.as_array_mut());
    for call in calls.flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        let object = arguments.as_str().and_then(|text| serde_json::from_str(text).ok()).filter(Json::is_object);
        if let Some(object) = object {
            *arguments = object;
            is_changed = true;
        }
    }
    is_changed.then_some(parsed)
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

/// As Python sees it: the library takes `none` for an empty list.
#[expect(clippy::needless_pass_by_value, reason = "the signature of a test")]
fn is_iterable(value: Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
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

/// Python's `json.dumps(value, ensure_ascii=False, …)` with the options that transformers gives the filter: no HTML
/// escapes, keys in their order unless they are to be sorted.
#[expect(clippy::needless_pass_by_value, reason = "the signature of a filter")]
fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let mut value = serde_json::to_value(&value).map_err(failed)?;
    if sort_keys == Some(true) {
        value.sort_all_objects();
    }
    let (comma, colon) = match separators.as_deref() {
        Some([comma, colon]) => (comma.as_str(), colon.as_str()),
        // With an indentation Python puts no space where the line ends.
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators are two")),
    };
    let mut text = Vec::new();
    let spaces = indent.map(|width| " ".repeat(width));
    let formatter = PythonFormatter { comma, colon, indent: spaces.as_deref(), depth: 0, is_empty: true };
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter)).map_err(failed)?;
    let text = String::from_utf8(text).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(if ensure_ascii == Some(true) { escaped(&text) } else { text })
}

/// As `json.dumps` lays JSON out.
struct PythonFormatter<'a> {
    comma: &'a str,
    colon: &'a str,
    indent: Option<&'a str>,
    depth: usize,
    /// Whether the innermost list or object has nothing in it yet.
    is_empty: bool,
}

impl PythonFormatter<'_> {
    fn open<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !std::mem::take(&mut self.is_empty) {
            self.new_line(writer)?;
        }
        writer.write_all(bracket)
    }

    fn begin_item<W: ?Sized + Write>(&mut self, writer: &mut W, is_first: bool) -> io::Result<()> {
        if !is_first {
            writer.write_all(self.comma.as_bytes())?;
        }
        self.new_line(writer)
    }

    fn new_line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = self.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }
}

impl Formatter for PythonFormatter<'_> {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_item(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.is_empty = false;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_item(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.colon.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.is_empty = false;
        Ok(())
    }

    /// Python's `repr`: the shortest digits, with an exponent of at least two digits outside 1e-4 … 1e16.
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        let magnitude = value.abs();
        if magnitude == 0.0 || (1e-4..1e16).contains(&magnitude) {
            return write!(writer, "{value:?}");
        }
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        write!(writer, "{digits}e{sign}{exponent:0>2}")
    }
}

/// JSON with everything beyond ASCII as `\uXXXX`.
fn escaped(text: &str) -> String {
    let mut units = [0; 2];
    text.chars().fold(String::with_capacity(text.len()), |mut all, character| {
        if character.is_ascii() {
            all.push(character);
        } else {
            all.extend(character.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::*;

    fn tokens() -> BTreeMap<String, String> {
        [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, token)| (name.to_owned(), token.to_owned())).into()
    }

    #[derive(Deserialize)]
    struct Case {
        template: String,
        conversation: String,
        messages: Vec<Json>,
        tools: Option<Json>,
        documents: Option<Json>,
        #[serde(default)]
        variables: BTreeMap<String, Json>,
        opens: bool,
        expected: Option<String>,
    }

    /// transformers' answers to the same templates and conversations (`router/tests/chat_templates/render.py`).
    #[test]
    fn templates_render_as_transformers_renders_them() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat_templates");
        let cases = std::fs::read_to_string(folder.join("expected.json")).unwrap();
        let cases: Vec<Case> = serde_json::from_str(&cases).unwrap();
        let mut wrong = Vec::new();
        for case in &cases {
            let source = std::fs::read_to_string(folder.join(&case.template)).unwrap();
            let template = ChatTemplate::compile(&source, &tokens()).unwrap();
            let mut messages = case.messages.clone();
            alias_reasoning(&mut messages);
            let rendered = template.render_as_is(&Scene {
                messages,
                tools: case.tools.clone(),
                documents: case.documents.clone(),
                variables: case.variables.clone(),
                opens: case.opens,
            });
            if rendered.as_ref().ok() != case.expected.as_ref() {
                let expected = &case.expected;
                wrong.push(format!("{} of {}: {rendered:?}, not {expected:?}", case.conversation, case.template));
            }
        }
        assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
        assert!(cases.len() > 300, "{}", cases.len());
    }

    fn render(source: &str) -> Result<String, Error> {
        ChatTemplate::compile(source, &BTreeMap::new())?.render(&Scene { opens: true, ..Scene::default() })
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
