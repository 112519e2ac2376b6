//! A plugin's place in a generation: its instances, a spare, a breaker and its counters.
//!
//! **Invariant:** whatever a plugin does, asking its seat returns, with an answer that passed its check,
//! an abstention, or the outcome that explains why there is neither.

pub(crate) mod exact;

use crate::clock;
use crate::describe::Description;
use crate::generation::GenerationId;
use crate::instance::{Fault, Instance};
use crate::runtime::{Compiled, Job, Runtime};
use crate::sandbox::{Belongings, Ctx, Metrics};
use crate::slot::{Answer, Slot};
use crate::spec::PluginSpec;
use crate::stats::{Outcome, Stats};
use crate::store::Store;
use crate::trial;
use exact::Exactness;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

/// Faults in a row that open the breaker. Chosen: a rebuild costs about 0.1 ms on the janitor's thread.
const FAULTS_MAX: u32 = 5;
/// How long an open breaker keeps callers away: at first, and at most after doubling.
const COOL_DOWN_MS: u64 = 1_000;
const COOL_DOWN_MS_MAX: u64 = 60_000;

/// Where an instance lives. Empty while a replacement is built.
type Place = Mutex<Option<Instance>>;

/// Which instances a chain needs of a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    /// For the slots of a request.
    pub(crate) request: usize,
    /// For `schedule` and `retain`: one a worker.
    pub(crate) workers: usize,
}

/// A prepared plugin.
pub(crate) struct Seat {
    pub(crate) name: Arc<str>,
    pub(crate) spec: PluginSpec,
    pub(crate) described: Description,
    pub(crate) compiled: Arc<Compiled>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) metrics: Metrics,
    pub(crate) shelf: Store,
    generation: GenerationId,
    runtime: Arc<Runtime>,
    inputs: Arc<crate::describe::Inputs>,
    request: Vec<Place>,
    workers: Vec<Place>,
    spare: Place,
    mending: AtomicBool,
    next: AtomicUsize,
    breaker: Breaker,
    exactness: Exactness,
    this: Weak<Seat>,
}

/// Which slot asks, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) slot: Slot,
    /// The clock of the view.
    pub(crate) now_ms: u64,
}

/// Keeps callers away from a plugin that faults again and again.
#[derive(Debug, Default)]
struct Breaker {
    faults: AtomicU32,
    open_until_ms: AtomicU64,
}

impl Breaker {
    fn is_open(&self, now_ms: u64) -> bool {
        now_ms < self.open_until_ms.load(Relaxed)
    }

    fn close(&self) {
        if self.faults.load(Relaxed) != 0 {
            self.faults.store(0, Relaxed);
        }
    }

    /// Counts a fault; says whether it opened the breaker.
    fn fault(&self, now_ms: u64) -> bool {
        let faults = self.faults.fetch_add(1, Relaxed).saturating_add(1);
        let Some(over) = faults.checked_sub(FAULTS_MAX) else { return false };
        let cool_down_ms = (COOL_DOWN_MS << over.min(6)).min(COOL_DOWN_MS_MAX);
        self.open_until_ms.store(now_ms.saturating_add(cool_down_ms), Relaxed);
        true
    }
}

/// What a seat is made of, before it has instances.
pub(crate) struct Parts {
    pub(crate) name: Arc<str>,
    pub(crate) spec: PluginSpec,
    pub(crate) described: Description,
    pub(crate) compiled: Arc<Compiled>,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) metrics: Metrics,
    pub(crate) shelf: Store,
    pub(crate) generation: GenerationId,
}

impl Seat {
    /// Builds all instances of a plugin. Errors: one does not start, or fails its trial.
    pub(crate) fn new(parts: Parts, places: Places) -> Result<Arc<Self>, String> {
        let Parts { name, spec, described, compiled, runtime, metrics, shelf, generation } = parts;
        let seat = |this: &Weak<Self>| Self {
            inputs: Arc::new(described.inputs.clone()),
            name,
            spec,
            described,
            compiled,
            metrics,
            shelf,
            generation,
            runtime,
            stats: Arc::default(),
            request: (0..places.request).map(|_| Place::default()).collect(),
            workers: (0..places.workers).map(|_| Place::default()).collect(),
            spare: Place::default(),
            mending: AtomicBool::new(false),
            next: AtomicUsize::new(0),
            breaker: Breaker::default(),
            exactness: Exactness::default(),
            this: this.clone(),
        };
        let seat = Arc::new_cyclic(seat);
        for place in seat.request.iter().chain(&seat.workers).chain([&seat.spare]) {
            *place.lock() = Some(seat.build()?);
        }
        Ok(seat)
    }

