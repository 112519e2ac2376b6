//! What was decided beside what is decided again: agreement, hits, load, order.
//!
//! **Invariant:** answers are the same only if every bit is.

use super::format::Answered;
use crate::chain::{AdmitDecision, RetainDecision, RouteDecision, ScheduleDecision};
use crate::error::Rejected;
use crate::slot::{RouteView, Slot, Verdict};
use serde::Serialize;
use std::collections::BTreeMap;

/// All slots.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// Requests at the door.
    pub admit: AdmitTally,
    /// Requests on their way.
    pub route: RouteTally,
    /// Plans of workers.
    pub schedule: ScheduleTally,
    /// What is worth keeping.
    pub retain: RetainTally,
    /// Outcomes that plugins were told.
    pub outcomes: u64,
    /// Clipped answers that a plugin was told.
    pub clipped: u64,
    /// The first decision that is not the same, in words.
    pub first_difference: Option<String>,
}

/// Verdicts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AdmitTally {
    /// How many.
    pub decisions: u64,
    /// The same kind of verdict.
    pub agreed: u64,
    /// The same to the bit.
    pub identical: u64,
    /// Kinds that changed: `admit -> reject`.
    pub changes: BTreeMap<String, u64>,
}

/// Routes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RouteTally {
    /// How many.
    pub decisions: u64,
    /// The same worker.
    pub agreed: u64,
    /// The same to the bit, scores too.
    pub identical: u64,
    /// Tokens that the chosen workers' caches held: recorded, replayed.
    pub hit_tokens: [u64; 2],
    /// Decisions in which a built-in policy took a failed plugin's place: recorded, replayed.
    pub fell_back: [u64; 2],
    /// Requests refused because a plugin failed: recorded, replayed.
    pub refused: [u64; 2],
    /// Prompt tokens to be computed, by worker: recorded, replayed.
    #[serde(skip)]
    pub assigned: BTreeMap<u64, [f64; 2]>,
    /// Coefficient of variation of those: recorded, replayed. 0 is even.
    pub load_cv: [f64; 2],
}

/// Plans.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ScheduleTally {
    /// How many.
    pub decisions: u64,
    /// The same order.
    pub agreed: u64,
    /// The same to the bit: order, sizes, victims.
    pub identical: u64,
    /// Plans with something to order: two sequences and more.
    pub ordered: u64,
    /// Of those, the same first one.
    pub first_agreed: u64,
    /// Of those, the sum of Kendall's tau: 1 for the same order, -1 for the reverse.
    pub tau_sum: f64,
}

/// Retention.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RetainTally {
    /// How many.
    pub decisions: u64,
    /// The same for every segment.
    pub agreed: u64,
    /// The same to the bit, the decider too.
    pub identical: u64,
    /// Segments.
    pub segments: u64,
    /// Segments that are kept in the same way.
    pub segments_agreed: u64,
}

impl Comparison {
    /// Decisions that were compared.
    pub fn decisions(&self) -> u64 {
        self.sum(|admit, route, schedule, retain| {
            [admit.decisions, route.decisions, schedule.decisions, retain.decisions]
        })
    }

    /// Those with the same choice.
    pub fn agreed(&self) -> u64 {
        self.sum(|admit, route, schedule, retain| {
            [admit.agreed, route.agreed, schedule.agreed, retain.agreed]
        })
    }

    /// Those that are the same to the bit.
    pub fn identical(&self) -> u64 {
        self.sum(|admit, route, schedule, retain| {
            [admit.identical, route.identical, schedule.identical, retain.identical]
        })
    }

    fn sum(&self, of: impl Fn(&AdmitTally, &RouteTally, &ScheduleTally, &RetainTally) -> [u64; 4]) -> u64 {
        of(&self.admit, &self.route, &self.schedule, &self.retain).iter().sum()
    }

