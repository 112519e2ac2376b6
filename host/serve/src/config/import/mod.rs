//! Import of an `EndpointPickerConfig`, the configuration of llm-d's and the Gateway API's endpoint picker.
//!
//! Called by `pointsman config import`.
//! **Invariant:** nothing is left out in silence: what has no counterpart here is named, with the reason.

mod counterpart;
mod page;
mod picker;
mod profile;

use super::Config;
use counterpart::{Counterpart, counterpart};
use picker::{EndpointPickerConfig, Plugin};

/// What came of an import.
#[derive(Debug)]
pub struct Imported {
    /// Our configuration, with comments that say what became of what.
    pub toml: String,
    /// What has no counterpart, and why.
    pub unmapped: Vec<Remark>,
}

/// One part of the picker's configuration, and what there is to say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Where it stands.
    pub path: String,
    /// What became of it, or why nothing did.
    pub text: String,
}

impl std::fmt::Display for Remark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.text)
    }
}

/// Why nothing could be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The text is not YAML, or a key has a value of the wrong type.
    #[error("{0}")]
    Yaml(String),
    /// It is YAML of something else.
    #[error(
        "`{key}` is `{found}`, but must be {wanted}; where the configuration lies in a ConfigMap, take the text of its entry"
    )]
    Kind {
        /// `kind` or `apiVersion`.
        key: &'static str,
        /// What it says.
        found: String,
        /// What is understood.
        wanted: &'static str,
    },
    /// A value that the endpoint picker itself would refuse.
    #[error("`{path}` {problem}")]
    Value {
        /// Where it stands.
        path: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// What was written is not right, which is our mistake.
    #[error("the import made a configuration that is not right: {0}")]
    Result(#[from] super::ConfigError),
}

/// What is said while a configuration is read.
#[derive(Default)]
struct Remarks {
    unmapped: Vec<Remark>,
    notes: Vec<Remark>,
}

impl Remarks {
    fn unmapped(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.unmapped.push(Remark { path: path.into(), text: text.into() });
    }

    fn note(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.notes.push(Remark { path: path.into(), text: text.into() });
    }
}

/// Reads the YAML of an endpoint picker and writes our TOML.
pub fn import(yaml: &str) -> Result<Imported, ImportError> {
    let config = EndpointPickerConfig::parse(yaml)?;
    let mut remarks = Remarks::default();
    for (i, plugin) in config.plugins.iter().enumerate() {
        remark(&mut remarks, i, plugin);
    }
    other_keys(&config, &mut remarks);
    let chains = profile::chains(&config, &mut remarks)?;
    let toml = page::write(&chains, &remarks.notes, &remarks.unmapped);
    Config::parse(&toml)?;
    Ok(Imported { toml, unmapped: remarks.unmapped })
}

/// Says what became of one plugin and its parameters.
fn remark(remarks: &mut Remarks, i: usize, plugin: &Plugin) {
    let path = format!("plugins[{i}] ({})", plugin.kind);
    let ours = match counterpart(&plugin.kind) {
        Counterpart::Scorer { ours, remark } | Counterpart::Picker { ours, remark } => {
            remarks.note(&path, format!("became `{ours}`{remark}"));
            ours
        }
        Counterpart::Host(what) => return remarks.note(path, what),
        Counterpart::Profiles => return,
        Counterpart::Missing(why) => return remarks.unmapped(path, why),
    };
    for (name, value) in &plugin.parameters {
        let path = format!("plugins[{i}].parameters.{name}");
        match ours {
            "route-prefix-affinity" => {
                remarks.note(path, "not needed: the host's index is exact, by blocks of `kv.block_tokens`");
            }
            _ if name == "maxNumOfEndpoints" && value.as_u64() == Some(1) => {}
            _ => remarks.unmapped(path, format!("`{ours}` has no such parameter")),
        }
    }
}

fn other_keys(config: &EndpointPickerConfig, remarks: &mut Remarks) {
    for (key, value) in &config.rest {
        let empty = value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(serde_json::Map::is_empty);
        match key.as_str() {
            _ if value.is_null() || empty => {}
            "metadata" => {}
            "data" | "dataLayer" => remarks.note(key, "not needed: the host knows the load of its own workers"),
            "requestHandler" | "parser" => remarks.note(key, "not needed: the host parses requests itself"),
            "featureGates" => remarks.unmapped(key, "features of another program"),
            "flowControl" => remarks.unmapped(
                key,
                "there are no queues before a worker is chosen; `limits.requests_max` bounds requests, and `chain.schedule` orders those that wait",
            ),
            "saturationDetector" => remarks.unmapped(
                key,
                "`limits.requests_max` and plugins in `chain.admit` decide who comes in",
            ),
            _ => remarks.unmapped(key, "unknown to this import"),
        }
    }
}

#[cfg(test)]
mod tests;
