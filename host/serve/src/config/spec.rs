//! From a configuration to what the policy crate is asked for; reads component files.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::source::Supply;

use super::{Config, ConfigError, EffectiveChain, Match, OnFailure, Plugin, Scorer};

/// Builds the policy chains that a configuration asks for; fetches components and checks them. Blocks.
pub fn chain_spec(config: &Config) -> Result<policy::ChainSpec, ConfigError> {
    let mut plugins = BTreeMap::new();
    for (name, plugin) in &config.plugins {
        plugins.insert(name.clone(), plugin_spec(name, plugin, &config.supply)?);
    }
    let chain = &config.chain;
    let named = config.effective_chains().into_iter().filter(|chain| !chain.is_default());
    Ok(policy::ChainSpec {
        plugins,
        middleware: chain.middleware.clone(),
        hints: chain.hints.clone(),
        admit: chain.admit.clone(),
        filter: chain.filter.clone(),
        score: weighted(&chain.score),
        pick: one(&chain.pick),
        route: one(&chain.route),
        schedule: one(&chain.schedule),
        retain: one(&chain.retain),
        named: named.map(named_chain).collect(),
    })
}

fn named_chain(chain: EffectiveChain) -> policy::NamedChain {
    policy::NamedChain {
        matches: match_spec(&chain.matches),
        name: chain.name,
        score: weighted(&chain.slots.score),
        pick: one(&chain.slots.pick),
        route: one(&chain.slots.route),
        middleware: chain.slots.middleware,
        hints: chain.slots.hints,
        admit: chain.slots.admit,
        filter: chain.slots.filter,
    }
}

/// A rule, as the policy crate holds requests against it.
pub(super) fn match_spec(rule: &Match) -> policy::Match {
    policy::Match {
        models: rule.models.clone(),
        tenants: rule.tenants.clone(),
        headers: rule.headers.iter().map(|(name, pattern)| (name.clone(), pattern.clone())).collect(),
    }
}

fn weighted(score: &[Scorer]) -> Vec<(String, f32)> {
    score.iter().map(|scorer| (scorer.plugin.clone(), scorer.weight)).collect()
}

/// A slot with one place, which is empty for the built-in.
fn one(name: &str) -> Option<String> {
    (!name.is_empty()).then(|| name.to_owned())
}

fn plugin_spec(name: &str, plugin: &Plugin, supply: &Supply) -> Result<policy::PluginSpec, ConfigError> {
    let fetched = plugin.component(name, supply)?;
    Ok(policy::PluginSpec {
        component: fetched.bytes.into(),
        origin: fetched.origin,
        config: serde_json::Value::Object(plugin.config.clone()),
        limits: policy::Limits {
            deadline: Duration::from_micros(plugin.limits.deadline_us),
            memory_bytes: plugin.limits.memory_mib << 20,
            instances: plugin.limits.instances,
            state_bytes_max: plugin.limits.state_kib << 10,
            store_bytes_max: plugin.limits.store_kib << 10,
        },
        on_failure: match plugin.on_failure {
            OnFailure::Fallback => policy::OnFailure::Fallback,
            OnFailure::Skip => policy::OnFailure::Skip,
            OnFailure::Reject => policy::OnFailure::Reject,
        },
        matches: match_spec(&plugin.matches),
    })
}
