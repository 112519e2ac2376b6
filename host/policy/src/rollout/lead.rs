//! Leading a rollout: begin, move on, promote, abort; and what the watch does by itself.
//!
//! **Invariant:** one rollout at a time, and one change at a time: who comes second is told, and nothing changed.

use super::canary::{self, Mode};
use super::feed::Feed;
use super::report::{
    ProbationReport, RollbackReport, RolloutReport, RolloutState, RolloutTotals, SideReport,
};
use super::shadowed::Shadowed;
use super::watch::{Breach, WatchLimits, Watched};
use crate::clock;
use crate::error::{PrepareError, Stage};
use crate::generation::{Generation, GenerationId, Generations};
use crate::prepare::Sharing;
use crate::report::{CallReport, GenerationState};
use crate::spec::{ChainSpec, Subject};
use crate::witness::{Seen, Way};
use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Roll backs that are remembered.
const ROLLBACKS_MAX: usize = 16;

/// What is tried.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one of it a rollout")]
pub enum Candidate {
    /// Other chains.
    Chain(ChainSpec),
    /// The active chains with another component in one plugin's place.
    Plugin {
        /// The plugin.
        name: String,
        /// Its component.
        component: Arc<[u8]>,
        /// Where that came from.
        origin: String,
    },
}

/// Why a rollout did not begin or move. The active generation is untouched.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// The candidate cannot serve, or another change is under way.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// One is under way already.
    #[error("{0}")]
    Running(String),
    /// None is under way.
    #[error("no rollout is under way; begin one with a plugin as a shadow or a canary")]
    NoRollout,
    /// The share of a canary.
    #[error("`percent` must be above 0 and at most 100, is {0}")]
    Percent(f64),
    /// The candidate decides already.
    #[error("`mode` cannot go back from canary to shadow: lower `percent`, or abort and begin again")]
    Backwards,
    /// The thread of a shadow does not start.
    #[error("a thread does not start: {0}")]
    Thread(#[from] std::io::Error),
}

impl RolloutError {
    /// Whether it was refused only because something else is under way.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Running(_)) || matches!(self, Self::Prepare(error) if error.is_busy())
    }
}

/// A candidate that is tried.
pub(crate) struct Rollout {
    pub(crate) candidate: Arc<Generation>,
    beside: Arc<Generation>,
    began_ms: u64,
    mode: ArcSwap<Mode>,
    feed: Arc<Feed>,
    active_requests: AtomicU64,
    candidate_requests: AtomicU64,
    watched: Mutex<Watched>,
    decides_since_ns: AtomicU64,
}

/// The rollout that runs, and what is left of those before.
#[derive(Default)]
pub(crate) struct Rollouts {
    running: ArcSwapOption<Rollout>,
    desk: Mutex<Desk>,
}

#[derive(Default)]
struct Desk {
    limits: WatchLimits,
    last: Option<RolloutReport>,
    probation: Option<Probation>,
    rollbacks: VecDeque<RollbackReport>,
    totals: RolloutTotals,
}

/// A newly active generation under watch.
struct Probation {
    generation: Arc<Generation>,
    until_ns: u64,
    watched: Watched,
}

impl Rollout {
    pub(crate) fn state(&self) -> GenerationState {
        self.mode.load().state()
    }

    /// Its candidate's place beside a request that the live generation decides about.
    pub(crate) fn shadowed(this: &Arc<Self>, subject: &Subject<'_>) -> Shadowed {
        let mode = this.mode.load();
        Shadowed {
            feed: this.feed.clone(),
            way: this.candidate.way(subject),
            asked: matches!(**mode, Mode::Shadow),
            // Held by the requests that it decides about, and by no other.
            rollout: mode.fits(subject).then(|| Arc::downgrade(this)),
        }
    }

    /// The candidate, if it decides for this session.
    pub(crate) fn takes(&self, session: impl FnOnce() -> u64) -> Option<&Arc<Generation>> {
        let Mode::Canary { percent, .. } = **self.mode.load() else { return None };
        let taken = canary::takes(self.candidate.id(), percent, session());
        let side = if taken { &self.candidate_requests } else { &self.active_requests };
        side.fetch_add(1, Relaxed);
        taken.then_some(&self.candidate)
    }

    /// Shows a shadow what a worker was told.
    pub(crate) fn see(&self, seen: &Seen<'_>) {
        if matches!(**self.mode.load(), Mode::Shadow) {
            self.feed.take(Way::default(), seen);
        }
    }

    fn in_the_way(&self) -> String {
        let (candidate, state) = (self.candidate.id(), self.mode.load());
        let state = if **state == Mode::Shadow { "shadow" } else { "canary" };
        format!("{}{candidate} ({state}): promote it or abort it first", PrepareError::ROLLOUT)
    }

