//! What makes a seat's calls repeatable: its whole state as a snapshot, faults mended at once, and the calls that
//! missed a deadline, which only a clock knows.
//!
//! Called by the recorder and by replays. **Invariant:** at rest, it costs a call one relaxed load.

use super::{Place, Seat};
use crate::instance::{Fault, Instance};
use crate::slot::Slot;
use crate::stats::Outcome;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A call that missed its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Late {
    pub(crate) slot: Slot,
    /// Which instance: requests' before workers'.
    pub(crate) place: u32,
}

/// Everything that a seat's next answers follow from, besides its component and its settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// One an instance, requests' before workers'.
    pub(crate) places: Vec<PlaceState>,
    /// Its store.
    pub(crate) entries: Vec<(String, Vec<u8>)>,
    /// Which of several instances is asked next.
    pub(crate) next: u64,
    /// Faults in a row so far.
    pub(crate) faults: u32,
    /// Until when its breaker is open.
    pub(crate) open_until_ms: u64,
}

/// What one instance knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlaceState {
    /// Nothing but trials reached it: a new instance is its equal.
    pub(crate) cold: bool,
    /// What it exports, if it has been called and exports its state.
    pub(crate) state: Option<StateBlob>,
}

/// An exported state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateBlob {
    pub(crate) schema: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) sha256: [u8; 32],
}

impl Snapshot {
    /// Instances that know something which the snapshot lacks.
    pub(crate) fn unknown(&self) -> usize {
        self.places.iter().filter(|place| !place.cold && place.state.is_none()).count()
    }

    /// The digest of each instance's state, where there is one.
    pub(crate) fn digests(&self) -> Vec<Option<[u8; 32]>> {
        self.places.iter().map(|place| Some(place.state.as_ref()?.sha256)).collect()
    }
}

/// Whether calls have to be repeatable, and those that missed a deadline.
#[derive(Debug, Default)]
pub(super) struct Exactness {
    on: AtomicBool,
    any_missed: AtomicBool,
    // Missed since they were last taken.
    missed: Mutex<Vec<Late>>,
    // Have to be missed again.
    script: Mutex<Vec<Late>>,
}

impl Exactness {
    pub(super) fn is_on(&self) -> bool {
        self.on.load(Relaxed)
    }
}

impl Seat {
    /// Has faults mended before the next call, so that what follows does not hang on another thread.
    pub(crate) fn set_exact(&self, on: bool) {
        self.exactness.on.store(on, Relaxed);
    }

    /// The calls that missed a deadline since the last time.
    pub(crate) fn take_late(&self) -> Vec<Late> {
        if !self.exactness.any_missed.swap(false, Relaxed) {
            return vec![];
        }
        std::mem::take(&mut self.exactness.missed.lock())
    }

    /// Has these calls miss their deadline, whatever they take: those of one decision. Returns how many of those
    /// before them did not come.
    pub(crate) fn expect_late(&self, calls: Vec<Late>) -> usize {
        std::mem::replace(&mut *self.exactness.script.lock(), calls).len()
    }

    /// The fault of a call that has just ended.
    pub(super) fn fault_of(&self, instance: &mut Instance, place: &Place, slot: Slot) -> Option<Fault> {
        let fault = instance.take_fault();
        if !self.exactness.is_on() {
            return fault;
        }
        let late = Late { slot, place: self.index_of(place) };
        let mut script = self.exactness.script.lock();
        if let Some(at) = script.iter().position(|known| *known == late) {
            script.swap_remove(at);
            let message = "missed its deadline when it was recorded".to_owned();
            return Some(Fault { outcome: Outcome::OverDeadline, message });
        }
        drop(script);
        if fault.as_ref().is_some_and(|fault| fault.outcome == Outcome::OverDeadline) {
            self.exactness.missed.lock().push(late);
            self.exactness.any_missed.store(true, Relaxed);
        }
        fault
    }

    fn index_of(&self, place: &Place) -> u32 {
        let mut places = self.request.iter().chain(&self.workers);
        places.position(|known| std::ptr::eq(known, place)).unwrap_or_default() as u32
    }

    /// A new instance, on the caller's time.
    pub(super) fn build_at_once(&self) -> Option<Instance> {
        // The spare is as good as new only where there is no store that it could have read before it changed.
        let spare = self.spare.lock().take().filter(|_| self.shelf.is_empty());
        let built = spare.map_or_else(|| self.build(), Ok);
        built.inspect_err(|error| tracing::warn!(policy = &*self.name, error, "no instance of a policy")).ok()
    }

    /// Everything that its next answers follow from.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let entries = self.shelf.entries().into_iter().map(|(key, value)| (key, value.to_vec())).collect();
        Snapshot {
            places: self.request.iter().chain(&self.workers).map(|place| self.state_of(place)).collect(),
            entries,
            next: self.next.load(Relaxed) as u64,
            faults: self.breaker.faults.load(Relaxed),
            open_until_ms: self.breaker.open_until_ms.load(Relaxed),
        }
    }

    fn state_of(&self, place: &Place) -> PlaceState {
        let mut held = place.lock();
        if held.is_none() {
            *held = self.build_at_once();
        }
        let Some(instance) = held.as_mut().filter(|instance| !instance.is_cold()) else {
            return PlaceState { cold: true, state: None };
        };
        let exported = instance.state_schema().and_then(|schema| match schema {
            None => Ok(None),
            Some(schema) => {
                let state = instance.export_state(&schema, self.spec.limits.state_bytes_max)?;
                Ok(state.map(|bytes| (schema, bytes)))
            }
        });
        if instance.is_finished() {
            let finished = std::mem::replace(&mut *held, self.build_at_once());
            self.bury(finished);
            return PlaceState { cold: true, state: None };
        }
        let blob = |(schema, bytes): (String, Vec<u8>)| {
            let sha256 = Sha256::digest(&bytes).into();
            StateBlob { schema, bytes, sha256 }
        };
        let exported = exported.unwrap_or_else(|error| {
            tracing::warn!(policy = &*self.name, error, "policy state was not exported");
            None
        });
        PlaceState { cold: false, state: exported.map(blob) }
    }

    /// Goes on from a snapshot; its store was given to it when it was prepared. Errors: an instance refuses its
    /// state.
    pub(crate) fn resume(&self, snapshot: &Snapshot) -> Result<(), String> {
        self.next.store(snapshot.next as usize, Relaxed);
        self.breaker.faults.store(snapshot.faults, Relaxed);
        self.breaker.open_until_ms.store(snapshot.open_until_ms, Relaxed);
        for (place, known) in self.request.iter().chain(&self.workers).zip(&snapshot.places) {
            if let (Some(instance), Some(state)) = (place.lock().as_mut(), &known.state) {
                instance.import_state(&state.schema, &state.bytes)?;
            }
        }
        Ok(())
    }
}
