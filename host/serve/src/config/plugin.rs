//! One plugin: where its component comes from, and how it is run.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, at_least, bad};
use super::rule::Match;
use crate::source::{self, AskedBy, Supply, Wanted};

/// One plugin: a component and how it is run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Plugin {
    /// `builtin:NAME`, `file:PATH`, a path, or `oci://HOST/REPOSITORY:TAG`.
    pub source: String,
    /// SHA-256 that its component must have; empty for any.
    pub sha256: String,
    /// File with its signature; empty for the one beside it, `PATH.sig`.
    pub signature: String,
    /// Handed to the plugin's `configure` as JSON.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// What to do when it fails.
    pub on_failure: OnFailure,
    /// The requests for which it is asked; all of them where nothing is given.
    #[serde(rename = "match")]
    pub matches: Match,
    /// What it may use.
    pub limits: PluginLimits,
}

impl Default for Plugin {
    fn default() -> Self {
        Self {
            source: String::new(),
            sha256: String::new(),
            signature: String::new(),
            config: serde_json::Map::new(),
            on_failure: OnFailure::Fallback,
            matches: Match::default(),
            limits: PluginLimits::default(),
        }
    }
}

/// What happens to a decision whose plugin failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The built-in policy of the slot answers.
    Fallback,
    /// The chain goes on as if the plugin were not there.
    Skip,
    /// The request is refused.
    Reject,
}

/// What a plugin may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PluginLimits {
    /// CPU time of one call.
    pub deadline_us: u64,
    /// Memory of one instance.
    pub memory_mib: u64,
    /// Instances; more than one is for plugins without state.
    pub instances: u32,
    /// State that is carried from one generation to the next.
    pub state_kib: u64,
    /// What it keeps in its store.
    pub store_kib: u64,
}

impl Default for PluginLimits {
    fn default() -> Self {
        Self { deadline_us: 2_000, memory_mib: 64, instances: 1, state_kib: 1024, store_kib: 1024 }
    }
}

/// Chosen: the pooling allocator reserves this much address space for each instance.
pub const PLUGIN_MEMORY_MIB_MAX: u64 = 64;
/// Chosen: what a plugin keeps is copied whole at a swap, and held in memory for each generation.
pub const PLUGIN_KEPT_KIB_MAX: u64 = 64 << 10;

impl Plugin {
    /// Its file, when it is one.
    pub fn path(&self) -> Option<&Path> {
        source::path_of(&self.source)
    }

    /// The files that it is read from: a change of any is a reason to read again.
    pub fn files(&self) -> Vec<PathBuf> {
        let Some(path) = self.path() else { return Vec::new() };
        let signature = match self.signature.as_str() {
            "" => source::beside(path),
            named => PathBuf::from(named),
        };
        vec![path.to_owned(), signature]
    }

    fn wanted(&self) -> Wanted<'_> {
        let Self { source, sha256, signature, .. } = self;
        Wanted { source, sha256, signature, asked_by: AskedBy::Config }
    }

    /// Its component, fetched and checked. Blocks.
    pub(super) fn component(&self, name: &str, supply: &Supply) -> Result<source::Fetched, ConfigError> {
        source::component(supply, self.wanted())
            .map_err(|error| ConfigError::Source { plugin: name.to_owned(), error })
    }

    pub(super) fn check(&self, name: &str, supply: &Supply) -> Result<(), ConfigError> {
        source::check(supply, name, self.wanted())?;
        let key = |key: &str| format!("plugins.{name}.{key}");
        let limits = &self.limits;
        at_least(&key("limits.deadline_us"), limits.deadline_us, 1)?;
        at_least(&key("limits.memory_mib"), limits.memory_mib, 1)?;
        at_least(&key("limits.instances"), limits.instances.into(), 1)?;
        at_most(&key("limits.memory_mib"), limits.memory_mib, PLUGIN_MEMORY_MIB_MAX)?;
        at_most(&key("limits.state_kib"), limits.state_kib, PLUGIN_KEPT_KIB_MAX)?;
        at_most(&key("limits.store_kib"), limits.store_kib, PLUGIN_KEPT_KIB_MAX)?;
        if let Some(builtin) = self.source.strip_prefix("builtin:")
            && policy::builtin_component(builtin).is_none()
        {
            let problem = format!("names no built-in plugin; there are {}", builtin_names().join(", "));
            return Err(bad(key("source"), problem));
        }
        self.matches.check(&key("match"))
    }
}

/// The plugins that come with the host.
pub(super) fn builtin_names() -> Vec<&'static str> {
    policy::CATALOGUE.iter().map(|(name, _)| *name).collect()
}

fn at_most(key: &str, value: u64, max: u64) -> Result<(), ConfigError> {
    match value <= max {
        true => Ok(()),
        false => Err(bad(key, format!("must be at most {max}, is {value}"))),
    }
}
