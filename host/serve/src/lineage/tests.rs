use serde_json::json;

use super::*;

fn trace(system: &str, tools: &[&str], messages: &[&str]) -> Trace {
    let tools: Vec<Value> = tools.iter().map(|name| json!({"function": {"name": name}})).collect();
    let message = |text: &&str| digest(&[json!({"role": "user", "content": text})]);
    Trace {
        adapter: None,
        system: digest(&[json!(system)]),
        tools: digest(&tools),
        first: 1,
        messages: messages.iter().map(message).collect(),
        parameters: vec![("template_args", digest(&[json!({})]))],
        prompt_tokens: 0,
    }
}

fn check(new: &Trace, expected: Divergence) {
    assert_eq!(new.compare(&trace("s", &["f"], &["a", "b"])), expected);
}

#[test]
fn a_conversation_that_goes_on_is_on_its_path() {
    check(&trace("s", &["f"], &["a", "b"]), Divergence::None);
    check(&trace("s", &["f"], &["a", "b", "c"]), Divergence::None);
    check(&trace("s", &["f"], &["a"]), Divergence::None);
}

#[test]
fn the_first_part_that_differs_is_named() {
    check(&Trace { adapter: Some(AdapterId(0)), ..trace("t", &[], &["x"]) }, Divergence::Model);
    check(&trace("t", &[], &["x"]), Divergence::System);
    check(&trace("s", &["f", "g"], &["x"]), Divergence::Tools);
    check(&trace("s", &["f"], &["a", "x", "c"]), Divergence::Messages { index: 2, shorter: false });
    check(&trace("s", &["f"], &["summary"]), Divergence::Messages { index: 1, shorter: true });
}

#[test]
fn what_a_dialect_adds_is_compared_last() {
    let old = trace("s", &[], &["a"]).with("effort", &json!("high"));
    assert_eq!(old.clone().compare(&old), Divergence::None);
    let new = trace("s", &[], &["a", "b"]).with("effort", &json!("low"));
    assert_eq!(new.compare(&old), Divergence::Parameter("effort"));
    let new = trace("t", &[], &["a", "b"]).with("effort", &json!("low"));
    assert_eq!(new.compare(&old), Divergence::System);
}

#[test]
fn what_was_read_was_not_missed() {
    let old = trace("s", &[], &["a"]).with_tokens(1000);
    let new = trace("s", &[], &["a", "b"]).with_tokens(1200);
    assert_eq!(new.missed_tokens(&old, 0, 16), 1000);
    assert_eq!(new.missed_tokens(&old, 400, 16), 600);
    assert_eq!(new.missed_tokens(&old, 976, 16), 0);
    assert_eq!(new.missed_tokens(&old, 1184, 16), 0);
    let shorter = trace("s", &[], &["x"]).with_tokens(100);
    assert_eq!(shorter.missed_tokens(&old, 0, 16), 100);
}

#[test]
fn a_trace_is_found_by_its_tenant_alone() {
    let lineage = Lineage::default();
    lineage.keep("acme", "msg_1", trace("s", &[], &["a"]));
    assert_eq!(lineage.find("acme", "msg_1").as_deref(), Some(&trace("s", &[], &["a"])));
    assert_eq!(lineage.find("", "msg_1"), None);
    assert_eq!(lineage.find("acme", "msg_2"), None);
}

#[test]
fn the_oldest_traces_leave_when_there_are_too_many_digests() {
    let lineage = Lineage::default();
    let long = Trace { messages: vec![1; DIGESTS_MAX / 2].into(), ..trace("s", &[], &[]) };
    for answer in ["msg_1", "msg_2", "msg_3"] {
        lineage.keep("", answer, long.clone());
    }
    assert_eq!(lineage.find("", "msg_1"), None);
    assert!(lineage.find("", "msg_3").is_some());
    lineage.keep("", "msg_3", long.clone());
    assert!(lineage.find("", "msg_3").is_some(), "kept again, it counts once");
    let kept = lineage.0.lock();
    assert_eq!(kept.digests, kept.traces.iter().map(|(_, trace)| trace.digests()).sum::<usize>());
}
