//! How the tokens of a sequence lie in pages, or that they do not: then what later steps need of a sequence is a state
//! of fixed size in its row, which cannot be shared, kept or copied.

use std::num::NonZeroUsize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paging {
    /// So many tokens to a page.
    Pages(NonZeroUsize),
    /// Sequences hold no pages; a row has room for any number of tokens.
    RowsOnly,
}

impl Paging {
    /// 0: no pages.
    pub(crate) fn of(page_size: u32) -> Self {
        NonZeroUsize::new(page_size as usize).map_or(Self::RowsOnly, Self::Pages)
    }

    pub(crate) fn has_pages(self) -> bool {
        self != Self::RowsOnly
    }

    /// Pages that `num_tokens` take.
    pub(crate) fn num_pages(self, num_tokens: usize) -> usize {
        match self {
            Self::Pages(size) => num_tokens.div_ceil(size.get()),
            Self::RowsOnly => 0,
        }
    }

    /// Pages that the first `num_tokens` fill.
    pub(crate) fn num_full_pages(self, num_tokens: usize) -> usize {
        match self {
            Self::Pages(size) => num_tokens / size.get(),
            Self::RowsOnly => 0,
        }
    }

    /// Tokens in a page that is not full, after `num_tokens`.
    pub(crate) fn offset(self, num_tokens: usize) -> usize {
        match self {
            Self::Pages(size) => num_tokens % size.get(),
            Self::RowsOnly => 0,
        }
    }

    /// Tokens that a sequence with `num_pages` has room for.
    pub(crate) fn room(self, num_pages: usize) -> usize {
        match self {
            Self::Pages(size) => num_pages * size.get(),
            Self::RowsOnly => usize::MAX,
        }
    }

    /// The full pages of `tokens`, in order.
    pub(crate) fn split(self, tokens: &[u32]) -> std::slice::ChunksExact<'_, u32> {
        match self {
            Self::Pages(size) => tokens.chunks_exact(size.get()),
            Self::RowsOnly => [].chunks_exact(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_fill_pages() {
        let paging = Paging::of(4);
        assert!(paging.has_pages());
        assert_eq!((paging.num_pages(8), paging.num_pages(9), paging.num_pages(0)), (2, 3, 0));
        assert_eq!(
            (paging.num_full_pages(7), paging.num_full_pages(8), paging.offset(7), paging.room(3)),
            (1, 2, 3, 12)
        );
        assert_eq!(paging.split(&[1, 2, 3, 4, 5]).collect::<Vec<_>>(), [[1, 2, 3, 4]]);
    }

    #[test]
    fn rows_alone_need_no_pages_and_have_room_for_everything() {
        let paging = Paging::of(0);
        assert!(!paging.has_pages());
        assert_eq!((paging.num_pages(9), paging.num_full_pages(9), paging.offset(9)), (0, 0, 0));
        assert_eq!((paging.room(0), paging.split(&[1, 2]).count()), (usize::MAX, 0));
    }
}
