//! The generations of a log, prepared again: as they were, or with other components or another chain.
//!
//! **Invariant:** a component that is the recorded one goes on from its recorded state; any other starts cold.

use super::folder::component_path;
use super::format::{By, GenerationHead, PluginHead};
use super::lineup::Digests;
use super::replay::{Against, ReplayError};
use crate::generation::{Generation, GenerationId};
use crate::prepare::{self, Preparation, Seats, Sharing};
use crate::runtime::{Digest, Runtime};
use crate::seat::Seat;
use crate::seat::exact::Late;
use crate::slot::Slot;
use crate::spec::{ChainSpec, NamedChain, PluginSpec};
use crate::stats::Stats;
use crate::store::Entries;
use crate::witness::Way;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// What a run over a log is made with.
#[derive(Clone)]
pub(super) struct Props<'a> {
    pub(super) runtime: &'a Arc<Runtime>,
    pub(super) against: &'a Against,
    pub(super) folder: PathBuf,
}

/// Generations that decide again.
pub(super) struct Stage<'a> {
    props: Props<'a>,
    workers: usize,
    recorded_slots: Vec<Slot>,
    // By their numbers in the log; empty where another chain decides.
    seats: BTreeMap<u64, Arc<Seat>>,
    generations: BTreeMap<u64, Cast>,
    candidate: Option<Arc<Generation>>,
    /// Calls of each plugin that was prepared.
    pub(super) stats: Vec<(String, Arc<Stats>)>,
    /// Plugins whose recorded answers follow from more than the log has, and why.
    pub(super) unknown: BTreeMap<String, String>,
    /// Components that were put in another's place.
    pub(super) replaced: BTreeSet<String>,
    /// States that the log has a digest of, and those that are the same here.
    pub(super) states: (u64, u64),
}

/// A recorded generation's part, and who plays it.
struct Cast {
    generation: Arc<Generation>,
    chains: Vec<usize>,
    // Place of each recorded plugin among those that play.
    bits: Vec<Option<usize>>,
}

impl<'a> Stage<'a> {
    pub(super) fn new(props: Props<'a>, workers: usize, recorded_slots: Vec<Slot>) -> Self {
        Self {
            props,
            workers,
            recorded_slots,
            seats: BTreeMap::new(),
            generations: BTreeMap::new(),
            candidate: None,
            stats: vec![],
            unknown: BTreeMap::new(),
            replaced: BTreeSet::new(),
            states: (0, 0),
        }
    }

    /// Takes in a generation of the log.
    pub(super) fn enter(&mut self, head: &GenerationHead) -> Result<(), ReplayError> {
        let generation = match self.props.against {
            Against::Chain { spec, .. } => match &self.candidate {
                Some(candidate) => candidate.clone(),
                None => self.prepare_chain(spec, head)?,
            },
            Against::Recorded { .. } => self.prepare_recorded(head)?,
        };
        let spec = generation.spec();
        let chain =
            |name: &str| spec.named.iter().position(|named| named.name == name).map_or(0, |at| at + 1);
        let bit = |plugin: &PluginHead| spec.plugins.keys().position(|name| *name == plugin.name);
        let cast = Cast {
            chains: [0].into_iter().chain(head.named.iter().map(|named| chain(&named.name))).collect(),
            bits: head.plugins.iter().map(bit).collect(),
            generation,
        };
        self.generations.insert(head.id, cast);
        Ok(())
    }

