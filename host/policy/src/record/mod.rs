//! Record and replay: a log of decisions with all that they follow from, and any chain run over it again.
//!
//! A [`Recorder`] is a witness: it writes each decision, with the columns that it was made from, into numbered files
//! of a folder, and never has a decision wait for the disk. [`Replay`] runs a log with fuel in the place of clocks and
//! compares. **Invariant:** a file replays on its own: its head has the chains, and every plugin's state and store.

mod compare;
mod folder;
mod format;
mod frame;
mod lineup;
mod log;
mod queue;
mod recorder;
mod replay;
mod report;
mod requests;
mod stage;

#[cfg(test)]
mod tests;

use crate::slot::Slot;
use serde::Serialize;
use std::path::PathBuf;

pub use compare::{AdmitTally, Comparison, RetainTally, RouteTally, ScheduleTally};
pub use recorder::Recorder;
pub use replay::{Replay, ReplayError};
pub use report::{CallCost, CallTime, ReplayReport, ReplayVerdict};
pub use requests::{RecordedRequest, recorded_requests};

/// Smallest file. Chosen: the heads of a default chain take a few KiB, and a file has to hold more than its head.
pub const FILE_BYTES_MIN: u64 = 128 << 10;

/// What is recorded, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordConfig {
    /// The folder of the log. It is made if it is not there.
    pub folder: PathBuf,
    /// Largest file.
    pub file_bytes_max: u64,
    /// All files together: the oldest leave.
    pub total_bytes_max: u64,
    /// The kinds of decisions: those of [`RecordConfig::SLOTS`], or some of them.
    pub slots: Vec<Slot>,
}

impl RecordConfig {
    /// Kinds of decisions that can be recorded. Hints are not: they are made from what callers wrote.
    pub const SLOTS: [Slot; 5] = [Slot::Admit, Slot::Route, Slot::Schedule, Slot::Retain, Slot::Observe];

    /// Everything, into a folder: files of 64 MiB, 1 GiB together.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            file_bytes_max: 64 << 20,
            total_bytes_max: 1 << 30,
            slots: Self::SLOTS.to_vec(),
        }
    }

    /// Whether it can be used. Errors: a bound that leaves no room, or a slot that cannot be recorded.
    pub fn check(&self) -> Result<(), RecordError> {
        if self.file_bytes_max < FILE_BYTES_MIN {
            return Err(RecordError::FileBytes(self.file_bytes_max));
        }
        if self.total_bytes_max < self.file_bytes_max.saturating_mul(2) {
            return Err(RecordError::TotalBytes(self.total_bytes_max, self.file_bytes_max));
        }
        match self.slots.iter().find(|slot| !Self::SLOTS.contains(slot)) {
            Some(slot) => Err(RecordError::Slot(*slot)),
            None => Ok(()),
        }
    }
}

/// Why a recording does not start.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The folder cannot be used.
    #[error("cannot record into {folder}: {source}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Files would be too small.
    #[error("a log file needs at least {FILE_BYTES_MIN} bytes, not {0}")]
    FileBytes(u64),
    /// The total would be too small.
    #[error("all log files together may have {0} bytes; they need twice the {1} of one file")]
    TotalBytes(u64, u64),
    /// Such decisions are not recorded.
    #[error("slot `{0}` is not recorded; there are admit, route, schedule, retain, observe")]
    Slot(Slot),
}

/// Where a recording stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecordStatus {
    /// Whether decisions are recorded.
    pub on: bool,
    /// The folder.
    pub folder: PathBuf,
    /// Decisions and batches of outcomes recorded.
    pub records: u64,
    /// Those left out because the disk did not keep up.
    pub dropped: u64,
    /// Bytes on the disk.
    pub bytes: u64,
    /// Files begun.
    pub files: u64,
    /// Why it gave up, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