    /// The instances that a chain with these places would need.
    pub(crate) fn places(&self) -> Places {
        Places { request: self.request.len(), workers: self.workers.len() }
    }

    /// The generation that brought it.
    pub(crate) fn generation(&self) -> GenerationId {
        self.generation
    }

    /// Whether it has an answer for a slot.
    pub(crate) fn answers(&self, slot: Slot) -> bool {
        self.described.slots.contains(&slot)
    }

    /// Asks one of the instances for requests.
    pub(crate) fn ask<T>(
        &self,
        asked: Asked,
        call: impl FnOnce(&mut Instance) -> Answer<T>,
        check: impl FnOnce(&mut T) -> Result<(), String>,
    ) -> Result<Answer<T>, Outcome> {
        let place = match self.request.as_slice() {
            [] => return self.miss(asked.slot),
            [place] => place,
            // Prefer one that nobody holds; the start moves on, so that all stay warm.
            pool => {
                let start = self.next.fetch_add(1, Relaxed);
                let at = |step: usize| &pool[start.wrapping_add(step) % pool.len()];
                (0..pool.len()).map(at).find(|place| !place.is_locked()).unwrap_or_else(|| at(0))
            }
        };
        self.ask_at(place, asked, call, check)
    }

    /// Asks the instance of a worker.
    pub(crate) fn ask_worker<T>(
        &self,
        worker: usize,
        asked: Asked,
        call: impl FnOnce(&mut Instance) -> Answer<T>,
        check: impl FnOnce(&mut T) -> Result<(), String>,
    ) -> Result<Answer<T>, Outcome> {
        match self.workers.get(worker) {
            Some(place) => self.ask_at(place, asked, call, check),
            None => self.miss(asked.slot),
        }
    }

    /// Tells the instance of a worker something that it gives no answer to, and that counts as no call unless it
    /// fails.
    pub(crate) fn tell_worker(
        &self,
        worker: usize,
        now_ms: u64,
        call: impl FnOnce(&mut Instance) -> Answer<()>,
    ) {
        let Some(place) = self.workers.get(worker) else { return };
        let mut held = place.lock();
        let Some(instance) = held.as_mut() else { return };
        instance.begin_call();
        call(instance);
        if let Some(fault) = self.fault_of(instance, place, Slot::Retain) {
            let poisoned = std::mem::replace(&mut *held, self.take_spare());
            drop(held);
            self.bury(poisoned);
            self.faulted(Slot::Retain, now_ms, &fault);
        }
    }

    /// Has the instances begin with the state of those of the seat that this one takes the place of. What cannot
    /// be carried starts cold, and the log says why.
    pub(crate) fn inherit(&self, old: &Seat) {
        let pairs = |new: &[Place], old: &[Place]| {
            for (index, place) in new.iter().enumerate() {
                let Some(from) = old.get(index).or(old.first()) else { return };
                self.carry(from, place);
            }
        };
        pairs(&self.request, &old.request);
        pairs(&self.workers, &old.workers);
    }

    fn carry(&self, from: &Place, to: &Place) {
        let mut heir = to.lock();
        let Some(new) = heir.as_mut() else { return };
        let carried = self.carried(from, new);
        let policy = &*self.name;
        match &carried {
            Ok(Some(bytes)) => tracing::info!(policy, bytes, "policy state carried over"),
            Ok(None) => {}
            Err(error) => tracing::warn!(policy, error, "policy starts cold"),
        }
        // An heir that refused its state may hold half of it: a fresh one takes its place.
        if carried.is_err() {
            match self.build() {
                Ok(fresh) => self.bury(heir.replace(fresh)),
                Err(error) => tracing::warn!(policy, error, "no instance of a policy"),
            }
        }
    }

