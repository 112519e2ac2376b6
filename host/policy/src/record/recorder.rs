//! The recorder: a witness that puts every decision into a log, in the one order in which they are made.
//!
//! **Invariant:** a file has every decision between its head and its end, and each generation's whole state before
//! its first one; a decision waits for memory only, never for the disk.

use super::folder::Folder;
use super::format::{By, ColumnNames, Columns, End, EndReason, Entry, FORMAT, FileHead, TABLES};
use super::frame;
use super::lineup::{Digests, Lineup, head_of};
use super::queue::{Job, Queue};
use super::{RecordConfig, RecordError, RecordStatus};
use crate::clock;
use crate::contract;
use crate::generation::{Generation, Generations};
use crate::seat::exact::Late;
use crate::slot::{Frame, Slot};
use crate::witness::{Seen, Way, Witness};
use parking_lot::{Mutex, MutexGuard};
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;

/// Share of a file that is kept free, so that the record which fills it still fits.
const MARGIN: u64 = 8;

/// Records the decisions of one host until it is stopped.
pub struct Recorder {
    config: RecordConfig,
    workers: u32,
    recording: u64,
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
    // Held for a whole decision.
    order: Mutex<()>,
    log: Mutex<Log>,
}

/// The log so far. Changed only by who holds the order.
struct Log {
    // Off before the decisions have ended that began without us, and after the end.
    on: bool,
    next_number: u64,
    file: Option<OpenFile>,
    /// Whether the next file follows without a gap.
    continues: bool,
    lineup: Lineup,
    scratch: Vec<u8>,
    records: u64,
    dropped: u64,
    failure: Option<String>,
}

struct OpenFile {
    number: u64,
    bytes: u64,
    decisions: u64,
}

impl Recorder {
    /// Records all decisions from here on. Blocks until those have ended that are under way.
    pub fn start(generations: &Generations, config: RecordConfig) -> Result<Arc<Self>, RecordError> {
        config.check()?;
        let refused = |source| RecordError::Folder { folder: config.folder.clone(), source };
        let (folder, next_number) = Folder::open(&config.folder, config.total_bytes_max).map_err(refused)?;
        let (queue, thread) = Queue::start(folder).map_err(refused)?;
        let log = Log {
            on: false,
            next_number,
            file: None,
            continues: false,
            lineup: Lineup::default(),
            scratch: vec![],
            records: 0,
            dropped: 0,
            failure: None,
        };
        let recorder = Arc::new(Self {
            workers: generations.workers() as u32,
            recording: clock::now_ms() ^ (u64::from(std::process::id()) << 44),
            config,
            queue,
            thread: Mutex::new(Some(thread)),
            order: Mutex::new(()),
            log: Mutex::new(log),
        });
        generations.add_witness(recorder.clone());
        let turn = recorder.order.lock();
        recorder.log.lock().on = true;
        drop(turn);
        Ok(recorder)
    }

