//! The plugins that come with the host: built with it, and embedded.

use crate::spec::{ChainSpec, PluginSpec};

include!(concat!(env!("OUT_DIR"), "/catalogue.rs"));

/// The component of a plugin that comes with the host.
pub fn builtin_component(name: &str) -> Option<&'static [u8]> {
    CATALOGUE.iter().find(|(known, _)| *known == name).map(|(_, component)| *component)
}

/// One of them with default limits and no settings.
pub fn builtin_plugin(name: &str) -> Option<PluginSpec> {
    Some(PluginSpec::new(builtin_component(name)?, format!("builtin:{name}")))
}

/// The chain that a host starts with where its operator says nothing else.
pub fn default_chain() -> ChainSpec {
    let own = |name: &str| name.to_owned();
    let mut chain = ChainSpec {
        hints: vec![own("hints-agent")],
        // Overlap saves real work, so it outweighs the two others together.
        score: vec![
            (own("route-prefix-affinity"), 2.0),
            (own("route-least-load"), 1.0),
            (own("route-session-affinity"), 0.5),
        ],
        pick: Some(own("pick-max-score")),
        schedule: Some(own("schedule-agent-priority")),
        ..ChainSpec::default()
    };
    let scorers = chain.score.iter().map(|(name, _)| name);
    let named = chain.hints.iter().chain(scorers).chain(&chain.pick).chain(&chain.schedule).cloned();
    chain.plugins = named.filter_map(|name| Some((name.clone(), builtin_plugin(&name)?))).collect();
    chain
}
