//! From a specification to a chain that can decide: every plugin compiled, described, configured, tried.
//!
//! **Invariant:** preparing touches nothing that is live. Plugins that did not change are shared with the
//! active generation, with what they have learned.

use crate::chain::Chain;
use crate::describe::{self, Description};
use crate::error::{PrepareError, Stage};
use crate::generation::GenerationId;
use crate::runtime::{Digest, Runtime};
use crate::sandbox::Metrics;
use crate::seat::{self, Parts, Places, Seat};
use crate::slot::Slot;
use crate::spec::{ChainSpec, PluginSpec};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Weights lie within this of 0.
const WEIGHT_MAX: f32 = 1e6;

pub(crate) type Seats = BTreeMap<String, Arc<Seat>>;

/// What a new generation is prepared from.
pub(crate) struct Preparation<'a> {
    pub(crate) runtime: &'a Arc<Runtime>,
    pub(crate) spec: &'a ChainSpec,
    pub(crate) workers: usize,
    pub(crate) generation: GenerationId,
}

impl Preparation<'_> {
    /// Prepares all plugins; those that are the same in `live` are taken from there.
    pub(crate) fn seats(&self, live: &Seats) -> Result<Seats, PrepareError> {
        check_names(self.spec)?;
        let mut seats = Seats::new();
        for (name, plugin) in &self.spec.plugins {
            let seat = match live.get(name).filter(|seat| is_same(seat, self.spec, plugin, self.workers)) {
                Some(seat) => seat.clone(),
                None => self.prepare(name, plugin)?,
            };
            seats.insert(name.clone(), seat);
        }
        Ok(seats)
    }

    fn prepare(&self, name: &str, plugin: &PluginSpec) -> Result<Arc<Seat>, PrepareError> {
        let Self { runtime, spec, workers, generation } = *self;
        let at = |stage| move |message: String| PrepareError::new(stage, name, message);
        let shared_name: Arc<str> = name.into();
        let compiled = runtime.compile(&plugin.component).map_err(at(Stage::Compiled))?;
        let mut instance = seat::start(&shared_name, plugin, &compiled, runtime, &Metrics::default())
            .map_err(at(Stage::Described))?;
        let said = instance.describe().map_err(at(Stage::Described))?;
        let described = Description::new(said, &compiled.slots).map_err(at(Stage::Described))?;
        for slot in asked(spec, name) {
            if !described.slots.contains(&slot) {
                let exported = describe::list(&described.slots);
                let message = format!("the chain asks it in slot `{slot}`, but it exports {exported}");
                return Err(PrepareError::new(Stage::Described, name, message));
            }
        }
        instance.configure(&seat::settings(plugin)).map_err(at(Stage::Configured))?;
        let places = places(spec, name, plugin, described.slots.contains(&Slot::Observe), workers);
        let (spec, runtime, metrics) = (plugin.clone(), runtime.clone(), Metrics::default());
        let parts = Parts { name: shared_name, spec, described, compiled, runtime, metrics, generation };
        seat::try_out(&parts).map_err(at(Stage::Warmed))?;
        Seat::new(parts, places).map_err(at(Stage::Ready))
    }
}

/// Puts prepared plugins in order.
pub(crate) fn chain(spec: &ChainSpec, seats: &Seats) -> Chain {
    let all = |names: &[String]| names.iter().filter_map(|name| seats.get(name).cloned()).collect();
    let one = |name: &Option<String>| name.as_ref().and_then(|name| seats.get(name).cloned());
    let weighted = |(name, weight): &(String, f32)| Some((seats.get(name)?.clone(), *weight));
    Chain {
        hints: all(&spec.hints),
        filter: all(&spec.filter),
        score: spec.score.iter().filter_map(weighted).collect(),
        pick: one(&spec.pick),
        schedule: one(&spec.schedule),
        observe: seats.values().filter(|seat| seat.answers(Slot::Observe)).cloned().collect(),
        ..Chain::default()
    }
}

/// The slots in which a chain asks a plugin.
fn asked(spec: &ChainSpec, name: &str) -> Vec<Slot> {
    let mut slots = vec![];
    let mut add = |is: bool, slot| {
        if is {
            slots.push(slot);
        }
    };
    let named = |other: &String| other == name;
    add(spec.hints.iter().any(named), Slot::Hints);
    add(spec.filter.iter().any(named), Slot::Filter);
    add(spec.score.iter().any(|(other, _)| other == name), Slot::Score);
    add(spec.pick.iter().any(named), Slot::Pick);
    add(spec.schedule.iter().any(named), Slot::Schedule);
    slots
}

/// One instance (or the pool) for all slots of a request, and one a worker for `schedule`. A plugin that
/// only observes has one too.
fn places(spec: &ChainSpec, name: &str, plugin: &PluginSpec, observes: bool, workers: usize) -> Places {
    let asked = asked(spec, name);
    let schedules = asked.contains(&Slot::Schedule);
    let requests = asked.iter().any(|slot| *slot != Slot::Schedule) || (observes && !schedules);
    Places {
        request: if requests { plugin.limits.instances.max(1) as usize } else { 0 },
        workers: if schedules { workers } else { 0 },
    }
}

fn is_same(seat: &Seat, spec: &ChainSpec, plugin: &PluginSpec, workers: usize) -> bool {
    let observes = seat.answers(Slot::Observe);
    seat.spec.config == plugin.config
        && seat.spec.limits == plugin.limits
        && seat.spec.on_failure == plugin.on_failure
        && seat.places() == places(spec, &seat.name, plugin, observes, workers)
        && seat.compiled.digest == Digest::of(&plugin.component)
        && asked(spec, &seat.name).iter().all(|slot| seat.answers(*slot))
}

fn check_names(spec: &ChainSpec) -> Result<(), PrepareError> {
    let scorers = spec.score.iter().map(|(name, _)| name);
    let named = spec.hints.iter().chain(&spec.filter).chain(scorers).chain(&spec.pick).chain(&spec.schedule);
    for name in named {
        if !spec.plugins.contains_key(name) {
            return Err(no_plugin(spec, name));
        }
    }
    for (name, weight) in &spec.score {
        if !(-WEIGHT_MAX..=WEIGHT_MAX).contains(weight) {
            let message = format!("its weight {weight} is not within {WEIGHT_MAX} of 0");
            return Err(PrepareError::new(Stage::Fetched, name, message));
        }
    }
    Ok(())
}

/// The error for a name that no plugin has.
pub(crate) fn no_plugin(spec: &ChainSpec, name: &str) -> PrepareError {
    let known = spec.plugins.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    PrepareError::new(Stage::Fetched, name, format!("there is no such plugin; there are {known}"))
}
