//! What blocks are worth: wishes, their bounds, and when they end.
//!
//! Called by the worker with the answers of the `retain` slot; without any, nothing here is ever reached but
//! an empty set.
//! **Invariant:** a page is in `kept` exactly while its block is resident and has a time until which it is kept.

use super::BlockPool;
use crate::page::Page;
use crate::{BlockName, KeepBound, KeepBounds, Retained, Retention};

impl BlockPool {
    /// The same pool with a bound on how much is kept at once.
    #[must_use]
    pub fn with_keep_bounds(mut self, bounds: KeepBounds) -> Self {
        self.keep_bounds = bounds;
        self
    }

    /// Bounds how much is kept from here on. What is kept already stays so until its time ends.
    pub fn set_keep_bounds(&mut self, bounds: KeepBounds) {
        self.keep_bounds = bounds;
    }

    /// Says what a block is worth from here on. A block that is dropped is not kept.
    ///
    /// Cost: one look-up where nothing changes; else O(log pages).
    pub fn retain(&mut self, name: BlockName, wanted: Retention, tenant: u64) -> Retained {
        assert!(wanted.priority <= Retention::PRIORITY_MAX, "a priority is 0 to 100");
        let Some(this) = self.find(&name) else { return Retained::Absent };
        let mut wanted = if wanted.drop { Retention::DROPPED } else { wanted };
        let met = match wanted.is_kept() && !self.page(this).retention().is_kept() {
            true => self.bound_of(tenant),
            false => None,
        };
        if met.is_some() {
            wanted.until_ms = 0;
        }
        self.set_retention(this, wanted, tenant);
        met.map_or(Retained::Granted, Retained::Unkept)
    }

    /// What a resident block is worth.
    pub fn retention(&self, name: &BlockName) -> Option<Retention> {
        self.find(name).map(|page| self.page(page).retention())
    }

    /// Ends what was to be kept until now; how many blocks that were.
    ///
    /// Cost: O(1) where nothing ends, O(log pages) for each page that does.
    pub fn expire(&mut self, now_ms: u64) -> u32 {
        let before = self.kept.len();
        while let Some(&(until_ms, this)) = self.kept.first()
            && until_ms <= now_ms
        {
            let retention = Retention { until_ms: 0, ..self.page(this).retention() };
            self.set_retention(this, retention, 0);
        }
        (before - self.kept.len()) as u32
    }

    /// When the first of what is kept for a time ends; `None` if nothing is.
    pub fn kept_until(&self) -> Option<u64> {
        self.kept.first().map(|(until_ms, _)| *until_ms)
    }

    /// What is kept for a time: what each block is worth, and who is charged for it.
    pub fn kept(&self) -> impl Iterator<Item = (Retention, u64)> + '_ {
        self.kept.iter().map(|&(_, this)| {
            let page = self.page(this);
            (page.retention(), page.tenant)
        })
    }

    /// Forgets what all blocks are worth: least recently used leaves first.
    ///
    /// Cost: O(pages).
    pub fn forget_retention(&mut self) {
        let named: Vec<u32> = self.resident.iter().copied().collect();
        for page in named {
            self.set_retention(page, Retention::ORDINARY, 0);
        }
    }

    /// Notes that these blocks were found again.
    pub fn count_hits(&mut self, names: &[BlockName]) {
        for name in names {
            if let Some(page) = self.find(name) {
                let page = self.page_mut(page);
                page.hits = page.hits.saturating_add(1);
            }
        }
    }

    /// How often a block was found again since it became resident.
    pub fn hits(&self, name: &BlockName) -> u32 {
        self.find(name).map_or(0, |page| u32::from(self.page(page).hits))
    }

    /// The bound that one more page for a tenant would break.
    fn bound_of(&self, tenant: u64) -> Option<KeepBound> {
        let of_tenant = self.kept_by_tenant.get(&tenant).copied().unwrap_or(0);
        if self.kept.len() >= self.keep_bounds.pages_max as usize {
            return Some(KeepBound::Pages);
        }
        (of_tenant >= self.keep_bounds.tenant_pages_max).then_some(KeepBound::Tenant)
    }

    pub(super) fn set_retention(&mut self, this: u32, retention: Retention, tenant: u64) {
        let before = self.page(this).retention();
        if before == retention {
            return;
        }
        let old_rank = self.page(this).rank();
        let leaf = self.is_evictable_leaf(this);
        self.dropped = self.dropped + u32::from(retention.drop) - u32::from(before.drop);
        if before.until_ms != retention.until_ms {
            let charged = if before.is_kept() { self.page(this).tenant } else { tenant };
            self.kept.remove(&(before.until_ms, this));
            self.charge(charged, before.is_kept(), retention.is_kept());
            if retention.is_kept() {
                self.kept.insert((retention.until_ms, this));
            }
            self.page_mut(this).tenant = charged;
        }
        let page = self.page_mut(this);
        page.set_retention(retention);
        let rank = page.rank();
        if leaf && rank != old_rank {
            self.leaves.remove(&(old_rank, this));
            self.leaves.insert((rank, this));
        }
    }

    /// A page leaves, and with it what was wished for its block.
    pub(super) fn let_expire(&mut self, this: u32, page: &Page) {
        if page.retention().is_kept() {
            self.kept.remove(&(page.retention().until_ms, this));
            self.charge(page.tenant, true, false);
        }
    }

    fn charge(&mut self, tenant: u64, was_kept: bool, is_kept: bool) {
        let pages = self.kept_by_tenant.entry(tenant).or_default();
        *pages = *pages + u32::from(is_kept) - u32::from(was_kept);
        if *pages == 0 {
            self.kept_by_tenant.remove(&tenant);
        }
    }
}