    /// Ends the log and waits until it is on the disk.
    pub fn stop(self: &Arc<Self>, generations: &Generations) -> RecordStatus {
        let turn = self.order.lock();
        let mut log = self.log.lock();
        if std::mem::take(&mut log.on) {
            let states = log.lineup.digests();
            self.end(&mut log, EndReason::Stopped, states);
            log.lineup.let_go();
        }
        drop((log, turn));
        let witness: Arc<dyn Witness> = self.clone();
        generations.remove_witness(&witness);
        self.queue.close();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the recorder's thread panicked");
        }
        self.status()
    }

    /// Where it stands.
    pub fn status(&self) -> RecordStatus {
        let log = self.log.lock();
        RecordStatus {
            on: log.on && log.failure.is_none(),
            folder: self.config.folder.clone(),
            records: log.records,
            dropped: log.dropped,
            bytes: self.queue.written.load(Relaxed),
            files: self.queue.files.load(Relaxed),
            error: log.failure.clone().or_else(|| self.queue.failure()),
        }
    }

    /// Its settings.
    pub fn config(&self) -> &RecordConfig {
        &self.config
    }

    fn has(&self, slot: Slot) -> bool {
        self.config.slots.contains(&slot)
    }

    /// Gives up: decisions go on, unrecorded.
    fn fail(log: &mut Log, why: String) {
        tracing::error!(error = why, "decisions are not recorded any more");
        log.failure = Some(why);
        log.on = false;
        log.file = None;
        log.lineup.let_go();
    }

    /// Begins a file if there is none, once the queue has room again.
    fn begin_file(&self, log: &mut Log) -> bool {
        if log.file.is_some() {
            return true;
        }
        match self.queue.has_room(self.config.file_bytes_max.min(1 << 20) as usize) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                Self::fail(log, error);
                return false;
            }
        }
        let number = log.next_number;
        log.next_number += 1;
        log.lineup.begin_file();
        self.queue.push(Job::Begin { number, bytes_max: self.config.file_bytes_max });
        log.file = Some(OpenFile { number, bytes: frame::MAGIC.len() as u64, decisions: 0 });
        let head = FileHead {
            format: FORMAT,
            contract: contract::NEWEST.to_string(),
            recording: self.recording,
            number,
            continues: std::mem::replace(&mut log.continues, false),
            began_ms: clock::now_ms(),
            workers: self.workers,
            slots: self.config.slots.clone(),
            tables: TABLES.iter().map(|schema| ColumnNames::from(*schema)).collect(),
        };
        self.put(log, &Entry::File(head))
    }

    /// Appends an entry. Says whether it had room; if not, the file has ended with a gap.
    fn put(&self, log: &mut Log, entry: &Entry<'_>) -> bool {
        let Some(file) = &mut log.file else { return false };
        let frames = match frame::write(std::mem::take(&mut log.scratch), entry) {
            Ok(frames) => frames,
            Err(error) => {
                Self::fail(log, format!("an entry cannot be written: {error}"));
                return false;
            }
        };
        let bytes = file.bytes + frames.len() as u64;
        // What ends a file always fits: nothing else may use the last bytes.
        let last = matches!(entry, Entry::End(_));
        let reserve = if last { 0 } else { END_BYTES_MAX };
        let fits = bytes + reserve <= self.config.file_bytes_max && self.queue.push_frames(&frames, last);
        log.scratch = frames;
        if fits {
            file.bytes = bytes;
            return true;
        }
        let is_head = matches!(entry, Entry::File(_) | Entry::Generation(_));
        if is_head && file.decisions == 0 {
            let why = format!(
                "the state of all plugins takes {bytes} bytes; a log file may have {}",
                self.config.file_bytes_max
            );
            Self::fail(log, why);
        } else if !last {
            // A head comes before its decision: nothing is missing yet.
            self.end(log, if is_head { EndReason::Full } else { EndReason::Gap }, vec![]);
        }
        false
    }

    fn end(&self, log: &mut Log, why: EndReason, states: Digests) {
        let Some(file) = &log.file else { return };
        let (decisions, number) = (file.decisions, file.number);
        let fits = |states: &[(u64, Vec<_>)]| {
            states.iter().map(|(_, of)| 16 + of.len() as u64 * 40).sum::<u64>() < END_BYTES_MAX / 2
        };
        let states = if fits(&states) { states } else { vec![] };
        let whole = self.put(log, &Entry::End(End { decisions, why, states }));
        tracing::debug!(number, decisions, ?why, whole, "decision log file ended");
        log.file = None;
        log.continues = whole && why == EndReason::Full;
    }

    fn record(&self, log: &mut Log, late: Vec<(u64, Vec<Late>)>, entry: &Entry<'_>) {
        let has_late = late.is_empty() || self.put(log, &Entry::Late(late));
        if !has_late || !self.put(log, entry) {
            log.dropped += 1;
            log.continues = false;
            return;
        }
        log.records += 1;
        let Some(file) = &mut log.file else { return };
        file.decisions += 1;
        if file.bytes + END_BYTES_MAX >= self.config.file_bytes_max - self.config.file_bytes_max / MARGIN {
            self.end(log, EndReason::Full, vec![]);
        }
    }
}

