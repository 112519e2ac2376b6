use super::*;
use pointsman_sdk::testing::{ObserveCase, RetainCase, laws, policy, try_policy};

/// A turn of each of these sessions, 10,000 tokens and an answer of 100, asked about at a time in seconds.
fn case(event: CacheEvent, sessions: &[u64], now_s: u64) -> RetainCase {
    let rows = sessions.len() * 2;
    let each = |values: [f32; 2]| values.repeat(sessions.len());
    let ids: Vec<u64> = sessions.iter().flat_map(|session| [*session; 2]).collect();
    let mut case = RetainCase::new(rows)
        .event(event)
        .roles(&[Role::History, Role::Output].repeat(sessions.len()))
        .segments("tokens", &each([10_000.0, 100.0]))
        .segments("session_live", &vec![1.0; rows])
        .segment_ids("session", &ids);
    case.frame.now_ms = now_s * 1000;
    case
}

fn ask(policy: &mut ExpectedReuse, case: &RetainCase) -> Vec<Keep> {
    case.retain(policy).expect("it always answers")
}

fn tell(policy: &mut ExpectedReuse, now_s: u64, event: Event, session: u64, finish: f32) {
    let mut case = ObserveCase::new(1)
        .numbers("event", &[event.cell()])
        .numbers("prompt_tokens", &[10_000.0])
        .numbers("output_tokens", &[100.0])
        .numbers("finish", &[finish])
        .ids("session", &[session]);
    case.frame.now_ms = now_s * 1000;
    case.observe(policy);
}

/// Priority of each session.
fn priorities(policy: &mut ExpectedReuse, sessions: &[u64], now_s: u64) -> Vec<u8> {
    let keeps = ask(policy, &case(CacheEvent::Pressure, sessions, now_s));
    keeps.iter().step_by(2).map(|keep| keep.priority).collect()
}

#[test]
fn who_is_expected_back_sooner_stays_longer_whoever_was_told_first() {
    for observed_first in [true, false] {
        let mut policy = policy::<ExpectedReuse>("{}");
        for (session, finish) in [(1, 3.0), (2, 1.0)] {
            tell(&mut policy, 100, Event::FirstToken, session, 0.0);
            if observed_first {
                tell(&mut policy, 101, Event::Finished, session, finish);
                ask(&mut policy, &case(CacheEvent::TurnCommitted, &[session], 101));
            } else {
                ask(&mut policy, &case(CacheEvent::TurnCommitted, &[session], 101));
                tell(&mut policy, 101, Event::Finished, session, finish);
            }
        }
        let [tool, person] = priorities(&mut policy, &[1, 2], 108)[..] else { panic!("two sessions") };
        assert!(tool > person, "{tool} {person}");
        let [tool_late, _] = priorities(&mut policy, &[1, 2], 10_000)[..] else { panic!("two sessions") };
        assert!(tool_late < person);
    }
}

#[test]
fn all_segments_of_a_session_have_one_priority() {
    let mut policy = policy::<ExpectedReuse>("{}");
    let keeps = ask(&mut policy, &case(CacheEvent::TurnCommitted, &[7], 50));
    assert_eq!(keeps[0], keeps[1]);
    assert!(!keeps[0].drop && keeps[0].ttl_ms == 0 && keeps[0].priority > 50);
}

#[test]
fn what_belongs_to_a_session_that_ended_may_go() {
    let mut policy = policy::<ExpectedReuse>("{}");
    let ended = case(CacheEvent::SessionEnded, &[7], 50).segments("session_live", &[0.0; 2]);
    assert!(ask(&mut policy, &ended).iter().all(|keep| keep.drop));
}

#[test]
fn wishes_are_granted_and_count_from_the_last_use() {
    let mut policy = policy::<ExpectedReuse>("{}");
    let wished = case(CacheEvent::Pressure, &[7], 50)
        .segments("wish_ttl_ms", &[300_000.0, 0.0])
        .segments("wish_priority", &[99.0, 0.0])
        .segments("age_ms", &[100_000.0; 2]);
    let keeps = ask(&mut policy, &wished);
    assert_eq!((keeps[0].ttl_ms, keeps[0].priority, keeps[1].ttl_ms), (200_000, 99, 0));
}

#[test]
fn what_belongs_to_no_session_has_the_priority_set_for_it() {
    let mut policy = policy::<ExpectedReuse>(r#"{"unnamed_priority": 33}"#);
    let keeps = ask(&mut policy, &case(CacheEvent::TurnCommitted, &[0], 50));
    assert!(keeps.iter().all(|keep| keep.priority == 33));
}

#[test]
fn sessions_that_were_never_told_of_leave_by_age() {
    let mut policy = policy::<ExpectedReuse>("{}");
    let aged = case(CacheEvent::Pressure, &[1, 2], 50).segments("age_ms", &[5e3, 5e3, 9e5, 9e5]);
    let keeps = ask(&mut policy, &aged);
    assert!(keeps[0].priority > keeps[2].priority);
}

#[test]
fn priorities_rise_with_the_chance_over_their_whole_range() {
    let of: Vec<u8> = [0.0, 1e-7, 1e-4, 1e-2, 0.1, 1.0, 5.0].map(priority).to_vec();
    assert!(of.is_sorted() && of[0] == 0 && of[5..] == [100, 100], "{of:?}");
    assert!(priority(0.0115) > priority(0.01), "a seventh more is told apart");
}

#[test]
fn settings_out_of_range_are_refused() {
    assert!(try_policy::<ExpectedReuse>(r#"{"sessions_max": 0}"#).is_err());
    assert!(try_policy::<ExpectedReuse>(r#"{"unnamed_priority": 101}"#).is_err());
}

#[test]
fn a_full_state_fits_what_a_host_carries_over() {
    let mut policy = policy::<ExpectedReuse>(r#"{"sessions_max": 2048}"#);
    for session in (0..2048).map(|i| u64::MAX - i) {
        tell(&mut policy, 100, Event::FirstToken, session, 0.0);
        tell(&mut policy, 101, Event::Finished, session, 3.0);
        tell(&mut policy, 107, Event::FirstToken, session, 0.0);
        tell(&mut policy, 109, Event::Finished, session, 3.0);
    }
    let bytes = policy.export_state(ExpectedReuse::SCHEMA).expect("its own schema");
    assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
}

#[test]
fn it_keeps_the_laws_of_its_slots() {
    laws::retain::<ExpectedReuse>("{}");
    laws::observe::<ExpectedReuse>("{}");
    laws::state::<ExpectedReuse, _>(r#"{"sessions_max": 64}"#, |policy, seed| {
        ObserveCase::random(seed).observe(policy);
        RetainCase::random(seed).retain(policy)
    });
}
