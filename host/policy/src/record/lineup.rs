//! Which generations and which of their plugins the log follows, and their heads.
//!
//! **Invariant:** a plugin that two generations share has one number, and one snapshot a file.

use super::format::{GenerationHead, PluginHead};
use crate::generation::Generation;
use crate::prepare;
use crate::runtime::Digest;
use crate::seat::Seat;
use crate::seat::exact::Late;
use crate::slot::Slot;
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

/// Components by their digest.
type Components = Vec<(Digest, Arc<[u8]>)>;

/// Digests of each instance's state, by the number of its plugin.
pub(super) type Digests = Vec<(u64, Vec<Option<[u8; 32]>>)>;

/// Those followed so far. Weak: a log keeps nothing alive.
#[derive(Default)]
pub(super) struct Lineup {
    // Those that the file has the head of.
    generations: Vec<Weak<Generation>>,
    seats: Vec<(u64, Weak<Seat>)>,
    // Seats whose snapshot the file has.
    listed: BTreeSet<u64>,
    last_seat: u64,
}

impl Lineup {
    /// Whether the file has the head of a generation.
    pub(super) fn has(&self, generation: &Arc<Generation>) -> bool {
        self.generations.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(generation)))
    }

    /// A new file has no heads yet.
    pub(super) fn begin_file(&mut self) {
        self.generations.clear();
        self.listed.clear();
        self.seats.retain(|(_, seat)| seat.strong_count() > 0);
    }

    /// The calls of a generation's plugins that missed a deadline since the last time.
    pub(super) fn take_late(&self, generation: &Generation) -> Vec<(u64, Vec<Late>)> {
        let late = generation.seats().values().map(|seat| (seat, seat.take_late()));
        let late = late.filter(|(_, late)| !late.is_empty());
        late.filter_map(|(seat, late)| Some((self.number_of(seat)?, late))).collect()
    }

    /// The digests of all states.
    pub(super) fn digests(&self) -> Digests {
        let seats = self.seats.iter().filter(|(number, _)| self.listed.contains(number));
        seats.filter_map(|(number, seat)| Some((*number, seat.upgrade()?.snapshot().digests()))).collect()
    }

    /// Plugins need not be repeatable any more.
    pub(super) fn let_go(&mut self) {
        self.seats.iter().filter_map(|(_, seat)| seat.upgrade()).for_each(|seat| seat.set_exact(false));
        *self = Self { last_seat: self.last_seat, ..Self::default() };
    }

    fn number_of(&self, seat: &Arc<Seat>) -> Option<u64> {
        let is_it = |known: &Weak<Seat>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(seat));
        self.seats.iter().find(|(_, known)| is_it(known)).map(|(number, _)| *number)
    }

    fn enter(&mut self, seat: &Arc<Seat>) -> u64 {
        self.number_of(seat).unwrap_or_else(|| {
            self.last_seat += 1;
            self.seats.push((self.last_seat, Arc::downgrade(seat)));
            self.last_seat
        })
    }
}

/// The head of a generation that is about to decide, and the components that it names.
pub(super) fn head_of(
    generation: &Arc<Generation>,
    lineup: &mut Lineup,
    recorded: &[Slot],
) -> (GenerationHead, Components) {
    lineup.generations.push(Arc::downgrade(generation));
    let spec = generation.spec();
    let mut components = vec![];
    let mut plugins = vec![];
    for (name, seat) in generation.seats() {
        let number = lineup.enter(seat);
        // From here on its faults are mended at once.
        seat.set_exact(true);
        let snapshot = lineup.listed.insert(number).then(|| seat.snapshot());
        components.push((seat.compiled.digest, seat.spec.component.clone()));
        let mut unheard: Vec<Slot> = prepare::asked(spec, name).into_iter().map(|(_, slot)| slot).collect();
        unheard.extend(seat.answers(Slot::Observe).then_some(Slot::Observe));
        unheard.retain(|slot| !is_recorded(*slot, recorded));
        unheard.sort();
        unheard.dedup();
        plugins.push(PluginHead {
            name: name.clone(),
            seat: number,
            component: seat.compiled.digest.bytes(),
            component_name: seat.described.name.clone(),
            version: seat.described.version.clone(),
            origin: seat.spec.origin.clone(),
            config: seat.spec.config.to_string(),
            limits: seat.spec.limits,
            on_failure: seat.spec.on_failure,
            matches: seat.spec.matches.clone(),
            unheard,
            snapshot,
        });
    }
    let head = GenerationHead {
        id: generation.id().0,
        reason: generation.reason().to_owned(),
        default: spec.as_named(),
        named: spec.named.clone(),
        schedule: spec.schedule.clone(),
        retain: spec.retain.clone(),
        plugins,
    };
    (head, components)
}

/// Whether a log of these kinds of decisions has what a slot is asked.
fn is_recorded(slot: Slot, recorded: &[Slot]) -> bool {
    match slot {
        Slot::Filter | Slot::Score | Slot::Pick => recorded.contains(&Slot::Route),
        other => recorded.contains(&other),
    }
}
