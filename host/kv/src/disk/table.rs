//! From a block's name to its slot: a table of eight bytes a place, half of them from the name.
//!
//! ```text
//!   63          32 31           0
//!  ┌──────────────┬──────────────┐
//!  │ tag          │ slot + 1     │   0: nobody's
//!  └──────────────┴──────────────┘
//! ```
//!
//! Names are hashes already: their lower bits choose a place, others are the tag, and what does not fit goes to the
//! next place. The caller tells by the whole name which of those with one tag it wants.
//! **Invariant:** between the place that a name chooses and the one that it has, none is nobody's.

use super::paged::Paged;
use crate::BlockName;

#[derive(Debug)]
pub(super) struct Table {
    places: Paged<u64>,
    len: usize,
}

const PLACES_MIN: usize = 64;

impl Table {
    /// A table with address space for `names`; more make it grow.
    pub(super) fn with_capacity(names: usize) -> Self {
        // A quarter stays empty at least, so that a search is short.
        let count = (names + names / 3 + 1).next_power_of_two().max(PLACES_MIN);
        Self { places: Paged::zeros(count), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of it.
    pub(super) fn bytes(&self) -> usize {
        self.places.len() * size_of::<u64>()
    }

    /// The slot of a name: the one of those with its tag that `is_it`.
    pub(super) fn find(&self, name: BlockName, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        self.search(name, is_it).map(|at| self.slot(at))
    }

    /// Adds a name that is not there. `name_of` says whose a slot is, should all of it have to move.
    pub(super) fn insert(&mut self, name: BlockName, slot: u32, name_of: impl Fn(u32) -> BlockName) {
        if (self.len + 1) * 4 > self.places.len() * 3 {
            let mut larger = Self::with_capacity(self.places.len());
            for at in (0..self.places.len()).filter(|&at| self.places[at] != 0) {
                let slot = self.slot(at);
                larger.put(name_of(slot), slot);
            }
            *self = larger;
        }
        self.put(name, slot);
    }

    /// Takes out a name that is there in `slot`.
    pub(super) fn remove(&mut self, name: BlockName, slot: u32, name_of: impl Fn(u32) -> BlockName) {
        let mut hole = self.search(name, |found| found == slot).expect("what leaves is there");
        let mask = self.places.len() - 1;
        let mut at = hole;
        // Those after it move up, as far as none comes to lie before the place that it chose.
        loop {
            at = (at + 1) & mask;
            if self.places[at] == 0 {
                break;
            }
            let chosen = home(name_of(self.slot(at)), mask);
            if at.wrapping_sub(chosen) & mask >= at.wrapping_sub(hole) & mask {
                self.places[hole] = self.places[at];
                hole = at;
            }
        }
        self.places[hole] = 0;
        self.len -= 1;
    }

    fn put(&mut self, name: BlockName, slot: u32) {
        let mask = self.places.len() - 1;
        let mut at = home(name, mask);
        // A quarter of all is nobody's.
        while self.places[at] != 0 {
            at = (at + 1) & mask;
        }
        self.places[at] = tag(name) << 32 | (u64::from(slot) + 1);
        self.len += 1;
    }

    fn search(&self, name: BlockName, is_it: impl Fn(u32) -> bool) -> Option<usize> {
        let (mask, tag) = (self.places.len() - 1, tag(name));
        let mut at = home(name, mask);
        while self.places[at] != 0 {
            if self.places[at] >> 32 == tag && is_it(self.slot(at)) {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
        None
    }

    fn slot(&self, at: usize) -> u32 {
        (self.places[at] as u32).wrapping_sub(1)
    }
}

/// The place that a name chooses.
fn home(name: BlockName, mask: usize) -> usize {
    name.0 as usize & mask
}

fn tag(name: BlockName) -> u64 {
    (name.0 >> 96) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Few places, so that many names want the same one.
    fn crowded(n: u32) -> BlockName {
        BlockName(u128::from(n % 5) << 96 | u128::from(n) << 64 | u128::from(n % 7 + 58))
    }

    proptest! {
        /// Whatever comes and goes, the table has what a plain map has.
        #[test]
        fn the_table_matches_a_map(ops in vec((0u32..90, any::<bool>()), 1..400)) {
            let mut table = Table::with_capacity(0);
            let mut model = BTreeMap::new();
            for (n, comes) in ops {
                match (comes, model.contains_key(&n)) {
                    (true, false) => {
                        table.insert(crowded(n), n, crowded);
                        model.insert(n, ());
                    }
                    (false, true) => {
                        table.remove(crowded(n), n, crowded);
                        model.remove(&n);
                    }
                    _ => {}
                }
                prop_assert_eq!(table.len(), model.len());
                for n in 0..90 {
                    let found = table.find(crowded(n), |slot| crowded(slot) == crowded(n));
                    prop_assert_eq!(found, model.contains_key(&n).then_some(n));
                }
            }
        }
    }
}
