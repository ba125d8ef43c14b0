//! The page pool: who owns each page, what it is known to hold, and in which order free pages are taken.
//!
//! Invariants
//! - A page is in the free list if and only if it has no owner (a page table in use, or held for a step in flight).
//! - In the free list pages without known content come first, then the others, the least recently released first.
//! - A page has a key if and only if the prefix cache leads from that key to this page.

use std::sync::Arc;

use crate::PageId;
use crate::paging::Paging;
use crate::prefix::{Key, Parent, Prefix, PrefixCache, Promise};

/// The end of the free list.
const NOWHERE: u32 = u32::MAX;

#[derive(Clone, Debug)]
struct Page {
    num_owners: u32,
    key: Option<Arc<Key>>,
    previous: u32,
    next: u32,
}

#[derive(Debug)]
pub(crate) struct PagePool {
    paging: Paging,
    pages: Vec<Page>,
    front: u32,
    back: u32,
    num_available: usize,
    /// Of the available ones, those with known content.
    num_cached: usize,
    /// `None`: prefix caching is off, nothing is ever found.
    prefixes: Option<PrefixCache>,
}

impl PagePool {
    /// Without paging the pool is empty, and no prefix is ever found.
    pub(crate) fn new(num_pages: u32, page_size: u32, prefix_caching: bool) -> Self {
        let paging = Paging::of(page_size);
        let num_pages = if paging.has_pages() { num_pages } else { 0 };
        let page = Page { num_owners: 0, key: None, previous: NOWHERE, next: NOWHERE };
        let mut pool = Self {
            paging,
            pages: vec![page; num_pages as usize],
            front: NOWHERE,
            back: NOWHERE,
            num_available: 0,
            num_cached: 0,
            prefixes: (prefix_caching && paging.has_pages()).then(PrefixCache::default),
        };
        for index in (0..num_pages).rev() {
            pool.push_front(index);
        }
        pool
    }

    pub(crate) fn paging(&self) -> Paging {
        self.paging
    }

    pub(crate) fn num_pages(&self) -> usize {
        self.pages.len()
    }

    /// Pages that `take` can still give, those with cached content included.
    pub(crate) fn num_available(&self) -> usize {
        self.num_available
    }

    pub(crate) fn num_cached(&self) -> usize {
        self.num_cached
    }

    pub(crate) fn num_owners(&self, page: PageId) -> u32 {
        self.pages[page.0 as usize].num_owners
    }

    /// A page for one owner, the least useful one first. What it held is forgotten.
    pub(crate) fn take(&mut self) -> Option<PageId> {
        if self.front == NOWHERE {
            return None;
        }
        let page = PageId(self.front);
        self.share(page);
        self.forget(page);
        Some(page)
    }

    /// One more owner.
    pub(crate) fn share(&mut self, page: PageId) {
        if self.num_owners(page) == 0 {
            self.unlink(page.0);
        }
        self.pages[page.0 as usize].num_owners += 1;
    }

    /// One owner less. The last one's page becomes available; known content stays until it is evicted.
    pub(crate) fn release(&mut self, page: PageId) {
        let slot = &mut self.pages[page.0 as usize];
        slot.num_owners -= 1;
        match (slot.num_owners, &slot.key) {
            (0, None) => self.push_front(page.0),
            (0, Some(_)) => self.push_back(page.0),
            _ => {}
        }
    }

    /// The known pages at the beginning of `tokens`, at most `max_pages` of them.
    pub(crate) fn find(&self, root: Parent, tokens: &[u32], max_pages: usize) -> Prefix {
        match &self.prefixes {
            Some(prefixes) => prefixes.find(root, self.paging.split(tokens).take(max_pages)),
            None => Prefix { pages: Vec::new(), tail: root, promised: None },
        }
    }

    /// Makes the content of a full page known: `tokens` after `parent`. Returns the place that its successor comes after.
    ///
    /// When the same content is known already, in this page or another, that stays as it is.
    pub(crate) fn publish(&mut self, page: PageId, parent: Parent, tokens: &[u32]) -> Parent {
        let Some(prefixes) = &mut self.prefixes else { return parent };
        let slot = &mut self.pages[page.0 as usize];
        if let Some(key) = &slot.key {
            // A shared page that was published under another parent, now gone: its own place is as good.
            return prefixes.child(parent, tokens).or_else(|| prefixes.place(key)).unwrap_or(parent);
        }
        let (place, key) = prefixes.fill(parent, tokens, page);
        slot.key = key;
        place
    }

