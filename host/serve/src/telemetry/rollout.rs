//! Metrics of rollouts: where one stands, how the candidate compares, who decided, what was taken back and why.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use policy::{BREACHES, Generations, Outcome, RolloutState};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::ByCall;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDecision {
    slot: &'static str,
    fate: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySlot {
    slot: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BySide {
    side: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

/// What is known of the rollout that runs, or of the last one.
#[derive(Default)]
pub(super) struct RolloutMetrics {
    state: Family<ByState, Gauge>,
    decisions: Family<ByDecision, Gauge>,
    agreement: Family<BySlot, Gauge<f64, AtomicU64>>,
    calls: Family<ByCall, Gauge>,
    requests: Family<BySide, Counter>,
    ended: Family<ByState, Counter>,
    rollbacks: Family<ByReason, Counter>,
}

impl RolloutMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register("rollout_state", "1 for where the last rollout stands", self.state.clone());
        r.register("rollout_decisions", "Live decisions beside a shadow, by slot", self.decisions.clone());
        r.register(
            "rollout_agreement",
            "Share of decisions that a shadow agrees with",
            self.agreement.clone(),
        );
        r.register("rollout_calls", "Calls of the candidate's plugins by outcome", self.calls.clone());
        r.register("rollout_requests", "Requests while a canary ran, by side", self.requests.clone());
        r.register("rollouts_ended", "Rollouts by how they ended", self.ended.clone());
        r.register("policy_rollbacks", "Generations taken back, by what they broke", self.rollbacks.clone());
    }

    pub(super) fn collect(&self, generations: &Generations) {
        let totals = generations.rollout_totals();
        for (side, count) in [("active", totals.requests.active), ("candidate", totals.requests.candidate)] {
            self.requests.get_or_create(&BySide { side }).inner().store(count, Relaxed);
        }
        for state in RolloutState::ALL.iter().filter(|state| !state.is_running()) {
            let count = totals.ended.get(state.as_str()).copied().unwrap_or(0);
            self.ended.get_or_create(&ByState { state: state.as_str() }).inner().store(count, Relaxed);
        }
        for reason in BREACHES {
            let count = totals.rollbacks.get(reason).copied().unwrap_or(0);
            self.rollbacks.get_or_create(&ByReason { reason }).inner().store(count, Relaxed);
        }
        self.collect_last(generations);
    }

    fn collect_last(&self, generations: &Generations) {
        let rollout = generations.rollout();
        for state in RolloutState::ALL {
            let is = rollout.as_ref().is_some_and(|rollout| rollout.state == state);
            self.state.get_or_create(&ByState { state: state.as_str() }).set(is.into());
        }
        // Another candidate has other slots and plugins.
        self.decisions.clear();
        self.agreement.clear();
        self.calls.clear();
        let Some(rollout) = rollout else { return };
        for (slot, seen) in &rollout.shadow {
            let slot = slot.as_str();
            for (fate, count) in [
                ("made", seen.decisions),
                ("compared", seen.compared),
                ("agreed", seen.agreed),
                ("dropped", seen.dropped),
            ] {
                self.decisions.get_or_create(&ByDecision { slot, fate }).set(count as i64);
            }
            self.agreement.get_or_create(&BySlot { slot }).set(seen.agreement);
        }
        for (plugin, slots) in &rollout.calls {
            for (slot, calls) in slots {
                for outcome in Outcome::ALL {
                    let (plugin, slot) = (plugin.clone(), slot.as_str());
                    let label = ByCall { plugin, slot, outcome: outcome.as_str() };
                    let count = calls.outcomes.get(&outcome).copied().unwrap_or(0);
                    self.calls.get_or_create(&label).set(count as i64);
                }
            }
        }
    }
}
