//! In which form a model calls and thinks, decided when the server starts.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Reading, ReasoningFamily, ToolFamily, Wish, markers};
use crate::tokenizer::TextModel;

/// A model's form of output.
#[derive(Clone, Debug, Default)]
pub struct Format {
    /// None if calls are not looked for where the model is free.
    pub calls: Option<ToolFamily>,
    pub reasoning: Option<ReasoningFamily>,
    /// How the prompt may open a thought, whether or not anybody reads thoughts apart.
    pub thinks: Option<ReasoningFamily>,
    /// Whether the chat template tells the model how much to think.
    pub takes_effort: bool,
    /// Whether the chat template tells the model which tools there are; if not, the prompt has to.
    pub shows_tools: bool,
    /// The control tokens among all families' markers.
    pub(super) tokens: HashMap<&'static str, u32>,
    /// The form of the newer models of Mistral, `DeepSeek` and Command R.
    pub(super) is_newer: bool,
}

impl Format {
    pub fn of(text: &TextModel, calls: Wish<ToolFamily>, reasoning: Wish<ReasoningFamily>) -> Self {
        let template = text.chat_template(true).unwrap_or_default();
        let shows_tools = text.shows_tools();
        let called_for = || ToolFamily::of_template(template).filter(|_| shows_tools).or(Some(ToolFamily::Json));
        let calls = calls.or(called_for);
        let plain_template = text.chat_template(false).unwrap_or_default();
        let thinks = ReasoningFamily::of_template(plain_template);
        let reasoning = reasoning.or(|| thinks);
        let control = |marker: &'static str| {
            let id = text.token_id(marker).filter(|id| text.is_control(*id))?;
            Some((marker, id))
        };
        let tokens: HashMap<&str, u32> = markers(calls, reasoning).into_iter().filter_map(control).collect();
        let is_newer = match calls {
            Some(ToolFamily::Mistral) => template.contains("[ARGS]"),
            Some(ToolFamily::DeepSeek) => !template.contains("```json"),
            Some(ToolFamily::CommandR) => template.contains("<|START_ACTION|>"),
            _ => false,
        };
        let takes_effort = plain_template.contains("reasoning_effort");
        Self { calls, reasoning, thinks: reasoning.or(thinks), takes_effort, shows_tools, tokens, is_newer }
    }

    /// The control tokens that a reading must see.
    pub fn shown(&self, reading: &Reading) -> Arc<[u32]> {
        let calls = reading.calls.as_ref().map(|(family, _)| *family);
        markers(calls, reading.reasoning).into_iter().filter_map(|marker| self.tokens.get(marker).copied()).collect()
    }

    /// Whether answers, thoughts and calls are messages with headers.
    pub fn is_harmony(&self) -> bool {
        self.calls == Some(ToolFamily::Harmony) || self.reasoning == Some(ReasoningFamily::Harmony)
    }

    /// The name of the parser of calls, as the operator writes it.
    pub fn calls_name(&self) -> &'static str {
        self.calls.map_or("none", ToolFamily::name)
    }

    pub fn reasoning_name(&self) -> &'static str {
        self.reasoning.map_or("none", ReasoningFamily::name)
    }
}
