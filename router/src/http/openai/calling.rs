//! Tools: which ones a chat offers, whether the model may, must or must not call them, and what follows for its prompt, its
//! grammar and the reading of its output.

use std::sync::Arc;

use serde_json::{Value, json};

use super::request::OpenAiRequest;
use crate::grammar::{Grammar, Shape};
use crate::http::error::ApiError;
use crate::tokenizer::Conversation;
use crate::tools::{Binding, Format, Reading, ReasoningFamily, Tool, Tools};
use crate::validation::{Names, Parameters};

/// As `OpenAI` bounds them.
const MAX_TOOLS: usize = 128;
const MAX_NAME: usize = 64;

/// A chat request, taken apart.
#[derive(Debug)]
pub(in crate::http) struct Chat {
    pub(in crate::http) conversation: Conversation,
    pub(in crate::http) parameters: Parameters,
    /// How to read the output.
    pub(super) reading: Reading,
    pub(in crate::http) names: &'static Names,
}

/// What the model may do about its tools.
#[derive(Clone, Debug, PartialEq)]
enum Choice {
    /// There is nothing to call.
    Never,
    Free,
    /// One of these, at least one of them.
    Must(Vec<String>),
}

impl OpenAiRequest {
    /// The chat that the request asks for; conversation and tools are taken out of it.
    pub(in crate::http) fn chat(&mut self, format: &Format) -> Result<Chat, ApiError> {
        let effort = self.effort(format)?;
        let mut parameters = self.parameters()?;
        let offered = offered(self.tools.as_deref())?;
        let (choice, offered) = chosen(self.tool_choice.take(), offered, self.tools.is_some())?;
        let mut conversation = self.shown_conversation(format, choice != Choice::Never)?;
        if let Some(effort) = effort {
            conversation.variables.entry(EFFORT).or_insert(effort);
        }
        let several = self.parallel_tool_calls.unwrap_or(true);
        let is_bound = match choice {
            Choice::Never => false,
            Choice::Free => offered.iter().any(|tool| tool.is_strict),
            Choice::Must(_) => true,
        };
        let names = if is_bound { &Names::CALLS } else { &Names::CHAT };
        let reading = bind(&choice, &offered, several, !conversation.continued().is_empty(), format, &mut parameters);
        // A bound output begins with its first character: there is no room for thoughts.
        if parameters.grammar.is_some() && reading.reasoning.is_none() {
            conversation.unthinking = format.thinks.and_then(ReasoningFamily::thoughts);
        }
        let reading = Reading { continued: conversation.continued().to_owned(), ..reading };
        parameters.shown = format.shown(&reading);
        Ok(Chat { conversation, parameters, reading, names })
    }

    /// How much the model should think, taken out of the request where the template can tell it.
    fn effort(&mut self, format: &Format) -> Result<Option<Value>, ApiError> {
        let Some(effort) = self.reasoning_effort.take_if(|_| format.takes_effort) else { return Ok(None) };
        if effort.as_str().is_none_or(|effort| !EFFORTS.contains(&effort)) {
            return Err(ApiError::field(EFFORT, format!("must be one of {}", EFFORTS.join(", "))));
        }
        Ok(Some(effort))
    }

    /// The conversation as the template gets it; the parts of it that concern tools only if there is something to call.
    pub(super) fn shown_conversation(&mut self, format: &Format, may_call: bool) -> Result<Conversation, ApiError> {
        let mut conversation = self.conversation()?;
        let tool_prompt = self.tool_prompt.take().filter(|prompt| !prompt.is_empty());
        let tools = conversation.tools.take().filter(|_| may_call);
        match tools.map(normalized) {
            None => {}
            Some(tools) if format.shows_tools => {
                conversation.tools = Some(tools);
                if let Some(prompt) = tool_prompt {
                    append(last_request(&mut conversation.messages), &format!("\n---\n{prompt}"));
                }
            }
            Some(tools) => {
                let prompt = tool_prompt.as_deref().unwrap_or(TOOL_PROMPT);
                append(last_request(&mut conversation.messages), &format!("\n---\n{tools}\n\n{prompt}\n\n"));
            }
        }
        Ok(conversation)
    }

    /// Whether its tools, if any, are shown to the model.
    pub(super) fn may_call(&self) -> Result<bool, ApiError> {
        let offered = offered(self.tools.as_deref())?;
        let (choice, _) = chosen(self.tool_choice.clone(), offered, self.tools.is_some())?;
        Ok(choice != Choice::Never)
    }
}

/// The template's variable of this name.
const EFFORT: &str = "reasoning_effort";
pub(in crate::http) const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];

/// Tells models whose template knows no tools what to write.
const TOOL_PROMPT: &str = "If one of these functions helps to answer, reply with nothing but a JSON object that calls it: \
{\"name\": the function's name, \"arguments\": an object with its arguments and their values}. Otherwise answer in words.";

