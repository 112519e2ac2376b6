//! Generations: a whole chain at a time, published by one pointer swap, kept for the way back.
//!
//! Called by `serve`: requests pin the active generation; operators replace it.
//! **Invariant:** a request that holds a generation sees that one only, to its end; a change that fails
//! leaves the active generation as it is.

use crate::chain::{AdmitDecision, Chain, HintsDecision, RetainDecision, RouteDecision, ScheduleDecision};
use crate::clock;
use crate::diff::GenerationDiff;
use crate::error::{PrepareError, Rejected, Stage};
use crate::prepare::{self, Preparation, Seats, Sharing};
use crate::report::{Ledger, PluginCounts, PluginReport};
use crate::rollout::{Rollout, Rollouts, Shadowed};
use crate::runtime::Runtime;
use crate::slot::{
    Action, AdmitView, Clip, Frame, Hints, HintsView, MiddlewareView, ObserveView, RetainView, RouteView,
    ScheduleView, Slot,
};
use crate::spec::{ChainSpec, Match, Subject};
use crate::store::{Entries, StoreFolder};
use crate::witness::{Seen, Way, Witness};
use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Generations that stay ready for a roll back, beside the active one.
const READY_MAX: usize = 8;

/// How long a new witness waits for decisions that began without it. Chosen: deadlines end a decision long before.
const ENDING_TURN: Duration = Duration::from_micros(100);
const ENDING_TURNS_MAX: u32 = 100_000;

/// Number of a generation; grows by one with each that is prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct GenerationId(pub u64);

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Chains with their plugins, ready to decide. Hold it from admission to the end of a request.
pub struct Generation {
    id: GenerationId,
    created_ms: u64,
    reason: String,
    spec: ChainSpec,
    seats: Seats,
    // The default chain, then the named ones in their order.
    chains: Vec<Chain>,
    // Plugins that are not for all requests.
    choosy: Vec<(u32, Match)>,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("id", &self.id.0).finish_non_exhaustive()
    }
}

impl Generation {
    pub(crate) fn new(id: GenerationId, spec: ChainSpec, seats: Seats, reason: String) -> Self {
        let chains = prepare::chains(&spec, &seats);
        let matches = seats.values().map(|seat| seat.spec.matches.clone());
        let choosy =
            (0..).zip(matches).filter(|(_, matches)| !matches.is_all()).collect::<Vec<(u32, Match)>>();
        Self { id, created_ms: clock::now_ms(), reason, spec, seats, chains, choosy }
    }

    /// Its number.
    pub fn id(&self) -> GenerationId {
        self.id
    }

    /// What it was made from.
    pub fn spec(&self) -> &ChainSpec {
        &self.spec
    }

    /// The chain of a request, and the plugins that are not for it.
    pub fn way(&self, subject: &Subject<'_>) -> Way {
        let named = self.spec.named.iter().position(|named| named.matches.fits(subject));
        let unfit = self.choosy.iter().filter(|(_, matches)| !matches.fits(subject));
        let muted = unfit.fold(0, |muted, (bit, _)| muted | 1 << bit);
        Way { chain: named.map_or(0, |at| at + 1), muted }
    }

    /// Name of a chain.
    pub fn chain_name(&self, way: Way) -> &Arc<str> {
        &self.at(way).name
    }

    fn at(&self, way: Way) -> &Chain {
        &self.chains[way.chain]
    }

    /// Whether a request of this way is shown to any plugin in a slot.
    pub fn asks(&self, way: Way, slot: Slot) -> bool {
        self.at(way).asks(way.muted, slot)
    }

    /// Whether the scheduler plans more than an order: chunk sizes and victims.
    pub fn plans(&self) -> bool {
        self.chains[0].plans()
    }

    /// What a caller wishes; `said` is known before any plugin is asked. Errors: a plugin failed that may not be replaced.
    pub fn hints(&self, way: Way, view: &HintsView<'_>, said: Hints) -> Result<HintsDecision, Rejected> {
        self.at(way).hints(way.muted, view, said)
    }

    /// Whether a request comes in. Errors: a plugin failed that may not be replaced.
    pub fn admit(&self, way: Way, view: &AdmitView<'_>) -> Result<AdmitDecision, Rejected> {
        self.at(way).admit(way.muted, view)
    }