    fn differ(&mut self, slot: Slot, recorded: &str, replayed: &str) {
        let decision = self.decisions();
        self.first_difference.get_or_insert_with(|| {
            format!("decision {decision}, `{slot}`: recorded {recorded}; replayed {replayed}")
        });
    }

    pub(super) fn admit(
        &mut self,
        recorded: &Answered<'_, AdmitDecision>,
        replayed: &Result<AdmitDecision, Rejected>,
    ) {
        let recorded = plain(recorded);
        let identical = recorded == replayed.as_ref();
        let kinds = [kind(recorded), kind(replayed.as_ref())];
        let tally = &mut self.admit;
        tally.decisions += 1;
        tally.identical += u64::from(identical);
        match kinds[0] == kinds[1] {
            true => tally.agreed += 1,
            false => *tally.changes.entry(format!("{} -> {}", kinds[0], kinds[1])).or_default() += 1,
        }
        if !identical {
            self.differ(Slot::Admit, &format!("{recorded:?}"), &format!("{replayed:?}"));
        }
    }

    pub(super) fn route(
        &mut self,
        view: &RouteView<'_>,
        recorded: &Answered<'_, RouteDecision>,
        replayed: &Result<RouteDecision, Rejected>,
    ) {
        let sides = [plain(recorded), replayed.as_ref()];
        let identical = match sides {
            [Ok(recorded), Ok(replayed)] => is_same(recorded, replayed),
            [recorded, replayed] => recorded == replayed,
        };
        let chosen = sides.map(|side| side.map(|decision| decision.candidate).ok());
        let tally = &mut self.route;
        tally.decisions += 1;
        tally.identical += u64::from(identical);
        tally.agreed += u64::from(chosen[0] == chosen[1]);
        tally.weigh(view, sides);
        if !identical {
            self.differ(Slot::Route, &words(sides[0]), &words(sides[1]));
        }
    }

    pub(super) fn schedule(&mut self, recorded: &ScheduleDecision, replayed: &ScheduleDecision) {
        let tally = &mut self.schedule;
        let orders = [&recorded.plan.order, &replayed.plan.order];
        let identical = recorded == replayed;
        tally.decisions += 1;
        tally.identical += u64::from(identical);
        tally.agreed += u64::from(orders[0] == orders[1]);
        if orders[0].len() > 1 && orders[0].len() == orders[1].len() {
            tally.ordered += 1;
            tally.first_agreed += u64::from(orders[0][0] == orders[1][0]);
            tally.tau_sum += tau(orders[0], orders[1]);
        }
        if !identical {
            let words =
                |decision: &ScheduleDecision| format!("{:?} by {}", decision.plan.order, decision.decided_by);
            self.differ(Slot::Schedule, &words(recorded), &words(replayed));
        }
    }

    pub(super) fn retain(&mut self, recorded: &RetainDecision, replayed: &RetainDecision) {
        let tally = &mut self.retain;
        let identical = recorded == replayed;
        let same = recorded.keeps.iter().zip(&replayed.keeps).filter(|(one, other)| one == other);
        tally.decisions += 1;
        tally.identical += u64::from(identical);
        tally.agreed += u64::from(recorded.keeps == replayed.keeps);
        tally.segments += recorded.keeps.len() as u64;
        tally.segments_agreed += same.count() as u64;
        if !identical {
            let words = |decision: &RetainDecision| {
                format!("{} segments by {}", decision.keeps.len(), decision.decided_by)
            };
            self.differ(Slot::Retain, &words(recorded), &words(replayed));
        }
    }
}