    /// Another chain, which goes on from what the log's first generation knew.
    fn prepare_chain(
        &mut self,
        spec: &ChainSpec,
        head: &GenerationHead,
    ) -> Result<Arc<Generation>, ReplayError> {
        let known = |name: &str| {
            let digest = Digest::of(&spec.plugins.get(name)?.component);
            let same = |of: &&PluginHead| of.name == name && Digest::from(of.component) == digest;
            head.plugins.iter().find(same)?.snapshot.as_ref()
        };
        let saved = |name: &str| known(name).map(|snapshot| entries(&snapshot.entries)).unwrap_or_default();
        let generation = GenerationId(1);
        let (runtime, workers) = (self.props.runtime, self.workers);
        let preparation = Preparation { runtime, spec, workers, generation, saved: &saved };
        let seats = preparation.seats(&Seats::new(), Sharing::Same)?;
        for (name, seat) in &seats {
            seat.set_exact(true);
            if let Some(snapshot) = known(name) {
                seat.resume(snapshot).map_err(|error| refused(name, error))?;
            }
            self.stats.push((name.clone(), seat.stats.clone()));
        }
        let generation = Arc::new(Generation::new(generation, spec.clone(), seats, "replay".to_owned()));
        self.candidate = Some(generation.clone());
        Ok(generation)
    }

    /// A generation as it was, but for components that others take the place of.
    fn prepare_recorded(&mut self, head: &GenerationHead) -> Result<Arc<Generation>, ReplayError> {
        let mut spec = self.spec_of(head)?;
        if let Against::Recorded { plugins } = self.props.against {
            for (name, (component, origin)) in plugins {
                let Some(plugin) = spec.plugins.get_mut(name) else { continue };
                if plugin.component != *component {
                    self.replaced.insert(name.clone());
                    (plugin.component, plugin.origin) = (component.clone(), origin.clone());
                }
            }
        }
        let mut seats = Seats::new();
        for plugin in &head.plugins {
            seats.insert(plugin.name.clone(), self.seat_of(plugin, &spec)?);
        }
        let id = GenerationId(head.id);
        Ok(Arc::new(Generation::new(id, spec, seats, head.reason.clone())))
    }

    fn seat_of(&mut self, plugin: &PluginHead, spec: &ChainSpec) -> Result<Arc<Seat>, ReplayError> {
        let name = &plugin.name;
        let as_recorded = !self.replaced.contains(name);
        if let Some(seat) = self.seats.get(&plugin.seat).cloned() {
            if let Some(snapshot) = plugin.snapshot.as_ref().filter(|_| as_recorded) {
                self.compare(&seat, &snapshot.digests());
            }
            return Ok(seat);
        }
        let Some(snapshot) = &plugin.snapshot else {
            return Err(refused(name, "the log does not say where it stood".to_owned()));
        };
        let store = if as_recorded { entries(&snapshot.entries) } else { Entries::new() };
        let (runtime, workers) = (self.props.runtime, self.workers);
        let preparation =
            Preparation { runtime, spec, workers, generation: GenerationId(0), saved: &|_| Entries::new() };
        let seat = preparation.prepare(name, &spec.plugins[name], store)?;
        seat.set_exact(true);
        if as_recorded {
            seat.resume(snapshot).map_err(|error| refused(name, error))?;
            let answers = prepare::asked(spec, name).iter().any(|(_, slot)| self.is_recorded(*slot));
            if answers && snapshot.unknown() > 0 {
                let why = "had been asked before the log begins, and exports no state".to_owned();
                self.unknown.insert(name.clone(), why);
            }
            if answers && !plugin.unheard.is_empty() {
                let slots = plugin.unheard.iter().map(|slot| format!("`{slot}`")).collect::<Vec<_>>();
                let why = format!("is asked in {} too, which the log does not have", slots.join(", "));
                self.unknown.insert(name.clone(), why);
            }
        }
        self.stats.push((name.clone(), seat.stats.clone()));
        self.seats.insert(plugin.seat, seat.clone());
        Ok(seat)
    }

    fn is_recorded(&self, slot: Slot) -> bool {
        match slot {
            Slot::Filter | Slot::Score | Slot::Pick => self.recorded_slots.contains(&Slot::Route),
            other => self.recorded_slots.contains(&other),
        }
    }

