//! The configuration file: what it accepts, and how it says no.

use serve::config::{Config, REFERENCE, chain_spec};

fn refused(toml: &str, words: &[&str]) {
    let error = Config::parse(toml).expect_err(toml).to_string();
    for word in words {
        assert!(error.contains(word), "`{word}` is missing in `{error}`");
    }
}

#[test]
fn the_reference_file_is_the_default() {
    assert_eq!(
        Config::parse(REFERENCE).expect("it parses"),
        Config::parse("").expect("nothing is a file too")
    );
}

#[test]
fn mistakes_are_named() {
    refused("[listen]\nprot = 1", &["prot", "api"]);
    refused("[engine]\ndevice = \"gpu\"", &["gpu", "cpu"]);
    refused("[engine]\nworkers = 0", &["engine.workers", "at least 1"]);
    refused("[engine]\nworkers = 65", &["engine.workers", "at most 64"]);
    refused("[kv]\nblock_tokens = 0", &["kv.block_tokens", "1 to 256"]);
    refused("[engine.sim]\nstep_us = -1.0", &["engine.sim.step_us"]);
    refused("[chain]\npick = \"no-such\"", &["plugins.no-such.source", "route-least-load"]);
    refused("[[chain.score]]\nplugin = \"route-least-load\"\nweight = -1", &["chain.score.weight"]);
    refused("[plugins.x]\nsource = \"builtin:nothing\"", &["plugins.x.source", "pick-max-score"]);
    refused("[plugins.x]\nlimit = 1", &["limit"]);
    refused("[supply]\nverify = \"require\"", &["supply.keys", "public key"]);
    refused("[supply]\nverify = \"maybe\"", &["maybe", "require"]);
    refused("[supply]\ntimeout_seconds = 0", &["supply.timeout_seconds", "at least 1"]);
    refused("[plugins.x]\nsource = \"oci://it\"", &["plugins.x.source", "oci://HOST"]);
    refused("[plugins.x]\nsource = \"https://host/it.wasm\"", &["plugins.x.source", "file:PATH"]);
    refused("[plugins.pick-max-score]\nsha256 = \"12\"", &["plugins.pick-max-score.sha256", "64"]);
    refused("[plugins.pick-max-score]\nsignature = \"x\"", &["plugins.pick-max-score.signature", "files"]);
    let unchecked = "[plugins.x]\nsource = \"it.wasm\"\nsignature = \"it.sig\"";
    refused(unchecked, &["plugins.x.signature", "supply.keys"]);
    refused("[rollout]\ntrap_rate_max = 2.0", &["rollout.trap_rate_max", "from 0 to 1"]);
    refused("[rollout]\ntick_ms = 0", &["rollout.tick_ms", "1 to 60000"]);
    refused("[plugins.pick-max-score.limits]\ndeadline_us = 0", &["deadline_us", "at least 1"]);
}

#[test]
fn a_missing_component_file_is_named() {
    let config = Config::parse("[plugins.x]\nsource = \"/no/such/file.wasm\"").expect("the text is fine");
    let error = chain_spec(&config).expect_err("the file is not there").to_string();
    assert!(error.contains("/no/such/file.wasm"), "{error}");
}
