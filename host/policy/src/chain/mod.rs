//! Chains: which plugin answers in which slot, and how their answers make one decision.
//!
//! **Invariant:** every decision is made. What no plugin decides, the built-in policy of the slot does.

mod route;
mod worker;

use crate::builtin;
use crate::check;
use crate::error::Rejected;
use crate::instance::Instance;
use crate::seat::{Asked, Seat};
use crate::slot::{
    Action, AdmitPolicy, AdmitView, Frame, Hints, HintsPolicy, HintsView, Keep, MiddlewarePolicy,
    MiddlewareView, ObservePolicy, ObserveView, SchedulePlan, Slot, Verdict,
};
use crate::spec::OnFailure;
use crate::stats::Outcome;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Which worker serves a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteDecision {
    /// Row of the candidate.
    pub candidate: usize,
    /// Name of the picker or router, or `builtin`.
    pub decided_by: Arc<str>,
    /// Weighted sum of the scores of each candidate; negative infinity for one that was filtered out. Empty
    /// where a router decided.
    pub scores: Vec<f32>,
    /// Whether a built-in policy took the place of a plugin that failed.
    pub fell_back: bool,
}

/// What a request's caller wishes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HintsDecision {
    /// The hints, within bounds.
    pub hints: Hints,
    /// The plugins that had something to say.
    pub by: Vec<Arc<str>>,
}

/// What becomes of a request at the door.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmitDecision {
    /// The strictest verdict.
    pub verdict: Verdict,
    /// Who gave it, or `builtin`.
    pub decided_by: Arc<str>,
}

/// What a worker does next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleDecision {
    /// Order, sizes and victims.
    pub plan: SchedulePlan,
    /// Name of the scheduler, or `builtin`.
    pub decided_by: Arc<str>,
}

/// What of a worker's cache is worth keeping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetainDecision {
    /// One a segment.
    pub keeps: Vec<Keep>,
    /// Who said so, or `builtin`.
    pub decided_by: Arc<str>,
}

/// A plugin in a slot of a chain.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) seat: Arc<Seat>,
    /// Factor of its scores.
    pub(crate) weight: f32,
    /// Its place among the plugins of the generation.
    pub(crate) bit: u32,
}

impl Link {
    fn is_muted(&self, muted: u64) -> bool {
        muted >> self.bit & 1 == 1
    }
}

/// Links of one request: those of its chain but for the muted.
fn heard(links: &[Link], muted: u64) -> impl Iterator<Item = &Link> {
    links.iter().filter(move |link| !link.is_muted(muted))
}

pub(crate) struct Chain {
    pub(crate) name: Arc<str>,
    pub(crate) middleware: Vec<Link>,
    pub(crate) hints: Vec<Link>,
    pub(crate) admit: Vec<Link>,
    pub(crate) filter: Vec<Link>,
    pub(crate) score: Vec<Link>,
    pub(crate) pick: Option<Link>,
    pub(crate) route: Option<Link>,
    pub(crate) schedule: Option<Link>,
    pub(crate) retain: Option<Link>,
    pub(crate) observe: Vec<Link>,
    pub(crate) builtin: Arc<str>,
}

impl Chain {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            middleware: vec![],
            hints: vec![],
            admit: vec![],
            filter: vec![],
            score: vec![],
            pick: None,
            route: None,
            schedule: None,
            retain: None,
            observe: vec![],
            builtin: builtin::NAME.into(),
        }
    }
}

/// What a failed call means for the decision.
enum Instead {
    /// The built-in policy answers in its place.
    Builtin,
    /// It counts as abstained.
    Nothing,
}

fn instead(seat: &Seat, slot: Slot, outcome: Outcome) -> Result<Instead, Rejected> {
    match seat.spec.on_failure {
        OnFailure::Fallback => Ok(Instead::Builtin),
        OnFailure::Skip => Ok(Instead::Nothing),
        OnFailure::Reject => Err(Rejected { plugin: seat.name.clone(), slot, outcome }),
    }
}

fn asked(slot: Slot, frame: Frame) -> Asked {
    Asked { slot, now_ms: frame.now_ms }
}

