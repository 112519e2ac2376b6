//! Chains that have a name: what the field routes by, and what we do.

use policy::{ChainSpec, PluginSpec, builtin_plugin, default_chain};
use serde_json::{Value, json};

use crate::SimError;

/// Names of the chains that [`chain`] knows, with what they are.
pub const BASELINES: [(&str, &str); 9] = [
    ("default", "the chain that a host starts with"),
    ("expected-ttft", "the earliest first token, or a warm cache a little later"),
    ("builtin", "the native policies that answer where no plugin does"),
    ("round-robin", "workers in turn"),
    ("random", "any worker"),
    ("least-load", "the worker with the fewest tokens to compute and to hold"),
    ("two-choices", "the less loaded of two workers drawn at random"),
    ("dynamo-cost", "NVIDIA Dynamo's default cost function"),
    ("cache-aware", "SGLang's cache-aware routing"),
];

/// One of [`BASELINES`].
///
/// Errors: [`SimError::Setting`] for another name.
pub fn chain(name: &str) -> Result<ChainSpec, SimError> {
    let mut spec = ChainSpec::default();
    match name {
        "default" => return Ok(default_chain()),
        "builtin" => {}
        "expected-ttft" => {
            spec = scored("route-expected-ttft", Value::Null);
            // Less than what the first token's time says of any two workers, but for those that it calls equal.
            let session = add(&mut spec, "route-session-affinity", Value::Null);
            spec.score.push((session, 0.05));
        }
        "least-load" => spec = scored("route-least-load", Value::Null),
        "round-robin" => spec.pick = Some(add(&mut spec, "route-round-robin", Value::Null)),
        "random" => spec.pick = Some(add(&mut spec, "route-two-choices", json!({ "choices": 1 }))),
        "two-choices" => spec.pick = Some(add(&mut spec, "route-two-choices", Value::Null)),
        "dynamo-cost" => spec.route = Some(add(&mut spec, "route-dynamo-cost", Value::Null)),
        "cache-aware" => spec.route = Some(add(&mut spec, "route-cache-aware", Value::Null)),
        _ => {
            let known = BASELINES.map(|(name, _)| name).join(", ");
            return Err(SimError::setting(
                "chains",
                name,
                format!("known are {known}, and those of the configuration"),
            ));
        }
    }
    Ok(spec)
}

/// One scorer, and whoever has the highest score.
fn scored(plugin: &str, config: Value) -> ChainSpec {
    let mut spec = ChainSpec::default();
    let name = add(&mut spec, plugin, config);
    spec.score.push((name, 1.0));
    spec.pick = Some(add(&mut spec, "pick-max-score", Value::Null));
    spec
}

fn add(spec: &mut ChainSpec, plugin: &str, config: Value) -> String {
    let built_in = builtin_plugin(plugin).expect("the catalogue has it: a test names all of them");
    let built_in = PluginSpec { config, ..built_in };
    spec.plugins.insert(plugin.to_owned(), built_in);
    plugin.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_baseline_is_a_chain_and_another_name_is_refused() {
        for (name, _) in BASELINES {
            let spec = chain(name).unwrap();
            assert_eq!(spec.plugins.is_empty(), name == "builtin", "{name}");
        }
        let error = chain("fastest").unwrap_err().to_string();
        assert!(error.starts_with("`chains` is fastest; known are default, expected-ttft"), "{error}");
    }
}
