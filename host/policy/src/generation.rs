//! Generations: a whole chain at a time, published by one pointer swap, kept for the way back.
//!
//! Called by `serve`: requests pin the active generation; operators replace it.
//! **Invariant:** a request that holds a generation sees that one only, to its end; a change that fails
//! leaves the active generation as it is.

use crate::chain::{Chain, HintsDecision, RouteDecision, ScheduleDecision};
use crate::clock;
use crate::error::{PrepareError, Rejected, Stage};
use crate::prepare::{self, Preparation, Seats};
use crate::report::{Ledger, PluginCounts, PluginReport};
use crate::runtime::Runtime;
use crate::slot::{HintsView, ObserveView, RouteView, ScheduleView};
use crate::spec::ChainSpec;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Generations that stay ready for a roll back, beside the active one.
const READY_MAX: usize = 8;

/// Number of a generation; grows by one with each that is prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct GenerationId(pub u64);

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One chain with its plugins, ready to decide. Hold it from admission to the end of a request.
pub struct Generation {
    id: GenerationId,
    created_ms: u64,
    reason: String,
    spec: ChainSpec,
    seats: Seats,
    chain: Chain,
}

impl Generation {
    fn new(id: GenerationId, spec: ChainSpec, seats: Seats, reason: String) -> Self {
        let chain = prepare::chain(&spec, &seats);
        Self { id, created_ms: clock::now_ms(), reason, spec, seats, chain }
    }

    /// Its number.
    pub fn id(&self) -> GenerationId {
        self.id
    }

    /// What a caller wishes. Errors: a plugin failed that may not be replaced.
    pub fn hints(&self, view: &HintsView<'_>) -> Result<HintsDecision, Rejected> {
        self.chain.hints(view)
    }

    /// Which worker serves. Errors: a plugin failed that may not be replaced.
    pub fn route(&self, view: &RouteView<'_>) -> Result<RouteDecision, Rejected> {
        self.chain.route(view)
    }

    /// In which order a worker starts what waits.
    pub fn schedule(&self, worker: usize, view: &ScheduleView<'_>) -> ScheduleDecision {
        self.chain.schedule(worker, view)
    }

    /// Tells every plugin that learns.
    pub fn observe(&self, view: &ObserveView<'_>) {
        self.chain.observe(view);
    }

    pub(crate) fn created_ms(&self) -> u64 {
        self.created_ms
    }

    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    pub(crate) fn chain(&self) -> &Chain {
        &self.chain
    }

    pub(crate) fn seats(&self) -> &Seats {
        &self.seats
    }
}

/// The active generation, and those before it.
pub struct Generations {
    runtime: Arc<Runtime>,
    workers: usize,
    active: ArcSwap<Generation>,
    // Held while a generation is prepared, which takes milliseconds and more: changes come one by one.
    changing: Mutex<()>,
    ledger: Mutex<Ledger>,
}

impl Generations {
    /// Prepares the first generation and makes it active.
    pub fn start(runtime: Arc<Runtime>, spec: ChainSpec, workers: usize) -> Result<Arc<Self>, PrepareError> {
        let generation = GenerationId(1);
        let preparation = Preparation { runtime: &runtime, spec: &spec, workers, generation };
        let seats = preparation.seats(&Seats::new())?;
        let first = Arc::new(Generation::new(generation, spec, seats, "start".to_owned()));
        let mut ledger = Ledger::default();
        ledger.activated(&first);
        let (active, ledger) = (ArcSwap::new(first), Mutex::new(ledger));
        Ok(Arc::new(Self { runtime, workers, active, changing: Mutex::new(()), ledger }))
    }

    /// The active generation. Holding it is what pins it.
    pub fn active(&self) -> Arc<Generation> {
        self.active.load_full()
    }

    /// Prepares a chain and makes it active. Blocks for as long as compiling takes.
    pub fn apply(&self, spec: ChainSpec) -> Result<GenerationId, PrepareError> {
        let _one_by_one = self.changing.lock();
        self.publish(spec, "chain".to_owned())
    }

    /// Replaces one plugin's component and keeps its place, weight, settings and limits. Blocks.
    pub fn replace_plugin(
        &self,
        name: &str,
        component: Arc<[u8]>,
        origin: String,
    ) -> Result<GenerationId, PrepareError> {
        let _one_by_one = self.changing.lock();
        let mut spec = self.active.load().spec.clone();
        if !spec.plugins.contains_key(name) {
            return Err(prepare::no_plugin(&spec, name));
        }
        let reason = format!("{name} from {origin}");
        if let Some(plugin) = spec.plugins.get_mut(name) {
            plugin.component = component;
            plugin.origin = origin;
        }
        self.publish(spec, reason)
    }

    fn publish(&self, spec: ChainSpec, reason: String) -> Result<GenerationId, PrepareError> {
        let id = self.ledger.lock().next_id();
        let (runtime, workers) = (&self.runtime, self.workers);
        let preparation = Preparation { runtime, spec: &spec, workers, generation: id };
        let seats = preparation.seats(&self.active.load().seats)?;
        let next = Arc::new(Generation::new(id, spec, seats, reason));
        let mut ledger = self.ledger.lock();
        ledger.activated(&next);
        ledger.keep(READY_MAX + 1);
        self.active.store(next);
        drop(ledger);
        tracing::info!(generation = id.0, "policy generation active");
        Ok(id)
    }

    /// Makes the generation active that was so before this one. Errors: there is none.
    pub fn rollback(&self) -> Result<GenerationId, PrepareError> {
        let _one_by_one = self.changing.lock();
        let mut ledger = self.ledger.lock();
        let Some(before) = ledger.roll_back() else {
            let message = "no generation is kept from before the active one".to_owned();
            return Err(PrepareError { stage: Stage::Fetched, plugin: None, message });
        };
        let id = before.id;
        self.active.store(before);
        drop(ledger);
        tracing::info!(generation = id.0, "policy generation rolled back");
        Ok(id)
    }

    /// Generations, the oldest known first.
    pub fn history(&self) -> Vec<crate::report::GenerationReport> {
        self.ledger.lock().history(&self.active.load())
    }

    /// The plugins of the active generation.
    pub fn plugins(&self) -> Vec<PluginReport> {
        self.ledger.lock().plugins(&self.active.load())
    }

    /// Counters by plugin since the start, over all generations: they only grow.
    pub fn metrics(&self) -> BTreeMap<String, PluginCounts> {
        self.ledger.lock().counts()
    }
}
