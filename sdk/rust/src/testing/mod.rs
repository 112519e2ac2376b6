//! For unit tests of policies, natively: cases with named columns, and the laws of each slot.
//!
//! **Invariant:** a case shows a policy exactly the columns that it declared, as a host would.

mod cases;
pub mod laws;
mod rows;
#[cfg_attr(target_arch = "wasm32", allow(dead_code, reason = "a component has the store of its host"))]
pub(crate) mod store;
mod twins;

pub use cases::{AdmitCase, HintsCase, ObserveCase, RetainCase, RouteCase, ScheduleCase};
pub use rows::Rows;
pub use store::{clear_store, set_store_quota};

use crate::host::Level;
use crate::slot::Policy;
use std::cell::RefCell;

/// Something that a policy said to its host.
#[derive(Clone, Debug)]
pub enum Said {
    /// A log line.
    Log {
        /// How grave.
        level: Level,
        /// The line.
        message: String,
    },
    /// An addition to a counter.
    Counter {
        /// Name of the counter.
        name: String,
        /// Addend.
        value: u64,
    },
    /// A gauge.
    Gauge {
        /// Name of the gauge.
        name: String,
        /// Its value.
        value: f64,
    },
}

thread_local! {
    static SAID: RefCell<Vec<Said>> = const { RefCell::new(Vec::new()) };
}

#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn record(said: Said) {
    SAID.with_borrow_mut(|all| all.push(said));
}

/// What policies on this thread said since the last call.
pub fn said() -> Vec<Said> {
    SAID.take()
}

/// A policy with these settings, in JSON.
pub fn policy<P: Policy>(config: &str) -> P {
    try_policy(config).expect("the settings are those of the test")
}

/// A policy with these settings, or why they were refused.
pub fn try_policy<P: Policy>(config: &str) -> Result<P, String> {
    P::new(serde_json::from_str(config).map_err(|error| error.to_string())?)
}
