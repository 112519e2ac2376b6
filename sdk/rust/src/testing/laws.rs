//! The laws of each slot, checked over seeded cases. A failure names its seed.
//!
//! Each law starts two instances and asks both the same questions: a policy is a function of its
//! settings, its past and the view, so they must agree.

use super::cases::{AdmitCase, HintsCase, ObserveCase, RetainCase, RouteCase, ScheduleCase};
use super::twins::{Instance, Twins};
use crate::random::Random;
use crate::slot::{
    Admit, Clip, Filter, Interpret, Keep, Observe, Pick, Plan, Policy, Retain, Route, Schedule, Score, State,
    Verdict,
};
use std::collections::BTreeSet;
use std::fmt::Debug;

/// Cases a law is checked on. Chosen: well under a second in an unoptimised build.
const CASES: u64 = 300;
/// The longest that a request is asked to wait or to stay away. Chosen: no caller waits for a day; a longer
/// time is a time in the wrong unit.
const WAIT_MS_MAX: u64 = 86_400_000;
/// Text for a caller.
const REASON_BYTES_MAX: usize = 256;
/// Text for a log.
const LOG_REASON_BYTES_MAX: usize = 128;

/// The seeded questions, put to both instances.
#[track_caller]
fn each<P: Policy, C, R: PartialEq + Debug>(
    config: &str,
    draw: impl Fn(u64) -> C,
    ask: impl Fn(&C, &mut P) -> Option<R>,
    check: impl Fn(&str, &C, R),
) {
    let mut twins = Twins::new(config);
    for seed in 0..CASES {
        let (case, label) = (draw(seed), format!("seed {seed}"));
        if let Some(answer) = twins.ask(&label, |policy| ask(&case, policy)) {
            check(&label, &case, answer);
        }
    }
}

/// A wait that ends later than now and within a day, a refusal whose reason a caller can read.
pub fn admit<P: Admit>(config: &str) {
    each(config, AdmitCase::random, AdmitCase::admit::<P>, |seed, case, verdict| match verdict {
        Verdict::Admit => {}
        Verdict::DeferUntil { ms } => {
            let now_ms = case.frame.now_ms;
            assert!(ms > now_ms, "{seed}: a wait until {ms} is over at {now_ms}");
            assert!(ms - now_ms <= WAIT_MS_MAX, "{seed}: a wait of {} ms is too long", ms - now_ms);
        }
        Verdict::Reject { retry_after_ms, reason } => {
            let wait_ms = u64::from(retry_after_ms);
            assert!(wait_ms <= WAIT_MS_MAX, "{seed}: to stay away for {wait_ms} ms is too long");
            assert!(reason.len() <= REASON_BYTES_MAX, "{seed}: a reason has at most 256 bytes: {reason}");
            assert!(!reason.trim().is_empty(), "{seed}: a refusal says why");
        }
    });
}

/// One flag a candidate, of which one is kept.
pub fn filter<P: Filter>(config: &str) {
    each(config, RouteCase::random, RouteCase::filter::<P>, |seed, case, keep| {
        assert_eq!(keep.len(), case.candidates.rows(), "{seed}: one flag a candidate");
        assert!(keep.contains(&true), "{seed}: a filter keeps at least one candidate");
    });
}

/// One finite number in [0, 1] a candidate.
pub fn score<P: Score>(config: &str) {
    each(config, RouteCase::random, RouteCase::score::<P>, |seed, case, scores| {
        assert_eq!(scores.len(), case.candidates.rows(), "{seed}: one score a candidate");
        for score in scores {
            assert!((0.0..=1.0).contains(&score), "{seed}: score {score} is not in [0, 1]");
        }
    });
}

/// A row that is there.
pub fn pick<P: Pick>(config: &str) {
    each(config, RouteCase::random, RouteCase::pick::<P>, |seed, case, row| {
        assert!((row as usize) < case.candidates.rows(), "{seed}: row {row} is not a candidate");
    });
}

/// A row that is there, and a reason that fits a log line.
pub fn route<P: Route>(config: &str) {
    each(config, RouteCase::random, RouteCase::decide::<P>, |seed, case, decision| {
        let (row, reason) = (decision.candidate, decision.reason.unwrap_or_default());
        assert!((row as usize) < case.candidates.rows(), "{seed}: row {row} is not a candidate");
        assert!(reason.len() <= LOG_REASON_BYTES_MAX, "{seed}: a reason has at most 128 bytes: {reason}");
    });
}

#[track_caller]
fn check_order(seed: &str, case: &ScheduleCase, mut order: Vec<u32>) {
    order.sort_unstable();
    let rows: Vec<u32> = (0..case.waiting.rows() as u32).collect();
    assert_eq!(order, rows, "{seed}: not a permutation of the waiting sequences");
}

/// A permutation of the waiting sequences.
pub fn schedule<P: Schedule>(config: &str) {
    each(config, ScheduleCase::random, ScheduleCase::order::<P>, check_order);
}

