//! From a configuration to what the policy crate is asked for; reads component files.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Config, ConfigError, OnFailure, Plugin};

/// Builds the policy chains that a configuration asks for; reads component files.
pub fn chain_spec(config: &Config) -> Result<policy::ChainSpec, ConfigError> {
    let mut plugins = BTreeMap::new();
    for (name, plugin) in &config.plugins {
        plugins.insert(name.clone(), plugin_spec(name, plugin)?);
    }
    let chain = &config.chain;
    let named = |name: &String| (!name.is_empty()).then(|| name.clone());
    Ok(policy::ChainSpec {
        plugins,
        hints: chain.hints.clone(),
        filter: chain.filter.clone(),
        score: chain.score.iter().map(|s| (s.plugin.clone(), s.weight)).collect(),
        pick: named(&chain.pick),
        schedule: named(&chain.schedule),
    })
}

fn plugin_spec(name: &str, plugin: &Plugin) -> Result<policy::PluginSpec, ConfigError> {
    Ok(policy::PluginSpec {
        component: plugin.component(name)?.into(),
        origin: plugin.source.clone(),
        config: serde_json::Value::Object(plugin.config.clone()),
        limits: policy::Limits {
            deadline: Duration::from_micros(plugin.limits.deadline_us),
            memory_bytes: plugin.limits.memory_mib << 20,
            instances: plugin.limits.instances,
        },
        on_failure: match plugin.on_failure {
            OnFailure::Fallback => policy::OnFailure::Fallback,
            OnFailure::Skip => policy::OnFailure::Skip,
            OnFailure::Reject => policy::OnFailure::Reject,
        },
    })
}
