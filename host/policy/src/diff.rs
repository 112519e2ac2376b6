//! What lies between two generations: plugins, and who answers where.
//!
//! **Invariant:** settings are named, never shown: they may hold what only a plugin should know.

use crate::generation::{Generation, GenerationId};
use crate::report::{LinkReport, links};
use crate::runtime::Digest;
use crate::slot::Slot;
use crate::spec::PluginSpec;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What changed from one generation to another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GenerationDiff {
    /// The one.
    pub from: GenerationId,
    /// The other.
    pub to: GenerationId,
    /// Plugins that only the other one has.
    pub added: Vec<String>,
    /// Plugins that only the one has.
    pub removed: Vec<String>,
    /// Plugins that both have, and not the same.
    pub changed: Vec<PluginDiff>,
    /// Slots whose plugins, weights or order differ.
    pub slots: Vec<SlotDiff>,
}

/// One plugin, before and after. What did not change is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PluginDiff {
    /// Its name.
    pub plugin: String,
    /// Its component.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<[Digest; 2]>,
    /// Its own version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<[String; 2]>,
    /// Names of settings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub config: Vec<String>,
    /// Names of limits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<&'static str>,
    /// Whether it is replaced otherwise when it fails.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub on_failure: bool,
    /// Whether it is for other requests.
    #[serde(rename = "match", skip_serializing_if = "std::ops::Not::not")]
    pub matches: bool,
}

/// The plugins of one slot of a chain, before and after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlotDiff {
    /// The chain.
    pub chain: String,
    /// The slot.
    pub slot: Slot,
    /// Plugins in order, with the weights of scorers.
    pub before: Vec<Place>,
    /// The same.
    pub after: Vec<Place>,
}

/// A plugin in a slot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Place {
    /// Its name.
    pub plugin: String,
    /// Its weight, if it scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f32>,
}

/// What is remembered of a generation when it is gone.
#[derive(Clone, Debug)]
pub(crate) struct Outline {
    plugins: BTreeMap<String, PluginOutline>,
    chains: BTreeMap<String, BTreeMap<Slot, Vec<Place>>>,
}

#[derive(Clone, Debug)]
struct PluginOutline {
    digest: Digest,
    version: String,
    // Without its component.
    spec: PluginSpec,
}

impl Outline {
    pub(crate) fn new(generation: &Generation) -> Self {
        let plugin = |(name, seat): (&String, &std::sync::Arc<crate::seat::Seat>)| {
            let spec = PluginSpec { component: [].into(), ..seat.spec.clone() };
            let (digest, version) = (seat.compiled.digest, seat.described.version.clone());
            (name.clone(), PluginOutline { digest, version, spec })
        };
        let place = |link: LinkReport| Place { plugin: link.plugin, weight: link.weight };
        let slots = |links: BTreeMap<Slot, Vec<LinkReport>>| {
            links.into_iter().map(|(slot, links)| (slot, links.into_iter().map(place).collect())).collect()
        };
        Self {
            plugins: generation.seats().iter().map(plugin).collect(),
            chains: generation.chains().iter().map(|it| (it.name.to_string(), slots(links(it)))).collect(),
        }
    }

    /// What changed from here to there.
    pub(crate) fn diff(&self, to: &Self, ids: [GenerationId; 2]) -> GenerationDiff {
        let only = |mine: &Self, theirs: &Self| {
            mine.plugins.keys().filter(|name| !theirs.plugins.contains_key(*name)).cloned().collect()
        };
        let both = self.plugins.iter().filter_map(|(name, old)| Some((name, old, to.plugins.get(name)?)));
        GenerationDiff {
            from: ids[0],
            to: ids[1],
            added: only(to, self),
            removed: only(self, to),
            changed: both.filter_map(|(name, old, new)| changed(name, old, new)).collect(),
            slots: self.slots(to),
        }
    }

    fn slots(&self, to: &Self) -> Vec<SlotDiff> {
        let names: BTreeSet<&String> = self.chains.keys().chain(to.chains.keys()).collect();
        let pairs = names.into_iter().flat_map(|name| Slot::ALL.map(|slot| (name, slot)));
        let diff = |(name, slot): (&String, Slot)| {
            let places = |of: &Self| of.chains.get(name).and_then(|slots| slots.get(&slot)).cloned();
            let (before, after) = (places(self).unwrap_or_default(), places(to).unwrap_or_default());
            (before != after).then(|| SlotDiff { chain: name.clone(), slot, before, after })
        };
        pairs.filter_map(diff).collect()
    }
}

fn changed(name: &str, old: &PluginOutline, new: &PluginOutline) -> Option<PluginDiff> {
    let mut diff = PluginDiff { plugin: name.to_owned(), ..PluginDiff::default() };
    diff.digest = (old.digest != new.digest).then_some([old.digest, new.digest]);
    diff.version = (old.version != new.version).then(|| [old.version.clone(), new.version.clone()]);
    diff.config = keys(&old.spec.config, &new.spec.config);
    let (a, b) = (&old.spec.limits, &new.spec.limits);
    let limits = [
        ("deadline", a.deadline != b.deadline),
        ("memory_bytes", a.memory_bytes != b.memory_bytes),
        ("instances", a.instances != b.instances),
        ("state_bytes_max", a.state_bytes_max != b.state_bytes_max),
        ("store_bytes_max", a.store_bytes_max != b.store_bytes_max),
    ];
    diff.limits = limits.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect();
    diff.on_failure = old.spec.on_failure != new.spec.on_failure;
    diff.matches = old.spec.matches != new.spec.matches;
    let same = PluginDiff { plugin: name.to_owned(), ..PluginDiff::default() };
    (diff != same).then_some(diff)
}

/// Names of the settings that differ. No settings are the empty object.
fn keys(old: &Value, new: &Value) -> Vec<String> {
    let empty = serde_json::Map::new();
    let of = |value: &Value| value.as_object().unwrap_or(&empty).clone();
    let (old, new) = (of(old), of(new));
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    names.into_iter().filter(|name| old.get(*name) != new.get(*name)).cloned().collect()
}
