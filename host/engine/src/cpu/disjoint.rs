//! A slice that the parts of a parallel operation write at ranges that do not overlap.
#![allow(unsafe_code, reason = "parts write one slice at ranges that only their caller knows apart")]

use std::marker::PhantomData;

/// A mutable slice shared by threads that write apart.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    _slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` whose ranges are handed out by `range`, which makes the caller promise
// that they do not overlap.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), _slice: PhantomData }
    }

    /// The range `at .. at + len`.
    ///
    /// # Safety
    /// While the result lives, no other range that overlaps it does.
    #[allow(clippy::mut_from_ref, reason = "the caller promises that ranges do not overlap")]
    pub(crate) unsafe fn range(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: within the slice, by the assertion; unique, by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

/// A matrix that threads write apart: rows `stride` values from one to the next.
pub(crate) struct Rows<'a, T> {
    values: Disjoint<'a, T>,
    stride: usize,
}

impl<'a, T> Rows<'a, T> {
    pub(crate) fn new(values: &'a mut [T], stride: usize) -> Self {
        Self { values: Disjoint::new(values), stride }
    }

    /// Columns `col .. col + len` of a row.
    ///
    /// # Safety
    /// While the result lives, no other range that overlaps it does.
    #[allow(clippy::mut_from_ref, reason = "the caller promises that ranges do not overlap")]
    pub(crate) unsafe fn row(&self, row: usize, col: usize, len: usize) -> &mut [T] {
        // SAFETY: by the caller's promise.
        unsafe { self.values.range(row * self.stride + col, len) }
    }
}
