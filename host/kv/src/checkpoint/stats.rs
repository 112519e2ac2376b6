//! What has become of checkpoints since the start.

use std::sync::Arc;

/// Counts since the start, and what is there now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckpointStats {
    /// Checkpoints in the folder, open ones included.
    pub entries: u64,
    /// Those whose journal is open, or not yet written to its end.
    pub open: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Journals that were begun.
    pub begun: u64,
    /// Journals that went on with a checkpoint.
    pub resumed: u64,
    /// Sequences whose end is on the disk.
    pub ended: u64,
    /// Tokens that were written.
    pub tokens: u64,
    /// Rounds of the writer.
    pub rounds: u64,
    /// Checkpoints that left because of a bound.
    pub evicted: u64,
    /// Checkpoints that left because of their age.
    pub expired: u64,
    /// Files whose torn or damaged tail was cut off.
    pub cut: u64,
    /// Files that were removed for a bad preamble.
    pub bad: u64,
    /// Files of another version that were removed.
    pub other_version: u64,
    /// Files that could not be read and were left alone.
    pub unreadable: u64,
    /// Sequences whose journal stopped before their end: the disk failed, or a bound was met.
    pub stopped: u64,
    /// Failures of the disk, those of reading and removing included.
    pub errors: u64,
    /// The last failure or met bound, in words.
    pub last_error: Option<Arc<str>>,
}
