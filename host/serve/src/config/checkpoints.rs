//! Answers that survive the end of their connection, and of the process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, at_least};

/// What is kept of answers whose requests have an `Idempotency-Key`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoints {
    /// Folder of the checkpoints; empty keeps none.
    pub folder: String,
    /// Answers that are kept.
    pub entries_max: usize,
    /// Space for them.
    pub total_mib_max: u64,
    /// Hours for which an answer can be gone on with.
    pub ttl_hours: u64,
    /// From one sync to the next.
    pub sync_ms: u64,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { folder: String::new(), entries_max: 4096, total_mib_max: 256, ttl_hours: 24, sync_ms: 50 }
    }
}

impl Checkpoints {
    /// The store's own settings; `None` where nothing is kept. `tokens_max`: of one answer.
    pub fn settings(&self, tokens_max: u32) -> Option<kv::checkpoint::Config> {
        (!self.folder.is_empty()).then(|| kv::checkpoint::Config {
            entries_max: self.entries_max,
            bytes_max: self.total_mib_max << 20,
            ttl_ms: self.ttl_hours * 3_600_000,
            tokens_max,
            sync_every: Duration::from_millis(self.sync_ms),
            ..kv::checkpoint::Config::new(PathBuf::from(&self.folder))
        })
    }

    /// A relative path in a file means relative to that file.
    pub(super) fn relative_to(&mut self, folder: &Path) {
        if !self.folder.is_empty() {
            self.folder = folder.join(&self.folder).display().to_string();
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least("checkpoints.entries_max", self.entries_max as u64, 1)?;
        at_least("checkpoints.total_mib_max", self.total_mib_max, 1)?;
        at_least("checkpoints.ttl_hours", self.ttl_hours, 1)?;
        at_least("checkpoints.sync_ms", self.sync_ms, 1)
    }
}
