//! Chat templates: Jinja as Hugging Face transformers runs it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::LazyLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde, Value};
use minijinja::{Environment, Error, ErrorKind, State, escape_formatter, filters};
use minijinja_contrib::pycompat::unknown_method_callback;
use regex::Regex;
use serde_json::{Value as Json, json};
use time::OffsetDateTime;
use time::format_description::parse_strftime_borrowed;

use super::python_json::to_json;

const NAME: &str = "chat_template";
/// Instructions of one rendering. A long conversation takes some hundred for each message; what takes more than this goes
/// through a client's lists within its lists, and would hold a thread for minutes.
const FUEL: u64 = 50_000_000;
/// Bytes of a prompt. A template may write a client's text several times; this is more than any model reads.
const MAX_PROMPT_BYTES: usize = 64 << 20;

/// Given to a filter that makes so many of something.
const MAX_NUMBER: usize = 10_000;

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
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        bound_filters(&mut environment);
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
        let mut prompt = Prompt::default();
        let rendered = self.environment.get_template(NAME)?.render_captured_to(Value::from(variables), &mut prompt);
        match rendered {
            Ok(_) => String::from_utf8(prompt.bytes).map_err(|error| invalid(error.to_string())),
            Err(_) if prompt.is_full => Err(invalid(format!("the prompt is longer than {MAX_PROMPT_BYTES} bytes"))),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn invalid(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// What has been rendered, up to the limit.
#[derive(Debug, Default)]
struct Prompt {
    bytes: Vec<u8>,
    is_full: bool,
}

impl Write for Prompt {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_PROMPT_BYTES {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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

/// The library's filters that make as much out of nothing as a number says, which may be a client's.
fn bound_filters(environment: &mut Environment<'_>) {
    let all = [
        ("batch", Value::from_function(filters::batch)),
        ("indent", Value::from_function(filters::indent)),
        ("slice", Value::from_function(filters::slice)),
    ];
    for (name, filter) in all {
        environment.add_filter(name, move |state: &mut State<'_, '_>, arguments: Rest<Value>, named: Kwargs| {
            let mut arguments = arguments.0;
            let numbers = arguments.iter().skip(1).cloned();
            let of_names: Vec<Value> = named.args().filter_map(|name| named.peek(name).ok()).collect();
            let numbers = numbers.chain(of_names.iter().cloned());
            if numbers.filter_map(|value| value.as_usize()).any(|number| number > MAX_NUMBER) {
                return Err(invalid(format!("{name}: a number above {MAX_NUMBER}")));
            }
            if !of_names.is_empty() {
                arguments.push(Value::from(named));
            }
            filter.call(state, &arguments)
        });
    }
}

/// As Python sees it: the library takes `none` for an empty list.
#[expect(clippy::needless_pass_by_value, reason = "the signature of a test")]
fn is_iterable(value: Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

fn raise_exception(message: String) -> Result<String, Error> {
    Err(invalid(message))
}

/// Local time; UTC where the system does not tell the offset to a program with threads.
fn strftime_now(format: &str) -> Result<String, Error> {
    let failed = |reason: String| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {reason}"));
    let format = parse_strftime_borrowed(format).map_err(|error| failed(error.to_string()))?;
    let now = OffsetDateTime::now_local().unwrap_or_else(|_| OffsetDateTime::now_utc());
    now.format(&format).map_err(|error| failed(error.to_string()))
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
