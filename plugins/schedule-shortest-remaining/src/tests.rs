//! What the plan does, a part at a time; and that nobody starves, in a small simulation.

use super::*;
use pointsman_sdk::testing::{ScheduleCase, laws, policy, try_policy};

fn plan(config: &str, case: &ScheduleCase) -> SchedulePlan {
    case.plan(&mut policy::<ShortestRemaining>(config)).expect("it always has a plan")
}

fn check_order(columns: &[(&str, &[f32])], expected: &[u32]) {
    let mut case = ScheduleCase::new(columns[0].1.len(), 0);
    for (name, values) in columns {
        case = case.waiting(name, values);
    }
    assert_eq!(plan("{}", &case).order, expected);
}

#[test]
fn the_least_work_left_goes_first() {
    check_order(&[("prefill_left_tokens", &[9_000.0, 50.0, 700.0])], &[1, 2, 0]);
    check_order(&[("expected_output_tokens", &[900.0, 100.0, 0.0])], &[1, 2, 0]);
}

#[test]
fn what_is_put_out_already_is_no_work() {
    let output: (&str, &[f32]) = ("output_tokens", &[0.0, 450.0]);
    check_order(&[("expected_output_tokens", &[100.0, 500.0]), output], &[1, 0]);
}

#[test]
fn whoever_put_out_more_than_expected_still_has_some_left() {
    let prefill: (&str, &[f32]) = ("prefill_left_tokens", &[1.0, 0.0]);
    let output: (&str, &[f32]) = ("output_tokens", &[10_000.0, 240.0]);
    check_order(&[("expected_output_tokens", &[10.0, 256.0]), output, prefill], &[1, 0]);
}

#[test]
fn equals_go_in_order_of_arrival() {
    check_order(&[("age_ms", &[5.0; 4])], &[0, 1, 2, 3]);
}

#[test]
fn waiting_outweighs_work() {
    // 9,000 prompt tokens are 900 ms of work more.
    let prefill: (&str, &[f32]) = ("prefill_left_tokens", &[9_000.0, 0.0]);
    check_order(&[("age_ms", &[890.0, 0.0]), prefill], &[1, 0]);
    check_order(&[("age_ms", &[910.0, 0.0]), prefill], &[0, 1]);
}

#[test]
fn priority_is_a_head_start_in_seconds() {
    let age: (&str, &[f32]) = ("age_ms", &[2_500.0, 0.0]);
    check_order(&[("priority", &[0.0, 2.0]), age], &[0, 1]);
    check_order(&[("priority", &[0.0, 3.0]), age], &[1, 0]);
}

#[test]
fn a_strict_tier_goes_before_less_work_but_not_before_the_starving() {
    let tiers: (&str, &[f32]) = ("strict_tier", &[0.0, 1.0]);
    check_order(&[("prefill_left_tokens", &[0.0, 90_000.0]), tiers], &[1, 0]);
    check_order(&[("age_ms", &[120_000.0, 0.0]), tiers], &[0, 1]);
}

#[test]
fn the_most_work_left_gives_its_pages_back_first() {
    let case = ScheduleCase::new(0, 3).running("expected_output_tokens", &[100.0, 900.0, 500.0]);
    assert_eq!(plan("{}", &case).victims, [1, 2, 0]);
}

#[test]
fn of_equal_victims_the_last_admitted_is_first() {
    assert_eq!(plan("{}", &ScheduleCase::new(0, 3)).victims, [2, 1, 0]);
}

#[test]
fn a_victim_that_is_old_is_spared() {
    let case = ScheduleCase::new(0, 2).running("expected_output_tokens", &[900.0, 100.0]);
    assert_eq!(plan("{}", &case.running("age_ms", &[60_000.0, 0.0])).victims, [1, 0]);
}