    /// Which worker serves. Errors: a plugin failed that may not be replaced.
    pub fn route(&self, way: Way, view: &RouteView<'_>) -> Result<RouteDecision, Rejected> {
        self.at(way).route(way.muted, view)
    }

    /// What a worker does next.
    pub fn schedule(&self, worker: usize, view: &ScheduleView<'_>) -> ScheduleDecision {
        self.chains[0].schedule(worker, view)
    }

    /// What of a worker's cache is worth keeping.
    pub fn retain(&self, worker: usize, view: &RetainView<'_>) -> RetainDecision {
        self.chains[0].retain(worker, view)
    }

    /// Whether a plugin says what of a worker's cache is worth keeping; else nobody need ask.
    pub fn retains(&self) -> bool {
        self.chains[0].retain.is_some()
    }

    /// Tells the policy that retains what the host made less of.
    pub fn clipped(&self, worker: usize, frame: Frame, clips: &[Clip]) {
        self.chains[0].clipped(worker, frame, clips);
    }

    /// Tells every plugin that learns.
    pub fn observe(&self, way: Way, view: &ObserveView<'_>) {
        self.at(way).observe(way.muted, view);
    }

    /// The folder has what another generation's plugins remembered, or did not yet save.
    pub(crate) fn stores_differ_from_disk(&self) {
        self.seats.values().for_each(|seat| seat.shelf.touch());
    }

    pub(crate) fn created_ms(&self) -> u64 {
        self.created_ms
    }

    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    pub(crate) fn chains(&self) -> &[Chain] {
        &self.chains
    }

    pub(crate) fn seats(&self) -> &Seats {
        &self.seats
    }
}

/// A request's hold on a generation: the chain that decides about it, to its end.
#[derive(Clone)]
pub struct Pin {
    generation: Arc<Generation>,
    way: Way,
    // Those of each decision's own moment.
    witnesses: Arc<ArcSwap<Witnesses>>,
    shadowed: Option<Shadowed>,
}

type Witnesses = Vec<Arc<dyn Witness>>;

impl Pin {
    /// The generation.
    pub fn generation(&self) -> &Arc<Generation> {
        &self.generation
    }

    /// Its number.
    pub fn id(&self) -> GenerationId {
        self.generation.id
    }

    /// The same, or that of the candidate which decides for this session. `session` says its id, by the hints of the
    /// active side, and is asked only while there is a choice. What was asked before stays decided by the active
    /// side: nobody knows the session of a request that is not read.
    pub fn by_session(self, session: impl FnOnce(&Self) -> u64) -> Self {
        let Some(shadowed) = &self.shadowed else { return self };
        match shadowed.candidate(|| session(&self)) {
            Some((generation, way)) => Self { generation, way, witnesses: self.witnesses, shadowed: None },
            None => self,
        }
    }

    /// Name of the chain.
    pub fn chain(&self) -> &Arc<str> {
        self.generation.chain_name(self.way)
    }

    /// What the middleware in this place of the chain makes of a request; `None` beyond the last one.
    pub fn middleware(&self, place: usize, view: &MiddlewareView<'_>) -> Option<Result<Action, Rejected>> {
        self.generation.at(self.way).middleware(self.way.muted, place, view)
    }

    /// Whether any plugin is asked in a slot. Where none is, nobody needs to make a view.
    pub fn asks(&self, slot: Slot) -> bool {
        self.generation.asks(self.way, slot)
    }

    /// What the caller wishes; `said` is known before any plugin is asked. Errors: a plugin failed that may not be
    /// replaced.
    pub fn hints(&self, view: &HintsView<'_>, said: Hints) -> Result<HintsDecision, Rejected> {
        self.generation.hints(self.way, view, said)
    }

    /// Whether the request comes in. Errors: a plugin failed that may not be replaced.
    pub fn admit(&self, view: &AdmitView<'_>) -> Result<AdmitDecision, Rejected> {
        let witnesses = self.witnesses.load();
        let _order = begin(&witnesses, &self.generation);
        let decision = self.generation.admit(self.way, view);
        let seen = match &decision {
            Ok(decision) => Seen::Admit(view, decision),
            Err(rejected) => Seen::AdmitRefused(view, rejected),
        };
        self.tell(&witnesses, &seen);
        decision
    }

