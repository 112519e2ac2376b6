//! How the tier finds again what it wrote: slabs of its geometry, and in them the blocks whose headers are whole.
//!
//! Called when the tier opens. After a clean end the index says what is there, and some headers are looked at; after
//! any other end, or if they disagree, all headers are read, and the index adds what it still knows.
//! **Invariant:** what is found has a whole header at its place, or a record in an index that was closed with all of
//! them; of two slots of one name the later one counts. Payloads are checked when they are read.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};

use super::layout::{Place, Record, SlabHeader, SlotHeader};
use super::media::{Media, SlabFile};
use super::meta::{Digest, MetaError, MetaStore, OpenMeta};
use super::residents::{Placed, Residents, class};
use super::slabs::{self, Slab, Slabs};
use super::state::{Clock, State};
use super::{Config, DiskError, Recovered};
use crate::Geometry;
use crate::{BlockName, Retention};

/// What a start came to.
pub(super) struct Start {
    pub(super) state: State,
    pub(super) index: Option<Box<dyn MetaStore>>,
    pub(super) recovered: Recovered,
}

/// What recovery works with.
pub(super) struct Recovery<'a> {
    pub(super) media: &'a dyn Media,
    pub(super) open_index: OpenMeta,
    pub(super) config: &'a Config,
    pub(super) geometry: &'a Geometry,
    pub(super) now_ms: u64,
}

/// A block that was found.
#[derive(Clone, Copy)]
struct Found {
    place: Place,
    record: Record,
}