/// Room for the last entry of a file.
const END_BYTES_MAX: u64 = 16 << 10;

impl Witness for Recorder {
    fn one_by_one(&self) -> Option<MutexGuard<'_, ()>> {
        Some(self.order.lock())
    }

    /// Writes the generation's whole state, if the file does not follow it yet.
    fn before(&self, generation: &Arc<Generation>) {
        let mut log = self.log.lock();
        if !log.on || (log.file.is_some() && log.lineup.has(generation)) {
            return;
        }
        // A head that a file has no room for begins the next one.
        for _ in 0..2 {
            if !self.begin_file(&mut log) {
                return;
            }
            let (head, components) = head_of(generation, &mut log.lineup, &self.config.slots);
            for (digest, component) in components {
                self.queue.push(Job::Component(digest, component));
            }
            if self.put(&mut log, &Entry::Generation(Box::new(head))) || !log.on {
                return;
            }
        }
    }

    fn see(&self, generation: &Arc<Generation>, way: Way, seen: &Seen<'_>) {
        let mut log = self.log.lock();
        if !log.on {
            return;
        }
        let late = log.lineup.take_late(generation);
        if !self.has(slot_of(seen)) {
            return;
        }
        let by = |frame: Frame| By {
            generation: generation.id().0,
            chain: way.chain as u32,
            muted: way.muted,
            frame,
        };
        self.record(&mut log, late, &entry(by, seen));
    }
}

fn slot_of(seen: &Seen<'_>) -> Slot {
    match seen {
        Seen::Admit(..) | Seen::AdmitRefused(..) => Slot::Admit,
        Seen::Route(..) | Seen::RouteRefused(..) => Slot::Route,
        Seen::Schedule(..) => Slot::Schedule,
        Seen::Retain(..) | Seen::Clipped(..) => Slot::Retain,
        Seen::Observe(..) => Slot::Observe,
    }
}

fn entry<'a>(by: impl Fn(Frame) -> By, seen: &Seen<'a>) -> Entry<'a> {
    let columns = Columns::from;
    match *seen {
        Seen::Admit(view, decision) => Entry::Admit {
            by: by(view.frame),
            request: columns(view.request),
            fleet: columns(view.fleet),
            answer: Ok(Cow::Borrowed(decision)),
        },
        Seen::AdmitRefused(view, rejected) => Entry::Admit {
            by: by(view.frame),
            request: columns(view.request),
            fleet: columns(view.fleet),
            answer: Err(Cow::Borrowed(rejected)),
        },
        Seen::Route(view, decision) => Entry::Route {
            by: by(view.frame),
            request: columns(view.request),
            candidates: columns(view.candidates),
            answer: Ok(Cow::Borrowed(decision)),
        },
        Seen::RouteRefused(view, rejected) => Entry::Route {
            by: by(view.frame),
            request: columns(view.request),
            candidates: columns(view.candidates),
            answer: Err(Cow::Borrowed(rejected)),
        },
        Seen::Schedule(worker, view, decision) => Entry::Schedule {
            by: by(view.frame),
            worker: worker as u32,
            budget: columns(view.budget),
            waiting: columns(view.waiting),
            running: columns(view.running),
            answer: Cow::Borrowed(decision),
        },
        Seen::Retain(worker, view, decision) => Entry::Retain {
            by: by(view.frame),
            worker: worker as u32,
            cache: columns(view.cache),
            segments: columns(view.segments),
            answer: Cow::Borrowed(decision),
        },
        Seen::Clipped(worker, frame, clips) => {
            Entry::Clipped { by: by(frame), worker: worker as u32, clips: Cow::Borrowed(clips) }
        }
        Seen::Observe(view) => Entry::Observe { by: by(view.frame), outcomes: columns(view.outcomes) },
    }
}