    /// Which worker serves. Errors: a plugin failed that may not be replaced.
    pub fn route(&self, view: &RouteView<'_>) -> Result<RouteDecision, Rejected> {
        let witnesses = self.witnesses.load();
        let _order = begin(&witnesses, &self.generation);
        let decision = self.generation.route(self.way, view);
        let seen = match &decision {
            Ok(decision) => Seen::Route(view, decision),
            Err(rejected) => Seen::RouteRefused(view, rejected),
        };
        self.tell(&witnesses, &seen);
        decision
    }

    /// Tells every plugin that learns.
    pub fn observe(&self, view: &ObserveView<'_>) {
        let witnesses = self.witnesses.load();
        let _order = begin(&witnesses, &self.generation);
        self.generation.observe(self.way, view);
        self.tell(&witnesses, &Seen::Observe(view));
    }

    fn tell(&self, witnesses: &Witnesses, seen: &Seen<'_>) {
        tell(witnesses, &self.generation, self.way, seen);
        if let Some(shadowed) = &self.shadowed {
            shadowed.see(seen);
        }
    }
}

/// A decision begins: waits for its turn, if a witness asks for turns.
fn begin<'a>(witnesses: &'a Witnesses, generation: &Arc<Generation>) -> Option<MutexGuard<'a, ()>> {
    let turn = witnesses.iter().find_map(|witness| witness.one_by_one());
    witnesses.iter().for_each(|witness| witness.before(generation));
    turn
}

fn tell(witnesses: &Witnesses, generation: &Arc<Generation>, way: Way, seen: &Seen<'_>) {
    for witness in witnesses {
        witness.see(generation, way, seen);
    }
}

/// How many workers there are, and where plugins' stores are kept.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Workers: each has its own instance for the slots of workers.
    pub workers: usize,
    /// Folder of the stores; without one they last as long as the process.
    pub store_folder: Option<PathBuf>,
}

/// The active generation, and those before it.
pub struct Generations {
    runtime: Arc<Runtime>,
    workers: usize,
    stores: Option<StoreFolder>,
    pub(crate) active: ArcSwap<Generation>,
    // Shared with pins: a decision takes those of its own moment, not those of its pin's.
    witnesses: Arc<ArcSwap<Witnesses>>,
    // Held while a generation is prepared, which takes milliseconds and more.
    pub(crate) changing: Mutex<()>,
    pub(crate) ledger: Mutex<Ledger>,
    pub(crate) rollouts: Rollouts,
}

impl Generations {
    /// Prepares the first generation and makes it active.
    pub fn start(runtime: Arc<Runtime>, spec: ChainSpec, workers: usize) -> Result<Arc<Self>, PrepareError> {
        Self::start_with(runtime, spec, Setup { workers, store_folder: None })
    }

    /// The same, with stores that outlive the process.
    pub fn start_with(
        runtime: Arc<Runtime>,
        spec: ChainSpec,
        Setup { workers, store_folder }: Setup,
    ) -> Result<Arc<Self>, PrepareError> {
        let generation = GenerationId(1);
        let stores = store_folder.map(StoreFolder::new);
        let saved = |plugin: &str| load(stores.as_ref(), plugin);
        let preparation = Preparation { runtime: &runtime, spec: &spec, workers, generation, saved: &saved };
        let seats = preparation.seats(&Seats::new(), Sharing::Same)?;
        let first = Arc::new(Generation::new(generation, spec, seats, "start".to_owned()));
        let mut ledger = Ledger::default();
        ledger.activated(&first);
        Ok(Arc::new(Self {
            runtime,
            workers,
            stores,
            active: ArcSwap::new(first),
            witnesses: Arc::default(),
            changing: Mutex::new(()),
            ledger: Mutex::new(ledger),
            rollouts: Rollouts::default(),
        }))
    }

    /// The active generation. Holding it is what pins it.
    pub fn active(&self) -> Arc<Generation> {
        self.active.load_full()
    }

    /// The active generation's number.
    pub fn active_id(&self) -> GenerationId {
        self.active.load().id
    }

    /// Whether the active scheduler plans more than an order: it wants to be asked even where nobody waits.
    pub fn plans(&self) -> bool {
        self.active.load().plans()
    }

