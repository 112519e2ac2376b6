//! What of policies outlives the process.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What of policies outlives the process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// Folder of the stores of plugins; empty keeps them in memory.
    pub folder: String,
}

impl State {
    /// The folder, if there is one.
    pub fn folder(&self) -> Option<PathBuf> {
        (!self.folder.is_empty()).then(|| PathBuf::from(&self.folder))
    }

    /// A relative path in a file means relative to that file.
    pub(super) fn relative_to(&mut self, folder: &Path) {
        if let Some(own) = self.folder() {
            self.folder = folder.join(own).display().to_string();
        }
    }
}
