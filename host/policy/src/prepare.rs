//! From a specification to a chain that can decide: every plugin compiled, described, configured, tried.
//!
//! **Invariant:** preparing touches nothing that is live. Plugins that did not change are shared with the
//! active generation, with what they have learned.

use crate::chain::{Chain, Link};
use crate::describe::{self, Description};
use crate::error::{PrepareError, Stage};
use crate::generation::GenerationId;
use crate::runtime::{Digest, Runtime};
use crate::sandbox::{Belongings, Metrics};
use crate::seat::{self, Parts, Places, Seat};
use crate::slot::Slot;
use crate::spec::{ChainSpec, NamedChain, PluginSpec};
use crate::store::{Entries, Store};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Weights lie within this of 0.
const WEIGHT_MAX: f32 = 1e6;
/// Most plugins of a generation: each is a bit of a word.
const PLUGINS_MAX: usize = 64;

pub(crate) type Seats = BTreeMap<String, Arc<Seat>>;

/// What a new generation is prepared from.
pub(crate) struct Preparation<'a> {
    pub(crate) runtime: &'a Arc<Runtime>,
    pub(crate) spec: &'a ChainSpec,
    pub(crate) workers: usize,
    pub(crate) generation: GenerationId,
    /// What a plugin's store begins with that no live plugin of its name has.
    pub(crate) saved: &'a dyn Fn(&str) -> Entries,
}

/// What a new generation takes from the live one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// The plugins that are the same.
    Same,
    /// A copy of all state, and no plugin: what is asked beside the live one must not disturb it.
    Fork,
}

impl Preparation<'_> {
    /// Prepares all plugins, each with the state and the store of its namesake in `live`; or takes it from there.
    pub(crate) fn seats(&self, live: &Seats, sharing: Sharing) -> Result<Seats, PrepareError> {
        check_names(self.spec)?;
        let mut seats = Seats::new();
        for (name, plugin) in &self.spec.plugins {
            let same = |seat: &&Arc<Seat>| {
                sharing == Sharing::Same && is_same(seat, self.spec, plugin, self.workers)
            };
            let seat = match live.get(name).filter(same) {
                Some(seat) => seat.clone(),
                None => {
                    let old = live.get(name);
                    let entries = old.map_or_else(|| (self.saved)(name), |seat| seat.shelf.entries());
                    let seat = self.prepare(name, plugin, entries)?;
                    if let Some(old) = old {
                        seat.inherit(old);
                    }
                    seat
                }
            };
            seats.insert(name.clone(), seat);
        }
        Ok(seats)
    }

    /// Prepares one plugin, with what its store begins with.
    pub(crate) fn prepare(
        &self,
        name: &str,
        plugin: &PluginSpec,
        entries: Entries,
    ) -> Result<Arc<Seat>, PrepareError> {
        let Self { runtime, spec, workers, generation, .. } = *self;
        let at = |stage| move |message: String| PrepareError::new(stage, name, message);
        let shared_name: Arc<str> = name.into();
        let compiled = runtime.compile(&plugin.component).map_err(at(Stage::Compiled))?;
        let belongings = Belongings { plugin: shared_name.clone(), ..Belongings::default() };
        let mut instance =
            seat::start(belongings, plugin, &compiled, runtime).map_err(at(Stage::Described))?;
        let said = instance.describe().map_err(at(Stage::Described))?;
        let described = Description::new(said, &compiled.slots).map_err(at(Stage::Described))?;
        for (chain, slot) in asked(spec, name) {
            if !described.slots.contains(&slot) {
                let exported = describe::list(&described.slots);
                let message = format!("chain `{chain}` asks it in slot `{slot}`, but it exports {exported}");
                return Err(PrepareError::new(Stage::Described, name, message));
            }
        }
        instance.configure(&seat::settings(plugin)).map_err(at(Stage::Configured))?;
        let places = places(spec, name, plugin, described.slots.contains(&Slot::Observe), workers);
        let shelf = Store::new(entries, plugin.limits.store_bytes_max);
        let (spec, runtime, metrics) = (plugin.clone(), runtime.clone(), Metrics::default());
        let parts =
            Parts { name: shared_name, spec, described, compiled, runtime, metrics, shelf, generation };
        seat::try_out(&parts).map_err(at(Stage::Warmed))?;
        Seat::new(parts, places).map_err(at(Stage::Ready))
    }
}

/// Puts prepared plugins in order: the default chain, then the named ones.
pub(crate) fn chains(spec: &ChainSpec, seats: &Seats) -> Vec<Chain> {
    let schedule = spec.schedule.as_ref().and_then(|name| link(seats, name, 1.0));
    let retain = spec.retain.as_ref().and_then(|name| link(seats, name, 1.0));
    let first = Chain { schedule, retain, ..chain(spec, &spec.as_named(), seats) };
    [first].into_iter().chain(spec.named.iter().map(|named| chain(spec, named, seats))).collect()
}

fn chain(spec: &ChainSpec, named: &NamedChain, seats: &Seats) -> Chain {
    let all = |names: &[String]| names.iter().filter_map(|name| link(seats, name, 1.0)).collect();
    let one = |name: &Option<String>| name.as_ref().and_then(|name| link(seats, name, 1.0));
    // Told of outcomes: those that decide in this chain or for workers, and those that only watch.
    let learns = |name: &&String| {
        let mut places = asked(spec, name).into_iter().peekable();
        places.peek().is_none() || places.any(|(chain, slot)| chain == named.name || slot.is_of_workers())
    };
    let observers = seats.iter().filter(|(_, seat)| seat.answers(Slot::Observe)).map(|(name, _)| name);
    Chain {
        middleware: all(&named.middleware),
        hints: all(&named.hints),
        admit: all(&named.admit),
        filter: all(&named.filter),
        score: named.score.iter().filter_map(|(name, weight)| link(seats, name, *weight)).collect(),
        pick: one(&named.pick),
        route: one(&named.route),
        observe: observers.filter(learns).filter_map(|name| link(seats, name, 1.0)).collect(),
        ..Chain::new(&named.name)
    }
}