    /// The page does not hold what was said. Only for pages that have an owner.
    pub(crate) fn forget(&mut self, page: PageId) {
        let key = self.pages[page.0 as usize].key.take();
        if let (Some(key), Some(prefixes)) = (key, &mut self.prefixes) {
            prefixes.remove(&key);
        }
    }

    pub(crate) fn promise(&mut self, parent: Parent, tokens: &[u32]) -> (Parent, Option<Promise>) {
        match &mut self.prefixes {
            Some(prefixes) => prefixes.promise(parent, tokens),
            None => (parent, None),
        }
    }

    pub(crate) fn is_promised(&self, promise: &Promise) -> bool {
        self.prefixes.as_ref().is_some_and(|prefixes| prefixes.is_promised(promise))
    }

    pub(crate) fn withdraw(&mut self, promise: &Promise) {
        if let Some(prefixes) = &mut self.prefixes {
            prefixes.withdraw(promise);
        }
    }

    fn push_front(&mut self, index: u32) {
        self.link(index, NOWHERE, self.front);
    }

    fn push_back(&mut self, index: u32) {
        self.link(index, self.back, NOWHERE);
    }

    fn link(&mut self, index: u32, previous: u32, next: u32) {
        let page = &mut self.pages[index as usize];
        (page.previous, page.next) = (previous, next);
        self.num_available += 1;
        self.num_cached += usize::from(page.key.is_some());
        *self.next_of(previous) = index;
        *self.previous_of(next) = index;
    }

    fn unlink(&mut self, index: u32) {
        let page = &self.pages[index as usize];
        let (previous, next, is_cached) = (page.previous, page.next, page.key.is_some());
        self.num_available -= 1;
        self.num_cached -= usize::from(is_cached);
        *self.next_of(previous) = next;
        *self.previous_of(next) = previous;
    }

    /// The link that leads forward from `index`: the list's own beginning if there is nothing before.
    fn next_of(&mut self, index: u32) -> &mut u32 {
        if index == NOWHERE { &mut self.front } else { &mut self.pages[index as usize].next }
    }

    fn previous_of(&mut self, index: u32) -> &mut u32 {
        if index == NOWHERE { &mut self.back } else { &mut self.pages[index as usize].previous }
    }

    /// Recounts everything. `num_owners` is what the owners say, per page; `num_promises` what running sequences still have to keep.
    pub(crate) fn check(&self, num_owners: &[u32], num_promises: usize) -> Result<(), String> {
        for (index, (page, &expected)) in self.pages.iter().zip(num_owners).enumerate() {
            if page.num_owners != expected {
                return Err(format!("page {index} counts {} owners but has {expected}", page.num_owners));
            }
            let Some(key) = &page.key else { continue };
            if !self.prefixes.as_ref().is_some_and(|prefixes| prefixes.leads_to(key, PageId(index as u32))) {
                return Err(format!("page {index} has a key that does not lead to it"));
            }
        }
        self.check_free_list()?;
        let num_keys = self.pages.iter().filter(|page| page.key.is_some()).count();
        let (filled, promised) = self.prefixes.as_ref().map_or((0, 0), PrefixCache::count);
        if filled != num_keys || promised != num_promises {
            return Err(format!(
                "{filled} entries for {num_keys} published pages, {promised} promised of {num_promises}"
            ));
        }
        Ok(())
    }

    fn check_free_list(&self) -> Result<(), String> {
        let (mut index, mut previous, mut len, mut num_cached) = (self.front, NOWHERE, 0, 0);
        while index != NOWHERE {
            let page = &self.pages[index as usize];
            let is_after_cached = page.key.is_none() && num_cached > 0;
            if page.num_owners != 0 || page.previous != previous || is_after_cached || len > self.pages.len() {
                return Err(format!("free list is wrong at page {index}: {page:?} after {previous}"));
            }
            num_cached += usize::from(page.key.is_some());
            len += 1;
            (previous, index) = (index, page.next);
        }
        let num_unowned = self.pages.iter().filter(|page| page.num_owners == 0).count();
        let is_right = previous == self.back && len == self.num_available && num_cached == self.num_cached;
        if !is_right || len != num_unowned {
            return Err(format!(
                "free list has {len} pages, {num_cached} cached; counted {} and {}; {num_unowned} have no owner",
                self.num_available, self.num_cached
            ));
        }
        Ok(())
    }
}