    /// Bytes carried; `None` if there is no state to carry.
    fn carried(&self, from: &Place, new: &mut Instance) -> Result<Option<usize>, String> {
        let Some(schema) = new.state_schema()? else { return Ok(None) };
        let mut held = from.lock();
        let Some(old) = held.as_mut() else { return Ok(None) };
        let exported = old.export_state(&schema, self.spec.limits.state_bytes_max);
        if old.is_finished() {
            self.bury(held.take());
        }
        drop(held);
        let Some(state) = exported? else {
            return Err(format!("the one before it has no state in the form `{schema}`"));
        };
        new.import_state(&schema, &state)?;
        Ok(Some(state.len()))
    }

    /// Tells every instance.
    pub(crate) fn tell(&self, now_ms: u64, mut call: impl FnMut(&mut Instance) -> Answer<()>) {
        for place in self.request.iter().chain(&self.workers) {
            // Its outcome is counted; there is nothing to fall back to.
            let _told = self.ask_at(place, Asked { slot: Slot::Observe, now_ms }, &mut call, |()| Ok(()));
        }
    }

    fn ask_at<T>(
        &self,
        place: &Place,
        asked: Asked,
        call: impl FnOnce(&mut Instance) -> Answer<T>,
        check: impl FnOnce(&mut T) -> Result<(), String>,
    ) -> Result<Answer<T>, Outcome> {
        let Asked { slot, now_ms } = asked;
        if self.breaker.is_open(now_ms) {
            return self.miss(slot);
        }
        let mut held = place.lock();
        if held.is_none() {
            *held = self.take_spare();
        }
        let Some(instance) = held.as_mut() else {
            drop(held);
            self.breaker.fault(now_ms);
            return self.miss(slot);
        };
        let stats = self.stats.slot(slot);
        instance.begin_call();
        let start_ns = clock::monotonic_ns();
        let answer = call(instance);
        stats.took(clock::monotonic_ns().saturating_sub(start_ns));
        stats.burnt(instance.fuel_spent());
        if let Some(fault) = self.fault_of(instance, place, slot) {
            let poisoned = std::mem::replace(&mut *held, self.take_spare());
            drop(held);
            self.bury(poisoned);
            return Err(self.faulted(slot, now_ms, &fault));
        }
        drop(held);
        self.breaker.close();
        let Some(mut answer) = answer else {
            stats.count(Outcome::Abstained);
            return Ok(None);
        };
        match check(&mut answer) {
            Ok(()) => {
                stats.count(Outcome::Ok);
                Ok(Some(answer))
            }
            Err(why) => Err(self.refuse(slot, &why)),
        }
    }

    /// Counts an answer that breaks the laws of its slot.
    pub(crate) fn refuse(&self, slot: Slot, why: &str) -> Outcome {
        let times = self.stats.slot(slot).count(Outcome::BadAnswer);
        if is_news(times) {
            let (policy, slot) = (&*self.name, slot.as_str());
            tracing::warn!(policy, slot, error = why, times, "bad answer of a policy");
        }
        Outcome::BadAnswer
    }

    fn miss<T>(&self, slot: Slot) -> Result<T, Outcome> {
        self.stats.slot(slot).count(Outcome::FellBack);
        Err(Outcome::FellBack)
    }

    fn faulted(&self, slot: Slot, now_ms: u64, fault: &Fault) -> Outcome {
        let times = self.stats.slot(slot).count(fault.outcome);
        let opened = self.breaker.fault(now_ms);
        if opened || is_news(times) {
            let (policy, slot, error, outcome) = (&*self.name, slot.as_str(), &*fault.message, fault.outcome);
            tracing::warn!(policy, slot, error, %outcome, times, opened, "policy fault");
        }
        fault.outcome
    }

    /// Takes the spare instance and has the next one built.
    fn take_spare(&self) -> Option<Instance> {
        if self.exactness.is_on() {
            return self.build_at_once();
        }
        let spare = self.spare.lock().take();
        if !self.mending.swap(true, Relaxed) {
            self.runtime.later(Job::Mend(self.this.clone()));
        }
        spare
    }

    /// Builds the spare instance. Called by the janitor.
    pub(crate) fn mend(&self) {
        match self.build() {
            Ok(instance) => *self.spare.lock() = Some(instance),
            Err(error) => tracing::warn!(policy = &*self.name, error, "no spare instance of a policy"),
        }
        self.mending.store(false, Relaxed);
    }

