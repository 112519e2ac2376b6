//! Questions to a policy by slot, built by column name or drawn from a seed.

mod outcome;
mod request;
mod worker;

pub use outcome::ObserveCase;
pub use request::{AdmitCase, HintsCase, RouteCase};
pub use worker::{RetainCase, ScheduleCase};
