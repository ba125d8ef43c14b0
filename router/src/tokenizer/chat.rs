//! From a conversation to the ids that the model's chat template makes of it.

use std::borrow::Cow;

use serde::Serialize;
use tokenizers::Tokenizer;

use super::EncodeError;
use super::control_tokens::ControlTokens;
use super::template::ChatTemplate;

/// A message as templates see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
pub struct ChatMessage {
    pub role: String,
    pub content: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatPrompt {
    pub ids: Vec<u32>,
    pub text: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    #[error("this model has no chat template; use a completions route, or start with one (--tokenizer-config-path)")]
    NoTemplate,
    #[error("{0}")]
    Template(String),
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// The chat side of a model; one that does not work leaves the rest of the server alone.
#[derive(Debug)]
pub(super) struct Chat {
    renderer: Option<Result<Renderer, String>>,
}

#[derive(Debug)]
struct Renderer {
    template: ChatTemplate,
    control: ControlTokens,
}

impl Chat {
    pub(super) fn new(
        tokenizer: &Tokenizer,
        template: Option<&str>,
        bos_token: Option<String>,
        eos_token: Option<String>,
    ) -> Self {
        let renderer = template.map(|source| {
            let control = ControlTokens::new(tokenizer, source)?;
            let template = ChatTemplate::compile(source, bos_token, eos_token).map_err(|error| error.to_string())?;
            Ok(Renderer { template, control })
        });
        Self { renderer }
    }

    pub(super) fn prompt(&self, messages: &[ChatMessage]) -> Result<ChatPrompt, ChatError> {
        match &self.renderer {
            None => Err(ChatError::NoTemplate),
            Some(Err(reason)) => Err(ChatError::Template(reason.clone())),
            Some(Ok(renderer)) => renderer.prompt(messages),
        }
    }
}

impl Renderer {
    fn prompt(&self, messages: &[ChatMessage]) -> Result<ChatPrompt, ChatError> {
        let guarded: Vec<ChatMessage> = messages.iter().map(|message| self.guard(message)).collect();
        let rendered = self.template.render(&guarded).map_err(|error| ChatError::Template(error.to_string()))?;
        let rendered = match guarded.last() {
            Some(last) if last.role == "assistant" => continued(&rendered, &last.content),
            _ => Cow::Borrowed(rendered.as_str()),
        };
        Ok(ChatPrompt { ids: self.control.encode(&rendered)?, text: ControlTokens::plain(&rendered) })
    }

    fn guard(&self, message: &ChatMessage) -> ChatMessage {
        let guard = |text: &String| self.control.guard(text);
        ChatMessage {
            role: guard(&message.role),
            content: self.control.guard_ends(&message.content),
            name: message.name.as_ref().map(guard),
            tool_call_id: message.tool_call_id.as_ref().map(guard),
        }
    }
}

/// A conversation that ends with the assistant's words goes on from there: what the template puts behind them is cut.
fn continued<'a>(rendered: &'a str, last: &str) -> Cow<'a, str> {
    let end = [last, last.trim()].into_iter().find_map(|words| Some(rendered.rfind(words)? + words.len()));
    Cow::Borrowed(rendered[..end.unwrap_or(rendered.len())].trim_end())
}
