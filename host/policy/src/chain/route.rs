//! The slots of a route decision: filters, then a router, or scorers and a picker.

use super::{Chain, Instead, Link, RouteDecision, asked, heard, instead};
use crate::builtin::{BestOfTwo, OverlapMinusLoad};
use crate::check;
use crate::error::Rejected;
use crate::instance::Instance;
use crate::slot::{DecidePolicy, Decided, FilterPolicy, PickPolicy, RouteView, ScorePolicy, Slot};
use std::sync::Arc;

/// One route decision in the making.
struct Asking {
    /// Plugins that are not asked.
    muted: u64,
    /// Whether a built-in policy took the place of a plugin that failed.
    fell_back: bool,
}

impl Chain {
    pub(crate) fn route(&self, muted: u64, view: &RouteView<'_>) -> Result<RouteDecision, Rejected> {
        let mut asking = Asking { muted, fell_back: false };
        let Some(kept) = self.filter(view, &mut asking)? else {
            return self.among(view, &mut asking);
        };
        // Scorers and pickers see the kept candidates only, so that a picker cannot take another.
        let candidates = view.candidates.select(&kept);
        let among = RouteView { candidates: &candidates, ..*view };
        let mut decision = self.among(&among, &mut asking)?;
        decision.candidate = kept[decision.candidate];
        if !decision.scores.is_empty() {
            let mut scores = vec![f32::NEG_INFINITY; view.candidates.rows()];
            kept.iter().zip(decision.scores).for_each(|(row, score)| scores[*row] = score);
            decision.scores = scores;
        }
        Ok(decision)
    }

    /// One of all candidates of the view: by the router if there is one, else by scores.
    fn among(&self, view: &RouteView<'_>, asking: &mut Asking) -> Result<RouteDecision, Rejected> {
        if let Some(decision) = self.decide(view, asking)? {
            return Ok(decision);
        }
        let scores = self.score(view, asking)?;
        let (candidate, decided_by) = self.pick(view, &scores, asking)?;
        Ok(RouteDecision { candidate, decided_by, scores, fell_back: asking.fell_back })
    }

    fn decide(&self, view: &RouteView<'_>, asking: &mut Asking) -> Result<Option<RouteDecision>, Rejected> {
        let Some(Link { seat, .. }) = self.route.as_ref().filter(|link| !link.is_muted(asking.muted)) else {
            return Ok(None);
        };
        let rows = view.candidates.rows();
        let call = |policy: &mut Instance| policy.decide(view);
        let check = |decided: &mut Decided| check::decided(decided, rows);
        match seat.ask(asked(Slot::Route, view.frame), call, check) {
            Ok(Some(Decided { candidate, reason })) => {
                if let Some(reason) = reason {
                    tracing::debug!(policy = &*seat.name, candidate, reason, "policy routed");
                }
                let (candidate, decided_by) = (candidate as usize, seat.name.clone());
                let fell_back = asking.fell_back;
                Ok(Some(RouteDecision { candidate, decided_by, scores: vec![], fell_back }))
            }
            Ok(None) => Ok(None),
            Err(outcome) => {
                asking.fell_back |= matches!(instead(seat, Slot::Route, outcome)?, Instead::Builtin);
                Ok(None)
            }
        }
    }

    /// The rows that every filter keeps; `None` for all. A filter that would leave nobody is not heard.
    fn filter(&self, view: &RouteView<'_>, asking: &mut Asking) -> Result<Option<Vec<usize>>, Rejected> {
        let rows = view.candidates.rows();
        let mut kept: Option<Vec<bool>> = None;
        for Link { seat, .. } in heard(&self.filter, asking.muted) {
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
                    asking.fell_back |= matches!(instead, Instead::Builtin);
                }
            }
        }
        let kept = kept.filter(|kept| kept.contains(&false));
        Ok(kept.map(|kept| (0..rows).filter(|row| kept[*row]).collect()))
    }

    /// The weighted sum of all scores; the built-in score if nobody had one.
    fn score(&self, view: &RouteView<'_>, asking: &mut Asking) -> Result<Vec<f32>, Rejected> {
        let rows = view.candidates.rows();
        let mut sum: Option<Vec<f32>> = None;
        for Link { seat, weight, .. } in heard(&self.score, asking.muted) {
            let call = |policy: &mut Instance| policy.score(view);
            let stats = seat.stats.slot(Slot::Score);
            let check =
                |scores: &mut Vec<f32>| check::scores(scores, rows).map(|clipped| stats.clipped(clipped));
            let scores = match seat.ask(asked(Slot::Score, view.frame), call, check) {
                Ok(answer) => answer,
                Err(outcome) => match instead(seat, Slot::Score, outcome)? {
                    Instead::Nothing => None,
                    Instead::Builtin => {
                        asking.fell_back = true;
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
        asking: &mut Asking,
    ) -> Result<(usize, Arc<str>), Rejected> {
        let rows = view.candidates.rows();
        if let Some(Link { seat, .. }) = self.pick.as_ref().filter(|link| !link.is_muted(asking.muted)) {
            let call = |policy: &mut Instance| policy.pick(view, scores);
            match seat.ask(asked(Slot::Pick, view.frame), call, |row| check::pick(*row, rows)) {
                Ok(Some(row)) => return Ok((row as usize, seat.name.clone())),
                Ok(None) => {}
                Err(outcome) => {
                    instead(seat, Slot::Pick, outcome)?;
                    asking.fell_back = true;
                }
            }
        }
        let row = BestOfTwo.pick(view, scores).unwrap_or(0);
        Ok((row as usize, self.builtin.clone()))
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
