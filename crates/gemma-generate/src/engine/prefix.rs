//! The prefix cache: caches of sequences that are over, for prompts that begin alike.
//!
//! An entry is the cache of a whole sequence and its tokens. A prompt takes the entry with which it shares the most
//! tokens, clones the cache and truncates the clone to the common prefix; a clone shares the pages of its origin. A cache
//! that cannot be truncated (a recurrent state, a sliding window that has moved on) serves only prompts that begin with
//! all of its tokens, so the engine also keeps such caches at fixed positions of a prompt. What a window has given back
//! on the way from one of them to the next, the earlier one still holds: the later entry shares these pages, and can then be
//! truncated to any length as well.
//!
//! Keys and values depend on the adapters that a request chose, so a prompt takes only entries of requests that chose the
//! same ([`Kind`]).
//!
//! Entries that share pages form a tree: an entry counts the bytes after what it shares with its parent, and is evicted
//! after everything that shares pages with it, the least recently used first.

use std::sync::Arc;

use gemma_nn::AdapterChoice;
use gemma_tokenizer::TokenId;

use crate::Cache;

/// See the module.
pub(crate) struct PrefixCache<C> {
    entries: Vec<Entry<C>>,
    next: u64,
    /// Counts uses, as a clock.
    clock: u64,
}

/// What the cache of a prefix depends on besides its tokens: two requests share prefixes where it is the same.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kind {
    /// What the length of a prefix must be a multiple of.
    pub(crate) unit: usize,
    /// The adapters with which it was computed.
    pub(crate) adapters: Arc<[AdapterChoice]>,
}

/// The cache of a sequence.
struct Entry<C> {
    id: u64,
    tokens: Vec<TokenId>,
    cache: C,
    /// Bytes that it does not share with its parent.
    bytes: usize,
    parent: Option<u64>,
    kind: Kind,
    /// Requests and entries that share its pages.
    users: usize,
    used: u64,
}

/// A prefix that was found.
pub(crate) struct Found<C> {
    pub(crate) id: u64,
    pub(crate) len: usize,
    pub(crate) cache: C,
}

impl<C: Cache> PrefixCache<C> {
    pub(crate) fn new() -> Self {
        Self { entries: Vec::new(), next: 0, clock: 0 }
    }

    /// Bytes of all entries.
    pub(crate) fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// The caches of all entries.
    pub(crate) fn caches(&self) -> impl Iterator<Item = &C> {
        self.entries.iter().map(|entry| &entry.cache)
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many tokens of `prompt` the best entry holds, its last token left out: the logits after it are wanted.
    pub(crate) fn longest(&self, prompt: &[TokenId], kind: &Kind) -> usize {
        self.best(prompt, kind).map_or(0, |(_, len)| len)
    }

    /// Clones the cache of the longest known prefix of `prompt`, and marks its entry as used until [`release`](Self::release).
    pub(crate) fn take(&mut self, prompt: &[TokenId], kind: &Kind) -> Option<Found<C>> {
        let (index, len) = self.best(prompt, kind)?;
        self.clock += 1;
        let entry = &mut self.entries[index];
        let mut cache = entry.cache.clone();
        let possible = cache.truncate(len);
        assert!(possible, "a prefix was chosen to which its cache can be truncated");
        entry.used = self.clock;
        entry.users += 1;
        Some(Found { id: entry.id, len, cache })
    }

    /// Ends the use of an entry.
    pub(crate) fn release(&mut self, id: u64) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == id) {
            entry.users -= 1;
        }
    }

    /// Keeps the cache of `tokens`, of which `bytes` are not shared with `parent`, an entry and how many of its tokens are the
    /// same. Returns the entry, which is in use once; the entry that holds the same tokens already, if there is one.
    pub(crate) fn insert(
        &mut self,
        tokens: &[TokenId],
        cache: C,
        bytes: usize,
        parent: Option<(u64, usize)>,
        kind: Kind,
    ) -> u64 {
        self.clock += 1;
        let mut cache = cache;
        if let Some((parent, agreed)) = parent
            && let Some(parent) = self.entries.iter().find(|entry| entry.id == parent)
        {
            cache.complete_with(&parent.cache, agreed);
        }
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.tokens == tokens && entry.kind == kind) {
            entry.used = self.clock;
            entry.users += 1;
            return entry.id;
        }
        let parent = parent.map(|(id, _)| id);
        if let Some(parent) = parent.and_then(|id| self.entries.iter_mut().find(|entry| entry.id == id)) {
            parent.users += 1;
        }
        let id = self.next;
        self.next += 1;
        let tokens = tokens.to_vec();
        self.entries.push(Entry { id, tokens, cache, bytes, parent, kind, users: 1, used: self.clock });
        id
    }

    /// Evicts entries that nobody uses, the least recently used first, until all take no more than `limit` bytes.
    pub(crate) fn evict_to(&mut self, limit: usize) {
        while self.bytes() > limit {
            let unused = self.entries.iter().enumerate().filter(|(_, entry)| entry.users == 0);
            let Some((index, _)) = unused.min_by_key(|(_, entry)| entry.used) else { return };
            let evicted = self.entries.swap_remove(index);
            if let Some(parent) = evicted.parent {
                self.release(parent);
            }
        }
    }

    /// The entry that holds the most of `prompt`, and how much.
    fn best(&self, prompt: &[TokenId], kind: &Kind) -> Option<(usize, usize)> {
        let usable = |(index, entry): (usize, &Entry<C>)| {
            let held = entry.tokens.len();
            let most = common_prefix(&entry.tokens, prompt).min(prompt.len().saturating_sub(1));
            let len = most / kind.unit * kind.unit;
            let possible = len == held || held <= entry.cache.truncatable() || entry.cache.is_whole();
            (possible && len > 0 && entry.kind == *kind).then_some((index, len))
        };
        self.entries.iter().enumerate().filter_map(usable).max_by_key(|(_, len)| *len)
    }
}

/// How many tokens two sequences have in common at the beginning.
pub(crate) fn common_prefix(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
