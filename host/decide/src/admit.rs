//! The house as a request at its door sees it, to the `admit` slot.

use policy::{ADMIT_FLEET, Table};

use crate::{Reading, fill_row};

/// Milliseconds for which a policy may have a request wait, unless an operator says otherwise. Chosen: callers wait for longer.
pub const DEFER_MS_MAX: u64 = 10_000;
/// Requests that wait so at once, unless an operator says otherwise. Chosen: half of those that a host lets in.
pub const DEFERRED_MAX: u32 = 128;

/// Requests of a host, without the one that is asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct House {
    /// Let in and not yet answered.
    pub running: u32,
    /// Most requests at once.
    pub requests_max: u32,
    /// Waiting to be asked about again.
    pub deferred: u32,
    /// Those of its tenant that were let in.
    pub tenant_running: u32,
    /// Those of its tenant that wait.
    pub tenant_deferred: u32,
}

/// The row of a house whose workers have these loads.
pub fn fleet(house: &House, loads: &[Reading]) -> Table {
    let sum = |cell: fn(&Reading) -> f32| loads.iter().map(cell).sum::<f32>();
    let numbers = [
        house.running as f32,
        house.requests_max as f32,
        house.deferred as f32,
        house.tenant_running as f32,
        house.tenant_deferred as f32,
        loads.len() as f32,
        sum(|load| load.queue_len),
        sum(|load| load.running),
        sum(|load| load.queued_tokens),
        sum(|load| load.active_tokens),
        sum(|load| load.kv_used) / loads.len().max(1) as f32,
    ];
    let mut fleet = Table::new(&ADMIT_FLEET, 1);
    fill_row(&mut fleet, &numbers, &[]);
    fleet
}
