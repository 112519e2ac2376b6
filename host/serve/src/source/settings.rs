//! `[supply]` of the configuration: where components may come from, and what must be shown for them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

/// `supply.cache_dir` for a host that keeps nothing.
const OFF: &str = "off";

/// Where components come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Supply {
    /// Folders that component files must lie under; none allows every path of this file.
    pub roots: Vec<PathBuf>,
    /// What happens to a component without a signature.
    pub verify: Verify,
    /// PEM files with the public keys that signatures are checked against.
    pub keys: Vec<PathBuf>,
    /// Registries that are spoken to without TLS, as `host` or `host:port`; loopback always is.
    pub plain_http_hosts: Vec<String>,
    /// Folder for pulled components and compiled code; empty takes the user's, `off` keeps nothing.
    pub cache_dir: String,
    /// How long an answer of a registry may take.
    pub timeout_seconds: u64,
}

/// What happens to a component without a signature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// It is taken. A signature that is there is still checked when there are keys.
    #[default]
    Off,
    /// It is refused, unless it is built in.
    Require,
}

impl Default for Supply {
    fn default() -> Self {
        Self {
            roots: Vec::new(),
            verify: Verify::Off,
            keys: Vec::new(),
            plain_http_hosts: Vec::new(),
            cache_dir: String::new(),
            timeout_seconds: 30,
        }
    }
}

impl Supply {
    /// Makes relative paths relative to the folder of the configuration file.
    pub(crate) fn relative_to(&mut self, folder: &Path) {
        for path in self.roots.iter_mut().chain(&mut self.keys) {
            *path = folder.join(&*path);
        }
        if !self.cache_dir.is_empty() && self.cache_dir != OFF {
            self.cache_dir = folder.join(&self.cache_dir).display().to_string();
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let bad = |key: &str, problem: &str| {
            Err(ConfigError::Value { key: format!("supply.{key}"), problem: problem.to_owned() })
        };
        if self.verify == Verify::Require && self.keys.is_empty() {
            return bad("keys", "must name a public key, because `supply.verify` is `require`");
        }
        if self.timeout_seconds == 0 {
            return bad("timeout_seconds", "must be at least 1, is 0");
        }
        Ok(())
    }

    /// The folder for what is kept between starts; none if it is off, or the user has no home.
    pub fn folder(&self) -> Option<PathBuf> {
        match self.cache_dir.as_str() {
            OFF => None,
            "" => user_cache().map(|folder| folder.join("pointsman")),
            path => Some(path.into()),
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }
}

fn user_cache() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))
}
