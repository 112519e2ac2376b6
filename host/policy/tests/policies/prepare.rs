//! What is refused, at which stage, in which words; and that it leaves the active generation alone.

use crate::support::{Route, chain_of, faulty, faulty_plugin, first_plugin, frame, runtime, start};
use policy::{ChainSpec, GenerationId, Generations, Limits, PluginSpec, PrepareError, Slot, Stage, Way};
use std::sync::Arc;

fn refused(chain: ChainSpec) -> PrepareError {
    match Generations::start(runtime(), chain, 1) {
        Ok(_) => panic!("it should have been refused"),
        Err(error) => error,
    }
}

/// A plugin that cannot be prepared is refused, and an active generation stays as it is.
fn check(plugin: PluginSpec, stage: Stage, words: &str) {
    let generations = start(chain_of(Slot::Score, PluginSpec::new(first_plugin(), "test")));
    let error = generations.apply(chain_of(Slot::Score, plugin)).expect_err("it is refused");
    assert_eq!((error.stage, error.plugin.as_deref()), (stage, Some("it")), "{error}");
    assert!(error.message.contains(words), "`{}` says `{words}`", error.message);
    assert_eq!(generations.active().id(), GenerationId(1));
    let decision = generations.active().route(Way::default(), &Route::new(&[1.0, 0.0], frame(1)).view());
    assert_eq!(decision.expect("a decision").candidate, 1);
}

fn text(wat: &str) -> PluginSpec {
    PluginSpec::new(wat::parse_str(wat).expect("the text is WebAssembly"), "text")
}

#[test]
fn junk_is_not_compiled() {
    check(PluginSpec::new(*b"junk", "test"), Stage::Compiled, "these bytes are no component");
    check(PluginSpec::new([], "test"), Stage::Compiled, "these bytes are no component");
}

#[test]
fn a_core_module_is_not_compiled() {
    check(text("(module)"), Stage::Compiled, "these bytes are no component");
}

#[test]
fn a_truncated_component_is_not_compiled() {
    let component = first_plugin();
    let half: Arc<[u8]> = component[..component.len() / 2].into();
    check(PluginSpec::new(half, "test"), Stage::Compiled, "these bytes are no component");
}

#[test]
fn an_import_that_the_host_does_not_offer_is_named() {
    let component = r#"(component (import "pointsman:policy/secrets@0.1.0" (instance
        (export "read" (func (result string))))))"#;
    check(text(component), Stage::Compiled, "pointsman:policy/secrets@0.1.0");
}

#[test]
fn the_network_is_not_there_for_those_who_ask() {
    let component = r#"(component (import "wasi:http/outgoing-handler@0.2.0" (instance
        (export "handle" (func)))))"#;
    check(text(component), Stage::Compiled, "wasi:http/outgoing-handler");
}

#[test]
fn a_component_that_imports_wasi_is_linked_with_an_empty_one() {
    let component = r#"(component (import "wasi:cli/environment@0.2.0" (instance
        (export "get-environment" (func (result (list (tuple string string))))))))"#;
    check(text(component), Stage::Compiled, "does not export `pointsman:policy/describe@0.1.");
}

#[test]
fn a_component_that_does_not_describe_itself_is_refused() {
    check(text("(component)"), Stage::Compiled, "does not export `pointsman:policy/describe@0.1.");
}

#[test]
fn a_slot_that_it_does_not_export_is_refused() {
    let error = refused(chain_of(Slot::Pick, PluginSpec::new(first_plugin(), "test")));
    assert_eq!(error.stage, Stage::Described);
    assert_eq!(error.message, "chain `default` asks it in slot `pick`, but it exports `score`");
}

#[test]
fn settings_that_it_refuses_are_refused_in_its_words() {
    check(faulty_plugin("fail_configure"), Stage::Configured, "these settings are refused");
}

#[test]
fn settings_that_it_does_not_know_are_refused() {
    let config = serde_json::json!({ "colour": "red" });
    let plugin = PluginSpec { config, ..PluginSpec::new(faulty(), "test") };
    check(plugin, Stage::Configured, "unknown field `colour`");
}

#[test]
fn a_fault_in_a_trial_call_refuses_the_plugin() {
    for (fault, words) in [
        ("trap", "unreachable"),
        ("panic", "this policy panics on purpose"),
        ("loop", "of CPU time; its deadline is"),
        ("nan", "a priority that is no number"),
        ("wrong_length", "a session of 5000 bytes"),
    ] {
        let config = serde_json::json!({ "fault": fault, "in_trial": true });
        check(PluginSpec { config, ..PluginSpec::new(faulty(), "test") }, Stage::Warmed, words);
    }
}

#[test]
fn memory_that_the_limit_does_not_allow_refuses_the_plugin() {
    let limits = Limits { memory_bytes: 64 << 10, ..Limits::default() };
    let plugin = PluginSpec { limits, ..faulty_plugin("ok") };
    check(plugin, Stage::Described, "memory");
}

#[test]
fn a_name_that_no_plugin_has_is_refused_with_the_known_ones() {
    let mut chain = chain_of(Slot::Score, PluginSpec::new(first_plugin(), "test"));
    chain.pick = Some("nobody".to_owned());
    let error = refused(chain);
    assert_eq!(error.to_string(), "plugin `nobody`: not fetched: there is no such plugin; there are it");
}

#[test]
fn a_weight_that_is_no_number_is_refused() {
    let mut chain = chain_of(Slot::Score, PluginSpec::new(first_plugin(), "test"));
    chain.score[0].1 = f32::NAN;
    assert_eq!(refused(chain).stage, Stage::Fetched);
}

#[test]
fn an_error_is_serialised_with_its_stage() {
    let error = refused(chain_of(Slot::Score, PluginSpec::new(*b"junk", "test")));
    let json = serde_json::to_value(&error).expect("it is plain data");
    assert_eq!((&json["stage"], &json["plugin"]), (&"compiled".into(), &"it".into()));
}