    fn build(&self) -> Result<Instance, String> {
        // Warm-up calls write to a copy of the store.
        let shelf = Store::new(self.shelf.entries(), self.spec.limits.store_bytes_max);
        let (plugin, metrics) = (self.name.clone(), self.metrics.clone());
        let belongings = Belongings { plugin, metrics, shelf };
        let mut instance = start(belongings, &self.spec, &self.compiled, &self.runtime)?;
        instance.configure(&settings(&self.spec))?;
        instance.set_terms(self.inputs.clone(), self.spec.limits.deadline.max(trial::DEADLINE));
        trial::warm(&mut instance, &self.described.slots)?;
        instance.set_terms(self.inputs.clone(), self.spec.limits.deadline);
        instance.set_shelf(self.shelf.clone());
        Ok(instance)
    }

    fn bury(&self, instances: impl IntoIterator<Item = Instance>) {
        let stores: Vec<_> = instances.into_iter().map(Instance::into_store).collect();
        if !stores.is_empty() {
            self.runtime.later(Job::Bury(stores));
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let places = self.request.iter().chain(&self.workers).chain([&self.spare]);
        self.bury(places.filter_map(|place| place.lock().take()).collect::<Vec<_>>());
    }
}

/// Whether an event that came so many times is worth a log line: a policy can fail for every request.
fn is_news(times: u64) -> bool {
    times.is_power_of_two()
}

/// A new instance, not yet configured.
pub(crate) fn start(
    belongings: Belongings,
    spec: &PluginSpec,
    compiled: &Compiled,
    runtime: &Runtime,
) -> Result<Instance, String> {
    let memory_bytes_max = spec.limits.memory_bytes.min(runtime.memory_bytes_max());
    let ctx = Ctx::new(belongings, memory_bytes_max, compiled.wasi);
    Instance::new(compiled, ctx.into_store(runtime.engine(), runtime.metering()))
}

/// A plugin's settings as it gets them: no settings are the empty object.
pub(crate) fn settings(spec: &PluginSpec) -> String {
    if spec.config.is_null() { "{}".to_owned() } else { spec.config.to_string() }
}

/// Checks a plugin on an instance of its own: every slot, the learning ones included.
pub(crate) fn try_out(parts: &Parts) -> Result<(), String> {
    let Parts { name, spec, described, compiled, runtime, .. } = parts;
    // Its own metrics and its own copy of the store: a trial leaves no trace.
    let shelf = Store::new(parts.shelf.entries(), spec.limits.store_bytes_max);
    let belongings = Belongings { plugin: name.clone(), metrics: Metrics::default(), shelf };
    let mut instance = start(belongings, spec, compiled, runtime)?;
    instance.configure(&settings(spec))?;
    let inputs = Arc::new(described.inputs.clone());
    instance.set_terms(inputs, spec.limits.deadline.max(trial::DEADLINE));
    trial::full(&mut instance, &described.slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_breaker_opens_after_faults_in_a_row_and_cools_down() {
        let breaker = Breaker::default();
        (0..FAULTS_MAX - 1).for_each(|_| assert!(!breaker.fault(10)));
        assert!(!breaker.is_open(10));
        assert!(breaker.fault(10));
        assert!(breaker.is_open(10 + COOL_DOWN_MS - 1));
        assert!(!breaker.is_open(10 + COOL_DOWN_MS));
    }

    #[test]
    fn the_cool_down_doubles_up_to_its_maximum() {
        let breaker = Breaker::default();
        (0..FAULTS_MAX + 1).for_each(|_| _ = breaker.fault(0));
        assert!(breaker.is_open(2 * COOL_DOWN_MS - 1));
        (0..100).for_each(|_| _ = breaker.fault(0));
        assert!(breaker.is_open(COOL_DOWN_MS_MAX - 1));
        assert!(!breaker.is_open(COOL_DOWN_MS_MAX));
    }

    #[test]
    fn a_good_call_forgives() {
        let breaker = Breaker::default();
        (0..FAULTS_MAX - 1).for_each(|_| _ = breaker.fault(0));
        breaker.close();
        assert!(!breaker.fault(0));
    }
}
