//! Token ids to text, a piece at a time: never half a character, constant cost per token, and the pieces together equal
//! what the tokenizer says of the whole.
//!
//! Two texts come out of one sequence: with special tokens, which clients see as `token.text` and in which stop strings
//! are searched, and without, which becomes `generated_text`.

mod sequence;
mod stop;
mod stream;
mod table;
#[cfg(test)]
pub(crate) mod tests;

use tokenizers::Tokenizer;

pub use sequence::{Piece, SequenceText};
pub use stop::StopStrings;

use stream::Stream;
use table::Table;

/// Prompt tokens that the first generated tokens are decoded after. One suffices for every known decoder; the original
/// took five.
const CONTEXT_TOKENS: usize = 5;

/// What all sequences of one model share.
#[derive(Debug)]
pub struct Detokenizer {
    /// By token id; ids beyond are not special.
    special: Vec<bool>,
    decoding: Decoding,
}

/// Where the text of a token comes from.
#[derive(Debug)]
enum Decoding {
    /// A token is the same bytes wherever it stands.
    Table(Table),
    /// Neighbours matter: the tokenizer decodes a few tokens at a time.
    Window(Box<Tokenizer>),
}

impl Detokenizer {
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let mut special = Vec::new();
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            let index = id as usize;
            if token.special {
                special.resize(special.len().max(index + 1), false);
                special[index] = true;
            }
        }
        let window = || Decoding::Window(Box::new(tokenizer.clone()));
        let decoding = Table::of(tokenizer).map_or_else(window, Decoding::Table);
        Self { special, decoding }
    }

    /// Whether the id is a control token such as `</s>`.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// The bytes that a token stands for; of half a character its half, where the tokenizer works by bytes.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match &self.decoding {
            Decoding::Table(table) => table.bytes(id).to_vec(),
            Decoding::Window(_) => self.token_text(id).into_bytes(),
        }
    }

    /// The text of one token on its own, special tokens included; U+FFFD for half a character.
    pub fn token_text(&self, id: u32) -> String {
        let mut stream = Stream::after(&[], &self.decoding);
        let mut text = stream.push(id, &self.decoding);
        text.push_str(&stream.finish(&self.decoding));
        text
    }
}
