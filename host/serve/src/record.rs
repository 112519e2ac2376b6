//! Decision logs: settings, and the recording that runs, if one does.
//!
//! Called at start, by the admin API, and by a stop. **Invariant:** nothing is written outside the configured folder.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use policy::{Generations, RecordConfig, RecordError, RecordStatus, Recorder, Slot};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

/// Decision logs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Record {
    /// Where logs lie; empty: nothing is recorded.
    pub folder: String,
    /// Whether recording begins with the host, or when it is asked for.
    pub at_start: bool,
    /// Largest file.
    pub file_mib_max: u64,
    /// All files of a log together; the oldest leave.
    pub total_mib_max: u64,
    /// Kinds of decisions: `admit`, `route`, `schedule`, `retain`, `observe`.
    pub slots: Vec<RecordedSlot>,
}

/// A kind of decision that can be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RecordedSlot {
    /// Who comes in.
    Admit,
    /// Who serves.
    Route,
    /// Who runs next.
    Schedule,
    /// What stays cached.
    Retain,
    /// What became of requests.
    Observe,
}

impl From<RecordedSlot> for Slot {
    fn from(slot: RecordedSlot) -> Self {
        match slot {
            RecordedSlot::Admit => Self::Admit,
            RecordedSlot::Route => Self::Route,
            RecordedSlot::Schedule => Self::Schedule,
            RecordedSlot::Retain => Self::Retain,
            RecordedSlot::Observe => Self::Observe,
        }
    }
}

impl Default for Record {
    fn default() -> Self {
        use RecordedSlot::{Admit, Observe, Retain, Route, Schedule};
        Self {
            folder: String::new(),
            at_start: true,
            file_mib_max: 64,
            total_mib_max: 1024,
            slots: vec![Admit, Route, Schedule, Retain, Observe],
        }
    }
}

impl Record {
    /// Whether the bounds leave room.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let bad = |key: &str, problem: String| ConfigError::Value { key: format!("record.{key}"), problem };
        if !(1..=1 << 20).contains(&self.file_mib_max) {
            return Err(bad("file_mib_max", format!("must be 1 to 1048576, is {}", self.file_mib_max)));
        }
        if self.total_mib_max < 2 * self.file_mib_max || self.total_mib_max > 1 << 24 {
            let problem = format!(
                "must be at least twice `record.file_mib_max` and at most 16777216, is {}",
                self.total_mib_max
            );
            return Err(bad("total_mib_max", problem));
        }
        if self.slots.is_empty() {
            return Err(bad("slots", "must name at least one slot, or leave it out for all".to_owned()));
        }
        Ok(())
    }

    /// A relative folder in a file means relative to that file.
    pub(crate) fn relative_to(&mut self, folder: &Path) {
        if !self.folder.is_empty() {
            self.folder = folder.join(&self.folder).display().to_string();
        }
    }

    fn config(&self, below: &str) -> Result<RecordConfig, RecordingError> {
        if self.folder.is_empty() {
            return Err(RecordingError::NoFolder);
        }
        let below = Path::new(below);
        if below.components().any(|part| !matches!(part, Component::Normal(_))) {
            return Err(RecordingError::Outside(below.to_owned()));
        }
        Ok(RecordConfig {
            folder: Path::new(&self.folder).join(below),
            file_bytes_max: self.file_mib_max << 20,
            total_bytes_max: self.total_mib_max << 20,
            slots: self.slots.iter().map(|slot| Slot::from(*slot)).collect(),
        })
    }
}

/// Why a recording did not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// Nobody said where logs may lie.
    #[error("`record.folder` is not set, so there is no place for logs")]
    NoFolder,
    /// The folder is not below the configured one.
    #[error("folder {0} must be a relative path below `record.folder`, without `..`")]
    Outside(PathBuf),
    /// One runs.
    #[error("decisions are being recorded into {0} already; stop that first")]
    Running(PathBuf),
    /// None runs.
    #[error("no decisions are being recorded")]
    NotRunning,
    /// It cannot be written.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The recording that runs, if one does.
pub struct Recording {
    settings: Record,
    recorder: Mutex<Option<Arc<Recorder>>>,
    last: Mutex<Option<RecordStatus>>,
    metrics: Metrics,
}

impl Recording {
    /// Nothing is recorded yet.
    pub fn new(settings: Record) -> Self {
        Self { settings, recorder: Mutex::default(), last: Mutex::default(), metrics: Metrics::default() }
    }

