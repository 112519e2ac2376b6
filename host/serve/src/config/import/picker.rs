//! The shape of an `EndpointPickerConfig`, as far as it is read.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::ImportError;

const GROUPS: [&str; 2] = ["llm-d.ai/v1", "inference.networking.x-k8s.io/v1"];
/// Chosen: files of a few kilobytes are usual; a bound keeps a wrong file from being read for long.
const YAML_BYTES_MAX: usize = 1 << 20;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointPickerConfig {
    api_version: Option<String>,
    kind: Option<String>,
    #[serde(default)]
    pub(super) plugins: Vec<Plugin>,
    #[serde(default)]
    pub(super) scheduling_profiles: Vec<Profile>,
    #[serde(flatten)]
    pub(super) rest: BTreeMap<String, Value>,
}

/// A plugin that profiles refer to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plugin {
    /// Empty takes the type.
    #[serde(default)]
    name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(super) parameters: Map<String, Value>,
}

/// One way of choosing a worker.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Profile {
    pub(super) name: String,
    #[serde(default)]
    pub(super) plugins: Vec<Reference>,
}

/// A plugin in a profile.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Reference {
    pub(super) plugin_ref: String,
    pub(super) weight: Option<f64>,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Map<String, Value>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl Plugin {
    pub(super) fn name(&self) -> &str {
        if self.name.is_empty() { &self.kind } else { &self.name }
    }
}

impl EndpointPickerConfig {
    pub(super) fn parse(yaml: &str) -> Result<Self, ImportError> {
        if yaml.len() > YAML_BYTES_MAX {
            return Err(ImportError::Yaml(format!(
                "the file has {} bytes; at most {YAML_BYTES_MAX} are read",
                yaml.len()
            )));
        }
        // What it is comes first: the error of a wrong file should not be about its keys.
        let any: Value = serde_saphyr::from_str(yaml).map_err(|e| ImportError::Yaml(e.to_string()))?;
        let said = |key: &str| any.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
        let (kind, version) = (said("kind"), said("apiVersion"));
        if kind != "EndpointPickerConfig" {
            return Err(ImportError::Kind { key: "kind", found: kind, wanted: "`EndpointPickerConfig`" });
        }
        if !GROUPS.iter().any(|group| version.starts_with(group)) {
            let wanted = "`llm-d.ai/v1…` or `inference.networking.x-k8s.io/v1…`";
            return Err(ImportError::Kind { key: "apiVersion", found: version, wanted });
        }
        let config: Self = serde_saphyr::from_str(yaml).map_err(|e| ImportError::Yaml(e.to_string()))?;
        debug_assert!(config.api_version.is_some() && config.kind.is_some(), "both were read above");
        Ok(config)
    }

    /// The plugin of a name.
    pub(super) fn plugin(&self, name: &str) -> Option<&Plugin> {
        self.plugins.iter().find(|plugin| plugin.name() == name)
    }

    /// The profiles; without any, one with every plugin, as the endpoint picker does it.
    pub(super) fn profiles(&self) -> Vec<Profile> {
        if !self.scheduling_profiles.is_empty() {
            return self.scheduling_profiles.clone();
        }
        let all = self.plugins.iter().map(|p| Reference { plugin_ref: p.name().to_owned(), weight: None });
        vec![Profile { name: "default".to_owned(), plugins: all.collect() }]
    }
}
