//! Who goes first, and how much of a step is left to others.

use super::*;
use pointsman_sdk::testing::{ScheduleCase, laws, policy, try_policy};

fn plan(config: &str, case: &ScheduleCase) -> SchedulePlan {
    case.plan(&mut policy::<InteractiveFirst>(config)).expect("it always has a plan")
}

/// Two that wait and two that run; the second that waits is urgent.
fn case(prefill_waiting: &[f32], prefill_running: &[f32]) -> ScheduleCase {
    ScheduleCase::new(2, 2)
        .budget("step_tokens", 8192.0)
        .waiting("priority", &[0.0, 5.0])
        .waiting("prefill_left_tokens", prefill_waiting)
        .running("prefill_left_tokens", prefill_running)
}

#[test]
fn priority_goes_first_and_one_other_prompt_goes_on_beside_it() {
    let plan = plan("{}", &case(&[9000.0, 800.0], &[1.0, 20_000.0]));
    assert_eq!(plan.order, [1, 0]);
    assert_eq!(plan.chunk_tokens, [0, 8192, 8192, 2048]);
}

#[test]
fn without_an_urgent_prompt_nobody_is_cut() {
    let case = case(&[9000.0, 1.0], &[1.0, 20_000.0]);
    assert!(plan("{}", &case).chunk_tokens.is_empty());
    assert!(
        plan(r#"{"urgent_priority": 6}"#, &self::case(&[9000.0, 800.0], &[1.0, 1.0])).chunk_tokens.is_empty()
    );
}

#[test]
fn a_strict_tier_is_urgent_and_the_starving_go_before_it() {
    let case = ScheduleCase::new(3, 0)
        .budget("step_tokens", 1000.0)
        .waiting("prefill_left_tokens", &[500.0; 3])
        .waiting("strict_tier", &[0.0, 1.0, 0.0])
        .waiting("age_ms", &[10.0, 5.0, 200_000.0]);
    let plan = plan("{}", &case);
    assert_eq!((plan.order, plan.chunk_tokens), (vec![2, 1, 0], vec![0, 1000, 1000]));
}

#[test]
fn equals_go_by_age_and_the_least_urgent_gives_way_first() {
    let case = ScheduleCase::new(2, 3)
        .waiting("age_ms", &[5.0, 9.0])
        .running("priority", &[0.0, 3.0, 0.0])
        .running("age_ms", &[9.0, 1.0, 4.0]);
    let plan = plan("{}", &case);
    assert_eq!((plan.order, plan.victims), (vec![1, 0], vec![2, 0, 1]));
}

#[test]
fn settings_out_of_range_are_refused() {
    for (config, field) in [
        (r#"{"urgent_priority": 1e7}"#, "urgent_priority"),
        (r#"{"beside_tokens": 10000000}"#, "beside_tokens"),
        (r#"{"starving_ms": -1}"#, "starving_ms"),
        (r#"{"chunk": 1}"#, "chunk"),
    ] {
        let refusal = try_policy::<InteractiveFirst>(config).err().expect("it is out of range");
        assert!(refusal.contains(field), "{refusal}");
    }
}

#[test]
fn it_keeps_the_laws_of_its_slot() {
    laws::plan::<InteractiveFirst>("{}");
    laws::plan::<InteractiveFirst>(r#"{"beside_tokens": 0, "starving_ms": 0}"#);
}
