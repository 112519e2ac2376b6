//! What was read before, by the name of its bytes.
//!
//! **Invariant:** memory is bounded: two generations, of which the older one is dropped whole when the younger one is
//! full; what was asked for since has moved to the younger one by then.

use std::sync::Arc;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::super::digest::Digest;

#[derive(Debug)]
pub(super) struct Memo<T> {
    generations: Mutex<Generations<T>>,
    /// Entries, or bytes if entries have their own weight.
    weight_max: usize,
}

#[derive(Debug)]
struct Generations<T> {
    young: FxHashMap<Digest, (Arc<T>, usize)>,
    old: FxHashMap<Digest, (Arc<T>, usize)>,
    weight: usize,
}

impl<T> Memo<T> {
    /// A memo that holds at most twice this weight.
    pub(super) fn new(weight_max: usize) -> Self {
        let generations = Generations { young: FxHashMap::default(), old: FxHashMap::default(), weight: 0 };
        Self { generations: Mutex::new(generations), weight_max }
    }

    pub(super) fn get(&self, name: Digest) -> Option<Arc<T>> {
        let mut all = self.generations.lock();
        if let Some((found, _)) = all.young.get(&name) {
            return Some(Arc::clone(found));
        }
        let (found, weight) = all.old.remove(&name)?;
        let dropped = all.put(name, Arc::clone(&found), weight, self.weight_max);
        drop(all);
        drop(dropped);
        Some(found)
    }

    pub(super) fn keep(&self, name: Digest, value: Arc<T>, weight: usize) {
        if weight > self.weight_max {
            return;
        }
        // What is dropped is dropped without the lock.
        let dropped = self.generations.lock().put(name, value, weight, self.weight_max);
        drop(dropped);
    }
}

impl<T> Generations<T> {
    /// Keeps a value; what had to go for it.
    fn put(
        &mut self,
        name: Digest,
        value: Arc<T>,
        weight: usize,
        weight_max: usize,
    ) -> FxHashMap<Digest, (Arc<T>, usize)> {
        let mut dropped = FxHashMap::default();
        if self.weight + weight > weight_max {
            dropped = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
            self.weight = 0;
        }
        self.weight += weight;
        self.young.insert(name, (value, weight));
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let memo = Memo::new(10);
        memo.keep(Digest(0), Arc::new(0), 1);
        for name in 1..100u128 {
            memo.keep(Digest(name), Arc::new(name), 1);
            assert_eq!(memo.get(Digest(0)).as_deref(), Some(&0), "used all the time");
            let all = memo.generations.lock();
            assert!(all.young.len() + all.old.len() <= 20);
        }
        assert!(memo.get(Digest(1)).is_none(), "used once, long ago");
        memo.keep(Digest(500), Arc::new(1), 11);
        assert!(memo.get(Digest(500)).is_none(), "too heavy");
    }
}
