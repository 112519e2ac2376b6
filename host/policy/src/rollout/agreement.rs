//! What a shadow's decisions came to beside the live ones.
//!
//! **Invariant:** a decision that the candidate did not make, or made only because a plugin was replaced, is counted
//! as such.

use super::report::{AgreementReport, RouteDeltas};
use crate::chain::RouteDecision;
use crate::error::Rejected;
use crate::slot::{ROUTE_CANDIDATE, Slot};
use crate::table::Table;
use std::collections::BTreeMap;

/// Sums over decisions.
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    slots: BTreeMap<Slot, Sums>,
    route: RouteSums,
}

#[derive(Debug, Default)]
struct Sums {
    compared: u64,
    agreed: u64,
    rejected: u64,
}

#[derive(Debug, Default)]
struct RouteSums {
    routed: u64,
    scored: u64,
    fell_back: u64,
    score: f64,
    score_max: f64,
    overlap_tokens: f64,
    queue_len: f64,
    load_tokens: f64,
}

/// What the candidate did where the live generation had decided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Both<'a> {
    pub(crate) live: usize,
    pub(crate) live_scores: &'a [f32],
    pub(crate) candidate: &'a RouteDecision,
    pub(crate) view: &'a Table,
}

impl Agreement {
    /// Counts a decision of both.
    pub(crate) fn compared(&mut self, slot: Slot, agreed: bool) {
        let sums = self.slots.entry(slot).or_default();
        sums.compared += 1;
        sums.agreed += u64::from(agreed);
    }

    /// Counts a request that the candidate would have refused for want of a policy.
    pub(crate) fn rejected(&mut self, by: &Rejected, slot: Slot) {
        tracing::debug!(policy = &*by.plugin, slot = slot.as_str(), "the shadow has no decision");
        self.compared(slot, false);
        self.slots.entry(slot).or_default().rejected += 1;
    }

    /// Counts a route of both, and by how much they differ.
    pub(crate) fn routed(&mut self, Both { live, live_scores, candidate, view }: Both<'_>) {
        self.compared(Slot::Route, candidate.candidate == live);
        let sums = &mut self.route;
        let cell = |name: &str, row: usize| {
            let column = ROUTE_CANDIDATE.number(name).expect("the contract has this column");
            f64::from(view.numbers(column)[row])
        };
        let more = |name: &str| cell(name, candidate.candidate) - cell(name, live);
        sums.routed += 1;
        sums.fell_back += u64::from(candidate.fell_back);
        sums.overlap_tokens += more("overlap_tokens");
        sums.queue_len += more("queue_len");
        sums.load_tokens += more("queued_tokens") + more("active_tokens");
        let pairs = live_scores.iter().zip(&candidate.scores);
        let deltas = pairs.map(|(a, b)| f64::from((a - b).abs())).filter(|delta| delta.is_finite());
        let (count, sum, max) = deltas
            .fold((0u32, 0.0, 0f64), |(count, sum, max), delta| (count + 1, sum + delta, max.max(delta)));
        if count > 0 {
            sums.scored += 1;
            sums.score += sum / f64::from(count);
            sums.score_max = sums.score_max.max(max);
        }
    }

    /// What was seen of each slot: `decisions` are those that the live generation made, `dropped` those of them that
    /// the candidate was never asked about.
    pub(crate) fn report(&self, slot: Slot, decisions: u64, dropped: u64) -> AgreementReport {
        let none = Sums::default();
        let Sums { compared, agreed, rejected } = *self.slots.get(&slot).unwrap_or(&none);
        AgreementReport {
            decisions,
            compared,
            dropped,
            agreed,
            rejected,
            compared_share: share(compared, decisions),
            agreement: share(agreed, compared),
            route: (slot == Slot::Route && self.route.routed > 0).then(|| self.route.report()),
        }
    }
}

impl RouteSums {
    fn report(&self) -> RouteDeltas {
        let mean = |sum: f64| sum / self.routed.max(1) as f64;
        RouteDeltas {
            score_delta_mean: self.score / self.scored.max(1) as f64,
            score_delta_max: self.score_max,
            overlap_tokens_delta: mean(self.overlap_tokens),
            queue_len_delta: mean(self.queue_len),
            load_tokens_delta: mean(self.load_tokens),
            fell_back: self.fell_back,
        }
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_the_candidates_choice_minus_the_live_one() {
        let mut view = Table::new(&ROUTE_CANDIDATE, 2);
        view.numbers_mut(0).copy_from_slice(&[100.0, 40.0]);
        view.numbers_mut(1).copy_from_slice(&[3.0, 1.0]);
        view.numbers_mut(3).copy_from_slice(&[500.0, 100.0]);
        let scores = vec![0.5, f32::NEG_INFINITY];
        let candidate = RouteDecision { candidate: 1, decided_by: "x".into(), scores, fell_back: true };
        let mut agreement = Agreement::default();
        let both = Both { live: 0, live_scores: &[1.0, 1.0], candidate: &candidate, view: &view };
        agreement.routed(both);
        agreement.routed(Both { live: 1, ..both });
        let report = agreement.report(Slot::Route, 4, 1);
        assert_eq!((report.compared, report.agreed, report.agreement), (2, 1, 0.5));
        assert_eq!((report.decisions, report.dropped, report.compared_share), (4, 1, 0.5));
        let route = report.route.expect("there were routes");
        assert_eq!((route.score_delta_mean, route.score_delta_max), (0.5, 0.5), "filtered rows do not count");
        assert_eq!((route.overlap_tokens_delta, route.queue_len_delta), (-30.0, -1.0));
        assert_eq!((route.load_tokens_delta, route.fell_back), (-200.0, 2));
    }

    #[test]
    fn nothing_compared_is_no_agreement() {
        let report = Agreement::default().report(Slot::Admit, 0, 0);
        assert_eq!((report.agreement, report.compared_share, report.route), (0.0, 0.0, None));
    }
}
