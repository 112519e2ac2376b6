//! Witnesses: told of each decision with all that it was made from. A recorder is one, a shadow is one.
//!
//! **Invariant:** a witness sees a decision after it is made and cannot change it.

use crate::chain::{AdmitDecision, RetainDecision, RouteDecision, ScheduleDecision};
use crate::error::Rejected;
use crate::generation::Generation;
use crate::slot::{AdmitView, Clip, Frame, ObserveView, RetainView, RouteView, ScheduleView};
use parking_lot::MutexGuard;
use std::sync::Arc;

/// One decision, or one batch of outcomes.
#[derive(Debug)]
pub enum Seen<'a> {
    /// A request at the door.
    Admit(&'a AdmitView<'a>, &'a AdmitDecision),
    /// A request at the door, refused because a plugin failed that may not be replaced.
    AdmitRefused(&'a AdmitView<'a>, &'a Rejected),
    /// A request on its way, refused for the same reason.
    RouteRefused(&'a RouteView<'a>, &'a Rejected),
    /// A request on its way to a worker.
    Route(&'a RouteView<'a>, &'a RouteDecision),
    /// A worker's plan.
    Schedule(usize, &'a ScheduleView<'a>, &'a ScheduleDecision),
    /// What of a worker's cache is worth keeping.
    Retain(usize, &'a RetainView<'a>, &'a RetainDecision),
    /// What the host made less of.
    Clipped(usize, Frame, &'a [Clip]),
    /// What became of requests.
    Observe(&'a ObserveView<'a>),
}

/// Which chain of a generation decided, and which of its plugins were not asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// 0 is the default chain; named ones follow in their order.
    pub chain: usize,
    /// A bit for each plugin, in the order of names, that is not for this request.
    pub muted: u64,
}

/// Told of decisions.
pub trait Witness: Send + Sync {
    /// Held while a decision is made, by a witness that needs decisions one after the other.
    fn one_by_one(&self) -> Option<MutexGuard<'_, ()>> {
        None
    }

    /// Told that this generation is about to decide.
    fn before(&self, _generation: &Arc<Generation>) {}

    /// Told of a decision of this generation.
    fn see(&self, generation: &Arc<Generation>, way: Way, seen: &Seen<'_>);
}
