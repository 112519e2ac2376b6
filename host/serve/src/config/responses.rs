//! What of responses outlives their answer, and how much of it.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::State;
use super::error::{ConfigError, at_least};
use crate::api::responses::store::{Bounds, Store, StoreError};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Stored responses, and connections that carry many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Responses {
    /// Folder of the stored responses; empty takes `responses` in the folder of `state`, or memory.
    pub folder: String,
    /// Responses that are kept.
    pub entries_max: usize,
    /// Bytes of all of them, in MiB.
    pub total_mib_max: u64,
    /// Days for which a conversation is kept after its last turn.
    pub ttl_days: u64,
    /// Connections by WebSocket at once.
    pub sockets_max: usize,
}

impl Default for Responses {
    fn default() -> Self {
        Self {
            folder: String::new(),
            entries_max: 20_000,
            total_mib_max: 512,
            ttl_days: 30,
            sockets_max: 512,
        }
    }
}

impl Responses {
    /// Opens the store. Blocks.
    pub fn store(&self, state: &State) -> Result<Store, StoreError> {
        let bounds = Bounds {
            entries_max: self.entries_max,
            bytes_max: self.total_mib_max << 20,
            ttl_ms: self.ttl_days.saturating_mul(DAY_MS),
        };
        match self.folder_in(state) {
            Some(folder) => Store::in_folder(&folder, bounds),
            None => Ok(Store::in_memory(bounds)),
        }
    }

    fn folder_in(&self, state: &State) -> Option<PathBuf> {
        match self.folder.is_empty() {
            true => Some(state.folder()?.join("responses")),
            false => Some(PathBuf::from(&self.folder)),
        }
    }

    /// A relative path in a file means relative to that file.
    pub(super) fn relative_to(&mut self, folder: &Path) {
        if !self.folder.is_empty() {
            self.folder = folder.join(&self.folder).display().to_string();
        }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        at_least("responses.entries_max", self.entries_max as u64, 1)?;
        at_least("responses.total_mib_max", self.total_mib_max, 1)?;
        at_least("responses.ttl_days", self.ttl_days, 1)
    }
}