    /// The active generation and the chain that decide about a request, from here to its end.
    pub fn pin(&self, subject: &Subject<'_>) -> Pin {
        let shadowed = self.rollouts.running().as_ref().map(|rollout| Rollout::shadowed(rollout, subject));
        let generation = self.active.load_full();
        let way = generation.way(subject);
        Pin { generation, way, witnesses: self.witnesses.clone(), shadowed }
    }

    /// The same, of the active generation or the one that decides for a share of requests beside it. Which of them
    /// depends on the session: `session` says its id, by the hints of the active side. It is asked only while there
    /// is a choice.
    pub fn pin_for(&self, subject: &Subject<'_>, session: impl FnOnce(&Pin) -> u64) -> Pin {
        self.pin(subject).by_session(session)
    }

    /// What a worker does next, by the active generation.
    pub fn schedule(&self, worker: usize, view: &ScheduleView<'_>) -> ScheduleDecision {
        let (generation, witnesses) = (self.active.load_full(), self.witnesses.load());
        let _order = begin(&witnesses, &generation);
        let decision = generation.schedule(worker, view);
        self.tell(&witnesses, &generation, &Seen::Schedule(worker, view, &decision));
        decision
    }

    /// What of a worker's cache is worth keeping, by the active generation.
    pub fn retain(&self, worker: usize, view: &RetainView<'_>) -> RetainDecision {
        let (generation, witnesses) = (self.active.load_full(), self.witnesses.load());
        let _order = begin(&witnesses, &generation);
        let decision = generation.retain(worker, view);
        self.tell(&witnesses, &generation, &Seen::Retain(worker, view, &decision));
        decision
    }

    /// Whether a plugin of the active generation says what of a worker's cache is worth keeping.
    pub fn retains(&self) -> bool {
        self.active.load().retains()
    }

    /// Tells the policy that retains what the host made less of.
    pub fn clipped(&self, worker: usize, frame: Frame, clips: &[Clip]) {
        let (generation, witnesses) = (self.active.load_full(), self.witnesses.load());
        let _order = begin(&witnesses, &generation);
        generation.clipped(worker, frame, clips);
        self.tell(&witnesses, &generation, &Seen::Clipped(worker, frame, clips));
    }

    fn tell(&self, witnesses: &Witnesses, generation: &Arc<Generation>, seen: &Seen<'_>) {
        tell(witnesses, generation, Way::default(), seen);
        if let Some(rollout) = &*self.rollouts.running() {
            rollout.see(seen);
        }
    }

    /// Has a witness told of every decision that begins after this returns; it hears of some that begin before.
    /// Blocks until the decisions have ended that began without it.
    pub fn add_witness(&self, witness: Arc<dyn Witness>) {
        let before = self
            .witnesses
            .rcu(|before| before.iter().cloned().chain([witness.clone()]).collect::<Witnesses>());
        // Who decides holds the list that was there at the start.
        for _ in 0..ENDING_TURNS_MAX {
            if Arc::strong_count(&before) == 1 {
                return;
            }
            std::thread::sleep(ENDING_TURN);
        }
        tracing::warn!("a decision has not ended for seconds; a witness may miss it");
    }

    pub(crate) fn workers(&self) -> usize {
        self.workers
    }

    /// Lets a witness go.
    pub fn remove_witness(&self, witness: &Arc<dyn Witness>) {
        self.witnesses.rcu(|before| {
            before.iter().filter(|known| !Arc::ptr_eq(known, witness)).cloned().collect::<Witnesses>()
        });
    }

    /// Prepares a chain and makes it active. Blocks for as long as compiling takes, and for changes before it.
    pub fn apply(&self, spec: ChainSpec) -> Result<GenerationId, PrepareError> {
        let _one_by_one = self.changing.lock();
        self.rollouts.check_none()?;
        self.publish(spec, "chain".to_owned())
    }

    /// Replaces one plugin's component and keeps its place, weight, settings and limits. Blocks. Errors: another
    /// change is under way, or the component cannot serve.
    pub fn replace_plugin(
        &self,
        name: &str,
        component: Arc<[u8]>,
        origin: String,
    ) -> Result<GenerationId, PrepareError> {
        let _alone = self.begin_change()?;
        self.rollouts.check_none()?;
        let (spec, reason) = self.with_plugin(name, component, origin)?;
        self.publish(spec, reason)
    }

