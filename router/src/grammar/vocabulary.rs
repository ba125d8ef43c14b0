//! The tokens that grammars are compiled against in the router: single bytes, and the model's special tokens.

use std::fmt;
use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

/// llguidance knows special tokens by this byte before their name, which no UTF-8 text contains.
const SPECIAL: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

/// Cheap to clone.
#[derive(Clone)]
pub struct Vocabulary {
    tokens: TokEnv,
}

impl Vocabulary {
    /// Special tokens have their own ids, so that grammars may name them; `size` is the first id that no token has.
    /// Ordinary tokens are left out: the bytes, with ids behind all of them, spell any text.
    pub fn new<'a>(specials: impl IntoIterator<Item = (u32, &'a str)>, size: u32) -> Self {
        let mut words = vec![Vec::new(); size as usize];
        for (id, name) in specials {
            if let Some(word) = words.get_mut(id as usize) {
                *word = special(name);
            }
        }
        words.extend((0..=u8::MAX).map(|byte| vec![byte]));
        // The end of a grammar, whatever tokens end this model's sequences.
        words.push(special("<|end of the grammar|>"));
        let size = u32::try_from(words.len()).unwrap_or(u32::MAX);
        let trie = TokTrie::from(&TokRxInfo::new(size, size - 1), &words);
        Self { tokens: Arc::new(ApproximateTokEnv::new(trie)) }
    }

    pub(crate) fn tokens(&self) -> &TokEnv {
        &self.tokens
    }
}

fn special(name: &str) -> Vec<u8> {
    let mut word = vec![SPECIAL];
    word.extend_from_slice(name.as_bytes());
    word
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Vocabulary({} tokens)", self.tokens.tok_trie().vocab_size())
    }
}
