//! What operators see: generations and where they stand, plugins and what they did.
//!
//! **Invariant:** a counter of a plugin's name never falls, whatever is swapped.

use crate::chain::{Chain, Link};
use crate::diff::{GenerationDiff, Outline};
use crate::generation::{Generation, GenerationId};
use crate::rollout::Rollouts;
use crate::runtime::Digest;
use crate::sandbox::PolicyMetric;
use crate::seat::Seat;
use crate::slot::Slot;
use crate::stats::{Counts, Outcome, SlotCounts, Stats};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

/// Generations remembered by name.
const RECORDS_MAX: usize = 64;

/// Where a generation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GenerationState {
    /// It is asked beside the active one, and decides nothing.
    Shadow,
    /// It decides for a share of requests.
    Canary,
    /// New requests use it.
    Active,
    /// Requests that began under it still run.
    Draining,
    /// Nobody uses it; it is kept for a roll back.
    Ready,
    /// It is gone.
    Retired,
}

/// One generation.
#[derive(Clone, Debug, Serialize)]
pub struct GenerationReport {
    /// Its number.
    pub id: GenerationId,
    /// Where it stands.
    pub state: GenerationState,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// What made it: `start`, `chain`, or a plugin and where it came from.
    pub reason: String,
    /// Its plugins by slot, in order: those of the default chain.
    pub chains: BTreeMap<Slot, Vec<LinkReport>>,
    /// Those of the named chains.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub named: BTreeMap<String, BTreeMap<Slot, Vec<LinkReport>>>,
    /// Requests that hold it.
    pub pinned_requests: usize,
    /// What became of it, if it was tried or taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// One plugin in one slot of a chain.
#[derive(Clone, Debug, Serialize)]
pub struct LinkReport {
    /// Its name in the configuration.
    pub plugin: String,
    /// Its own version.
    pub version: String,
    /// Its weight, if it scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f32>,
    /// Its component.
    pub digest: Digest,
}

/// One plugin of the active generation.
#[derive(Clone, Debug, Serialize)]
pub struct PluginReport {
    /// Its name in the configuration.
    pub name: String,
    /// What the component calls itself.
    pub component: String,
    /// Its own version.
    pub version: String,
    /// The slots that it exports.
    pub slots: Vec<Slot>,
    /// Its component.
    pub digest: Digest,
    /// Where that came from.
    pub origin: String,
    /// The generation that brought it.
    pub generation: GenerationId,
    /// What became of its calls since then.
    pub calls: BTreeMap<Slot, CallReport>,
    /// What it counts itself.
    pub metrics: BTreeMap<String, PolicyMetric>,
}

/// A plugin's calls in one slot.
#[derive(Clone, Debug, Serialize)]
pub struct CallReport {
    /// Calls by outcome; none are left out that happened.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Answers that were clamped into range.
    pub clipped: u64,
    /// Median call time in microseconds.
    pub time_us_p50: f64,
    /// 99th percentile of call times in microseconds.
    pub time_us_p99: f64,
}

impl CallReport {
    pub(crate) fn new(counts: &SlotCounts) -> Self {
        let outcomes = Outcome::ALL.into_iter().map(|outcome| (outcome, counts.of(outcome)));
        Self {
            outcomes: outcomes.filter(|(_, count)| *count > 0).collect(),
            clipped: counts.clipped,
            time_us_p50: counts.times.quantile_us(0.5),
            time_us_p99: counts.times.quantile_us(0.99),
        }
    }
}

/// All counters of one plugin's name.
#[derive(Clone, Debug, Default)]
pub struct PluginCounts {
    /// By slot, those that were called or missed a call.
    pub slots: BTreeMap<Slot, SlotCounts>,
}

/// The generations that are kept, and what is known of the others.
#[derive(Default)]
pub(crate) struct Ledger {
    // The way back: the last one is active.
    trail: Vec<Arc<Generation>>,
    records: VecDeque<Record>,
    tallies: BTreeMap<String, Tally>,
    last_id: u64,
}

struct Record {
    report: GenerationReport,
    outline: Outline,
    generation: Weak<Generation>,
}

/// The counters of a plugin's name: those of the seats that still count, and the sum of the others.
#[derive(Default)]
struct Tally {
    past: Counts,
    // Each with what it had counted before: a shadow's calls are nobody's.
    live: Vec<(Arc<Stats>, Counts)>,
}

impl Tally {
    fn add(&mut self, stats: &Arc<Stats>) {
        if !self.live.iter().any(|(live, _)| Arc::ptr_eq(live, stats)) {
            self.live.push((stats.clone(), stats.read()));
        }
    }

