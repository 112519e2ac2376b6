//! The laws of each slot, checked over seeded cases. A failure names its seed.
//!
//! Each law starts two instances and asks both the same questions: a policy is a function of its
//! settings, its past and the view, so they must agree.

use super::cases::{HintsCase, ObserveCase, RouteCase, ScheduleCase};
use super::policy;
use crate::slot::{Filter, Interpret, Observe, Pick, Schedule, Score};

/// Cases a law is checked on. Chosen: well under a second in an unoptimised build.
const CASES: u64 = 300;

/// One flag a candidate, and the same flags again for the same question.
pub fn filter<P: Filter>(config: &str) {
    let (mut one, mut other) = (policy::<P>(config), policy::<P>(config));
    for seed in 0..CASES {
        let case = RouteCase::random(seed);
        let answer = case.filter(&mut one);
        assert_eq!(answer, case.filter(&mut other), "seed {seed}: two instances disagree");
        let Some(keep) = answer else { continue };
        assert_eq!(keep.len(), case.candidates.rows(), "seed {seed}: one flag a candidate");
        assert!(keep.contains(&true), "seed {seed}: a filter keeps at least one candidate");
    }
}

/// One finite number in [0, 1] a candidate.
pub fn score<P: Score>(config: &str) {
    let (mut one, mut other) = (policy::<P>(config), policy::<P>(config));
    for seed in 0..CASES {
        let case = RouteCase::random(seed);
        let answer = case.score(&mut one);
        assert_eq!(answer, case.score(&mut other), "seed {seed}: two instances disagree");
        let Some(scores) = answer else { continue };
        assert_eq!(scores.len(), case.candidates.rows(), "seed {seed}: one score a candidate");
        for score in scores {
            assert!((0.0..=1.0).contains(&score), "seed {seed}: score {score} is not in [0, 1]");
        }
    }
}

/// A row that is there.
pub fn pick<P: Pick>(config: &str) {
    let (mut one, mut other) = (policy::<P>(config), policy::<P>(config));
    for seed in 0..CASES {
        let case = RouteCase::random(seed);
        let answer = case.pick(&mut one);
        assert_eq!(answer, case.pick(&mut other), "seed {seed}: two instances disagree");
        let Some(row) = answer else { continue };
        assert!((row as usize) < case.candidates.rows(), "seed {seed}: row {row} is not a candidate");
    }
}

/// A permutation of the waiting sequences.
pub fn schedule<P: Schedule>(config: &str) {
    let (mut one, mut other) = (policy::<P>(config), policy::<P>(config));
    for seed in 0..CASES {
        let case = ScheduleCase::random(seed);
        let answer = case.order(&mut one);
        assert_eq!(answer, case.order(&mut other), "seed {seed}: two instances disagree");
        let Some(mut order) = answer else { continue };
        order.sort_unstable();
        let rows: Vec<u32> = (0..case.waiting.rows() as u32).collect();
        assert_eq!(order, rows, "seed {seed}: not a permutation of the waiting sequences");
    }
}

/// Takes any batch, the empty one included.
pub fn observe<P: Observe>(config: &str) {
    let mut policy = policy::<P>(config);
    ObserveCase::new(0).observe(&mut policy);
    for seed in 0..CASES {
        ObserveCase::random(seed).observe(&mut policy);
    }
}

/// Takes silence, and junk where an object should be; keeps what it has no better word for.
pub fn hints<P: Interpret>(config: &str) {
    let (mut one, mut other) = (policy::<P>(config), policy::<P>(config));
    let silence = HintsCase::default();
    if let Some(hints) = silence.interpret(&mut one) {
        assert_eq!(hints, silence.so_far, "out of silence came a hint");
    }
    let junk = ["", "{", "null", "[]", "\"text\"", "{\"agent_hints\": 7}", "{\"session_control\": []}"];
    for text in junk {
        let case = HintsCase::default()
            .header("x-session-id", text)
            .extension("nvext", text)
            .extension("metadata", text)
            .extension("prompt_cache_key", text);
        assert_eq!(case.interpret(&mut one), case.interpret(&mut other), "`{text}`: two instances disagree");
    }
}
