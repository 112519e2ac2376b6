//! What operators see of a rollout: where it stands, how the candidate compares, and what was taken back.

use super::canary::Mode;
use crate::generation::GenerationId;
use crate::report::CallReport;
use crate::slot::Slot;
use serde::Serialize;
use std::collections::BTreeMap;

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// The candidate is asked and decides nothing.
    Shadow,
    /// The candidate decides for some requests.
    Canary,
    /// The candidate became the active generation.
    Promoted,
    /// An operator ended it.
    Aborted,
    /// The watch ended it, or took its generation back after the promotion.
    RolledBack,
}

impl RolloutState {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Shadow, Self::Canary, Self::Promoted, Self::Aborted, Self::RolledBack];

    /// Its word, for labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Canary => "canary",
            Self::Promoted => "promoted",
            Self::Aborted => "aborted",
            Self::RolledBack => "rolled_back",
        }
    }

    /// Whether the candidate is still tried.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Shadow | Self::Canary)
    }
}

/// One rollout, running or ended.
#[derive(Clone, Debug, Serialize)]
pub struct RolloutReport {
    /// The candidate.
    pub candidate: GenerationId,
    /// The generation beside which it is tried.
    pub beside: GenerationId,
    /// Where it stands.
    pub state: RolloutState,
    /// How it is tried, or was at the end.
    #[serde(flatten)]
    pub mode: Mode,
    /// What the candidate changes.
    pub reason: String,
    /// When it began, in milliseconds since the Unix epoch.
    pub began_ms: u64,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// Why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The candidate as a shadow, by slot; under `observe` the outcomes that it was told.
    pub shadow: BTreeMap<Slot, AgreementReport>,
    /// Requests since the candidate decides for some.
    pub requests: SideReport,
    /// What became of the candidate's calls, by plugin.
    pub calls: BTreeMap<String, BTreeMap<Slot, CallReport>>,
}

/// Requests by the side that decided about them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SideReport {
    /// The active generation.
    pub active: u64,
    /// The candidate.
    pub candidate: u64,
}

/// The candidate beside the live generation, in one slot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AgreementReport {
    /// Live decisions.
    pub decisions: u64,
    /// Those that the candidate was asked about too.
    pub compared: u64,
    /// Those that it was not, because it is too slow.
    pub dropped: u64,
    /// `compared` of `decisions`.
    pub compared_share: f64,
    /// Decisions that were the same: the same worker, the same kind of verdict, the same plan.
    pub agreed: u64,
    /// `agreed` of `compared`.
    pub agreement: f64,
    /// Requests that the candidate would have refused because a plugin failed that may not be replaced.
    pub rejected: u64,
    /// How routes differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteDeltas>,
}

/// By how much routes differ. A difference is the candidate's choice minus the live one, a mean over decisions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RouteDeltas {
    /// Mean distance of the scores of a candidate worker.
    pub score_delta_mean: f64,
    /// Largest distance.
    pub score_delta_max: f64,
    /// Prompt tokens found in the chosen worker's cache.
    pub overlap_tokens_delta: f64,
    /// Requests that wait there.
    pub queue_len_delta: f64,
    /// Tokens that wait or run there.
    pub load_tokens_delta: f64,
    /// Decisions of the candidate in which a built-in took the place of a failed plugin.
    pub fell_back: u64,
}

/// A generation that was taken back because of what it did.
#[derive(Clone, Debug, Serialize)]
pub struct RollbackReport {
    /// The generation.
    pub generation: GenerationId,
    /// The one that decides since.
    pub to: GenerationId,
    /// What it broke, in words.
    pub why: String,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// The active generation, while it can still be taken back without being asked.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ProbationReport {
    /// The generation.
    pub generation: GenerationId,
    /// Time that is left.
    pub seconds_left: f64,
}

/// Counters since the start; they only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RolloutTotals {
    /// Requests while a canary ran.
    pub requests: SideReport,
    /// Rollouts by how they ended.
    pub ended: BTreeMap<&'static str, u64>,
    /// Generations taken back, by what they broke.
    pub rollbacks: BTreeMap<&'static str, u64>,
}