    fn read(&mut self) -> Counts {
        let (live, gone) = std::mem::take(&mut self.live)
            .into_iter()
            .partition::<Vec<_>, _>(|(stats, _)| Arc::strong_count(stats) > 1);
        gone.iter().for_each(|(stats, base)| self.past.add(stats.read().since(base)));
        self.live = live;
        let mut sum = self.past.clone();
        self.live.iter().for_each(|(stats, base)| sum.add(stats.read().since(base)));
        sum
    }
}

impl Ledger {
    /// The number that the next generation will have. One that cannot be prepared takes none.
    pub(crate) fn next_id(&self) -> GenerationId {
        GenerationId(self.last_id + 1)
    }

    /// Notes that a generation of this number was prepared.
    pub(crate) fn prepared(&mut self, id: GenerationId) {
        self.last_id = self.last_id.max(id.0);
    }

    /// Notes a new generation.
    pub(crate) fn record(&mut self, generation: &Arc<Generation>) {
        self.last_id = self.last_id.max(generation.id().0);
        let (report, outline) = (describe(generation), Outline::new(generation));
        self.records.push_back(Record { report, outline, generation: Arc::downgrade(generation) });
        if self.records.len() > RECORDS_MAX {
            self.records.pop_front();
        }
    }

    /// Counts what a generation's plugins do from here on.
    pub(crate) fn count(&mut self, generation: &Generation) {
        for (name, seat) in generation.seats() {
            self.tallies.entry(name.clone()).or_default().add(&seat.stats);
        }
    }

    /// Notes that a generation is active from here on.
    pub(crate) fn activated(&mut self, generation: &Arc<Generation>) {
        if self.records.iter().all(|record| record.report.id != generation.id()) {
            self.record(generation);
        }
        self.count(generation);
        self.trail.push(generation.clone());
    }

    /// Notes what became of a generation.
    pub(crate) fn note(&mut self, id: GenerationId, note: String) {
        if let Some(record) = self.records.iter_mut().find(|record| record.report.id == id) {
            record.report.note = Some(note);
        }
    }

    /// What changed from one generation to another; the one that is not remembered if one is not.
    pub(crate) fn diff(&self, ids: [GenerationId; 2]) -> Result<GenerationDiff, GenerationId> {
        let find = |id: GenerationId| {
            self.records.iter().find(|record| record.report.id == id).map(|record| &record.outline).ok_or(id)
        };
        Ok(find(ids[0])?.diff(find(ids[1])?, ids))
    }

    /// Lets go of the oldest generations beyond so many.
    pub(crate) fn keep(&mut self, max: usize) {
        let spare = self.trail.len().saturating_sub(max);
        self.trail.drain(..spare);
    }

    /// Leaves the active generation for the one before it.
    pub(crate) fn roll_back(&mut self) -> Option<Arc<Generation>> {
        if self.trail.len() < 2 {
            return None;
        }
        self.trail.pop();
        self.trail.last().cloned()
    }

    pub(crate) fn history(&self, active: &Arc<Generation>, rollouts: &Rollouts) -> Vec<GenerationReport> {
        self.records.iter().map(|record| self.state_of(record, active, rollouts)).collect()
    }