fn link(seats: &Seats, name: &str, weight: f32) -> Option<Link> {
    let bit = seats.keys().position(|known| known == name)? as u32;
    Some(Link { seat: seats.get(name)?.clone(), weight, bit })
}

/// The chains and slots in which a plugin is asked.
pub(crate) fn asked<'a>(spec: &'a ChainSpec, name: &str) -> Vec<(&'a str, Slot)> {
    let default = NamedChain::DEFAULT;
    let mut slots = asked_in(default, &spec.as_named(), name);
    slots.extend(spec.named.iter().flat_map(|named| asked_in(&named.name, named, name)));
    let of_workers = [(&spec.schedule, Slot::Schedule), (&spec.retain, Slot::Retain)];
    slots.extend(
        of_workers.iter().filter(|(of, _)| of.as_deref() == Some(name)).map(|(_, slot)| (default, *slot)),
    );
    slots
}

fn asked_in<'a>(chain: &'a str, named: &NamedChain, name: &str) -> Vec<(&'a str, Slot)> {
    slots_of(named).filter(|(_, known)| *known == name).map(|(slot, _)| (chain, slot)).collect()
}

/// Every plugin that a chain names, with the slot.
fn slots_of(named: &NamedChain) -> impl Iterator<Item = (Slot, &str)> {
    let middleware = named.middleware.iter().map(|name| (Slot::Middleware, name.as_str()));
    let hints = named.hints.iter().map(|name| (Slot::Hints, name.as_str()));
    let admit = named.admit.iter().map(|name| (Slot::Admit, name.as_str()));
    let filter = named.filter.iter().map(|name| (Slot::Filter, name.as_str()));
    let score = named.score.iter().map(|(name, _)| (Slot::Score, name.as_str()));
    let pick = named.pick.iter().map(|name| (Slot::Pick, name.as_str()));
    let route = named.route.iter().map(|name| (Slot::Route, name.as_str()));
    middleware.chain(hints).chain(admit).chain(filter).chain(score).chain(pick).chain(route)
}

/// One instance (or the pool) for all slots of a request, and one a worker for `schedule` and `retain`. A plugin
/// that only observes has one too.
fn places(spec: &ChainSpec, name: &str, plugin: &PluginSpec, observes: bool, workers: usize) -> Places {
    let asked = asked(spec, name);
    let by_workers = asked.iter().any(|(_, slot)| slot.is_of_workers());
    let requests = asked.iter().any(|(_, slot)| !slot.is_of_workers()) || (observes && !by_workers);
    Places {
        request: if requests { plugin.limits.instances.max(1) as usize } else { 0 },
        workers: if by_workers { workers } else { 0 },
    }
}

fn is_same(seat: &Seat, spec: &ChainSpec, plugin: &PluginSpec, workers: usize) -> bool {
    let observes = seat.answers(Slot::Observe);
    seat.spec.config == plugin.config
        && seat.spec.limits == plugin.limits
        && seat.spec.on_failure == plugin.on_failure
        && seat.spec.matches == plugin.matches
        && seat.places() == places(spec, &seat.name, plugin, observes, workers)
        && seat.compiled.digest == Digest::of(&plugin.component)
        && asked(spec, &seat.name).iter().all(|(_, slot)| seat.answers(*slot))
}

fn check_names(spec: &ChainSpec) -> Result<(), PrepareError> {
    let refuse = |name: &str, message: String| Err(PrepareError::new(Stage::Fetched, name, message));
    if spec.plugins.len() > PLUGINS_MAX {
        let message = format!("{} plugins; a generation has at most {PLUGINS_MAX}", spec.plugins.len());
        return Err(PrepareError { stage: Stage::Fetched, plugin: None, message });
    }
    let default = spec.as_named();
    for chain in [&default].into_iter().chain(&spec.named) {
        let mut seen = vec![];
        for (slot, name) in slots_of(chain) {
            if !spec.plugins.contains_key(name) {
                return Err(no_plugin(spec, name));
            }
            if seen.contains(&(slot, name)) {
                return refuse(name, format!("chain `{}` has it twice in slot `{slot}`", chain.name));
            }
            seen.push((slot, name));
        }
        for (name, weight) in &chain.score {
            if !(-WEIGHT_MAX..=WEIGHT_MAX).contains(weight) {
                return refuse(name, format!("its weight {weight} is not within {WEIGHT_MAX} of 0"));
            }
        }
        if let Some(name) = chain.route.as_ref().filter(|_| chain.pick.is_some() || !chain.score.is_empty()) {
            let message = format!(
                "chain `{}` has it in slot `route`, which takes the place of `score` and `pick`: they must be empty",
                chain.name
            );
            return refuse(name, message);
        }
    }
    match spec.schedule.iter().chain(&spec.retain).find(|name| !spec.plugins.contains_key(*name)) {
        Some(name) => Err(no_plugin(spec, name)),
        None => Ok(()),
    }
}

/// The error for a name that no plugin has.
pub(crate) fn no_plugin(spec: &ChainSpec, name: &str) -> PrepareError {
    let known = spec.plugins.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    PrepareError::new(Stage::Fetched, name, format!("there is no such plugin; there are {known}"))
}