    /// Records from the first decision on, if the configuration says so. Errors: the folder cannot be used.
    pub fn begin(&self, generations: &Generations) -> Result<(), RecordingError> {
        match self.settings.folder.is_empty() || !self.settings.at_start {
            true => Ok(()),
            false => self.start(generations, "").map(drop),
        }
    }

    /// Records into the configured folder, or one below it. Blocks while decisions end that are under way.
    pub fn start(&self, generations: &Generations, below: &str) -> Result<RecordStatus, RecordingError> {
        let mut running = self.recorder.lock();
        if let Some(recorder) = running.as_ref() {
            return Err(RecordingError::Running(recorder.config().folder.clone()));
        }
        let recorder = Recorder::start(generations, self.settings.config(below)?)?;
        let status = recorder.status();
        tracing::info!(folder = %status.folder.display(), "recording decisions");
        *running = Some(recorder);
        Ok(status)
    }

    /// Ends the log. Blocks until it is on the disk.
    pub fn stop(&self, generations: &Generations) -> Result<RecordStatus, RecordingError> {
        let mut running = self.recorder.lock();
        let recorder = running.take().ok_or(RecordingError::NotRunning)?;
        let status = recorder.stop(generations);
        self.metrics.count(&status);
        self.metrics.forget();
        tracing::info!(records = status.records, dropped = status.dropped, "recording ended");
        *self.last.lock() = Some(status.clone());
        Ok(status)
    }

    /// Where the recording stands, or the last one stood at its end.
    pub fn status(&self) -> Option<RecordStatus> {
        let running = self.recorder.lock().as_ref().map(|recorder| recorder.status());
        running.or_else(|| self.last.lock().clone())
    }

    /// Its metrics.
    pub fn register(&self, registry: &mut Registry) {
        let m = &self.metrics;
        registry.register("record_active", "Whether decisions are recorded", m.active.clone());
        registry.register("record_records", "Decisions and outcomes recorded", m.records.clone());
        registry.register("record_dropped", "Decisions that a log lacks", m.dropped.clone());
        registry.register("record_log_bytes", "Bytes of decision logs written", m.bytes.clone());
        registry.register("record_files", "Files of decision logs begun", m.files.clone());
    }

    /// Brings the metrics up to date.
    pub fn collect(&self) {
        let running = self.recorder.lock();
        let status = running.as_ref().map(|recorder| recorder.status());
        self.metrics.active.set(i64::from(status.as_ref().is_some_and(|status| status.on)));
        if let Some(status) = status {
            self.metrics.count(&status);
        }
    }
}

/// Counters over all recordings since the start.
#[derive(Default)]
struct Metrics {
    active: Gauge,
    records: Counter,
    dropped: Counter,
    bytes: Counter,
    files: Counter,
    // What of the running recording is counted.
    counted: [AtomicU64; 4],
}

impl Metrics {
    fn count(&self, status: &RecordStatus) {
        let now = [status.records, status.dropped, status.bytes, status.files];
        let counters = [&self.records, &self.dropped, &self.bytes, &self.files];
        for ((counter, before), now) in counters.into_iter().zip(&self.counted).zip(now) {
            counter.inc_by(now.saturating_sub(before.swap(now, Relaxed)));
        }
    }

    fn forget(&self) {
        self.counted.iter().for_each(|before| before.store(0, Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_below_the_configured_one_are_used() {
        let record = Record { folder: "/logs".to_owned(), ..Record::default() };
        assert_eq!(record.config("").expect("it is set").folder, Path::new("/logs"));
        assert_eq!(record.config("a/b").expect("below").folder, Path::new("/logs/a/b"));
        for outside in ["/etc", "../x", "a/../../x"] {
            assert!(matches!(record.config(outside), Err(RecordingError::Outside(_))), "{outside}");
        }
        assert!(matches!(Record::default().config("a"), Err(RecordingError::NoFolder)));
    }

    #[test]
    fn a_total_that_holds_less_than_two_files_is_refused() {
        let record = Record { file_mib_max: 8, total_mib_max: 15, ..Record::default() };
        assert!(record.check().expect_err("too small").to_string().contains("record.total_mib_max"));
        assert!(Record { total_mib_max: 16, ..record }.check().is_ok());
    }
}
