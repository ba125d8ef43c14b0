//! Where keys and values lie in a page: as panels of sixteen columns that a product takes as they are.
//!
//! A page holds sixteen tokens. For each KV head there are the keys, then the values, in words of 32 bits (one float32, or
//! a pair of bfloat16):
//!
//! ```text
//! keys    [head_dim / per word][16 tokens]          a word: the same one or two dimensions of one token
//! values  [16 tokens / per word][head_dim]          a word: one dimension of one token, or of two neighbouring ones
//! ```
//!
//! so q k^T multiplies a row of q with a panel of tokens, and p v a row of weights with panels of dimensions.

use super::number::Number;
use crate::Dtype;

/// Tokens of a page: the lanes of a vector.
pub const PAGE: usize = 16;

/// One layer's pages.
#[derive(Clone, Copy)]
pub(crate) struct Pool {
    pub(crate) words: *mut u32,
    kv_heads: usize,
    head_dim: usize,
    /// Words of the keys, or of the values, of one head in one page.
    panel: usize,
}

impl Pool {
    pub(crate) const fn new<T: Number>(address: *mut u8, kv_heads: usize, head_dim: usize) -> Self {
        Self { words: address.cast(), kv_heads, head_dim, panel: head_dim * PAGE / T::PER_WORD }
    }

    /// The keys of one head in a page.
    ///
    /// # Safety
    /// The page and the head exist.
    #[inline(always)]
    pub(crate) unsafe fn keys(self, page: u32, head: usize) -> *mut u32 {
        // SAFETY: the caller's promise.
        unsafe { self.words.add((page as usize * self.kv_heads + head) * 2 * self.panel) }
    }

    /// The values of one head in a page.
    ///
    /// # Safety
    /// The page and the head exist.
    #[inline(always)]
    pub(crate) unsafe fn values(self, page: u32, head: usize) -> *mut u32 {
        // SAFETY: the caller's promise; the values follow the keys.
        unsafe { self.keys(page, head).add(self.panel) }
    }

    /// Makes the values of a page zero. Whoever begins a page without filling it does this: a weight of zero times what
    /// is not a number would still not be one. Keys need none of it: scores of places that are not seen are replaced.
    ///
    /// # Safety
    /// The page and the head exist, and nobody else uses them now.
    #[inline(always)]
    pub(crate) unsafe fn clear_values(self, page: u32, head: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.values(page, head).write_bytes(0, self.panel) }
    }

    /// Writes the key of one head of the token at `offset` of a page.
    ///
    /// # Safety
    /// The page and the head exist, nobody else uses them now; the key has `head_dim` numbers.
    #[inline(always)]
    pub(crate) unsafe fn write_key<T: Number>(self, (page, offset): (u32, usize), head: usize, key: *const u32) {
        // SAFETY: the caller's promise; offsets are below a page's tokens.
        unsafe {
            let column = self.keys(page, head).add(offset);
            for i in 0..self.head_dim / T::PER_WORD {
                *column.add(i * PAGE) = *key.add(i);
            }
        }
    }

    /// Writes the value of one head of the token at `offset` of a page.
    ///
    /// # Safety
    /// The page and the head exist, nobody else uses them now; the value has `head_dim` numbers.
    #[inline(always)]
    pub(crate) unsafe fn write_value<T: Number>(self, (page, offset): (u32, usize), head: usize, value: *const u32) {
        // SAFETY: the caller's promise; offsets are below a page's tokens.
        unsafe {
            let row = self.values(page, head).add(offset / T::PER_WORD * self.head_dim);
            match T::DTYPE {
                Dtype::F32 => row.copy_from_nonoverlapping(value, self.head_dim),
                Dtype::Bf16 => {
                    let (half, value) = (row.cast::<u16>().add(offset % 2), value.cast::<u16>());
                    for i in 0..self.head_dim {
                        *half.add(2 * i) = *value.add(i);
                    }
                }
            }
        }
    }
}
