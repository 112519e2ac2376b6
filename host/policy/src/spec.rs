//! What an operator asks for: plugins, and the order in which they answer.

use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A chain: which plugin answers where. Names refer to `plugins`.
///
/// Every plugin that exports `observe` is told outcomes. A slot left empty has the built-in policy.
#[derive(Clone, Debug, Default)]
pub struct ChainSpec {
    /// The plugins, by the name that an operator gave them.
    pub plugins: BTreeMap<String, PluginSpec>,
    /// Interpreters of hints, in order: each sees what the ones before it made.
    pub hints: Vec<String>,
    /// Filters; a candidate must be kept by all.
    pub filter: Vec<String>,
    /// Scorers with their weights.
    pub score: Vec<(String, f32)>,
    /// The picker.
    pub pick: Option<String>,
    /// The scheduler.
    pub schedule: Option<String>,
}

/// One plugin.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginSpec {
    /// The bytes of the component.
    pub component: Arc<[u8]>,
    /// Where they came from, for reports: `builtin:route-least-load`, a path, an address.
    pub origin: String,
    /// Its settings: an object, or null for none.
    pub config: Value,
    /// What it may use.
    pub limits: Limits,
    /// What happens when it gives no usable answer.
    pub on_failure: OnFailure,
}

impl PluginSpec {
    /// A component with default limits and no settings.
    pub fn new(component: impl Into<Arc<[u8]>>, origin: impl Into<String>) -> Self {
        Self {
            component: component.into(),
            origin: origin.into(),
            config: Value::Null,
            limits: Limits::default(),
            on_failure: OnFailure::default(),
        }
    }
}

/// What a plugin may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// CPU time of one call. It ends at most 2 ms later.
    pub deadline: Duration,
    /// Linear memory of one instance.
    pub memory_bytes: u64,
    /// Instances for the slots of a request. More than one is for policies without state only.
    pub instances: u32,
}

impl Default for Limits {
    /// 2 ms, 64 MiB, one instance. Chosen: a default chain takes microseconds; a spinning policy
    /// should cost less than a decode step.
    fn default() -> Self {
        Self { deadline: Duration::from_millis(2), memory_bytes: 64 << 20, instances: 1 }
    }
}

/// What happens when a plugin gives no usable answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The built-in policy of the slot answers in its place.
    #[default]
    Fallback,
    /// The decision is made as if the plugin had abstained.
    Skip,
    /// The request is refused. Schedulers and observers fall back.
    Reject,
}