/// A permutation of the waiting sequences; a chunk for each sequence or for none; victims that run, each once.
pub fn plan<P: Plan>(config: &str) {
    each(config, ScheduleCase::random, ScheduleCase::plan::<P>, |seed, case, plan| {
        let (waiting, running) = (case.waiting.rows(), case.running.rows());
        check_order(seed, case, plan.order);
        let chunks = plan.chunk_tokens.len();
        assert!(
            chunks == 0 || chunks == waiting + running,
            "{seed}: {chunks} chunks for {waiting} + {running}"
        );
        let distinct: BTreeSet<u32> = plan.victims.iter().copied().collect();
        assert_eq!(distinct.len(), plan.victims.len(), "{seed}: a victim is named twice: {:?}", plan.victims);
        let beyond = distinct.last().filter(|row| **row as usize >= running);
        assert_eq!(beyond, None, "{seed}: a victim is one of the {running} that run");
    });
}

/// One answer a segment, none of a priority above 100; hears of any clip.
pub fn retain<P: Retain>(config: &str) {
    let ask = |case: &RetainCase, policy: &mut P| {
        let answer = case.retain(policy)?;
        let clip = |(row, keep): (usize, &Keep)| {
            let bound = ["priority", "ttl", "pinned-share", "tenant-share", "tier"][row % 5].to_owned();
            Clip { row: row as u32, got: Keep { ttl_ms: keep.ttl_ms / 2, ..Keep::default() }, bound }
        };
        let clips: Vec<Clip> = answer.iter().enumerate().step_by(3).map(clip).collect();
        policy.clipped(case.frame, &clips);
        Some(answer)
    };
    each(config, RetainCase::random, ask, |seed, case, answer| {
        assert_eq!(answer.len(), case.segments.rows(), "{seed}: one answer a segment");
        for keep in answer {
            assert!(keep.priority <= 100, "{seed}: priority {} is above 100", keep.priority);
        }
    });
}

/// Takes any batch, the empty one included.
pub fn observe<P: Observe>(config: &str) {
    let mut policy = Instance::<P>::cold(config);
    policy.ask(|policy| ObserveCase::new(0).observe(policy));
    for seed in 0..CASES {
        policy.ask(|policy| ObserveCase::random(seed).observe(policy));
    }
}

/// Takes silence, and junk where an object should be; keeps what it has no better word for.
pub fn hints<P: Interpret>(config: &str) {
    let mut twins = Twins::<P>::new(config);
    let silence = HintsCase::default();
    if let Some(hints) = twins.ask("silence", |policy| silence.interpret(policy)) {
        assert_eq!(hints, silence.so_far, "out of silence came a hint");
    }
    let junk = ["", "{", "null", "[]", "\"text\"", "{\"agent_hints\": 7}", "{\"session_control\": []}"];
    for text in junk {
        let case = HintsCase::default()
            .header("x-session-id", text)
            .extension("nvext", text)
            .extension("metadata", text)
            .extension("prompt_cache_key", text);
        twins.ask(text, |policy| case.interpret(policy));
    }
}

/// Carried over, a state answers as it would have at home; another's, or part of one, leaves a policy cold.
///
/// `ask` is one question, drawn from a seed, in whatever slots the policy has, what it learns from included:
/// `|policy, seed| { ObserveCase::random(seed).observe(policy); RouteCase::random(seed).score(policy) }`.
pub fn state<P: State, R: PartialEq + Debug>(config: &str, ask: impl Fn(&mut P, u64) -> R) {
    let mut home = Instance::<P>::cold(config);
    (0..CASES).for_each(|seed| _ = home.ask(|policy| ask(policy, seed)));
    let bytes = home.ask(|policy| policy.export_state(P::SCHEMA)).expect("a policy writes its own schema");
    const FOREIGN: &str = "somebody-else/1";
    let foreign = home.ask(|policy| policy.export_state(FOREIGN));
    assert_eq!(foreign, None, "a state was written as `{FOREIGN}`, which nobody knows");

    let mut away = home.successor(config);
    let taken = away.ask(|policy| policy.import_state(P::SCHEMA, &bytes));
    assert_eq!(taken, Ok(()), "a policy reads what it wrote");
    for seed in 0..CASES {
        let expected = home.ask(|policy| ask(policy, seed));
        assert_eq!(
            away.ask(|policy| ask(policy, seed)),
            expected,
            "seed {seed}: the state changed on the way"
        );
    }

    stays_cold(config, FOREIGN, &bytes, &ask);
    // Every cut of a short state, some of a long one.
    for end in (0..bytes.len()).step_by(bytes.len() / 16 + 1) {
        stays_cold(config, P::SCHEMA, &bytes[..end], &ask);
    }
    let random = &mut Random::new(CASES);
    let junk: Vec<u8> = (0..64).map(|_| random.next_u64() as u8).collect();
    stays_cold(config, P::SCHEMA, &junk, &ask);
}

/// Whether it refuses these bytes or not, a policy answers as one that was given none.
#[track_caller]
fn stays_cold<P: State, R: PartialEq + Debug>(
    config: &str,
    schema: &str,
    bytes: &[u8],
    ask: impl Fn(&mut P, u64) -> R,
) {
    let (mut given, mut cold) = (Instance::<P>::cold(config), Instance::<P>::cold(config));
    let refusal = given.ask(|policy| policy.import_state(schema, bytes));
    for seed in 0..CASES / 10 {
        let answer = given.ask(|policy| ask(policy, seed));
        let expected = cold.ask(|policy| ask(policy, seed));
        let what = format!("{} bytes as `{schema}` ({refusal:?}) left their mark", bytes.len());
        assert_eq!(answer, expected, "seed {seed}: {what}");
    }
}
