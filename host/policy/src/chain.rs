//! A chain: the plugins of each slot in order, and how their answers make one decision.
//!
//! **Invariant:** every decision is made. What no plugin decides, the built-in policy of the slot does.

use crate::builtin::{self, BestOfTwo, FirstCome, OverlapMinusLoad};
use crate::check;
use crate::error::Rejected;
use crate::instance::Instance;
use crate::seat::{Asked, Seat};
use crate::slot::{
    FilterPolicy, Frame, Hints, HintsPolicy, HintsView, ObservePolicy, ObserveView, PickPolicy, RouteView,
    SchedulePolicy, ScheduleView, ScorePolicy, Slot,
};
use crate::spec::OnFailure;
use crate::stats::Outcome;
use std::sync::Arc;

/// Which worker serves a request.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteDecision {
    /// Row of the candidate.
    pub candidate: usize,
    /// Name of the picker, or `builtin`.
    pub decided_by: Arc<str>,
    /// Weighted sum of the scores of each candidate; negative infinity for one that was filtered out.
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

/// In which order a worker starts its waiting sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduleDecision {
    /// A permutation of the waiting rows.
    pub order: Vec<u32>,
    /// Name of the scheduler, or `builtin`.
    pub decided_by: Arc<str>,
}

pub(crate) struct Chain {
    pub(crate) hints: Vec<Arc<Seat>>,
    pub(crate) filter: Vec<Arc<Seat>>,
    pub(crate) score: Vec<(Arc<Seat>, f32)>,
    pub(crate) pick: Option<Arc<Seat>>,
    pub(crate) schedule: Option<Arc<Seat>>,
    pub(crate) observe: Vec<Arc<Seat>>,
    pub(crate) builtin: Arc<str>,
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            hints: vec![],
            filter: vec![],
            score: vec![],
            pick: None,
            schedule: None,
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
    pub(crate) fn hints(&self, view: &HintsView<'_>) -> Result<HintsDecision, Rejected> {
        let mut decision = HintsDecision::default();
        for seat in &self.hints {
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

    pub(crate) fn route(&self, view: &RouteView<'_>) -> Result<RouteDecision, Rejected> {
        let mut fell_back = false;
        let Some(kept) = self.filter(view, &mut fell_back)? else {
            let scores = self.score(view, &mut fell_back)?;
            let (row, decided_by) = self.pick(view, &scores, &mut fell_back)?;
            return Ok(RouteDecision { candidate: row, decided_by, scores, fell_back });
        };
        // Scorers and pickers see the kept candidates only, so that a picker cannot take another.
        let candidates = view.candidates.select(&kept);
        let among = RouteView { candidates: &candidates, ..*view };
        let kept_scores = self.score(&among, &mut fell_back)?;
        let (row, decided_by) = self.pick(&among, &kept_scores, &mut fell_back)?;
        let mut scores = vec![f32::NEG_INFINITY; view.candidates.rows()];
        kept.iter().zip(kept_scores).for_each(|(row, score)| scores[*row] = score);
        Ok(RouteDecision { candidate: kept[row], decided_by, scores, fell_back })
    }

    /// The rows that every filter keeps; `None` for all. A filter that would leave nobody is not heard.
    fn filter(&self, view: &RouteView<'_>, fell_back: &mut bool) -> Result<Option<Vec<usize>>, Rejected> {
        let rows = view.candidates.rows();
        let mut kept: Option<Vec<bool>> = None;
        for seat in &self.filter {
            let call = |policy: &mut Instance| policy.filter(view);
            let check = |keep: &mut Vec<bool>| {
                check::filter(keep, rows)?;
                if let Some(kept) = &kept {
                    keep.iter_mut().zip(kept).for_each(|(mine, theirs)| *mine &= theirs);
                }
                if keep.contains(&true) { Ok(()) } else { Err("no candidate is left".to_owned()) }
            };
            match seat.ask(asked(Slot::Filter, view.frame), call, check) {
                Ok(Some(keep)) => kept = Some(keep),
                Ok(None) => {}
                Err(outcome) => {
                    let instead = instead(seat, Slot::Filter, outcome)?;
                    *fell_back |= matches!(instead, Instead::Builtin);
                }
            }
        }
        let kept = kept.filter(|kept| kept.contains(&false));
        Ok(kept.map(|kept| (0..rows).filter(|row| kept[*row]).collect()))
    }

    /// The weighted sum of all scores; the built-in score if nobody had one.
    fn score(&self, view: &RouteView<'_>, fell_back: &mut bool) -> Result<Vec<f32>, Rejected> {
        let rows = view.candidates.rows();
        let mut sum: Option<Vec<f32>> = None;
        for (seat, weight) in &self.score {
            let call = |policy: &mut Instance| policy.score(view);
            let stats = seat.stats.slot(Slot::Score);
            let check =
                |scores: &mut Vec<f32>| check::scores(scores, rows).map(|clipped| stats.clipped(clipped));
            let scores = match seat.ask(asked(Slot::Score, view.frame), call, check) {
                Ok(answer) => answer,
                Err(outcome) => match instead(seat, Slot::Score, outcome)? {
                    Instead::Nothing => None,
                    Instead::Builtin => {
                        *fell_back = true;
                        OverlapMinusLoad.score(view)
                    }
                },
            };
            if let Some(scores) = scores {
                add(&mut sum, scores, *weight);
            }
        }
        Ok(sum.or_else(|| OverlapMinusLoad.score(view)).unwrap_or_default())
    }

    fn pick(
        &self,
        view: &RouteView<'_>,
        scores: &[f32],
        fell_back: &mut bool,
    ) -> Result<(usize, Arc<str>), Rejected> {
        let rows = view.candidates.rows();
        if let Some(seat) = &self.pick {
            let call = |policy: &mut Instance| policy.pick(view, scores);
            match seat.ask(asked(Slot::Pick, view.frame), call, |row| check::pick(*row, rows)) {
                Ok(Some(row)) => return Ok((row as usize, seat.name.clone())),
                Ok(None) => {}
                Err(outcome) => {
                    instead(seat, Slot::Pick, outcome)?;
                    *fell_back = true;
                }
            }
        }
        let row = BestOfTwo.pick(view, scores).unwrap_or(0);
        Ok((row as usize, self.builtin.clone()))
    }

    pub(crate) fn schedule(&self, worker: usize, view: &ScheduleView<'_>) -> ScheduleDecision {
        let rows = view.waiting.rows();
        let builtin = || ScheduleDecision {
            order: FirstCome.order(view).unwrap_or_default(),
            decided_by: self.builtin.clone(),
        };
        let Some(seat) = &self.schedule else { return builtin() };
        let call = |policy: &mut Instance| policy.order(view);
        let check = |order: &mut Vec<u32>| check::order(order, rows, &mut vec![]);
        match seat.ask_worker(worker, view.frame.now_ms, call, check) {
            Ok(Some(order)) => ScheduleDecision { order, decided_by: seat.name.clone() },
            Ok(None) | Err(_) => builtin(),
        }
    }

    pub(crate) fn observe(&self, view: &ObserveView<'_>) {
        for seat in &self.observe {
            seat.tell(view.frame.now_ms, |policy| policy.observe(view));
        }
    }
}

fn add(sum: &mut Option<Vec<f32>>, mut scores: Vec<f32>, weight: f32) {
    match sum {
        None => {
            scores.iter_mut().for_each(|score| *score *= weight);
            *sum = Some(scores);
        }
        Some(sum) => sum.iter_mut().zip(scores).for_each(|(sum, score)| *sum += weight * score),
    }
}
