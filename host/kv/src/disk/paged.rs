//! A long list that grows in place, in large memory pages where the system has them.
//!
//! Called by the tier's bookkeeping, which reads entries all over it: with small pages each read would miss the
//! processor's page tables first.
//! **Invariant:** the first `len` values are initialised, and nothing of them moves.
#![allow(unsafe_code, reason = "a byte mapping is viewed as values that are written before they are read")]

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// Values of one kind in one mapping; `T` needs no drop.
pub(super) struct Paged<T: Copy> {
    map: MmapMut,
    len: usize,
    _values: PhantomData<T>,
}

impl<T: Copy> Paged<T> {
    /// An empty list with address space for `capacity` values; RAM is taken when they are written.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let bytes = capacity.max(1).checked_mul(size_of::<T>()).expect("the address space is large enough");
        let map = MmapMut::map_anon(bytes).expect("address space is there for the asking");
        // Advice only: a kernel without transparent huge pages says no and nothing changes.
        #[cfg(target_os = "linux")]
        let _refused = map.advise(memmap2::Advice::HugePage);
        assert!(map.as_ptr().cast::<T>().is_aligned(), "a mapping begins on a page");
        Self { map, len: 0, _values: PhantomData }
    }

    pub(super) fn capacity(&self) -> usize {
        self.map.len() / size_of::<T>()
    }

    /// Adds copies of `value`; moves to a mapping an eighth larger if there is no room.
    pub(super) fn extend(&mut self, count: usize, value: T) {
        let len = self.len + count;
        if len > self.capacity() {
            let mut larger = Self::with_capacity(len + len / 8);
            larger.write(self);
            *self = larger;
        }
        for _ in 0..count {
            self.write(&[value]);
        }
    }

    /// Appends what there is room for.
    fn write(&mut self, values: &[T]) {
        assert!(self.len + values.len() <= self.capacity(), "there is room");
        // SAFETY: the target lies in the mapping, which `values` does not overlap, and is aligned as `T`.
        unsafe {
            let end = self.map.as_mut_ptr().cast::<T>().add(self.len);
            std::ptr::copy_nonoverlapping(values.as_ptr(), end, values.len());
        }
        self.len += values.len();
    }
}

impl Paged<u64> {
    /// So many zeros, of which none takes RAM before it is written.
    pub(super) fn zeros(count: usize) -> Self {
        // The mapping is zeros, which is what the numbers are.
        Self { len: count, ..Self::with_capacity(count) }
    }
}

impl<T: Copy> Deref for Paged<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the first `len` values are initialised, and the mapping is aligned and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
    }
}

impl<T: Copy> DerefMut for Paged<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.len) }
    }
}

impl<T: Copy> std::fmt::Debug for Paged<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paged").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_when_the_list_moves() {
        let mut list = Paged::<u64>::with_capacity(600);
        for n in 0..5000 {
            list.extend(1, n);
        }
        list[17] = 9;
        assert_eq!(Paged::zeros(700)[..], [0; 700]);
        assert_eq!((list.len(), list[16], list[17], list[4999]), (5000, 16, 9, 4999));
        assert!(list.capacity() < 6000);
    }
}
