//! The built-in policies: plain Rust behind the traits of the slots, for when nobody else has an answer.
//!
//! **Invariant:** each always answers, in bounds, and from its view alone.

use crate::slot::{Answer, PickPolicy, RouteView, SchedulePlan, SchedulePolicy, ScheduleView, ScorePolicy};

/// Indices in `REQUEST` and `ROUTE_CANDIDATE`; a test holds them to their names.
const PROMPT_TOKENS: usize = 0;
const OVERLAP_TOKENS: usize = 0;
const QUEUED_TOKENS: usize = 3;
const ACTIVE_TOKENS: usize = 4;

/// Name of the built-in policies in decisions and reports.
pub const NAME: &str = "builtin";

/// Tokens that a candidate would work through before it could answer: what the cache does not have of the
/// prompt, what waits, and what running sequences hold.
fn work(view: &RouteView<'_>, row: usize) -> f32 {
    let prompt = view.request.numbers(PROMPT_TOKENS)[0];
    let missing = (prompt - view.candidates.numbers(OVERLAP_TOKENS)[row]).max(0.0);
    missing + view.candidates.numbers(QUEUED_TOKENS)[row] + view.candidates.numbers(ACTIVE_TOKENS)[row]
}

/// Overlap minus load: the score falls with the work that a candidate has.
#[derive(Clone, Copy, Debug, Default)]
pub struct OverlapMinusLoad;

impl ScorePolicy for OverlapMinusLoad {
    /// `(least work + 1) / (work + 1)`: 1 for the best candidates.
    fn score(&mut self, view: &RouteView<'_>) -> Answer<Vec<f32>> {
        let mut scores: Vec<f32> = (0..view.candidates.rows()).map(|row| work(view, row)).collect();
        let least = scores.iter().copied().fold(f32::INFINITY, f32::min);
        scores.iter_mut().for_each(|score| *score = (least + 1.0) / (*score + 1.0));
        Some(scores)
    }
}

/// The highest score; among equals, the one with less work of two drawn at random.
///
/// Source: M. Mitzenmacher, The power of two choices in randomized load balancing, IEEE TPDS 2001.
#[derive(Clone, Copy, Debug, Default)]
pub struct BestOfTwo;

impl PickPolicy for BestOfTwo {
    fn pick(&mut self, view: &RouteView<'_>, scores: &[f32]) -> Answer<u32> {
        let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let equals = || (0..scores.len()).filter(|row| scores[*row] >= best);
        let count = equals().count();
        if count <= 1 {
            return Some(equals().next().unwrap_or(0) as u32);
        }
        let draw = |salt| (mix(view.frame.seed ^ salt) % count as u64) as usize;
        let (one, other) = (equals().nth(draw(1))?, equals().nth(draw(2))?);
        Some(if work(view, other) < work(view, one) { other } else { one } as u32)
    }
}

/// First come, first served.
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstCome;

impl SchedulePolicy for FirstCome {
    fn plan(&mut self, view: &ScheduleView<'_>) -> Answer<SchedulePlan> {
        Some(SchedulePlan { order: (0..view.waiting.rows() as u32).collect(), ..SchedulePlan::default() })
    }
}

/// The finaliser of splitmix64: spreads seeds that differ in few bits.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::{Frame, REQUEST, ROUTE_CANDIDATE};
    use crate::table::Table;
    use proptest::prelude::*;

    fn scores(prompt: f32, columns: [&[f32]; 3]) -> Vec<f32> {
        ask(prompt, columns, |view| OverlapMinusLoad.score(view).expect("it always answers"))
    }

    fn ask<T>(prompt: f32, columns: [&[f32]; 3], ask: impl FnOnce(&RouteView<'_>) -> T) -> T {
        let mut request = Table::new(&REQUEST, 1);
        request.numbers_mut(PROMPT_TOKENS)[0] = prompt;
        let mut candidates = Table::new(&ROUTE_CANDIDATE, columns[0].len());
        for (column, values) in [OVERLAP_TOKENS, QUEUED_TOKENS, ACTIVE_TOKENS].into_iter().zip(columns) {
            candidates.numbers_mut(column).copy_from_slice(values);
        }
        ask(&RouteView { frame: Frame::default(), request: &request, candidates: &candidates })
    }

    #[test]
    fn the_columns_are_where_they_are_looked_for() {
        assert_eq!(REQUEST.number("prompt_tokens"), Some(PROMPT_TOKENS));
        assert_eq!(ROUTE_CANDIDATE.number("overlap_tokens"), Some(OVERLAP_TOKENS));
        assert_eq!(ROUTE_CANDIDATE.number("queued_tokens"), Some(QUEUED_TOKENS));
        assert_eq!(ROUTE_CANDIDATE.number("active_tokens"), Some(ACTIVE_TOKENS));
    }

    #[test]
    fn overlap_beats_an_equal_load() {
        let scores = scores(100.0, [&[0.0, 80.0], &[50.0, 50.0], &[0.0, 0.0]]);
        assert!(scores[1] > scores[0]);
    }

    #[test]
    fn load_beats_a_smaller_overlap() {
        let scores = scores(100.0, [&[0.0, 80.0], &[0.0, 500.0], &[0.0, 0.0]]);
        assert!(scores[0] > scores[1]);
    }

    proptest! {
        /// Whatever the load, scores lie in (0, 1], the best is 1, and the pick has the best.
        #[test]
        fn scores_are_in_range_and_the_best_is_picked(
            rows in prop::collection::vec((0f32..1e6, 0f32..1e6, 0f32..1e6), 1..40), prompt in 0f32..1e6,
        ) {
            let column = |cell: fn(&(f32, f32, f32)) -> f32| rows.iter().map(cell).collect::<Vec<_>>();
            let columns = [column(|row| row.0), column(|row| row.1), column(|row| row.2)];
            ask(prompt, [&columns[0], &columns[1], &columns[2]], |view| {
                let scores = OverlapMinusLoad.score(view).expect("it always answers");
                assert!(scores.iter().all(|score| *score > 0.0 && *score <= 1.0));
                let row = BestOfTwo.pick(view, &scores).expect("it always answers");
                assert_eq!(scores[row as usize], 1.0);
            });
        }
    }
}
