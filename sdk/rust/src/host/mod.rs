//! What a policy may say to its host: log lines and metrics. Natively they are recorded for tests.
//!
//! **Invariant:** neither returns anything, so that no decision can depend on them. What [`store`] returns is
//! the policy's own: part of its state.

pub mod store;

pub use crate::bindings::describe::pointsman::policy::log::Level;

/// A log line. The host cuts long ones and drops those that come too fast.
pub fn log(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::describe::pointsman::policy::log::log(level, message);
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::record(crate::testing::Said::Log { level, message: message.to_owned() });
}

/// Adds to a counter. `name` is lower case with underscores.
pub fn counter_add(name: &str, value: u64) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::describe::pointsman::policy::metrics::counter_add(name, value);
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::record(crate::testing::Said::Counter { name: name.to_owned(), value });
}

/// Sets a gauge.
pub fn gauge_set(name: &str, value: f64) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::describe::pointsman::policy::metrics::gauge_set(name, value);
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::record(crate::testing::Said::Gauge { name: name.to_owned(), value });
}