    fn requests(&self) -> SideReport {
        let read = |count: &AtomicU64| count.load(Relaxed);
        SideReport { active: read(&self.active_requests), candidate: read(&self.candidate_requests) }
    }

    fn report(&self) -> RolloutReport {
        let mode = (**self.mode.load()).clone();
        let state = if mode == Mode::Shadow { RolloutState::Shadow } else { RolloutState::Canary };
        let calls = self.candidate.seats().iter().map(|(name, seat)| {
            let used = seat.stats.read().used().map(|(slot, counts)| (slot, CallReport::new(&counts)));
            (name.clone(), used.collect())
        });
        RolloutReport {
            candidate: self.candidate.id(),
            beside: self.beside.id(),
            state,
            mode,
            reason: self.candidate.reason().to_owned(),
            began_ms: self.began_ms,
            ended_ms: None,
            why: None,
            shadow: self.feed.report(),
            requests: self.requests(),
            calls: calls.collect(),
        }
    }

    fn watch_anew(&self, limits: &WatchLimits) {
        let now_ns = clock::monotonic_ns();
        *self.watched.lock() = Watched::new(&self.candidate, &self.beside, limits, now_ns);
        self.decides_since_ns.store(now_ns, Relaxed);
    }
}

impl Rollouts {
    /// The one that runs.
    pub(crate) fn running(&self) -> arc_swap::Guard<Option<Arc<Rollout>>> {
        self.running.load()
    }

    /// Errors: the active generation may not be changed while a candidate is tried beside it.
    pub(crate) fn check_none(&self) -> Result<(), PrepareError> {
        match &*self.running() {
            None => Ok(()),
            Some(running) => {
                Err(PrepareError { stage: Stage::Fetched, plugin: None, message: running.in_the_way() })
            }
        }
    }

    /// Watches a generation that became active, if that is wanted.
    pub(crate) fn begin_probation(&self, generation: &Arc<Generation>, before: &Generation) {
        let mut desk = self.desk.lock();
        let now_ns = clock::monotonic_ns();
        let probation_ns = u64::try_from(desk.limits.probation.as_nanos()).unwrap_or(u64::MAX);
        desk.probation = (probation_ns > 0).then(|| Probation {
            generation: generation.clone(),
            until_ns: now_ns.saturating_add(probation_ns),
            watched: Watched::new(generation, before, &desk.limits, now_ns),
        });
    }

    /// Ends the watch over the active generation.
    pub(crate) fn end_probation(&self) {
        self.desk.lock().probation = None;
    }

    /// How many hold a generation on behalf of this module.
    pub(crate) fn holders(&self, generation: &Arc<Generation>) -> usize {
        let is = |other: &Arc<Generation>| usize::from(Arc::ptr_eq(other, generation));
        let running = self.running();
        let tried = running.as_ref().map_or(0, |rollout| is(&rollout.candidate) + is(&rollout.beside));
        tried + self.desk.lock().probation.as_ref().map_or(0, |probation| is(&probation.generation))
    }

    /// Lets a rollout go and remembers how it ended.
    fn end(&self, rollout: &Rollout, state: RolloutState, why: String) {
        self.running.store(None);
        rollout.feed.close();
        let mut report = rollout.report();
        (report.state, report.ended_ms, report.why) = (state, Some(clock::now_ms()), Some(why));
        let mut desk = self.desk.lock();
        let (sum, more) = (&mut desk.totals.requests, report.requests);
        (sum.active, sum.candidate) = (sum.active + more.active, sum.candidate + more.candidate);
        *desk.totals.ended.entry(state.as_str()).or_default() += 1;
        desk.last = Some(report);
    }

    fn rolled_back(&self, generation: GenerationId, to: GenerationId, breach: &Breach) {
        let (why, at_ms) = (breach.why.clone(), clock::now_ms());
        let mut desk = self.desk.lock();
        *desk.totals.rollbacks.entry(breach.kind).or_default() += 1;
        if let Some(last) = desk.last.as_mut().filter(|last| last.candidate == generation) {
            (last.state, last.why) = (RolloutState::RolledBack, Some(why.clone()));
        }
        if desk.rollbacks.len() == ROLLBACKS_MAX {
            desk.rollbacks.pop_front();
        }
        desk.rollbacks.push_back(RollbackReport { generation, to, why, at_ms });
    }
}