/// The last message, but for words of the model that it may go on with: what is put behind them would be its own.
fn last_request(messages: &mut [Value]) -> Option<&mut Value> {
    let is_asked = messages.iter().rposition(|message| message["role"] != "assistant" || message["content"].is_null());
    let last = is_asked.or(messages.len().checked_sub(1))?;
    messages.get_mut(last)
}

/// Behind a message's text.
fn append(message: Option<&mut Value>, text: &str) {
    let Some(content) = message.map(|message| &mut message["content"]) else { return };
    match content {
        Value::String(content) => content.push_str(text),
        Value::Array(parts) => parts.push(json!({ "type": "text", "text": text })),
        // Beside calls a message may have no text.
        nothing => *nothing = Value::from(text.trim_start()),
    }
}

/// Schemas stand under `parameters`, where templates look for them.
fn normalized(mut tools: Value) -> Value {
    for function in tools.as_array_mut().into_iter().flatten().filter_map(|tool| tool["function"].as_object_mut()) {
        let given = function.shift_remove("arguments");
        if function.get("parameters").is_none_or(Value::is_null) {
            let nothing = || json!({ "type": "object", "properties": {} });
            function.insert("parameters".to_owned(), given.unwrap_or_else(nothing));
        }
    }
    tools
}

/// The tools, checked.
fn offered(tools: Option<&[Value]>) -> Result<Vec<Tool>, ApiError> {
    let tools = tools.unwrap_or_default();
    if tools.len() > MAX_TOOLS {
        let problem = format!("has {} entries, but at most {MAX_TOOLS} are allowed", tools.len());
        return Err(ApiError::field("tools", problem));
    }
    let mut offered: Vec<Tool> = Vec::with_capacity(tools.len());
    for (index, tool) in tools.iter().enumerate() {
        let tool = checked(tool, &format!("tools[{index}]"))?;
        if offered.iter().any(|other| other.name == tool.name) {
            let problem = format!("is `{}` like that of another tool; names must differ", tool.name);
            return Err(ApiError::field(format!("tools[{index}].function.name"), problem));
        }
        offered.push(tool);
    }
    Ok(offered)
}

