//! What goes wrong in a simulated fleet, and when.

use serde::{Deserialize, Serialize};

/// Something that happens to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Place of the worker.
    pub worker: usize,
    /// What happens to it.
    pub kind: FaultKind,
    /// Seconds from the start.
    pub at_s: f64,
    /// Seconds until it is over.
    pub for_s: f64,
}

/// What happens to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// It loses its device and its cache; its sequences go on elsewhere, from where they were.
    Crash,
    /// Its steps take so many times as long.
    Slow {
        /// How many times.
        factor: f64,
    },
    /// Nobody reaches it: it goes on with what it has, its answers and news of its cache come when it is over.
    Partition,
}
