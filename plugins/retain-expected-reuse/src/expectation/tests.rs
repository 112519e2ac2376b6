use super::*;

const fn turn(ending: Ending) -> Turn {
    Turn { prompt_tokens: 20_000, output_tokens: 200, ending, is_subagent: false }
}

/// A session that comes back after these seconds, again and again.
fn rounds(expectation: &mut Expectation, session: u64, away_s: &[u64], ending: Ending, from_ms: u64) -> u64 {
    let mut now_ms = from_ms;
    for seconds in away_s {
        expectation.begin(session, now_ms, 20_000);
        expectation.end(session, now_ms, turn(ending), true);
        now_ms += seconds * 1000;
    }
    now_ms
}

#[test]
fn who_waits_for_a_tool_is_expected_before_who_waits_for_a_person() {
    let mut cold = Expectation::new(9);
    cold.end(1, 5_000, turn(Ending::Tools), true);
    cold.end(2, 5_000, turn(Ending::Answer), true);
    let (tool, person) = (cold.worth(1, 9_000).expect("known"), cold.worth(2, 9_000).expect("known"));
    assert!(tool > 3.0 * person, "{tool} {person}");
}

#[test]
fn a_sessions_own_pace_is_learned() {
    let mut learned = Expectation::new(9);
    rounds(&mut learned, 1, &[5; 20], Ending::Tools, 1_000_000);
    rounds(&mut learned, 2, &[50; 20], Ending::Tools, 1_000_000);
    learned.end(1, 3_000_000, turn(Ending::Tools), true);
    learned.end(2, 3_000_000, turn(Ending::Tools), true);
    let at = |learned: &mut Expectation, session, seconds: u64| {
        learned.worth(session, 3_000_000 + seconds * 1000).expect("known")
    };
    assert!(at(&mut learned, 1, 3) > at(&mut learned, 2, 3));
    assert!(at(&mut learned, 2, 45) > at(&mut learned, 1, 45), "who is late by much may not come at all");
}

#[test]
fn a_longer_absence_than_ever_is_worth_little() {
    let mut learned = Expectation::new(9);
    let end_ms = rounds(&mut learned, 1, &[10; 50], Ending::Tools, 1_000_000);
    learned.begin(1, end_ms, 20_000);
    learned.end(1, end_ms, turn(Ending::Tools), true);
    let soon = learned.worth(1, end_ms + 8_000).expect("known");
    let late = learned.worth(1, end_ms + 3_600_000).expect("known");
    assert!(soon > 100.0 * late, "{soon} {late}");
}

#[test]
fn a_turn_that_runs_is_worth_most() {
    let mut expectation = Expectation::new(9);
    rounds(&mut expectation, 1, &[10; 5], Ending::Tools, 1_000_000);
    expectation.begin(1, 1_060_000, 20_000);
    assert_eq!(expectation.worth(1, 1_070_000), Some(1.0));
}

#[test]
fn an_ending_that_is_told_later_puts_the_guess_right() {
    let (mut guessed, mut told) = (Expectation::new(9), Expectation::new(9));
    guessed.end(1, 5_000, turn(Ending::Tools), false);
    assert!(guessed.tell(1, Ending::Answer, 200));
    assert!(!guessed.tell(1, Ending::Tools, 200), "once");
    told.end(1, 5_000, turn(Ending::Answer), true);
    assert_eq!(guessed.worth(1, 9_000), told.worth(1, 9_000));
}

#[test]
fn a_prompt_that_begins_anew_is_no_return() {
    let mut expectation = Expectation::new(9);
    expectation.end(1, 1_000_000, turn(Ending::Tools), true);
    let before = expectation.forecasts[0].of(&expectation.sessions[&1].facts);
    expectation.begin(1, 1_900_000, 4_000);
    let facts = expectation.sessions[&1].facts;
    assert_eq!(expectation.forecasts[0].of(&facts), before, "nothing was learned");
    assert_eq!(expectation.sessions[&1].fresh_tokens, 4_000);
}

#[test]
fn who_was_seen_longest_ago_is_forgotten_first() {
    let mut expectation = Expectation::new(2);
    for session in 1..=3 {
        expectation.end(session, session * 1000, turn(Ending::Tools), true);
    }
    let known: Vec<u64> = expectation.sessions.keys().copied().collect();
    assert_eq!((known, expectation.by_age.len()), (vec![2, 3], 2));
    assert_eq!(expectation.worth(1, 4_000), None);
    let smaller = expectation.with_sessions_max(1);
    assert_eq!(smaller.sessions.keys().copied().collect::<Vec<_>>(), [3]);
}

#[test]
fn ends_without_beginnings_and_clocks_that_go_back_do_no_harm() {
    let mut expectation = Expectation::new(4);
    for step in 0..3000u64 {
        let (session, now_ms) = (step % 7, step.wrapping_mul(2_654_435_761) % 100_000);
        match step % 5 {
            0 => expectation.begin(session, now_ms, (step % 90) as u32 * 100),
            1 | 2 => expectation.end(session, now_ms, turn(Ending::Tools), step % 2 == 0),
            3 => _ = expectation.tell(session, Ending::Unknown, 0),
            _ => expectation.forget(session),
        }
        let worth = expectation.worth(session, now_ms).unwrap_or(0.0);
        assert!(worth.is_finite() && worth >= 0.0, "{worth} at {step}");
        assert!(expectation.is_whole() && expectation.sessions.len() <= 4);
    }
}