fn checked(tool: &Value, at: &str) -> Result<Tool, ApiError> {
    match &tool["type"] {
        Value::Null => {}
        Value::String(kind) if kind == "function" => {}
        kind => return Err(ApiError::unsupported(format!("{at}.type"), format!("is {kind}; it must be \"function\""))),
    }
    let Value::Object(function) = &tool["function"] else {
        return Err(ApiError::field(format!("{at}.function"), "must be an object with the function's `name`"));
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let name = match function.get("name") {
        Some(Value::String(name)) if (1..=MAX_NAME).contains(&name.len()) && name.chars().all(is_name) => name.clone(),
        _ => {
            let problem = "must be a string of 1 to 64 letters, digits, dots, underscores and dashes";
            return Err(ApiError::field(format!("{at}.function.name"), problem));
        }
    };
    let given = |key: &str| function.get(key).filter(|value| !value.is_null());
    let key = if given("parameters").is_none() && given("arguments").is_some() { "arguments" } else { "parameters" };
    let place = format!("{at}.function.{key}");
    let parameters = match given(key) {
        None => json!({ "type": "object", "properties": {} }),
        Some(schema @ Value::Object(fields)) if fields.get("type").is_none_or(|kind| kind == "object") => {
            schema.clone()
        }
        Some(_) => return Err(ApiError::field(place, "must be a JSON schema of type `object`")),
    };
    let is_strict = match given("strict") {
        None => false,
        Some(Value::Bool(is_strict)) => *is_strict,
        Some(_) => return Err(ApiError::field(format!("{at}.function.strict"), "must be true or false")),
    };
    Ok(Tool { name, parameters, place, is_strict })
}

/// What the model may do, and the tools that it may call.
fn chosen(choice: Option<Value>, offered: Vec<Tool>, has_tools: bool) -> Result<(Choice, Vec<Tool>), ApiError> {
    let free = |offered: Vec<Tool>| (if offered.is_empty() { Choice::Never } else { Choice::Free }, offered);
    // The original took an empty list for no tools, whatever the choice.
    let all = |offered: Vec<Tool>| {
        let names: Vec<String> = offered.iter().map(|tool| tool.name.clone()).collect();
        (if names.is_empty() { Choice::Never } else { Choice::Must(names) }, offered)
    };
    let choice = match choice {
        None | Some(Value::Null) => return Ok(free(offered)),
        Some(choice) => choice,
    };
    if !has_tools && choice != "none" && choice != "auto" {
        return Err(ApiError::field("tool_choice", "is only allowed beside `tools`"));
    }
    let name = match &choice {
        Value::String(word) if word == "auto" => return Ok(free(offered)),
        Value::String(word) if word == "none" => return Ok((Choice::Never, offered)),
        Value::String(word) if word == "required" => return Ok(all(offered)),
        // The original's form.
        Value::String(name) => name.clone(),
        Value::Object(_) if choice["type"] == "allowed_tools" => return allowed(&choice["allowed_tools"], offered),
        choice => {
            let problem = "must be none, auto, required, or name a function: \
                           {\"type\": \"function\", \"function\": {\"name\": …}}";
            let name = choice["function"]["name"].as_str();
            name.ok_or_else(|| ApiError::field("tool_choice", problem))?.to_owned()
        }
    };
    if offered.iter().any(|tool| tool.name == name) {
        return Ok((Choice::Must(vec![name]), offered));
    }
    Err(ApiError::Special { kind: "tool_error", field: "tool_choice", problem: unknown(&name) })
}

fn unknown(name: &str) -> String {
    format!("names `{name}`, which is none of the `tools`")
}

/// `OpenAI`'s way to restrict a choice to some of the tools.
fn allowed(allowed: &Value, offered: Vec<Tool>) -> Result<(Choice, Vec<Tool>), ApiError> {
    let refused = |problem: String| Err(ApiError::field("tool_choice.allowed_tools", problem));
    let Some(tools) = allowed["tools"].as_array() else {
        return refused("must have `tools`, a list of functions by name".to_owned());
    };
    let mut names = Vec::with_capacity(tools.len());
    for tool in tools {
        match tool["function"]["name"].as_str() {
            Some(name) if offered.iter().any(|tool| tool.name == name) => names.push(name.to_owned()),
            Some(name) => return refused(unknown(name)),
            None => return refused("must have `tools`, a list of functions by name".to_owned()),
        }
    }
    let some: Vec<Tool> = offered.into_iter().filter(|tool| names.contains(&tool.name)).collect();
    match allowed["mode"].as_str() {
        _ if some.is_empty() => Ok((Choice::Never, some)),
        Some("auto") => Ok((Choice::Free, some)),
        Some("required") => Ok((Choice::Must(names), some)),
        _ => refused("must have a `mode`: auto or required".to_owned()),
    }
}

/// Binds the output where it has to be bound, and says how to read it. `goes_on`: behind words of the answer.
fn bind(
    choice: &Choice,
    offered: &[Tool],
    several: bool,
    goes_on: bool,
    format: &Format,
    parameters: &mut Parameters,
) -> Reading {
    let tools = Tools::new(offered.to_vec());
    let binding = match (choice, parameters.grammar.take()) {
        (Choice::Never, None) => return Reading { reasoning: format.reasoning, ..Reading::default() },
        (Choice::Never, Some(grammar)) if goes_on || !format.is_harmony() => {
            parameters.grammar = Some(grammar);
            return Reading::default();
        }
        (Choice::Never, Some(grammar)) => format.answer(shape_of(grammar)),
        (Choice::Free, None) if !offered.iter().any(|tool| tool.is_strict) => {
            let calls = format.calls.map(|family| (family, tools));
            return Reading { calls, reasoning: format.reasoning, is_single: !several, ..Reading::default() };
        }
        (Choice::Free, None) => format.free(&tools, several),
        (Choice::Free, Some(grammar)) => {
            let Binding { shape, reading } = format.forced(&tools, several);
            let answer = shape_of(grammar);
            let answer = if goes_on { answer } else { format.answer(answer).shape };
            let shape = Shape::OneOf(vec![shape, answer]);
            Binding { shape, reading: Reading { must_call: false, ..reading } }
        }
        (Choice::Must(names), _) => {
            let chosen = offered.iter().filter(|tool| names.contains(&tool.name)).cloned();
            format.forced(&Tools::new(chosen.collect()), several && names.len() > 1)
        }
    };
    parameters.grammar = Some(Grammar::Structural(binding.shape));
    binding.reading
}

/// A response format as a part of a grammar.
fn shape_of(grammar: Grammar) -> Shape {
    match grammar {
        Grammar::Json(schema) => Shape::Json { schema, place: "response_format".to_owned() },
        Grammar::Regex(pattern) => Shape::Regex(pattern),
        Grammar::Lark(rules) => Shape::Lark(rules),
        Grammar::Choice(texts) => Shape::OneOf(texts.into_iter().map(Shape::Text).collect()),
        Grammar::Structural(shape) => shape,
    }
}

/// An id for a call. Some templates take ids of nine characters only.
pub(super) fn call_id(is_short: bool) -> Arc<str> {
    let id = uuid::Uuid::new_v4().simple().to_string();
    if is_short { id[..9].into() } else { format!("call_{}", &id[..24]).into() }
}
