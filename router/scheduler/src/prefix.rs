//! The prefix cache: a tree of full pages, each found by its parent and its own token ids.
//!
//! A key holds the token ids themselves: equality is the proof, the hash is only the index. Entry ids are never reused, so a
//! child whose parent has gone can be reached by nobody, and goes when its own page does.

use std::collections::HashMap;
use std::sync::Arc;

use crate::PageId;

/// Names one entry for the life of its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EntryId(u64);

/// What comes before a page: nothing (the root of its kind), or another page's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Parent {
    Root {
        namespace: u64,
        /// Computed beyond the model's position switch: other keys and values of the same tokens.
        is_long: bool,
    },
    Entry(EntryId),
}

#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    parent: Parent,
    tokens: Vec<u32>,
}

/// `page` is `None` while the entry is only promised: a running sequence is going to fill it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    id: EntryId,
    page: Option<PageId>,
}

/// A page that a running sequence is going to fill. Withdrawn when it leaves before it does.
#[derive(Clone, Debug)]
pub(crate) struct Promise {
    key: Arc<Key>,
    id: EntryId,
}

/// The longest known prefix of some tokens.
#[derive(Debug)]
pub(crate) struct Prefix {
    pub(crate) pages: Vec<PageId>,
    pub(crate) tail: Parent,
    /// The last page after `pages` that somebody has promised: worth waiting for.
    pub(crate) promised: Option<Promise>,
}

#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    index: HashMap<Arc<Key>, Entry>,
    num_entries_made: u64,
}

impl PrefixCache {
    /// Walks the tree along `pages`, which are slices of one page each.
    pub(crate) fn find<'a>(&self, root: Parent, pages: impl Iterator<Item = &'a [u32]>) -> Prefix {
        let mut found = Prefix { pages: Vec::new(), tail: root, promised: None };
        let mut key = Key { parent: found.tail, tokens: Vec::new() };
        for tokens in pages {
            key.tokens.clear();
            key.tokens.extend_from_slice(tokens);
            let Some((known, entry)) = self.index.get_key_value(&key) else { break };
            key.parent = Parent::Entry(entry.id);
            match entry.page {
                Some(page) if found.promised.is_none() => {
                    found.pages.push(page);
                    found.tail = key.parent;
                }
                Some(_) => {}
                None => found.promised = Some(Promise { key: Arc::clone(known), id: entry.id }),
            }
        }
        found
    }

    /// Announces that `tokens` after `parent` are going to be filled, unless they are known or announced already.
    pub(crate) fn promise(&mut self, parent: Parent, tokens: &[u32]) -> (Parent, Option<Promise>) {
        let key = Key { parent, tokens: tokens.to_vec() };
        if let Some(entry) = self.index.get(&key) {
            return (Parent::Entry(entry.id), None);
        }
        let (key, id) = self.insert(key, None);
        (Parent::Entry(id), Some(Promise { key, id }))
    }

    pub(crate) fn is_promised(&self, promise: &Promise) -> bool {
        self.index.get(&promise.key).is_some_and(|entry| entry.id == promise.id && entry.page.is_none())
    }

    /// Forgets a promise that was not kept.
    pub(crate) fn withdraw(&mut self, promise: &Promise) {
        if self.is_promised(promise) {
            self.index.remove(&promise.key);
        }
    }

    /// Gives `page` the place of `tokens` after `parent`. The key is returned when the place was empty or promised;
    /// otherwise another page with the same content has it.
    pub(crate) fn fill(&mut self, parent: Parent, tokens: &[u32], page: PageId) -> (Parent, Option<Arc<Key>>) {
        let key = Key { parent, tokens: tokens.to_vec() };
        let Some((known, entry)) = self.index.get_key_value(&key) else {
            let (key, id) = self.insert(key, Some(page));
            return (Parent::Entry(id), Some(key));
        };
        let (known, id, is_filled) = (Arc::clone(known), entry.id, entry.page.is_some());
        if is_filled {
            return (Parent::Entry(id), None);
        }
        self.index.insert(Arc::clone(&known), Entry { id, page: Some(page) });
        (Parent::Entry(id), Some(known))
    }

    /// Where `tokens` after `parent` are, if anybody has or promised them.
    pub(crate) fn child(&self, parent: Parent, tokens: &[u32]) -> Option<Parent> {
        let key = Key { parent, tokens: tokens.to_vec() };
        self.index.get(&key).map(|entry| Parent::Entry(entry.id))
    }

    pub(crate) fn place(&self, key: &Key) -> Option<Parent> {
        self.index.get(key).map(|entry| Parent::Entry(entry.id))
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        self.index.remove(key);
    }

    fn insert(&mut self, key: Key, page: Option<PageId>) -> (Arc<Key>, EntryId) {
        self.num_entries_made += 1;
        let (key, id) = (Arc::new(key), EntryId(self.num_entries_made));
        self.index.insert(Arc::clone(&key), Entry { id, page });
        (key, id)
    }

    pub(crate) fn leads_to(&self, key: &Key, page: PageId) -> bool {
        self.index.get(key).is_some_and(|entry| entry.page == Some(page))
    }

    /// Entries that have a page, and entries that are only promised.
    pub(crate) fn count(&self) -> (usize, usize) {
        let num_filled = self.index.values().filter(|entry| entry.page.is_some()).count();
        (num_filled, self.index.len() - num_filled)
    }
}
