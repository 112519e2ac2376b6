//! Large zeroed memory for weights and KV pages.
//!
//! **Invariant:** memory is mapped zeroed and lazily, so a page never touched costs no RAM.
#![allow(unsafe_code, reason = "a byte mapping is viewed as bf16 bit patterns")]

use memmap2::MmapMut;

use crate::EngineError;

// A saved block is a page's memory as it is, and has its low bytes first on every host.
const _: () = assert!(cfg!(target_endian = "little"), "bf16 values lie in memory with their low byte first");

/// A zeroed array of bf16 bit patterns, aligned to a memory page.
#[derive(Debug)]
pub(crate) struct Bf16Buf {
    map: MmapMut,
    len: usize,
}

impl Bf16Buf {
    /// Maps `len` zeroed values; `what` names the use in errors.
    pub(crate) fn zeroed(len: usize, what: &'static str) -> Result<Self, EngineError> {
        let bytes = len.max(1) * size_of::<u16>();
        let memory = |source| EngineError::Memory { what, bytes: bytes as u64, source };
        Ok(Self { map: MmapMut::map_anon(bytes).map_err(memory)?, len })
    }

    /// The values' bytes, the low one of each first.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping holds at least `len * 2` initialised bytes and lives as long as `self`; `&mut self` makes the
        // borrow unique, and every bit pattern is a `u16`.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr(), self.len * size_of::<u16>()) }
    }

    /// The values' bytes, the low one of each first.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: as in `bytes_mut`; shared borrows of bytes and of values may live together.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr(), self.len * size_of::<u16>()) }
    }

    /// Asks for large memory pages; worth it for what every step reads whole.
    pub(crate) fn advise_huge(&self) {
        // Advice only: a kernel without transparent huge pages says no and nothing changes.
        #[cfg(target_os = "linux")]
        let _refused = self.map.advise(memmap2::Advice::HugePage);
    }
}

impl std::ops::Deref for Bf16Buf {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        // SAFETY: the mapping holds `len * 2` initialised bytes, is aligned to a memory page, lives
        // as long as `self`, and every bit pattern is a `u16`.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
    }
}

impl std::ops::DerefMut for Bf16Buf {
    fn deref_mut(&mut self) -> &mut [u16] {
        // SAFETY: as in `deref`; `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.len) }
    }
}