    /// The only change from here on. Errors: another one is under way.
    pub(crate) fn begin_change(&self) -> Result<MutexGuard<'_, ()>, PrepareError> {
        self.changing.try_lock().ok_or_else(|| PrepareError {
            stage: Stage::Fetched,
            plugin: None,
            message: PrepareError::BUSY.to_owned(),
        })
    }

    /// The active chain with another component in a plugin's place, and a word about it.
    pub(crate) fn with_plugin(
        &self,
        name: &str,
        component: Arc<[u8]>,
        origin: String,
    ) -> Result<(ChainSpec, String), PrepareError> {
        let mut spec = self.active.load().spec.clone();
        if !spec.plugins.contains_key(name) {
            return Err(prepare::no_plugin(&spec, name));
        }
        let reason = format!("{name} from {origin}");
        if let Some(plugin) = spec.plugins.get_mut(name) {
            plugin.component = component;
            plugin.origin = origin;
        }
        Ok((spec, reason))
    }

    /// Prepares a generation that decides nothing yet.
    pub(crate) fn prepare(
        &self,
        spec: ChainSpec,
        reason: String,
        sharing: Sharing,
    ) -> Result<Arc<Generation>, PrepareError> {
        // Changes come one by one: nobody else takes the number meanwhile.
        let id = self.ledger.lock().next_id();
        let (runtime, workers) = (&self.runtime, self.workers);
        let saved = |plugin: &str| load(self.stores.as_ref(), plugin);
        let preparation = Preparation { runtime, spec: &spec, workers, generation: id, saved: &saved };
        let seats = preparation.seats(&self.active.load().seats, sharing)?;
        self.ledger.lock().prepared(id);
        Ok(Arc::new(Generation::new(id, spec, seats, reason)))
    }

    fn publish(&self, spec: ChainSpec, reason: String) -> Result<GenerationId, PrepareError> {
        let next = self.prepare(spec, reason, Sharing::Same)?;
        let id = next.id;
        let before = self.active();
        self.activate(next, &before);
        tracing::info!(generation = id.0, "policy generation active");
        Ok(id)
    }

    /// Makes a prepared generation active and watches it for a while.
    pub(crate) fn activate(&self, next: Arc<Generation>, before: &Generation) {
        let mut ledger = self.ledger.lock();
        ledger.activated(&next);
        ledger.keep(READY_MAX + 1);
        next.stores_differ_from_disk();
        self.active.store(next.clone());
        drop(ledger);
        self.rollouts.begin_probation(&next, before);
    }

    /// Makes the generation active that was so before this one. Errors: there is none, or a candidate is tried.
    pub fn rollback(&self) -> Result<GenerationId, PrepareError> {
        let _one_by_one = self.changing.lock();
        self.rollouts.check_none()?;
        let mut ledger = self.ledger.lock();
        let Some(before) = ledger.roll_back() else {
            let message = "no generation is kept from before the active one".to_owned();
            return Err(PrepareError { stage: Stage::Fetched, plugin: None, message });
        };
        let id = before.id;
        before.stores_differ_from_disk();
        self.active.store(before);
        drop(ledger);
        self.rollouts.end_probation();
        tracing::info!(generation = id.0, "policy generation rolled back");
        Ok(id)
    }

    /// Writes the stores of the active generation's plugins that changed. Blocks on the disk.
    pub fn save_stores(&self) {
        let Some(folder) = &self.stores else { return };
        for (name, seat) in &self.active.load().seats {
            folder.save(name, &seat.shelf);
        }
    }

    /// Generations, the oldest known first.
    pub fn history(&self) -> Vec<crate::report::GenerationReport> {
        self.ledger.lock().history(&self.active.load(), &self.rollouts)
    }

    /// What changed from one generation to another. Errors: the one that is not remembered.
    pub fn diff(&self, from: GenerationId, to: GenerationId) -> Result<GenerationDiff, GenerationId> {
        self.ledger.lock().diff([from, to])
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

fn load(folder: Option<&StoreFolder>, plugin: &str) -> Entries {
    folder.map(|folder| folder.load(plugin)).unwrap_or_default()
}
