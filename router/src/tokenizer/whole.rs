//! Ids of prompts that clients wrote by hand: from memory as far as the prompt was seen before.

use tokenizers::Tokenizer;

use super::EncodeError;
use super::cuts::Cuts;
use super::memo::Memo;

/// Prompts of fewer bytes are encoded as quickly as they are looked up.
const LEAST_BYTES: usize = 4096;
/// Nothing that a tokenizer adds to a prompt can depend on it, if these three get the same.
const PROBES: [&str; 3] = ["a", "b c", "\u{e9}; d 4"];

#[derive(Debug)]
pub(super) struct Prompts {
    cuts: Cuts,
    /// What the tokenizer puts before and behind every prompt.
    around: Option<(Vec<u32>, Vec<u32>)>,
    memo: Memo,
}

impl Prompts {
    pub(super) fn new(json: &[u8], tokenizer: &Tokenizer) -> Self {
        let cuts = Cuts::of(json, tokenizer);
        let around = if cuts.any() { around(tokenizer) } else { None };
        Self { cuts, around, memo: Memo::default() }
    }

    /// What `tokenizer` makes of the whole text, with its own special tokens.
    pub(super) fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, EncodeError> {
        let (Some((before, behind)), true) = (&self.around, text.len() >= LEAST_BYTES) else {
            return ids(tokenizer, text, true);
        };
        let mut all = before.clone();
        for piece in self.cuts.pieces(text) {
            all.extend_from_slice(&self.memo.ids(piece, |piece| ids(tokenizer, piece, false))?);
        }
        all.extend_from_slice(behind);
        Ok(all)
    }

    #[cfg(test)]
    pub(super) fn pieces<'a>(&self, text: &'a str) -> Vec<&'a str> {
        self.cuts.pieces(text)
    }
}

fn ids(tokenizer: &Tokenizer, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, EncodeError> {
    let encoding = tokenizer.encode_fast(text, add_special_tokens).map_err(|error| EncodeError(error.to_string()))?;
    Ok(encoding.get_ids().to_vec())
}

fn around(tokenizer: &Tokenizer) -> Option<(Vec<u32>, Vec<u32>)> {
    let mut agreed = None;
    for probe in PROBES {
        let (bare, whole) = (ids(tokenizer, probe, false).ok()?, ids(tokenizer, probe, true).ok()?);
        let at = whole.windows(bare.len().max(1)).position(|window| window == bare)?;
        let found = (whole[..at].to_vec(), whole[at + bare.len()..].to_vec());
        if agreed.get_or_insert_with(|| found.clone()) != &found {
            return None;
        }
    }
    agreed
}
