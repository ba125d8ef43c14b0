//! The text side of a model, read from its folder: tokenizer, special tokens, end-of-sequence ids, chat template.
//!
//! tokenizer.json is the truth about encoding: its post-processor decides which special tokens a prompt gets, whatever
//! `add_bos_token` in `tokenizer_config.json` says.

mod bound;
mod chat;
mod control_tokens;
mod cuts;
mod files;
#[cfg(test)]
pub(crate) mod fixture;
mod memo;
mod python_json;
mod template;
#[cfg(test)]
mod template_fuzz;
#[cfg(test)]
mod template_limits_test;
mod thoughts;
mod whole;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::{AddedToken, Tokenizer};

pub use chat::{ChatError, ChatPrompt, ChatSpans, Conversation, Ending, Rendered};
pub use thoughts::Thoughts;

use chat::Chat;
use files::ModelFiles;
use whole::Prompts;

use crate::grammar::Vocabulary;

/// A model folder that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{path}: {source}; the model folder must hold it")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path} is not valid JSON: {source}")]
    Malformed { path: PathBuf, source: serde_json::Error },
    #[error("{path} is not a tokenizer that the tokenizers library can read: {reason}")]
    Tokenizer { path: PathBuf, reason: String },
}

/// Text that the tokenizer could not encode.
#[derive(Debug, thiserror::Error)]
#[error("the tokenizer cannot encode this text: {0}")]
pub struct EncodeError(String);

/// One token of an encoded text, and the bytes of the text that it covers (none for an added special token).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenSpan {
    pub id: u32,
    pub start: usize,
    pub stop: usize,
}

/// Everything the router knows about a model's text. Immutable, shared by all threads.
#[derive(Debug)]
pub struct TextModel {
    tokenizer: Tokenizer,
    eos_token_ids: Arc<[u32]>,
    model_max_length: Option<u32>,
    /// Bytes of text in one token, if there is a bound.
    longest_token: Option<usize>,
    chat: Chat,
    prompts: Prompts,
}

impl TextModel {
    /// Reads the folder. `tokenizer_config_path` is read instead of the folder's `tokenizer_config.json`.
    pub fn load(model_path: &Path, tokenizer_config_path: Option<&Path>) -> Result<Self, LoadError> {
        Self::from_files(ModelFiles::read(model_path, tokenizer_config_path)?)
    }

    fn from_files(files: ModelFiles) -> Result<Self, LoadError> {
        let failed = |reason: tokenizers::Error| LoadError::Tokenizer {
            path: files.tokenizer_path.clone(),
            reason: reason.to_string(),
        };
        let mut tokenizer = Tokenizer::from_bytes(&files.tokenizer).map_err(failed)?;
        // Training leftovers: a server neither pads nor cuts silently.
        tokenizer.with_truncation(None).map_err(failed)?;
        tokenizer.with_padding(None);

        let mut eos_token_ids = files.eos_token_ids;
        eos_token_ids.extend(files.special_tokens.get("eos_token").and_then(|eos| tokenizer.token_to_id(eos)));
        eos_token_ids.sort_unstable();
        eos_token_ids.dedup();

        let longest_token = bound::longest_token(&files.tokenizer, &tokenizer);
        let prompts = Prompts::new(&files.tokenizer, &tokenizer);
        let chat = Chat::new(&tokenizer, &files.chat_templates, &files.special_tokens);
        Ok(Self {
            tokenizer,
            eos_token_ids: eos_token_ids.into(),
            model_max_length: files.model_max_length,
            longest_token,
            chat,
            prompts,
        })
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Sorted; the union of what config.json, `generation_config.json` and `tokenizer_config.json` name. May be empty.
    pub fn eos_token_ids(&self) -> Arc<[u32]> {
        Arc::clone(&self.eos_token_ids)
    }

    /// Longest sequence by `tokenizer_config.json`; `None` if it does not say or names an absurd number.
    pub fn model_max_length(&self) -> Option<u32> {
        self.model_max_length
    }

    /// Whether a token stands in grammars for itself and never for its text: special ones, and added ones in angle
    /// brackets, such as Qwen's `<tool_call>`. That is how workers' llguidance reads a tokenizer.
    pub fn is_control(&self, id: u32) -> bool {
        self.tokenizer.get_added_tokens_decoder().get(&id).is_some_and(is_control)
    }

    /// What grammars may name.
    pub fn grammar_vocabulary(&self) -> Vocabulary {
        let added = self.tokenizer.get_added_tokens_decoder();
        let specials = added.iter().filter(|(_, token)| is_control(token));
        let size = u32::try_from(self.tokenizer.get_vocab_size(true)).unwrap_or(u32::MAX);
        let size = added.keys().max().map_or(size, |last| size.max(last + 1));
        Vocabulary::new(specials.map(|(id, token)| (*id, token.content.as_str())), size)
    }

    /// How many tokens a text has at least, known without tokenizing it; 0 if nothing is known.
    pub fn fewest_tokens(&self, text: &str) -> usize {
        self.longest_token.map_or(0, |longest| text.len().div_ceil(longest.max(1)))
    }

    /// Ids of a prompt. Special tokens written out in it are parsed, and the tokenizer adds its own.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        self.prompts.encode(&self.tokenizer, text)
    }

    /// As `encode`, with the bytes of `text` behind each token.
    pub fn encode_spans(&self, text: &str) -> Result<Vec<TokenSpan>, EncodeError> {
        let encoding = self.tokenizer.encode(text, true).map_err(|error| EncodeError(error.to_string()))?;
        let spans = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(spans.map(|(&id, &(start, stop))| TokenSpan { id, start, stop }).collect())
    }

    /// Text of ids; unknown ids give none.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        // Decoders fail only on a broken tokenizer.json: an empty piece is then all there is to show.
        self.tokenizer.decode(ids, skip_special_tokens).unwrap_or_default()
    }

    /// A conversation by the model's template. Text in a message never becomes a control token.
    pub fn render(&self, conversation: &Conversation) -> Result<Rendered<'_>, ChatError> {
        self.chat.render(conversation)
    }

    /// The source of the chat template for a conversation with or without tools.
    pub fn chat_template(&self, with_tools: bool) -> Option<&str> {
        self.chat.source(with_tools.then(|| serde_json::json!([])))
    }

    /// Whether the chat template tells the model which tools there are.
    pub fn shows_tools(&self) -> bool {
        self.chat.shows_tools()
    }

    /// The id of a token by its text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// As `render`, with its tokens and the bytes of the prompt behind each token.
    pub fn chat_spans(&self, conversation: &Conversation) -> Result<ChatSpans, ChatError> {
        self.chat.spans(conversation)
    }
}

fn is_control(token: &AddedToken) -> bool {
    token.special || (token.content.starts_with('<') && token.content.ends_with('>'))
}

#[cfg(test)]
mod cuts_test;
#[cfg(test)]
mod pieces_test;
#[cfg(test)]
mod tests;
