//! The page table of one running sequence: its pages in order, and how far the prefix cache knows them.

use crate::PageId;
use crate::pool::PagePool;
use crate::prefix::{Parent, Promise};
use crate::sequence::Opening;

#[derive(Debug)]
pub(crate) struct PageTable {
    pages: Vec<PageId>,
    /// So many of the first pages have been given back, or were never taken: they only keep the place of the others.
    num_released: usize,
    /// The first pages, as many as have their place in the prefix tree; `tail` is the last one's.
    num_published: usize,
    tail: Parent,
    /// Pages that others may wait for until this sequence has filled them.
    promises: Vec<Promise>,
}

impl PageTable {
    /// Starts with the pages of others that `opening` names, each of which gets one more owner.
    pub(crate) fn share(pool: &mut PagePool, opening: &Opening) -> Self {
        for &page in &opening.pages[opening.num_unseen..] {
            pool.share(page);
        }
        Self {
            pages: opening.pages.clone(),
            num_released: opening.num_unseen,
            num_published: opening.num_published,
            tail: opening.tail,
            promises: Vec::new(),
        }
    }

    /// By position; the first `num_released` of them are not this table's any more.
    pub(crate) fn pages(&self) -> &[PageId] {
        &self.pages
    }

    pub(crate) fn num_released(&self) -> usize {
        self.num_released
    }

    /// The pages it owns.
    pub(crate) fn held(&self) -> &[PageId] {
        &self.pages[self.num_released..]
    }

    /// Promises that are still to be kept.
    pub(crate) fn num_promises(&self, pool: &PagePool) -> usize {
        self.promises.iter().filter(|promise| pool.is_promised(promise)).count()
    }

    /// Takes pages until the table holds `num_tokens` or the pool has none left; returns how many tokens it holds.
    pub(crate) fn grow(&mut self, pool: &mut PagePool, num_tokens: usize) -> usize {
        while pool.paging().room(self.pages.len()) < num_tokens {
            let Some(page) = pool.take() else { break };
            self.pages.push(page);
        }
        pool.paging().room(self.pages.len())
    }

    /// Announces the full pages of `tokens` that are still to be computed.
    pub(crate) fn promise(&mut self, pool: &mut PagePool, tokens: &[u32]) {
        let mut parent = self.tail;
        for page_tokens in pool.paging().split(tokens).skip(self.num_published) {
            let (place, promise) = pool.promise(parent, page_tokens);
            self.promises.extend(promise);
            parent = place;
        }
    }

    /// Takes back what was announced and has not been filled.
    pub(crate) fn withdraw(&mut self, pool: &mut PagePool) {
        for promise in self.promises.drain(..) {
            pool.withdraw(&promise);
        }
    }

    /// Makes full pages known. `tokens` are those whose ids are known and whose step has been planned.
    pub(crate) fn publish(&mut self, pool: &mut PagePool, tokens: &[u32]) {
        for page_tokens in pool.paging().split(tokens).skip(self.num_published) {
            self.tail = pool.publish(self.pages[self.num_published], self.tail, page_tokens);
            self.num_published += 1;
        }
    }

    /// The step that should have filled the pages from index `first` on has failed: nobody may find them.
    pub(crate) fn forget_from(&self, pool: &mut PagePool, first: usize) {
        for &page in self.pages.iter().skip(first.max(self.num_released)) {
            pool.forget(page);
        }
    }

    /// Gives back the pages before index `end`, which have been published: nobody reads them any more.
    pub(crate) fn release_before(&mut self, pool: &mut PagePool, end: usize) {
        debug_assert!(end <= self.num_published, "page {} of {self:?} is still to be filled", end - 1);
        while self.num_released < end {
            pool.release(self.pages[self.num_released]);
            self.num_released += 1;
        }
    }

    /// Gives all pages back, the last first: a leaf of the prefix tree is evicted before what it grows from.
    pub(crate) fn release(self, pool: &mut PagePool) {
        for &page in self.held().iter().rev() {
            pool.release(page);
        }
    }
}