impl Recovery<'_> {
    /// Opens what is there, and makes what is not.
    pub(super) fn start(&self) -> Result<Start, DiskError> {
        let mut recovered = Recovered::default();
        let mut slabs = self.open_slabs(&mut recovered)?;
        let mut index = Index::open(self);
        let (records, clean) = index.load();
        let trusted = clean && self.agree(&slabs, &records);
        recovered.rebuilt = !trusted && !slabs.is_empty();
        let found = if trusted { records } else { merge(self.scan(&slabs, &mut recovered), &records) };
        let known = found.len();
        let found = self.shrink(&mut slabs, latest(found), &mut recovered);
        let is_all = known == found.len();
        let mut state = self.build(slabs, &found, &mut recovered);
        let index = if trusted && is_all && !index.is_overgrown(found.len()) {
            // Wishes of a clock that was ahead are noted by the one that is told from here on.
            if found.iter().all(|found| found.record.noted_ms <= self.now_ms) {
                drop(state.residents.take_changed(usize::MAX));
            }
            index.dirty()
        } else {
            index.afresh()
        };
        if index.is_none() {
            state.counts.index_errors += 1;
        }
        state.expire(self.now_ms);
        recovered.blocks = state.residents.len() as u64;
        Ok(Start { state, index, recovered })
    }

    /// Opens the slabs of this geometry; removes all others.
    fn open_slabs(&self, recovered: &mut Recovered) -> Result<Vec<Slab>, DiskError> {
        let folder = &self.config.folder;
        let failed = |source| DiskError::Folder { path: folder.clone(), source };
        let mut numbers = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            numbers.extend(name.to_str().and_then(slabs::number_of));
        }
        numbers.sort_unstable();
        let mut found = Vec::new();
        for number in numbers {
            let path = slabs::path_of(folder, number);
            match self.open_slab(number, &path) {
                Ok(Some((slab, cut))) => {
                    recovered.dropped += u64::from(cut);
                    found.push(slab);
                }
                Ok(None) => {
                    recovered.reclaimed_bytes += fs::metadata(&path).map_or(0, |file| file.len());
                    fs::remove_file(&path).map_err(|source| DiskError::Folder { path, source })?;
                }
                Err(source) => return Err(DiskError::Folder { path, source }),
            }
        }
        Ok(found)
    }

    /// A slab with the slots that lie whole in its file, and how many do not.
    fn open_slab(&self, number: u32, path: &Path) -> std::io::Result<Option<(Slab, u32)>> {
        if fs::metadata(path)?.len() < self.geometry.slab_bytes(1) {
            return Ok(None);
        }
        let file = self.media.open(path)?;
        let header = slabs::read_header(&*file, self.geometry)?.filter(|header| header.slab == number);
        let Some(header) = header else { return Ok(None) };
        let bytes = file.bytes()?;
        let slots = header.slots.min(self.geometry.slots_in(bytes));
        if slots == 0 {
            return Ok(None);
        }
        // A file that was cut has fewer slots from here on; one whose cut was cut short is cut again.
        if bytes != self.geometry.slab_bytes(header.slots) {
            slabs::cut(&*file, self.geometry, SlabHeader { slots, ..header })?;
        }
        Ok(Some((Slab { number, base: 0, slots, file }, header.slots - slots)))
    }

    /// Whether the headers of some records, spread over all, say the same.
    fn agree(&self, slabs: &[Slab], records: &[Found]) -> bool {
        const SAMPLES: usize = 64;
        let Ok(mut page) = slabs::header_page() else { return false };
        let slots: FxHashMap<u32, &Slab> = slabs.iter().map(|slab| (slab.number, slab)).collect();
        let is_there =
            |place: Place| slots.get(&place.slab).filter(|slab| place.index < slab.slots).is_some();
        if !records.iter().all(|found| is_there(found.place)) {
            return false;
        }
        records.iter().step_by((records.len() / SAMPLES).max(1)).all(|found| {
            let file = &slots[&found.place.slab].file;
            let header = read_slot(&**file, self.geometry, found.place, &mut page);
            header.is_some_and(|header| {
                (header.name, header.generation) == (found.record.name, found.record.generation)
            })
        })
    }

    /// Reads the header of every slot, on as many threads as the tier has.
    fn scan(&self, slabs: &[Slab], recovered: &mut Recovered) -> Vec<Found> {
        const SLOTS_A_PART: u32 = 256;
        let parts: Vec<(&Slab, u32)> = slabs
            .iter()
            .flat_map(|slab| (0..slab.slots).step_by(SLOTS_A_PART as usize).map(move |from| (slab, from)))
            .collect();
        let (next, all, damaged) = (AtomicUsize::new(0), Mutex::new(Vec::new()), AtomicUsize::new(0));
        let work = || {
            let Ok(mut page) = slabs::header_page() else { return };
            while let Some((slab, from)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut found = Vec::new();
                for index in *from..slab.slots.min(from + SLOTS_A_PART) {
                    let place = Place { slab: slab.number, index };
                    match read_slot(&*slab.file, self.geometry, place, &mut page) {
                        Some(header) => found.push(Found { place, record: as_record(&header) }),
                        None if page.iter().any(|&byte| byte != 0) => {
                            damaged.fetch_add(1, Ordering::Relaxed);
                        }
                        None => {}
                    }
                }
                all.lock().extend(found);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.config.threads {
                scope.spawn(work);
            }
            work();
        });
        recovered.dropped += damaged.into_inner() as u64;
        all.into_inner()
    }

    /// Cuts slots off until the slabs fit the quota, from those first that hold least of what is worth most.
    fn shrink(&self, slabs: &mut Vec<Slab>, found: Vec<Found>, recovered: &mut Recovered) -> Vec<Found> {
        let geometry = self.geometry;
        let mut bytes: u64 = slabs.iter().map(|slab| geometry.slab_bytes(slab.slots)).sum();
        if bytes <= self.config.bytes_max {
            return found;
        }
        let mut best: Vec<&Found> = found.iter().collect();
        best.sort_unstable_by_key(|found| {
            std::cmp::Reverse((class(found.record.retention), found.record.used))
        });
        let mut worth: FxHashMap<u32, u32> = FxHashMap::default();
        for found in best.into_iter().take(geometry.slots_in(self.config.bytes_max) as usize) {
            *worth.entry(found.place.slab).or_default() += 1;
        }
        slabs.sort_by_key(|slab| worth.get(&slab.number).copied().unwrap_or(0));
        for slab in slabs.iter_mut() {
            let Some(excess) = bytes.checked_sub(self.config.bytes_max).filter(|&excess| excess > 0) else {
                break;
            };
            let cut = u32::try_from(excess.div_ceil(geometry.stride())).unwrap_or(u32::MAX);
            let slots = slab.slots.saturating_sub(cut);
            let kept = if slots == 0 { 0 } else { geometry.slab_bytes(slots) };
            let freed = geometry.slab_bytes(slab.slots) - kept;
            if self.cut_to(slab, slots).is_ok() {
                (bytes, slab.slots) = (bytes - freed, slots);
                recovered.reclaimed_bytes += freed;
            }
        }
        slabs.retain(|slab| slab.slots > 0);
        slabs.sort_by_key(|slab| slab.number);
        let left: FxHashMap<u32, u32> = slabs.iter().map(|slab| (slab.number, slab.slots)).collect();
        let is_left = |found: &Found| left.get(&found.place.slab).is_some_and(|&n| found.place.index < n);
        let before = found.len();
        let found: Vec<Found> = found.into_iter().filter(is_left).collect();
        recovered.dropped += (before - found.len()) as u64;
        found
    }

    fn cut_to(&self, slab: &Slab, slots: u32) -> std::io::Result<()> {
        match slots {
            0 => fs::remove_file(slabs::path_of(&self.config.folder, slab.number)),
            _ => slabs::cut(&*slab.file, self.geometry, SlabHeader { slab: slab.number, slots }),
        }
    }

    /// Puts what was found where it belongs.
    fn build(&self, slabs: Vec<Slab>, found: &[Found], recovered: &mut Recovered) -> State {
        let mut numbered = Slabs::default();
        for slab in slabs {
            numbered.add(slab.number, slab.slots, slab.file);
        }
        let bases: FxHashMap<u32, u32> = numbered.iter().map(|slab| (slab.number, slab.base)).collect();
        let mut residents = Residents::new(self.config.bytes_max / self.geometry.stride());
        residents.add_slots(numbered.slots());
        let mut uses = 0;
        for Found { place, record } in found {
            let retention = remaining(record, self.now_ms);
            let &Record { name, parent, generation, used, .. } = record;
            uses = uses.max(generation).max(used);
            residents.adopt(parent);
            let placed = Placed { name, parent, retention, generation, used };
            if !residents.place(bases[&place.slab] + place.index, placed) {
                residents.disown(parent);
                recovered.dropped += 1;
            }
        }
        let mut state = State::new(self.config, residents, numbered, Clock::at(self.now_ms));
        state.uses = uses;
        let free = (0..state.slabs.slots()).rev();
        state.free = free.filter(|&slot| !state.residents.entry(slot).is_resident()).collect();
        state
    }
}