    fn spec_of(&self, head: &GenerationHead) -> Result<ChainSpec, ReplayError> {
        let mut plugins = BTreeMap::new();
        for plugin in &head.plugins {
            let digest = Digest::from(plugin.component);
            let replaced = match self.props.against {
                Against::Recorded { plugins } => plugins.get(&plugin.name),
                Against::Chain { .. } => None,
            };
            let path = component_path(&self.props.folder, digest);
            let component: Arc<[u8]> = match (std::fs::read(&path), replaced) {
                (Ok(bytes), _) if Digest::of(&bytes) == digest => bytes.into(),
                // Another one takes its place: its own bytes are not needed.
                (_, Some(_)) => Arc::from([]),
                (Ok(_), None) => return Err(ReplayError::Component { path }),
                (Err(source), None) => return Err(ReplayError::Read { path, source }),
            };
            let config = serde_json::from_str(&plugin.config).unwrap_or_default();
            let spec = PluginSpec {
                component,
                origin: plugin.origin.clone(),
                config,
                limits: plugin.limits,
                on_failure: plugin.on_failure,
                matches: plugin.matches.clone(),
            };
            plugins.insert(plugin.name.clone(), spec);
        }
        let NamedChain { middleware, hints, admit, filter, score, pick, route, .. } = head.default.clone();
        let (schedule, retain) = (head.schedule.clone(), head.retain.clone());
        let named = head.named.clone();
        Ok(ChainSpec {
            plugins,
            middleware,
            hints,
            admit,
            filter,
            score,
            pick,
            route,
            schedule,
            retain,
            named,
        })
    }

    /// Who decides in the place of a recorded generation, and which way.
    pub(super) fn who(&self, by: &By) -> Option<(&Arc<Generation>, Way)> {
        let cast = self.generations.get(&by.generation)?;
        let chain = cast.chains.get(by.chain as usize).copied().unwrap_or(0);
        let muted = (0..).zip(&cast.bits).filter(|(bit, _)| by.muted >> *bit & 1 == 1);
        let muted =
            muted.filter_map(|(_, place): (u32, _)| *place).fold(0, |muted, place| muted | 1 << place);
        Some((&cast.generation, Way { chain, muted }))
    }

    /// Has calls of the next decision miss their deadlines again; returns how many.
    pub(super) fn expect_late(&self, late: Vec<(u64, Vec<Late>)>) -> u64 {
        let mut expected = 0;
        for (seat, calls) in late {
            // Other components have times of their own.
            if let Some(seat) = self.seats.get(&seat).filter(|_| self.replaced.is_empty()) {
                expected += calls.len() as u64;
                seat.expect_late(calls);
            }
        }
        expected
    }

    /// Calls that were to miss their deadline and did not come.
    pub(super) fn forget_late(&self) -> u64 {
        self.seats.values().map(|seat| seat.expect_late(vec![]) as u64).sum()
    }

    /// Compares the digests at the end of a recording.
    pub(super) fn compare_all(&mut self, digests: &Digests) {
        for (number, digests) in digests {
            if let Some(seat) = self.seats.get(number).cloned()
                && !self.replaced.contains(&*seat.name)
            {
                self.compare(&seat, digests);
            }
        }
    }

    fn compare(&mut self, seat: &Seat, digests: &[Option<[u8; 32]>]) {
        let mine = seat.snapshot().digests();
        for (recorded, mine) in digests.iter().zip(&mine).filter(|(recorded, _)| recorded.is_some()) {
            self.states.0 += 1;
            self.states.1 += u64::from(recorded == mine);
        }
    }

    /// The digest of each exported state, by plugin.
    pub(super) fn digests(&self) -> BTreeMap<String, Vec<String>> {
        let candidate = self.candidate.iter().flat_map(|generation| generation.seats().values());
        let mut all = BTreeMap::new();
        for seat in self.seats.values().chain(candidate) {
            let digests = seat.snapshot().digests();
            let digests: Vec<String> =
                digests.into_iter().flatten().map(|digest| Digest::from(digest).to_string()).collect();
            if !digests.is_empty() {
                all.insert(seat.name.to_string(), digests);
            }
        }
        all
    }
}

fn entries(stored: &[(String, Vec<u8>)]) -> Entries {
    stored.iter().map(|(key, value)| (key.clone(), Arc::from(value.as_slice()))).collect()
}

fn refused(plugin: &str, why: String) -> ReplayError {
    ReplayError::State { plugin: plugin.to_owned(), why }
}