impl Generations {
    /// Prepares a candidate and begins to try it. Blocks for as long as compiling takes. Errors: it cannot serve,
    /// `mode` is none, or another rollout or change is under way.
    pub fn start_rollout(&self, candidate: Candidate, mode: Mode) -> Result<GenerationId, RolloutError> {
        mode.check()?;
        let _alone = self.begin_change()?;
        if let Some(running) = &*self.rollouts.running() {
            return Err(RolloutError::Running(running.in_the_way()));
        }
        let (spec, reason) = match candidate {
            Candidate::Chain(spec) => (spec, "chain".to_owned()),
            Candidate::Plugin { name, component, origin } => self.with_plugin(&name, component, origin)?,
        };
        let candidate = self.prepare(spec, reason, Sharing::Fork)?;
        let (id, state) = (candidate.id(), mode.state());
        let feed = Feed::start(&candidate)?;
        let decides = matches!(mode, Mode::Canary { .. });
        let rollout = Rollout {
            beside: self.active(),
            began_ms: clock::now_ms(),
            mode: ArcSwap::from_pointee(mode),
            feed,
            active_requests: AtomicU64::new(0),
            candidate_requests: AtomicU64::new(0),
            watched: Mutex::default(),
            decides_since_ns: AtomicU64::new(0),
            candidate,
        };
        rollout.watch_anew(&self.rollouts.desk.lock().limits);
        let mut ledger = self.ledger.lock();
        ledger.record(&rollout.candidate);
        if decides {
            ledger.count(&rollout.candidate);
        }
        drop(ledger);
        self.rollouts.running.store(Some(Arc::new(rollout)));
        tracing::info!(generation = id.0, state = ?state, "policy rollout begun");
        Ok(id)
    }

    /// Moves a shadow on to canary, or changes a canary's share. Errors: none runs, or it cannot be tried so.
    pub fn set_mode(&self, mode: Mode) -> Result<GenerationId, RolloutError> {
        mode.check()?;
        let _alone = self.begin_change()?;
        let rollout = self.rollouts.running.load_full().ok_or(RolloutError::NoRollout)?;
        let (from, to) = (rollout.state(), mode.state());
        if (from, to) == (GenerationState::Canary, GenerationState::Shadow) {
            return Err(RolloutError::Backwards);
        }
        if from != to {
            // What it counted as a shadow is not what it did to requests.
            self.ledger.lock().count(&rollout.candidate);
            rollout.watch_anew(&self.rollouts.desk.lock().limits);
        }
        tracing::info!(generation = rollout.candidate.id().0, mode = ?mode, "policy rollout moved");
        rollout.mode.store(Arc::new(mode));
        Ok(rollout.candidate.id())
    }

    /// Makes the candidate the active generation. Errors: none runs, or another change is under way.
    pub fn promote(&self) -> Result<GenerationId, RolloutError> {
        self.promote_because("asked by an operator")
    }

    fn promote_because(&self, why: &str) -> Result<GenerationId, RolloutError> {
        let _alone = self.begin_change()?;
        let rollout = self.rollouts.running.load_full().ok_or(RolloutError::NoRollout)?;
        let candidate = &rollout.candidate;
        self.activate(candidate.clone(), &rollout.beside);
        self.rollouts.end(&rollout, RolloutState::Promoted, why.to_owned());
        self.ledger.lock().note(candidate.id(), format!("promoted: {why}"));
        tracing::info!(generation = candidate.id().0, why, "policy rollout promoted");
        Ok(candidate.id())
    }

    /// Ends the rollout; its requests end with the candidate that they began with. Errors: none runs.
    pub fn abort(&self, why: &str) -> Result<GenerationId, RolloutError> {
        let _one_by_one = self.changing.lock();
        let rollout = self.rollouts.running.load_full().ok_or(RolloutError::NoRollout)?;
        let id = rollout.candidate.id();
        self.rollouts.end(&rollout, RolloutState::Aborted, why.to_owned());
        self.ledger.lock().note(id, format!("aborted: {why}"));
        tracing::info!(generation = id.0, why, "policy rollout aborted");
        Ok(id)
    }

    /// The rollout that runs, or the last one.
    pub fn rollout(&self) -> Option<RolloutReport> {
        match &*self.rollouts.running() {
            Some(running) => Some(running.report()),
            None => self.rollouts.desk.lock().last.clone(),
        }
    }

    /// Counters of all rollouts.
    pub fn rollout_totals(&self) -> RolloutTotals {
        let running = self.rollouts.running().as_ref().map(|rollout| rollout.requests()).unwrap_or_default();
        let mut totals = self.rollouts.desk.lock().totals.clone();
        totals.requests.active += running.active;
        totals.requests.candidate += running.candidate;
        totals
    }

    /// Generations that the watch took back, the last one at the end.
    pub fn rollbacks(&self) -> Vec<RollbackReport> {
        self.rollouts.desk.lock().rollbacks.iter().cloned().collect()
    }

