//! From a conversation to the ids that the model's chat template makes of it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::control_tokens::{ControlTokens, GOES_ON};
use super::template::{ChatTemplate, Scene};
use super::thoughts::Thoughts;
use super::{EncodeError, TokenSpan};

/// Strings under these keys are compared by templates and never shown as somebody's words.
const COMPARED: [&str; 2] = ["role", "type"];

/// What a conversation's template is told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// Objects with at least a `role`; anything else in them is the template's affair.
    pub messages: Vec<Value>,
    /// Function schemas as `OpenAI` writes them.
    pub tools: Option<Value>,
    pub documents: Option<Value>,
    /// Further variables of the template.
    pub variables: Map<String, Value>,
    /// Which of the model's templates, by name.
    pub template: Option<String>,
    pub ending: Ending,
    /// Thoughts that the prompt would open are over at once.
    pub unthinking: Option<Thoughts>,
}

impl Conversation {
    /// The assistant's words at the end that go on.
    pub fn continued(&self) -> &str {
        let last = self.messages.last();
        match self.ending {
            Ending::Continued => last.and_then(words).unwrap_or_default(),
            Ending::Either => last.filter(|last| last["role"] == "assistant").and_then(words).unwrap_or_default(),
            Ending::Opened | Ending::Closed => "",
        }
    }
}

/// How the prompt ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// As the original: the assistant's turn opens, unless the last message is its own; then that goes on.
    #[default]
    Either,
    /// With the header of the assistant's turn.
    Opened,
    /// Behind the last message.
    Closed,
    /// Inside the last message, which goes on.
    Continued,
}

/// A rendered conversation that has not been cut into tokens.
#[derive(Debug)]
pub struct Rendered<'a> {
    text: String,
    guarded: String,
    control: &'a ControlTokens,
}

impl Rendered<'_> {
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn encode(self) -> Result<ChatPrompt, ChatError> {
        Ok(ChatPrompt { ids: self.control.encode(&self.guarded)?, text: self.text })
    }
}

/// A rendered conversation and its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatPrompt {
    pub ids: Vec<u32>,
    pub text: String,
}

/// A rendered conversation, token by token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatSpans {
    pub spans: Vec<TokenSpan>,
    pub text: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    #[error("this model has no chat template; use a completions route, or start with one (--tokenizer-config-path)")]
    NoTemplate,
    #[error("there is no chat template `{asked}`; this model has {known}")]
    UnknownTemplate { asked: String, known: String },
    #[error("{0}")]
    Template(String),
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// The chat side of a model; one that does not work leaves the rest of the server alone.
#[derive(Debug)]
pub(super) struct Chat {
    /// By name.
    renderers: BTreeMap<String, Result<Renderer, String>>,
}

#[derive(Debug)]
struct Renderer {
    template: ChatTemplate,
    control: ControlTokens,
    source: String,
}

impl Chat {
    /// `special_tokens` are the variables such as `bos_token` that every template is told.
    pub(super) fn new(
        tokenizer: &Tokenizer,
        templates: &BTreeMap<String, String>,
        special_tokens: &BTreeMap<String, String>,
    ) -> Self {
        let renderer = |source: &str| {
            let control = ControlTokens::new(tokenizer, source)?;
            let template = ChatTemplate::compile(source, special_tokens).map_err(|error| error.to_string())?;
            Ok(Renderer { template, control, source: source.to_owned() })
        };
        Self { renderers: templates.iter().map(|(name, source)| (name.clone(), renderer(source))).collect() }
    }

    pub(super) fn render(&self, conversation: &Conversation) -> Result<Rendered<'_>, ChatError> {
        let renderer = self.renderer(conversation)?;
        let mut guarded = renderer.render(conversation)?;
        let mut text = ControlTokens::plain(&guarded);
        let is_open = |thoughts: &Thoughts| thoughts.is_open(&text, conversation.continued()) == Some(true);
        if let Some(thoughts) = conversation.unthinking.filter(is_open) {
            let ending = thoughts.ending(&text);
            guarded.push_str(&ending);
            text.push_str(&ending);
        }
        Ok(Rendered { text, guarded, control: &renderer.control })
    }

    pub(super) fn spans(&self, conversation: &Conversation) -> Result<ChatSpans, ChatError> {
        let renderer = self.renderer(conversation)?;
        let prompt = renderer.render(conversation)?;
        Ok(ChatSpans { spans: renderer.control.encode_spans(&prompt)?, text: ControlTokens::plain(&prompt) })
    }

    /// The template of a plain conversation, or of one with tools.
    pub(super) fn source(&self, tools: Option<Value>) -> Option<&str> {
        let renderer = self.renderer(&Conversation { tools, ..Conversation::default() });
        renderer.ok().map(|renderer| renderer.source.as_str())
    }

    /// Whether the template tells the model which tools there are.
    pub(super) fn shows_tools(&self) -> bool {
        const NAME: &str = "probe_7c1f";
        let parameters = json!({ "type": "object", "properties": {}, "required": [] });
        let function = json!({ "name": NAME, "description": "Tries this out.", "parameters": parameters });
        let conversation = Conversation {
            messages: vec![json!({ "role": "user", "content": "a" })],
            tools: Some(json!([{ "type": "function", "function": function }])),
            ..Conversation::default()
        };
        self.render(&conversation).is_ok_and(|rendered| rendered.text.contains(NAME))
    }

    fn renderer(&self, conversation: &Conversation) -> Result<&Renderer, ChatError> {
        self.choose(conversation)?.as_ref().map_err(|reason| ChatError::Template(reason.clone()))
    }

    /// The one that is asked for; else, with tools, the one for tools; else the default, or the only one there is.
    fn choose(&self, conversation: &Conversation) -> Result<&Result<Renderer, String>, ChatError> {
        if let Some(asked) = &conversation.template {
            let known = || self.renderers.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let unknown = || ChatError::UnknownTemplate { asked: asked.clone(), known: known() };
            return self.renderers.get(asked).ok_or_else(unknown);
        }
        let for_tools = conversation.tools.as_ref().and_then(|_| self.renderers.get("tool_use"));
        let usual = for_tools.or_else(|| self.renderers.get("default"));
        let only = || self.renderers.values().next().filter(|_| self.renderers.len() == 1);
        usual.or_else(only).ok_or(ChatError::NoTemplate)
    }
}