impl Chain {
    /// The request as it came through one middleware. Errors: it failed, and may not be left out.
    pub(crate) fn middleware(
        &self,
        muted: u64,
        place: usize,
        view: &MiddlewareView<'_>,
    ) -> Option<Result<Action, Rejected>> {
        let Link { seat, .. } = heard(&self.middleware, muted).nth(place)?;
        let call = |policy: &mut Instance| policy.handle(view);
        let check = |action: &mut Action| check::action(action);
        Some(match seat.ask(asked(Slot::Middleware, view.frame), call, check) {
            Ok(answer) => Ok(answer.unwrap_or(Action::Continue)),
            // A guard that fails open is none: the built-in of this slot refuses.
            Err(_) if seat.spec.on_failure == OnFailure::Skip => Ok(Action::Continue),
            Err(outcome) => Err(Rejected { plugin: seat.name.clone(), slot: Slot::Middleware, outcome }),
        })
    }

    /// Whether any plugin is heard in a slot.
    pub(crate) fn asks(&self, muted: u64, slot: Slot) -> bool {
        let links = match slot {
            Slot::Middleware => self.middleware.as_slice(),
            Slot::Hints => &self.hints,
            Slot::Admit => &self.admit,
            Slot::Filter => &self.filter,
            Slot::Score => &self.score,
            Slot::Pick => self.pick.as_slice(),
            Slot::Route => self.route.as_slice(),
            Slot::Schedule => self.schedule.as_slice(),
            Slot::Retain => self.retain.as_slice(),
            Slot::Observe => &self.observe,
        };
        heard(links, muted).next().is_some()
    }

    /// `said`: what is known before anybody is asked.
    pub(crate) fn hints(
        &self,
        muted: u64,
        view: &HintsView<'_>,
        said: Hints,
    ) -> Result<HintsDecision, Rejected> {
        let mut decision = HintsDecision { hints: said, by: Vec::new() };
        for Link { seat, .. } in heard(&self.hints, muted) {
            let call = |policy: &mut Instance| policy.interpret(view, &decision.hints);
            match seat.ask(asked(Slot::Hints, view.frame), call, |hints| check::hints(hints)) {
                Ok(Some(hints)) => {
                    decision.hints = hints;
                    decision.by.push(seat.name.clone());
                }
                Ok(None) => {}
                // The built-in interpreter has no hints, so that both ways out are the same.
                Err(outcome) => {
                    let (Instead::Builtin | Instead::Nothing) = instead(seat, Slot::Hints, outcome)?;
                }
            }
        }
        Ok(decision)
    }

    /// The strictest of all verdicts: one that rejects ends it, and the latest deferral holds.
    pub(crate) fn admit(&self, muted: u64, view: &AdmitView<'_>) -> Result<AdmitDecision, Rejected> {
        let mut decision = AdmitDecision { verdict: Verdict::Admit, decided_by: self.builtin.clone() };
        for Link { seat, .. } in heard(&self.admit, muted) {
            let call = |policy: &mut Instance| policy.admit(view);
            match seat.ask(asked(Slot::Admit, view.frame), call, |verdict| check::verdict(verdict)) {
                Ok(Some(verdict @ Verdict::Reject { .. })) => {
                    return Ok(AdmitDecision { verdict, decided_by: seat.name.clone() });
                }
                Ok(Some(Verdict::DeferUntil(until_ms))) => {
                    if !matches!(decision.verdict, Verdict::DeferUntil(other) if other >= until_ms) {
                        let verdict = Verdict::DeferUntil(until_ms);
                        decision = AdmitDecision { verdict, decided_by: seat.name.clone() };
                    }
                }
                Ok(Some(Verdict::Admit) | None) => {}
                // The built-in lets everyone in: the host has counted seats before anybody is asked.
                Err(outcome) => {
                    let (Instead::Builtin | Instead::Nothing) = instead(seat, Slot::Admit, outcome)?;
                }
            }
        }
        Ok(decision)
    }

    pub(crate) fn observe(&self, muted: u64, view: &ObserveView<'_>) {
        for Link { seat, .. } in heard(&self.observe, muted) {
            seat.tell(view.frame.now_ms, |policy| policy.observe(view));
        }
    }
}
