//! The slots of a worker: its plan, and what of its cache is worth keeping.

use super::{Chain, Link, RetainDecision, ScheduleDecision};
use crate::builtin::FirstCome;
use crate::check;
use crate::instance::Instance;
use crate::seat::Asked;
use crate::slot::{
    Clip, Frame, Keep, RetainPolicy, RetainView, SchedulePlan, SchedulePolicy, ScheduleView, Slot,
};

impl Chain {
    /// Whether the scheduler plans more than an order.
    pub(crate) fn plans(&self) -> bool {
        self.schedule.as_ref().is_some_and(|link| link.seat.compiled.exports.plan.is_some())
    }

    pub(crate) fn schedule(&self, worker: usize, view: &ScheduleView<'_>) -> ScheduleDecision {
        let (waiting, running) = (view.waiting.rows(), view.running.rows());
        let builtin = || ScheduleDecision {
            plan: FirstCome.plan(view).unwrap_or_default(),
            decided_by: self.builtin.clone(),
        };
        let Some(Link { seat, .. }) = &self.schedule else { return builtin() };
        let call = |policy: &mut Instance| policy.plan(view);
        let check = |plan: &mut SchedulePlan| check::plan(plan, waiting, running);
        let asked = Asked { slot: Slot::Schedule, now_ms: view.frame.now_ms };
        match seat.ask_worker(worker, asked, call, check) {
            Ok(Some(plan)) => ScheduleDecision { plan, decided_by: seat.name.clone() },
            Ok(None) | Err(_) => builtin(),
        }
    }

    pub(crate) fn retain(&self, worker: usize, view: &RetainView<'_>) -> RetainDecision {
        let rows = view.segments.rows();
        let builtin =
            || RetainDecision { keeps: vec![Keep::ORDINARY; rows], decided_by: self.builtin.clone() };
        let Some(Link { seat, .. }) = &self.retain else { return builtin() };
        let call = |policy: &mut Instance| policy.retain(view);
        let stats = seat.stats.slot(Slot::Retain);
        let check = |keeps: &mut Vec<Keep>| check::keeps(keeps, rows).map(|clipped| stats.clipped(clipped));
        let asked = Asked { slot: Slot::Retain, now_ms: view.frame.now_ms };
        match seat.ask_worker(worker, asked, call, check) {
            Ok(Some(keeps)) => RetainDecision { keeps, decided_by: seat.name.clone() },
            Ok(None) | Err(_) => builtin(),
        }
    }

    /// Counts what the host clipped of an answer, and tells the policy that gave it.
    pub(crate) fn clipped(&self, worker: usize, frame: Frame, clips: &[Clip]) {
        let Some(Link { seat, .. }) = &self.retain else { return };
        seat.stats.slot(Slot::Retain).clipped(clips.len() as u64);
        let call = |policy: &mut Instance| policy.clipped(frame, clips);
        seat.tell_worker(worker, frame.now_ms, call);
    }
}
