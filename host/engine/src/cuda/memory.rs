//! Memory of the device, and memory of the host that the device copies from and to by itself.
//!
//! **Invariant:** freed when dropped, in the context that it is of; sizes are those asked for.
#![allow(unsafe_code, reason = "the driver's interface is C")]

use std::ffi::c_void;
use std::sync::Arc;

use super::args::{Plain, Ptr};
use super::driver::{Context, Failure, driver};

/// A piece of device memory. What is in it at first is undefined.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    context: Arc<Context>,
    at: Ptr,
    bytes: usize,
}

impl DeviceMemory {
    /// Errors: the driver refuses; see [`Failure::is_out_of_memory`].
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, Failure> {
        let mut at = 0;
        driver!(cuMemAlloc_v2(&raw mut at, bytes.max(1)))?;
        Ok(Self { context: Arc::clone(context), at: Ptr(at), bytes })
    }

    /// As [`Self::new`], for so many values.
    pub(crate) fn of<T: Plain>(context: &Arc<Context>, len: usize) -> Result<Self, Failure> {
        Self::new(context, len * size_of::<T>())
    }

    pub(crate) fn ptr(&self) -> Ptr {
        self.at
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // What fails here has failed before: the device is lost.
        let _ = self.context.bind();
        let _ = driver!(cuMemFree_v2(self.at.0));
    }
}

/// Page-locked memory of the host, zeroed.
#[derive(Debug)]
pub(crate) struct Pinned {
    context: Arc<Context>,
    at: *mut u8,
    bytes: usize,
}

// SAFETY: it owns its memory, which any thread may use.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Errors: the driver refuses.
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, Failure> {
        let mut at: *mut c_void = std::ptr::null_mut();
        // Without write combining: the host reads it too.
        driver!(cuMemHostAlloc(&raw mut at, bytes.max(1), 0))?;
        let pinned = Self { context: Arc::clone(context), at: at.cast(), bytes };
        // SAFETY: the memory was just given out, with that many bytes.
        unsafe { pinned.at.write_bytes(0, pinned.bytes) };
        Ok(pinned)
    }

    pub(crate) fn slice<T: Plain>(&self) -> &[T] {
        // SAFETY: the memory is aligned to a page, initialised and plain.
        unsafe { std::slice::from_raw_parts(self.at.cast(), self.bytes / size_of::<T>()) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `slice`; `&mut self` makes the borrow unique among the host's.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What fails here has failed before: the device is lost.
        let _ = self.context.bind();
        let _ = driver!(cuMemFreeHost(self.at.cast()));
    }
}

/// The bytes of plain values.
pub(crate) fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: plain values have no padding, and any byte may be read.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}
