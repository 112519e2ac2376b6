//! Who is inside and who waits at the door, by tenant.
//!
//! `admit.rs` opens it; the counts are columns of its slot, and metrics.
//! **Invariant:** every request that is counted here holds a [`Place`], and is counted no longer than that:
//! a tenant of whom nobody is here takes no memory.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use rustc_hash::FxHashMap;
use tokio_util::sync::CancellationToken;

/// Requests: of the whole host, or of one tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Let in and not yet answered.
    pub running: u32,
    /// Waiting to be asked about again.
    pub deferred: u32,
}

impl Count {
    fn of(&mut self, standing: Standing) -> &mut u32 {
        match standing {
            Standing::Inside => &mut self.running,
            Standing::Waiting => &mut self.deferred,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Inside,
    Waiting,
}

#[derive(Debug, Default)]
struct Counts {
    all: Count,
    /// As many entries as there are tenants with a request here, so no more than seats.
    tenants: FxHashMap<u64, Count>,
}

/// The door of a host.
#[derive(Debug, Default)]
pub struct Door {
    counts: Mutex<Counts>,
    deciding: Mutex<()>,
    closed: CancellationToken,
}

/// A request that is counted, until this is dropped.
#[derive(Debug)]
pub struct Place {
    door: Arc<Door>,
    tenant: u64,
    standing: Standing,
}

impl Door {
    /// Counts of the host and of one tenant.
    pub fn count(&self, tenant: u64) -> (Count, Count) {
        let counts = self.counts.lock();
        (counts.all, counts.tenants.get(&tenant).copied().unwrap_or_default())
    }

    /// Held from the count that a policy is shown until its verdict is counted: two requests that come together are
    /// not both the last one that a quota has room for.
    pub(crate) fn decide(&self) -> MutexGuard<'_, ()> {
        self.deciding.lock()
    }

    /// A place inside.
    pub fn let_in(self: &Arc<Self>, tenant: u64) -> Place {
        self.place(&mut self.counts.lock(), tenant, Standing::Inside)
    }

    /// A place among those who wait; `None` if `max` do.
    pub fn wait(self: &Arc<Self>, tenant: u64, max: usize) -> Option<Place> {
        let mut counts = self.counts.lock();
        ((counts.all.deferred as usize) < max).then(|| self.place(&mut counts, tenant, Standing::Waiting))
    }

    fn place(self: &Arc<Self>, counts: &mut Counts, tenant: u64, standing: Standing) -> Place {
        *counts.all.of(standing) += 1;
        *counts.tenants.entry(tenant).or_default().of(standing) += 1;
        Place { door: Arc::clone(self), tenant, standing }
    }

    /// Sends away whoever waits, now and from here on.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Resolves when nobody may wait any more.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.door.counts.lock();
        *counts.all.of(self.standing) -= 1;
        if let Some(count) = counts.tenants.get_mut(&self.tenant) {
            *count.of(self.standing) -= 1;
            if *count == Count::default() {
                counts.tenants.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WAITING_MAX: usize = 3;

    #[test]
    fn no_more_wait_than_may() {
        let door = Arc::new(Door::default());
        let waiting: Vec<_> = (0..5).map(|tenant| door.wait(tenant, WAITING_MAX)).collect();
        assert_eq!(waiting.iter().filter(|place| place.is_some()).count(), WAITING_MAX);
        drop(waiting);
        assert!(door.wait(0, WAITING_MAX).is_some());
    }

    proptest! {
        /// Whoever comes and goes, the counts are those of the places held, and an empty house holds nothing.
        #[test]
        fn counts_are_those_of_the_places_held(
            acts in prop::collection::vec((0u64..4, any::<bool>(), any::<prop::sample::Index>()), 0..60),
        ) {
            let door = Arc::new(Door::default());
            let mut held: Vec<Place> = vec![];
            for (tenant, comes, which) in acts {
                match comes {
                    true if tenant % 2 == 0 => held.push(door.let_in(tenant)),
                    true => held.extend(door.wait(tenant, WAITING_MAX)),
                    false if held.is_empty() => {}
                    false => drop(held.swap_remove(which.index(held.len()))),
                }
                let of = |standing, tenant: Option<u64>| {
                    let counted = |p: &&Place| p.standing == standing && tenant.is_none_or(|t| t == p.tenant);
                    held.iter().filter(counted).count() as u32
                };
                for tenant in 0..4 {
                    let expected = |tenant| Count {
                        running: of(Standing::Inside, tenant),
                        deferred: of(Standing::Waiting, tenant),
                    };
                    prop_assert_eq!(door.count(tenant), (expected(None), expected(Some(tenant))));
                }
            }
            drop(held);
            prop_assert!(door.counts.lock().tenants.is_empty());
        }
    }
}
