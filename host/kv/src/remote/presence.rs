//! What is remembered of a store: which blocks it had, and which it had not, for a time.
//!
//! A table of fixed size, in sets of a few entries; the entry of a set that says least for longest makes room.
//! **Invariant:** nothing is remembered beyond its time, and memory does not grow.

use crate::BlockName;

/// Entries that share a set: how many names with the same low bits are remembered at once. Chosen.
const WAYS: usize = 4;

/// What is remembered of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    /// The store had it.
    Present,
    /// The store had it not.
    Absent,
    /// The store had something else under its key, which the next write replaces.
    Corrupt,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: BlockName,
    seen: Seen,
    /// Milliseconds of the clock; 0 in an entry that was never used.
    until_ms: u64,
}

#[derive(Debug)]
pub(super) struct Presence {
    entries: Vec<Entry>,
    set_mask: usize,
}

impl Presence {
    /// Remembers about `names_max` names, 48 bytes each.
    pub(super) fn new(names_max: usize) -> Self {
        let sets = names_max.div_ceil(WAYS).next_power_of_two();
        let never = Entry { name: BlockName(0), seen: Seen::Absent, until_ms: 0 };
        Self { entries: vec![never; sets * WAYS], set_mask: sets - 1 }
    }

    pub(super) fn get(&self, name: BlockName, now_ms: u64) -> Option<Seen> {
        let set = &self.entries[self.set(name)];
        set.iter().find(|entry| entry.name == name && entry.until_ms > now_ms).map(|entry| entry.seen)
    }

    pub(super) fn put(&mut self, name: BlockName, seen: Seen, until_ms: u64) {
        let set = self.set(name);
        let set = &mut self.entries[set];
        let same = set.iter().position(|entry| entry.name == name);
        let place = same.or_else(|| (0..WAYS).min_by_key(|&way| set[way].until_ms));
        set[place.expect("a set has entries")] = Entry { name, seen, until_ms };
    }

    pub(super) fn clear(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.until_ms = 0);
    }

    fn set(&self, name: BlockName) -> std::ops::Range<usize> {
        let first = (name.0 as usize & self.set_mask) * WAYS;
        first..first + WAYS
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_crowd_a_set_push_out_the_one_that_ends_first() {
        let mut presence = Presence::new(4);
        for name in 0..5 {
            presence.put(BlockName(name), Seen::Present, 100 + name as u64);
        }
        assert_eq!(presence.get(BlockName(0), 0), None);
        assert!((1..5).all(|name| presence.get(BlockName(name), 0) == Some(Seen::Present)));
        presence.clear();
        assert!((1..5).all(|name| presence.get(BlockName(name), 0).is_none()));
    }

    proptest! {
        /// What it says is what was said last of the name, and never after its time.
        #[test]
        fn it_agrees_with_a_map(ops in vec((0u128..40, 0u8..3, 1u64..50), 1..200)) {
            let (mut presence, mut model) = (Presence::new(16), BTreeMap::new());
            for (now, (name, seen, ttl)) in (0u64..).zip(ops) {
                let seen = [Seen::Present, Seen::Absent, Seen::Corrupt][seen as usize];
                presence.put(BlockName(name), seen, now + ttl);
                model.insert(name, (seen, now + ttl));
                prop_assert_eq!(presence.get(BlockName(name), now), Some(seen));
                for name in 0..40 {
                    if let Some(said) = presence.get(BlockName(name), now) {
                        let (seen, until) = model[&name];
                        prop_assert_eq!(said, seen);
                        prop_assert!(until > now);
                    }
                }
            }
        }
    }
}
