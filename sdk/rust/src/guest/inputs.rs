//! What each slot declares: a function a slot, named as in [`crate::export!`].
//!
//! **Invariant:** tables are listed in the order in which their cells cross.

use crate::columns::Columns;
use crate::slot::{Admit, Filter, Interpret, Observe, Pick, Plan, Retain, Route, Schedule, Score, State};

/// A slot and the columns declared for each of its tables.
pub struct SlotInputs {
    pub(super) slot: &'static str,
    pub(super) tables: Vec<(&'static str, Columns)>,
}

fn slot<const N: usize>(slot: &'static str, tables: [(&'static str, Columns); N]) -> Option<SlotInputs> {
    Some(SlotInputs { slot, tables: tables.into() })
}

/// Columns of `hints`: none.
pub fn hints<P: Interpret>() -> Option<SlotInputs> {
    slot("hints", [])
}

/// Columns of `admit`.
pub fn admit<P: Admit>() -> Option<SlotInputs> {
    slot("admit", [("request", P::REQUEST), ("fleet", P::FLEET)])
}

/// Columns of `filter`.
pub fn filter<P: Filter>() -> Option<SlotInputs> {
    slot("filter", [("request", P::REQUEST), ("candidate", P::CANDIDATE)])
}

/// Columns of `score`.
pub fn score<P: Score>() -> Option<SlotInputs> {
    slot("score", [("request", P::REQUEST), ("candidate", P::CANDIDATE)])
}

/// Columns of `pick`.
pub fn pick<P: Pick>() -> Option<SlotInputs> {
    slot("pick", [("request", P::REQUEST), ("candidate", P::CANDIDATE)])
}

/// Columns of `route`.
pub fn route<P: Route>() -> Option<SlotInputs> {
    slot("route", [("request", P::REQUEST), ("candidate", P::CANDIDATE)])
}

/// Columns of `schedule`.
pub fn schedule<P: Schedule>() -> Option<SlotInputs> {
    slot("schedule", [("budget", P::BUDGET), ("sequence", P::SEQUENCE)])
}

/// Columns of `plan`, which answers the slot `schedule`.
pub fn plan<P: Plan>() -> Option<SlotInputs> {
    slot("schedule", [("budget", P::BUDGET), ("sequence", P::SEQUENCE)])
}

/// Columns of `retain`.
pub fn retain<P: Retain>() -> Option<SlotInputs> {
    slot("retain", [("cache", P::CACHE), ("segment", P::SEGMENT)])
}

/// Columns of `observe`.
pub fn observe<P: Observe>() -> Option<SlotInputs> {
    slot("observe", [("outcome", P::OUTCOME)])
}

/// `state` is no slot.
pub fn state<P: State>() -> Option<SlotInputs> {
    None
}