/// What is left of a wish. A clock that is behind the one it was made by would have it last longer.
fn remaining(record: &Record, now_ms: u64) -> Retention {
    let Retention { until_ms, .. } = record.retention;
    let until_ms = match until_ms {
        0 => 0,
        until if now_ms < record.noted_ms => now_ms + until.saturating_sub(record.noted_ms),
        until => until,
    };
    Retention { until_ms, ..record.retention }
}

fn read_slot(file: &dyn SlabFile, geometry: &Geometry, place: Place, page: &mut [u8]) -> Option<SlotHeader> {
    page.fill(0);
    file.read(geometry.offset(place.index), page, &mut []).ok()?;
    SlotHeader::decode(page, place, geometry)
}

fn as_record(header: &SlotHeader) -> Record {
    let &SlotHeader { generation, name, parent, retention, created_ms, .. } = header;
    Record { generation, name, parent, retention, used: generation, noted_ms: created_ms }
}

/// What headers say, with what the index says of the same block in the same slot.
fn merge(found: Vec<Found>, records: &[Found]) -> Vec<Found> {
    let known: FxHashMap<(u32, u32), &Record> =
        records.iter().map(|found| ((found.place.slab, found.place.index), &found.record)).collect();
    let merged = found.into_iter().map(|found| {
        let record = known.get(&(found.place.slab, found.place.index)).copied();
        let is_same = |record: &&Record| {
            (record.name, record.generation) == (found.record.name, found.record.generation)
        };
        Found { record: record.filter(is_same).copied().unwrap_or(found.record), ..found }
    });
    merged.collect()
}