    fn state_of(&self, record: &Record, active: &Arc<Generation>, rollouts: &Rollouts) -> GenerationReport {
        let Some(generation) = record.generation.upgrade() else {
            return GenerationReport { state: GenerationState::Retired, ..record.report.clone() };
        };
        let is_active = Arc::ptr_eq(&generation, active);
        let kept = self.trail.iter().filter(|other| Arc::ptr_eq(other, &generation)).count();
        // The swap holds the active one too, and we hold this one; every other holder is a request.
        let known = kept + usize::from(is_active) + rollouts.holders(&generation) + 1;
        let pinned_requests = Arc::strong_count(&generation).saturating_sub(known);
        let tried = rollouts.running();
        let tried = tried.as_ref().filter(|rollout| Arc::ptr_eq(&rollout.candidate, &generation));
        let state = match (is_active, pinned_requests, kept) {
            (true, _, _) => GenerationState::Active,
            _ if tried.is_some() => tried.map_or(GenerationState::Shadow, |rollout| rollout.state()),
            (false, 0, 0) => GenerationState::Retired,
            (false, 0, _) => GenerationState::Ready,
            _ => GenerationState::Draining,
        };
        // The thread that asks a shadow holds it while it does.
        let pinned_requests = if state == GenerationState::Shadow { 0 } else { pinned_requests };
        GenerationReport { state, pinned_requests, ..record.report.clone() }
    }

    pub(crate) fn plugins(&self, active: &Generation) -> Vec<PluginReport> {
        let report = |(name, seat): (&String, &Arc<Seat>)| PluginReport {
            name: name.clone(),
            component: seat.described.name.clone(),
            version: seat.described.version.clone(),
            slots: seat.described.slots.clone(),
            digest: seat.compiled.digest,
            origin: seat.spec.origin.clone(),
            generation: seat.generation(),
            calls: seat.stats.read().used().map(|(slot, counts)| (slot, CallReport::new(&counts))).collect(),
            metrics: seat.metrics.lock().clone(),
        };
        active.seats().iter().map(report).collect()
    }

    pub(crate) fn counts(&mut self) -> BTreeMap<String, PluginCounts> {
        let read = |(name, tally): (&String, &mut Tally)| {
            (name.clone(), PluginCounts { slots: tally.read().used().collect() })
        };
        self.tallies.iter_mut().map(read).collect()
    }
}

fn describe(generation: &Generation) -> GenerationReport {
    let (default, named) = generation.chains().split_first().expect("a generation has its default chain");
    GenerationReport {
        id: generation.id(),
        state: GenerationState::Active,
        created_ms: generation.created_ms(),
        reason: generation.reason().to_owned(),
        chains: links(default),
        named: named.iter().map(|chain| (chain.name.to_string(), links(chain))).collect(),
        pinned_requests: 0,
        note: None,
    }
}

pub(crate) fn links(chain: &Chain) -> BTreeMap<Slot, Vec<LinkReport>> {
    let report = |link: &Link, weight: Option<f32>| LinkReport {
        plugin: link.seat.name.to_string(),
        version: link.seat.described.version.clone(),
        weight,
        digest: link.seat.compiled.digest,
    };
    let plain = |links: &[Link]| links.iter().map(|link| report(link, None)).collect::<Vec<_>>();
    BTreeMap::from([
        (Slot::Middleware, plain(&chain.middleware)),
        (Slot::Hints, plain(&chain.hints)),
        (Slot::Admit, plain(&chain.admit)),
        (Slot::Filter, plain(&chain.filter)),
        (Slot::Score, chain.score.iter().map(|link| report(link, Some(link.weight))).collect()),
        (Slot::Pick, plain(chain.pick.as_slice())),
        (Slot::Route, plain(chain.route.as_slice())),
        (Slot::Schedule, plain(chain.schedule.as_slice())),
        (Slot::Retain, plain(chain.retain.as_slice())),
        (Slot::Observe, plain(&chain.observe)),
    ])
}
