//! What a block is worth: the order in which blocks leave, and bounds on how many are asked to stay.
//!
//! Called by the worker, which turns answers of the `retain` slot into this; the pool orders by it.
//! **Invariant:** advice. A block that is kept still leaves when nothing else is left.

/// What a block is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// 0 to 100: a lower one leaves first.
    pub priority: u8,
    /// When the wish to keep it ends, on the clock of [`BlockPool::expire`](crate::BlockPool::expire); 0 for none.
    pub until_ms: u64,
    /// It leaves before all others: nobody will come for it.
    pub drop: bool,
}

impl Retention {
    /// Highest priority.
    pub const PRIORITY_MAX: u8 = 100;

    /// What a block has that nobody spoke for.
    pub const ORDINARY: Self = Self { priority: 50, until_ms: 0, drop: false };

    /// A block that leaves before all others.
    pub const DROPPED: Self = Self { priority: 0, until_ms: 0, drop: true };

    /// Whether there is a time until which it is to be kept.
    pub fn is_kept(self) -> bool {
        self.until_ms > 0
    }

    /// What a block has for which two spoke: it stays as long as either wants it.
    #[must_use]
    pub fn larger(self, other: Self) -> Self {
        match (self.drop, other.drop) {
            (true, false) => other,
            (false, true) => self,
            (drop, _) => Self {
                priority: self.priority.max(other.priority),
                until_ms: self.until_ms.max(other.until_ms),
                drop,
            },
        }
    }
}

/// How many pages may be kept at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeepBounds {
    /// By all together.
    pub pages_max: u32,
    /// By one tenant; callers without one count as one.
    pub tenant_pages_max: u32,
}

impl KeepBounds {
    /// No bound but the number of pages.
    pub const NONE: Self = Self { pages_max: u32::MAX, tenant_pages_max: u32::MAX };
}

/// A bound that a wish met.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum KeepBound {
    /// As many pages are kept as may be.
    Pages,
    /// As many pages are kept for this tenant as may be.
    Tenant,
}

/// What became of a wish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retained {
    /// The block has it.
    Granted,
    /// The block has all of it but the time.
    Unkept(KeepBound),
    /// The block is not resident.
    Absent,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(one: Retention, other: Retention, expected: Retention) {
        assert_eq!(one.larger(other), expected);
        assert_eq!(other.larger(one), expected);
    }

    #[test]
    fn of_two_wishes_each_part_is_the_larger() {
        let long = Retention { priority: 10, until_ms: 900, drop: false };
        let dear = Retention { priority: 90, until_ms: 100, drop: false };
        check(long, dear, Retention { priority: 90, until_ms: 900, drop: false });
        check(long, Retention::DROPPED, long);
        check(Retention::DROPPED, Retention::DROPPED, Retention::DROPPED);
    }
}