impl RouteTally {
    /// What both choices promise, by the columns that were recorded.
    fn weigh(&mut self, view: &RouteView<'_>, sides: [Result<&RouteDecision, &Rejected>; 2]) {
        let cell = |column: Option<usize>, row: usize| {
            column.and_then(|column| view.candidates.numbers(column).get(row)).copied().unwrap_or(0.0)
        };
        let overlap = view.candidates.schema().number("overlap_tokens");
        let prompt = view.request.schema().number("prompt_tokens");
        let prompt = prompt.and_then(|column| view.request.numbers(column).first()).copied().unwrap_or(0.0);
        let workers = view.candidates.schema().id("worker").map(|column| view.candidates.ids(column));
        let workers = workers.unwrap_or_default();
        for worker in workers {
            self.assigned.entry(*worker).or_default();
        }
        for (side, decision) in sides.into_iter().enumerate() {
            let Ok(decision) = decision else {
                self.refused[side] += 1;
                continue;
            };
            let hit = cell(overlap, decision.candidate);
            self.hit_tokens[side] += hit as u64;
            self.fell_back[side] += u64::from(decision.fell_back);
            if let Some(worker) = workers.get(decision.candidate) {
                self.assigned.entry(*worker).or_default()[side] += f64::from((prompt - hit).max(0.0));
            }
        }
        self.load_cv = [0, 1].map(|side| variation(self.assigned.values().map(|of| of[side])));
    }
}

fn plain<'a, T: Clone>(answer: &'a Answered<'_, T>) -> Result<&'a T, &'a Rejected> {
    match answer {
        Ok(decision) => Ok(decision),
        Err(rejected) => Err(rejected),
    }
}

fn kind(answer: Result<&AdmitDecision, &Rejected>) -> &'static str {
    match answer.map(|decision| &decision.verdict) {
        Ok(Verdict::Admit) => "admit",
        Ok(Verdict::DeferUntil(_)) => "defer",
        Ok(Verdict::Reject { .. }) => "reject",
        Err(_) => "refused by a failure",
    }
}

fn is_same(one: &RouteDecision, other: &RouteDecision) -> bool {
    let bits =
        |decision: &RouteDecision| decision.scores.iter().map(|score| score.to_bits()).collect::<Vec<_>>();
    one.candidate == other.candidate
        && one.decided_by == other.decided_by
        && one.fell_back == other.fell_back
        && bits(one) == bits(other)
}

fn words(answer: Result<&RouteDecision, &Rejected>) -> String {
    match answer {
        Ok(decision) => format!(
            "row {} by {}, score {:?}{}",
            decision.candidate,
            decision.decided_by,
            decision.scores.get(decision.candidate).copied().unwrap_or(f32::NAN),
            if decision.fell_back { ", fell back" } else { "" }
        ),
        Err(rejected) => rejected.to_string(),
    }
}

/// Kendall's tau of two permutations of the same rows. Cost: quadratic in the rows.
fn tau(one: &[u32], other: &[u32]) -> f64 {
    let place: BTreeMap<u32, usize> = other.iter().enumerate().map(|(place, row)| (*row, place)).collect();
    let places: Vec<Option<&usize>> = one.iter().map(|row| place.get(row)).collect();
    let mut agreeing = 0i64;
    for (at, first) in places.iter().enumerate() {
        for second in &places[at + 1..] {
            agreeing += if first < second { 1 } else { -1 };
        }
    }
    let pairs = one.len() * (one.len() - 1) / 2;
    agreeing as f64 / pairs as f64
}

/// Standard deviation over mean; 0 where the mean is.
fn variation(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / count;
    if count == 0.0 || mean == 0.0 {
        return 0.0;
    }
    let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    variance.sqrt() / mean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tau_is_one_for_the_same_order_and_minus_one_for_the_reverse() {
        assert_eq!(tau(&[2, 0, 1], &[2, 0, 1]), 1.0);
        assert_eq!(tau(&[2, 0, 1], &[1, 0, 2]), -1.0);
        assert!((tau(&[0, 1, 2], &[0, 2, 1]) - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn an_even_load_has_no_variation() {
        assert_eq!(variation([5.0, 5.0].into_iter()), 0.0);
        assert_eq!(variation([0.0, 10.0].into_iter()), 1.0);
        assert_eq!(variation(std::iter::empty()), 0.0);
    }
}