    /// The active generation, if it is still on probation.
    pub fn probation(&self) -> Option<ProbationReport> {
        let desk = self.rollouts.desk.lock();
        let probation = desk.probation.as_ref()?;
        let left_ns = probation.until_ns.saturating_sub(clock::monotonic_ns());
        let seconds_left = left_ns as f64 / 1e9;
        Some(ProbationReport { generation: probation.generation.id(), seconds_left })
    }

    /// Sets when generations are taken back, and has a thread look as often as that says, as long as `self` lives.
    pub fn keep_watch(self: &Arc<Self>, limits: WatchLimits) -> std::io::Result<()> {
        self.set_watch_limits(limits);
        let watched = Arc::downgrade(self);
        let look = move || {
            while let Some(generations) = watched.upgrade() {
                generations.watch();
                drop(generations);
                std::thread::sleep(limits.tick);
            }
        };
        std::thread::Builder::new().name("policy-watch".to_owned()).spawn(look).map(drop)
    }

    /// Sets when generations are taken back; [`Generations::watch`] looks.
    pub fn set_watch_limits(&self, limits: WatchLimits) {
        self.rollouts.desk.lock().limits = limits;
    }

    /// Looks once at the candidate and at a newly active generation, and takes back what broke a limit.
    pub fn watch(&self) {
        let limits = self.rollouts.desk.lock().limits;
        let now_ns = clock::monotonic_ns();
        if let Some(rollout) = self.rollouts.running.load_full() {
            let breach = rollout.watched.lock().look(&rollout.candidate, &limits, now_ns);
            match breach {
                Some(breach) => self.give_up(&rollout, &breach),
                None => self.promote_if_due(&rollout, &limits, now_ns),
            }
        }
        let mut desk = self.rollouts.desk.lock();
        let Some(mut probation) = desk.probation.take() else { return };
        match probation.watched.look(&probation.generation, &limits, now_ns) {
            Some(breach) => {
                drop(desk);
                self.take_back(&probation.generation, &breach);
            }
            None if now_ns >= probation.until_ns => {}
            None => desk.probation = Some(probation),
        }
    }

    /// A candidate broke a limit.
    fn give_up(&self, rollout: &Arc<Rollout>, breach: &Breach) {
        let _one_by_one = self.changing.lock();
        let still = self.rollouts.running().as_ref().is_some_and(|running| Arc::ptr_eq(running, rollout));
        if !still {
            return;
        }
        let (id, to) = (rollout.candidate.id(), rollout.beside.id());
        self.rollouts.end(rollout, RolloutState::RolledBack, breach.why.clone());
        self.rollouts.rolled_back(id, to, breach);
        self.ledger.lock().note(id, format!("rolled_back: {}", breach.why));
        tracing::error!(generation = id.0, active = to.0, why = breach.why, "policy rollout rolled back");
    }

    fn promote_if_due(&self, rollout: &Rollout, limits: &WatchLimits, now_ns: u64) {
        let after_ns = limits.promote_after.as_nanos();
        let ran_ns = now_ns.saturating_sub(rollout.decides_since_ns.load(Relaxed));
        let is_due = after_ns > 0
            && rollout.state() == GenerationState::Canary
            && u128::from(ran_ns) >= after_ns
            && rollout.requests().candidate >= limits.calls_min;
        if is_due {
            let why = format!("no breach for {} s", limits.promote_after.as_secs_f64());
            if let Err(error) = self.promote_because(&why) {
                tracing::debug!(%error, "the promotion waits");
            }
        }
    }

    /// The active generation broke a limit soon after it became active.
    fn take_back(&self, generation: &Arc<Generation>, breach: &Breach) {
        let _one_by_one = self.changing.lock();
        if self.active().id() != generation.id() {
            return;
        }
        let id = generation.id();
        let Some(before) = self.ledger.lock().roll_back() else {
            tracing::error!(
                generation = id.0,
                why = breach.why,
                "policy generation fails, none is before it"
            );
            return;
        };
        if let Some(rollout) = self.rollouts.running.load_full() {
            let why = format!("generation {id}, beside which it was tried, was rolled back");
            self.ledger.lock().note(rollout.candidate.id(), format!("aborted: {why}"));
            self.rollouts.end(&rollout, RolloutState::Aborted, why);
        }
        let to = before.id();
        before.stores_differ_from_disk();
        self.active.store(before);
        self.rollouts.rolled_back(id, to, breach);
        self.ledger.lock().note(id, format!("rolled_back: {}", breach.why));
        tracing::error!(generation = id.0, active = to.0, why = breach.why, "policy generation rolled back");
    }
}
