//! When the wish to keep a block ends, by the second.
//!
//! A wish that changes leaves its old note behind, which is passed over when its time comes; `residents` has the
//! notes written afresh when most are stale.
//! **Invariant:** every block that is kept has a note at the second at which that ends.

use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct Expiry {
    notes: BTreeMap<u32, Vec<u32>>,
    len: usize,
}

impl Expiry {
    /// Notes that what `slot` holds is kept until `second`.
    pub(super) fn note(&mut self, second: u32, slot: u32) {
        self.notes.entry(second).or_default().push(slot);
        self.len += 1;
    }

    /// The next slots whose time has come by `second`, with the second that was noted.
    pub(super) fn due(&mut self, second: u32) -> Option<(u32, Vec<u32>)> {
        let first = self.notes.first_entry().filter(|notes| *notes.key() <= second)?;
        let due = first.remove_entry();
        self.len -= due.1.len();
        Some(due)
    }

    /// Notes, stale ones too.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
