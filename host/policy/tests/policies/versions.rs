//! Components of several versions of the contract in one host.

use crate::support::{Route, Schedule, chain_of, count, elder, first_plugin, frame, keeper, runtime, start};
use policy::{BUILTIN, ChainSpec, Generations, Outcome, PluginSpec, Slot, Stage, Way};

/// The whole host is built for what 0.1.1 has; this component was built when there was 0.1.0 only.
#[test]
fn a_component_of_an_older_version_serves_in_every_slot_of_its_time() {
    let elder = || PluginSpec::new(elder(), "test");
    let mut chain = chain_of(Slot::Score, elder());
    chain.hints.push("it".to_owned());
    chain.filter.push("it".to_owned());
    chain.pick = Some("it".to_owned());
    chain.schedule = Some("it".to_owned());
    let generations = start(chain);
    let generation = generations.active();
    let route = Route::new(&[0.0; 4], frame(1));
    let decision = generation.route(Way::default(), &route.view()).expect("a decision");
    assert_eq!((decision.candidate, &*decision.decided_by, decision.fell_back), (3, "it", false));
    assert_eq!(decision.scores, [0.25, 0.5, 0.75, 1.0]);
    let plan = generation.schedule(1, &Schedule::new(3, frame(1)).view());
    assert_eq!((plan.plan.order, &*plan.decided_by), (vec![2, 1, 0], "it"));
    crate::support::observe(&generations, frame(1), &[(1, 1)]);
    for slot in [Slot::Filter, Slot::Score, Slot::Pick, Slot::Schedule] {
        assert_eq!(count(&generations, slot, Outcome::Ok), 1, "{slot}");
    }
    assert!(count(&generations, Slot::Observe, Outcome::Ok) >= 1);
}

#[test]
fn components_of_two_versions_decide_together_and_take_each_others_place() {
    let mut chain = chain_of(Slot::Score, PluginSpec::new(elder(), "test"));
    chain.plugins.insert("younger".to_owned(), PluginSpec::new(keeper(), "test"));
    chain.plugins.insert("example".to_owned(), PluginSpec::new(first_plugin(), "test"));
    chain.score.push(("younger".to_owned(), 1.0));
    chain.score.push(("example".to_owned(), 0.1));
    let generations = start(chain);
    let chosen = || {
        let route = Route::new(&[0.0, 5.0], frame(1));
        let decision = generations.active().route(Way::default(), &route.view()).expect("a decision");
        assert!(!decision.fell_back && &*decision.decided_by == BUILTIN);
        decision.candidate
    };
    assert_eq!(chosen(), 1, "the elder likes the last one");
    generations.replace_plugin("it", keeper(), "test".to_owned()).expect("a younger one in its place");
    assert_eq!(chosen(), 0, "the keeper abstains, and the example likes the shorter queue");
    generations.replace_plugin("it", elder(), "test".to_owned()).expect("and back");
    assert_eq!(chosen(), 1);
}

fn refused(wat: &str) -> String {
    let component = wat::parse_str(wat).expect("the text is WebAssembly");
    let chain: ChainSpec = chain_of(Slot::Score, PluginSpec::new(component, "text"));
    match Generations::start(runtime(), chain, 1) {
        Ok(_) => panic!("it should have been refused"),
        Err(error) => {
            assert_eq!(error.stage, Stage::Compiled, "{error}");
            error.message
        }
    }
}

#[test]
fn a_component_of_an_unknown_version_is_refused_with_both_versions() {
    for version in ["0.9.0", "1.0.0"] {
        let error = refused(&format!(
            r#"(component (instance $empty) (export "pointsman:policy/describe@{version}" (instance $empty)))"#
        ));
        assert!(error.contains(version), "{error}");
        assert!(error.contains("this host serves 0.1.0 to 0.1.1"), "{error}");
    }
}

#[test]
fn a_function_of_a_later_version_is_refused_with_that_version() {
    let error = refused(
        r#"(component
            (import "pointsman:policy/log@0.1.9" (instance (export "shout" (func (param "message" string)))))
            (instance $empty)
            (export "pointsman:policy/describe@0.1.9" (instance $empty)))"#,
    );
    for words in ["0.1.9", "0.1.1, the newest", "shout"] {
        assert!(error.contains(words), "`{words}` is missing in `{error}`");
    }
}