#[test]
fn a_long_prompt_that_runs_leaves_room_for_a_short_one() {
    let case = ScheduleCase::new(1, 2).budget("step_tokens", 2_000.0).budget("free_rows", 1.0);
    let case = case.waiting("prefill_left_tokens", &[300.0]);
    let case = case.running("prefill_left_tokens", &[50_000.0, 90_000.0]);
    let chunks = plan(r#"{"chunk_share": 0.25}"#, &case).chunk_tokens;
    assert_eq!(chunks, [2_000, 500, 125]);
    // Together the long ones take a third of a step at most, so the short prompt fits into this one.
    assert!(chunks[1] + chunks[2] + 300 <= 2_000);
}

#[test]
fn chunks_are_not_cut_to_crumbs() {
    let case = ScheduleCase::new(0, 8).budget("step_tokens", 512.0);
    let case = case.running("prefill_left_tokens", &[9_000.0; 8]);
    assert_eq!(plan("{}", &case).chunk_tokens, [512, 168, 64, 64, 64, 64, 64, 64]);
}

#[test]
fn a_prompt_fills_the_step_while_nobody_shorter_can_start() {
    let case = ScheduleCase::new(3, 2).budget("step_tokens", 2_000.0).budget("free_rows", 0.0);
    let case = case.waiting("prefill_left_tokens", &[10.0; 3]);
    // The second one computes no prompt any more.
    let case = case.running("prefill_left_tokens", &[50_000.0, 0.0]);
    assert_eq!(plan("{}", &case).chunk_tokens[3], 2_000);
}

#[test]
fn a_sequence_whose_prompt_is_cached_cuts_nobody() {
    let case = ScheduleCase::new(1, 1).budget("step_tokens", 2_000.0).budget("free_rows", 1.0);
    let case = case.running("prefill_left_tokens", &[50_000.0]);
    assert_eq!(plan("{}", &case).chunk_tokens, [2_000, 2_000]);
}

/// A worker that serves one sequence at a time, while a newcomer with a tenth of its work comes as often as one is served.
#[test]
fn nobody_waits_for_ever() {
    let mut policy = policy::<ShortestRemaining>("{}");
    // 5,000 ms of work against 500 ms, every 500 ms.
    let mut waiting = vec![(0.0_f32, 500.0_f32)];
    for step in 0..100 {
        let now_ms = step as f32 * 500.0;
        waiting.push((now_ms, 50.0));
        let ages: Vec<f32> = waiting.iter().map(|(came_ms, _)| now_ms - came_ms).collect();
        let expected: Vec<f32> = waiting.iter().map(|(_, tokens)| *tokens).collect();
        let case = ScheduleCase::new(waiting.len(), 0).waiting("age_ms", &ages);
        let order =
            case.waiting("expected_output_tokens", &expected).plan(&mut policy).map(|plan| plan.order);
        let first = order.expect("it always has a plan")[0] as usize;
        let (came_ms, tokens) = waiting.remove(first);
        if tokens == 500.0 {
            assert!(
                (4_500.0..=5_000.0).contains(&(now_ms - came_ms)),
                "served after {} ms",
                now_ms - came_ms
            );
            return;
        }
    }
    panic!("the long sequence starved");
}

/// The reason to have it: less waiting in the mean than in order of arrival.
#[test]
fn the_mean_wait_is_shorter_than_first_come_first_served() {
    let work: Vec<f32> = (0..20).map(|row| if row % 4 == 0 { 2_000.0 } else { 50.0 }).collect();
    let case = ScheduleCase::new(work.len(), 0).waiting("expected_output_tokens", &work);
    let mean = |order: &[u32]| {
        let mut now = 0.0;
        let ends = order.iter().map(|row| {
            now += work[*row as usize];
            now
        });
        ends.sum::<f32>() / work.len() as f32
    };
    let arrival: Vec<u32> = (0..work.len() as u32).collect();
    let (shortest, first_come) = (mean(&plan("{}", &case).order), mean(&arrival));
    assert!(shortest < 0.7 * first_come, "{shortest} against {first_come}");
}

#[test]
fn settings_out_of_range_are_refused() {
    for (config, field) in [
        (r#"{"aging": 0}"#, "aging"),
        (r#"{"chunk_share": 1.5}"#, "chunk_share"),
        (r#"{"chunk_tokens_min": 0}"#, "chunk_tokens_min"),
        (r#"{"starving_ms": -1}"#, "starving_ms"),
    ] {
        let refusal = try_policy::<ShortestRemaining>(config).err().expect("it is out of range");
        assert!(refusal.contains(field), "{refusal}");
    }
}

#[test]
fn it_keeps_the_laws_of_its_slot() {
    laws::plan::<ShortestRemaining>("{}");
    laws::plan::<ShortestRemaining>(r#"{"aging": 100, "chunk_share": 0, "output_token_ms": 0}"#);
}