impl Renderer {
    /// The prompt with its guards in it.
    fn render(&self, conversation: &Conversation) -> Result<String, ChatError> {
        let guard = |value: &Value| self.guard(value, false);
        let variables = conversation.variables.iter().map(|(name, value)| (name.clone(), guard(value)));
        let mut scene = Scene {
            messages: conversation.messages.iter().map(guard).collect(),
            tools: conversation.tools.as_ref().map(guard),
            documents: conversation.documents.as_ref().map(guard),
            variables: variables.collect(),
            opens: matches!(conversation.ending, Ending::Either | Ending::Opened),
        };
        self.template.adapt(&mut scene.messages);
        if conversation.ending == Ending::Continued {
            tag(scene.messages.last_mut())?;
        }
        let rendered = self.template.render(&scene).map_err(|error| ChatError::Template(error.to_string()))?;
        ended(&rendered, conversation.ending, scene.messages.last()).map(str::to_owned)
    }

    /// The same value with every text in it made harmless. Texts may stand between the template's own words.
    fn guard(&self, value: &Value, is_compared: bool) -> Value {
        match value {
            Value::String(text) if is_compared => Value::String(self.control.guard(text)),
            Value::String(text) => Value::String(self.control.guard_ends(text)),
            Value::Array(items) => Value::Array(items.iter().map(|item| self.guard(item, false)).collect()),
            Value::Object(fields) => Value::Object(
                fields
                    .iter()
                    .map(|(key, value)| (self.control.guard(key), self.guard(value, COMPARED.contains(&key.as_str()))))
                    .collect(),
            ),
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }
}

/// The rendered conversation up to where generation begins.
fn ended<'a>(rendered: &'a str, ending: Ending, last: Option<&Value>) -> Result<&'a str, ChatError> {
    match ending {
        Ending::Either if last.is_some_and(|message| message["role"] == "assistant") => {
            Ok(last.and_then(words).map_or(rendered, |words| continued(rendered, words)))
        }
        Ending::Either | Ending::Opened | Ending::Closed => Ok(rendered),
        Ending::Continued => resumed(rendered),
    }
}

/// A message's text, or the last one of its parts.
fn words(message: &Value) -> Option<&str> {
    match &message["content"] {
        Value::String(text) => Some(text),
        Value::Array(parts) => parts.iter().rev().find_map(|part| part["text"].as_str()),
        _ => None,
    }
}

/// A conversation that ends with the assistant's words goes on from there: what the template puts behind them is cut.
fn continued<'a>(rendered: &'a str, last: &str) -> &'a str {
    let end = [last, last.trim()].into_iter().find_map(|words| Some(rendered.rfind(words)? + words.len()));
    rendered[..end.unwrap_or(rendered.len())].trim_end()
}

/// Stands behind the words that are to go on, as in transformers; its space tells whether the template trims them.
fn tag(message: Option<&mut Value>) -> Result<(), ChatError> {
    let words = message.and_then(|message| match message.get_mut("content")? {
        Value::String(text) => Some(text),
        Value::Array(parts) => parts.iter_mut().rev().find_map(|part| match part.get_mut("text") {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }),
        _ => None,
    });
    let none = || ChatError::Template("`continue_final_message` needs a last message with text in it".to_owned());
    words.ok_or_else(none)?.extend([GOES_ON, ' ']);
    Ok(())
}

/// Up to where the tagged words end.
fn resumed(rendered: &str) -> Result<&str, ChatError> {
    let hidden = "`continue_final_message` is set, but the template does not show the last message";
    let end = rendered.rfind(GOES_ON).ok_or_else(|| ChatError::Template(hidden.to_owned()))?;
    let is_kept = rendered[end + GOES_ON.len_utf8()..].starts_with(' ');
    Ok(if is_kept { &rendered[..end] } else { rendered[..end].trim_end() })
}