/// The later one of each name, in order of use.
fn latest(mut found: Vec<Found>) -> Vec<Found> {
    found.sort_unstable_by_key(|found| std::cmp::Reverse(found.record.generation));
    let mut seen: FxHashSet<BlockName> = FxHashSet::default();
    found.retain(|found| seen.insert(found.record.name));
    found.sort_unstable_by_key(|found| found.record.used);
    found
}

/// The index on disk, if one could be opened, and which of its folders it is in.
struct Index {
    folder: PathBuf,
    number: u64,
    open: OpenMeta,
    store: Option<Box<dyn MetaStore>>,
    /// Nothing was in it.
    is_empty: bool,
}

impl Index {
    /// Opens the latest one. One that does not open is moved aside, for who wants to know why.
    fn open(recovery: &Recovery<'_>) -> Self {
        let (folder, open) = (recovery.config.folder.clone(), recovery.open_index);
        let numbers = Self::numbers(&folder);
        let number = numbers.iter().copied().max().unwrap_or(0);
        let mut index = Self { folder, number, open, store: None, is_empty: false };
        for older in numbers.into_iter().filter(|&older| older != number) {
            let _gone = fs::remove_dir_all(index.path(older));
        }
        index.store = (index.open)(&index.path(number)).ok();
        if index.store.is_none() {
            index.move_aside();
        }
        index
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("index-{number}"))
    }

    fn numbers(folder: &Path) -> Vec<u64> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("index-")?.parse().ok();
        entries.filter_map(number).collect()
    }

    fn move_aside(&mut self) {
        let aside = self.folder.join("index.aside");
        let _gone = fs::remove_dir_all(&aside);
        let _moved = fs::rename(self.path(self.number), aside);
        self.store = None;
        self.number += 1;
    }

    /// All records, and whether they are all that there were.
    fn load(&mut self) -> (Vec<Found>, bool) {
        let mut records = Vec::new();
        let mut digest = Digest::default();
        let Some(store) = self.store.as_mut() else { return (records, false) };
        let loaded = store.load(&mut |place, record| {
            digest.add(place, record.generation, record.name);
            records.push(Found { place, record });
        });
        match loaded {
            Ok(clean) => {
                self.is_empty = clean.is_none() && records.is_empty();
                (records, clean == Some(digest))
            }
            Err(_) => {
                self.move_aside();
                (Vec::new(), false)
            }
        }
    }

    /// Whether it takes much more space than its records: the store does not give back what it once took.
    fn is_overgrown(&self, records: usize) -> bool {
        const BYTES_MIN: u64 = 64 << 20;
        let bytes = self.store.as_ref().map_or(0, |store| store.bytes());
        bytes > BYTES_MIN + 8 * (records * Record::BYTES) as u64
    }

    /// The index, which is out of date from here on.
    fn dirty(mut self) -> Option<Box<dyn MetaStore>> {
        let mut store = self.store.take()?;
        let marked: Result<(), MetaError> = store.mark(None);
        match marked {
            Ok(()) => Some(store),
            Err(_) => {
                drop(store);
                self.move_aside();
                self.afresh()
            }
        }
    }

    /// An empty index in place of this one.
    fn afresh(mut self) -> Option<Box<dyn MetaStore>> {
        if self.is_empty {
            return self.store;
        }
        if self.store.take().is_some() {
            let _gone = fs::remove_dir_all(self.path(self.number));
            self.number += 1;
        }
        (self.open)(&self.path(self.number)).ok()
    }
}
