//! Large zeroed memory for weights and KV pages.
//!
//! **Invariant:** memory is mapped zeroed and lazily, so a page never touched costs no RAM.
#![allow(unsafe_code, reason = "a byte mapping is viewed as bf16 bit patterns")]

use memmap2::MmapMut;

use crate::EngineError;

// A saved block is a page's memory as it is, and has its low bytes first on every host.
const _: () = assert!(cfg!(target_endian = "little"), "bf16 values lie in memory with their low byte first");

/// Bytes of a large memory page, where small ones have 4 KiB.
const HUGE: usize = 2 << 20;

/// A zeroed array of bf16 bit patterns, aligned to a memory page.
#[derive(Debug)]
pub(crate) struct Bf16Buf {
    map: MmapMut,
    /// Bytes of the mapping before the first value.
    at: usize,
    len: usize,
}

impl Bf16Buf {
    /// Maps `len` zeroed values; `what` names the use in errors.
    pub(crate) fn zeroed(len: usize, what: &'static str) -> Result<Self, EngineError> {
        let bytes = len.max(1) * size_of::<u16>();
        let memory = |source| EngineError::Memory { what, bytes: bytes as u64, source };
        Ok(Self { map: MmapMut::map_anon(bytes).map_err(memory)?, at: 0, len })
    }

    /// As [`Self::zeroed`], in large memory pages where the system has them: worth it for what every step reads whole.
    ///
    /// Cost: up to half a large page of RAM beyond the values; an end that is shorter lies in small pages.
    pub(crate) fn huge(len: usize, what: &'static str) -> Result<Self, EngineError> {
        // The system makes a large page only where a whole one, aligned, lies in one mapping.
        let room = 2 * HUGE / size_of::<u16>();
        let mut buf = Self::zeroed(len + room, what)?;
        buf.len = len;
        buf.at = (buf.map.as_ptr() as usize).next_multiple_of(HUGE) - buf.map.as_ptr() as usize;
        let bytes = (len * size_of::<u16>() + HUGE / 2) / HUGE * HUGE;
        // Advice only: a kernel without transparent huge pages says no and nothing changes.
        #[cfg(target_os = "linux")]
        let _refused = buf.map.advise_range(memmap2::Advice::HugePage, buf.at, bytes);
        Ok(buf)
    }

    /// The values' bytes, the low one of each first.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping holds at least `len * 2` initialised bytes from `at` on and lives as long as `self`; `&mut self` makes the
        // borrow unique, and every bit pattern is a `u16`.
        unsafe {
            std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(self.at), self.len * size_of::<u16>())
        }
    }

    /// The values' bytes, the low one of each first.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: as in `bytes_mut`; shared borrows of bytes and of values may live together.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.at), self.len * size_of::<u16>()) }
    }
}

impl std::ops::Deref for Bf16Buf {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        // SAFETY: the mapping holds `len * 2` initialised bytes from `at` on, `at` is a multiple of a memory page, it lives
        // as long as `self`, and every bit pattern is a `u16`.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.at).cast(), self.len) }
    }
}

impl std::ops::DerefMut for Bf16Buf {
    fn deref_mut(&mut self) -> &mut [u16] {
        // SAFETY: as in `deref`; `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(self.at).cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_large_pages_begins_with_one_and_holds_what_is_written() {
        for len in [0, 5, HUGE / 2 - 1, HUGE / 2, 3 * HUGE / 2 + 7] {
            let mut buf = Bf16Buf::huge(len, "a test").unwrap();
            assert_eq!(buf.as_ptr() as usize % HUGE, 0);
            assert!(buf.iter().all(|value| *value == 0));
            buf.fill(0x0102);
            assert_eq!((buf.len(), buf.bytes().len()), (len, 2 * len));
            assert!(buf.bytes().chunks_exact(2).all(|two| two == [2, 1]));
        }
    }
}
