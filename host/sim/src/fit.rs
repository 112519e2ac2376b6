//! The coefficients of a worker's steps, from steps of it that were timed.
//!
//! Called by whoever runs a worker and has a clock; this module has neither.
//! **Invariant:** no coefficient is less than 0; one that the steps do not tell from others is 0, and named.

use crate::cost::{Batch, CostModel};

/// A step that was timed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimedStep {
    /// What it computed.
    pub batch: Batch,
    /// Microseconds that it took.
    pub us: f64,
}

/// A cost model, and how well it says what was timed.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// The coefficients, in six digits: what is printed of them is all of them.
    pub model: CostModel,
    /// Of each step, the share of its time by which the model says more; less where it is negative.
    pub errors: Vec<f64>,
    /// Coefficients that are 0 because these steps do not tell them from others.
    pub untold: Vec<&'static str>,
}

/// Why there is no fit.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum FitError {
    /// Nothing was timed.
    #[error("no step was timed")]
    Empty,
    /// A time that no step takes.
    #[error("step {at} took {us} us; a step takes more than 0")]
    Time {
        /// Its place.
        at: usize,
        /// What it is said to have taken.
        us: f64,
    },
}

impl Fit {
    /// The coefficients that say the times of steps best: the sum of squared shares of error is the least that it can be
    /// without negative coefficients. A short step counts as much as a long one.
    ///
    /// Cost: some microseconds for each step. Errors: [`FitError`].
    pub fn new(steps: &[TimedStep]) -> Result<Self, FitError> {
        if steps.is_empty() {
            return Err(FitError::Empty);
        }
        if let Some(at) = steps.iter().position(|step| !(step.us > 0.0 && step.us.is_finite())) {
            return Err(FitError::Time { at, us: steps[at].us });
        }
        let shares = |term: &Term| steps.iter().map(|step| (term.of)(&step.batch) / step.us).collect();
        let columns: Vec<Column> = TERMS.iter().map(|term| Column::new(shares(term))).collect();
        let told = told(&columns);
        let kept: Vec<&Column> = told.iter().map(|at| &columns[*at]).collect();
        // A model that is right says the time of each step, which is one time that time.
        let weights = nonnegative(&kept, &vec![1.0; steps.len()]);
        let mut model = CostModel::ZERO;
        for ((at, column), weight) in told.iter().zip(kept).zip(weights) {
            *(TERMS[*at].coefficient)(&mut model) = in_six_digits(weight / column.norm);
        }
        let error = |step: &TimedStep| model.step_ns(&step.batch) / 1e3 / step.us - 1.0;
        let untold = (0..TERMS.len()).filter(|at| !told.contains(at)).map(|at| TERMS[at].name).collect();
        Ok(Self { model, errors: steps.iter().map(error).collect(), untold })
    }

    /// The share of error that half of the steps stay below.
    pub fn error_median(&self) -> f64 {
        let mut sizes: Vec<f64> = self.errors.iter().map(|error| error.abs()).collect();
        sizes.sort_unstable_by(f64::total_cmp);
        sizes[sizes.len() / 2]
    }

    /// The step that the model says worst, and its share of error.
    pub fn worst(&self) -> (usize, f64) {
        let sizes = self.errors.iter().copied().enumerate();
        sizes.max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).expect("a fit has a step")
    }
}

/// What a coefficient is multiplied with.
struct Term {
    name: &'static str,
    of: fn(&Batch) -> f64,
    coefficient: fn(&mut CostModel) -> &mut f64,
}

/// Every coefficient but the bound of the context, and before it those that it has to be told from: of two that cannot be,
/// the first one takes the time of both.
const TERMS: [Term; 9] = [
    Term { name: "prefill_us[1]", of: |b| b.prefill_tokens, coefficient: |m| &mut m.prefill_us[1] },
    Term { name: "base_us", of: |_| 1.0, coefficient: |m| &mut m.base_us },
    Term { name: "decode_row_us", of: |b| b.rows, coefficient: |m| &mut m.decode_row_us },
    Term { name: "attend_us", of: |b| b.prefill_pairs, coefficient: |m| &mut m.attend_us },
    Term { name: "decode_context_us[0]", of: |b| b.context, coefficient: |m| &mut m.decode_context_us[0] },
    Term { name: "prefill_us[0]", of: |b| is(b.prefill_tokens), coefficient: |m| &mut m.prefill_us[0] },
    Term { name: "decode_us", of: |b| is(b.rows), coefficient: |m| &mut m.decode_us },
    Term { name: "prefill_us[2]", of: |b| b.prefill_tokens.powi(2), coefficient: |m| &mut m.prefill_us[2] },
    Term {
        name: "decode_context_us[1]",
        of: |b| b.context.powi(2),
        coefficient: |m| &mut m.decode_context_us[1],
    },
];

fn is(count: f64) -> f64 {
    f64::from(count > 0.0)
}

fn in_six_digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().expect("what was written as a number is one")
}

/// A term over all steps, of length 1, or 0 where it is 0 in each.
struct Column {
    unit: Vec<f64>,
    norm: f64,
}

impl Column {
    fn new(mut values: Vec<f64>) -> Self {
        let norm = dot(&values, &values).sqrt();
        if norm > 0.0 {
            values.iter_mut().for_each(|value| *value /= norm);
        }
        Self { unit: values, norm }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Takes `by` times `other` away.
fn subtract(from: &mut [f64], by: f64, other: &[f64]) {
    from.iter_mut().zip(other).for_each(|(value, other)| *value -= by * other);
}

/// A column of which less is its own is not told from those before it. Chosen: what was timed is known to a hundredth at
/// best, and would have to be to a thousandth.
const OWN_MIN: f64 = 1e-3;

/// The columns that are no sum of those before them.
fn told(columns: &[Column]) -> Vec<usize> {
    let (mut told, mut basis) = (Vec::new(), Vec::<Vec<f64>>::new());
    for (at, column) in columns.iter().enumerate() {
        let mut own = column.unit.clone();
        // Twice, since rounding leaves some of what is taken away.
        for other in basis.iter().chain(&basis) {
            let share = dot(&own, other);
            subtract(&mut own, share, other);
        }
        let own = Column::new(own);
        if own.norm > OWN_MIN {
            told.push(at);
            basis.push(own.unit);
        }
    }
    told
}

/// Most columns that may be taken up or put back. Chosen: each is seldom taken up twice; rounding could go round for ever.
const TURNS_MAX: usize = 100;
/// How much nearer to the target a column must lead to be taken up, of its length. Chosen far above what rounding does.
const GAIN_MIN: f64 = 1e-10;
/// Weights below it are 0. Chosen far below what six digits show.
const WEIGHT_MIN: f64 = 1e-12;

/// Weights of columns, none below 0, whose sum is nearest to the target.
///
/// Source: Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23: the set of columns that count grows by the
/// one that leads nearer fastest, and gives back those whose weight would be negative.
fn nonnegative(columns: &[&Column], target: &[f64]) -> Vec<f64> {
    let mut weights = vec![0.0; columns.len()];
    let mut counting: Vec<usize> = Vec::new();
    for _ in 0..TURNS_MAX {
        let mut rest = target.to_vec();
        for (column, weight) in columns.iter().zip(&weights) {
            subtract(&mut rest, *weight, &column.unit);
        }
        let gains = (0..columns.len()).filter(|at| !counting.contains(at));
        let gains = gains.map(|at| (dot(&columns[at].unit, &rest), at));
        match gains.max_by(|a, b| a.0.total_cmp(&b.0)) {
            Some((gain, at)) if gain > GAIN_MIN * dot(target, target).sqrt() => counting.push(at),
            _ => break,
        }
        settle((columns, target), &mut counting, &mut weights);
    }
    weights
}

/// Moves weights to the best ones of those that count, as far as none falls below 0; who does counts no more.
fn settle((columns, target): (&[&Column], &[f64]), counting: &mut Vec<usize>, weights: &mut [f64]) {
    while !counting.is_empty() {
        let units: Vec<&[f64]> = counting.iter().map(|at| columns[*at].unit.as_slice()).collect();
        let best = least_squares(&units, target);
        let falling = counting.iter().zip(&best).filter(|(_, best)| **best <= 0.0);
        let stops = falling.map(|(at, best)| (weights[*at] / (weights[*at] - best).max(WEIGHT_MIN), *at));
        let first = stops.min_by(|a, b| a.0.total_cmp(&b.0));
        let way = first.map_or(1.0, |(way, _)| way);
        for (at, best) in counting.iter().zip(&best) {
            weights[*at] += way * (best - weights[*at]);
        }
        let Some((_, leaves)) = first else { return };
        counting.retain(|at| *at != leaves && weights[*at] > WEIGHT_MIN);
        // Rounding may have left them next to 0.
        let others = weights.iter_mut().enumerate().filter(|(at, _)| !counting.contains(at));
        others.for_each(|(_, weight)| *weight = 0.0);
    }
}

/// Weights of columns, of any sign, whose sum is nearest to the target: by an orthogonal basis of them.
fn least_squares(columns: &[&[f64]], target: &[f64]) -> Vec<f64> {
    let mut rest = target.to_vec();
    let mut basis: Vec<Column> = Vec::new();
    // Of each column its shares of the basis before it, and of the target that of its own part.
    let (mut shares, mut goals) = (Vec::<Vec<f64>>::new(), Vec::new());
    for column in columns {
        let mut own = column.to_vec();
        let mut row = vec![0.0; basis.len()];
        for _ in 0..2 {
            for (share, other) in row.iter_mut().zip(&basis) {
                let more = dot(&own, &other.unit);
                subtract(&mut own, more, &other.unit);
                *share += more;
            }
        }
        let own = Column::new(own);
        let goal = dot(&rest, &own.unit);
        subtract(&mut rest, goal, &own.unit);
        shares.push(row);
        goals.push(goal);
        basis.push(own);
    }
    for at in (0..columns.len()).rev() {
        goals[at] /= basis[at].norm;
        let (before, this) = goals.split_at_mut(at);
        subtract(before, this[0], &shares[at]);
    }
    goals
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Steps as a worker has them: prompts of some lengths after contexts of some lengths, answers, and both.
    fn batches() -> Vec<Batch> {
        let prompts = [16.0, 64.0, 256.0, 1024.0].map(|tokens| (tokens, [0.0, 1000.0, 8000.0]));
        let answers = [1.0, 4.0, 16.0, 64.0].map(|rows| (rows, [16.0, 1000.0, 8000.0]));
        let prompt = |tokens: f64, depth: f64| Batch {
            prefill_tokens: tokens,
            prefill_pairs: tokens * (depth + tokens / 2.0),
            ..Batch::default()
        };
        let mut all = Vec::new();
        for (tokens, depths) in prompts {
            all.extend(depths.map(|depth| prompt(tokens, depth)));
        }
        for (rows, contexts) in answers {
            all.extend(contexts.map(|each| Batch { rows, context: rows * each, ..Batch::default() }));
        }
        for (tokens, rows) in [(64.0, 4.0), (1024.0, 64.0)] {
            all.push(Batch { rows, context: rows * 1000.0, ..prompt(tokens, 1000.0) });
        }
        all
    }

    fn timed(batches: &[Batch], us: impl Fn(usize, &Batch) -> f64) -> Vec<TimedStep> {
        batches.iter().enumerate().map(|(at, batch)| TimedStep { batch: *batch, us: us(at, batch) }).collect()
    }

    fn us(model: &CostModel, batch: &Batch) -> f64 {
        model.step_ns(batch) / 1e3
    }

    fn coefficients(mut model: CostModel) -> [f64; TERMS.len()] {
        TERMS.map(|term| *(term.coefficient)(&mut model))
    }

    fn check_found(model: &CostModel) {
        let fit = Fit::new(&timed(&batches(), |_, batch| us(model, batch))).unwrap();
        assert!(fit.worst().1.abs() < 1e-4, "{fit:?}");
        assert!(fit.untold.is_empty(), "{fit:?}");
        for ((found, right), term) in coefficients(fit.model).iter().zip(coefficients(*model)).zip(&TERMS) {
            let least = batches().iter().map(|batch| us(model, batch)).fold(f64::MAX, f64::min);
            let largest = batches().iter().map(term.of).fold(0.0, f64::max);
            // What is not there may be found where it is no part of any time.
            let near = 1e-4 * right + 1e-6 * least / largest;
            assert!((found - right).abs() <= near, "{}: {found} {right}", term.name);
        }
    }

    #[test]
    fn coefficients_are_found_from_the_times_that_they_make() {
        check_found(&CostModel::default());
        check_found(&CostModel::named("4xh200/qwen3-30b-a3b").unwrap());
        check_found(&CostModel::linear(300.0, 20.0, 5.0));
        check_found(&CostModel::fixed(9_000.0, 700.0));
        check_found(&CostModel {
            base_us: 100.0,
            prefill_us: [40.0, 12.0, 2e-3],
            attend_us: 3e-3,
            decode_us: 25.0,
            decode_row_us: 8.0,
            decode_context_us: [0.02, 1e-8],
            decode_context_max: 0.0,
        });
    }

    #[test]
    fn what_is_timed_badly_is_found_nearly() {
        let model = CostModel { prefill_us: [500.0, 90.0, 0.0], ..CostModel::default() };
        // Times that are up to 4 % off, this way and that.
        let noise = |at: usize| 0.04 * ((trace::mix(at as u64 + 1) % 2001) as f64 / 1000.0 - 1.0);
        let fit = Fit::new(&timed(&batches(), |at, batch| us(&model, batch) * (1.0 + noise(at)))).unwrap();
        assert!(fit.error_median() < 0.04 && fit.worst().1.abs() < 0.08, "{fit:?}");
        let near = |found: f64, right: f64| assert!((found / right - 1.0).abs() < 0.1, "{found} {right}");
        near(fit.model.prefill_us[1], model.prefill_us[1]);
        near(fit.model.attend_us, model.attend_us);
        near(fit.model.base_us + fit.model.decode_us, model.base_us);
        near(fit.model.decode_context_us[0], model.decode_context_us[0]);
    }

    #[test]
    fn what_steps_do_not_tell_is_named_and_costs_nothing() {
        let prompts = |batch: &Batch| batch.rows == 0.0;
        let prompts: Vec<Batch> = batches().into_iter().filter(prompts).collect();
        let model = CostModel { prefill_us: [80.0, 7.0, 0.0], ..CostModel::linear(20.0, 7.0, 3.0) };
        let fit = Fit::new(&timed(&prompts, |_, batch| us(&model, batch))).unwrap();
        let answers = ["decode_row_us", "decode_context_us[0]", "prefill_us[0]", "decode_us"];
        assert_eq!(fit.untold, [&answers[..], &["decode_context_us[1]"]].concat());
        // It is one with the base in steps that all have a prompt.
        assert!((fit.model.base_us - 100.0).abs() < 1e-2 && fit.model.prefill_us[0] == 0.0, "{fit:?}");
        let fit = Fit::new(&timed(&prompts[..1], |_, batch| us(&model, batch))).unwrap();
        assert_eq!((fit.untold.len(), fit.worst().0), (TERMS.len() - 1, 0));
    }

    #[test]
    fn times_that_no_step_takes_are_refused() {
        assert_eq!(Fit::new(&[]).unwrap_err(), FitError::Empty);
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let steps = timed(&batches(), |at, _| if at == 3 { wrong } else { 5.0 });
            let error = Fit::new(&steps).unwrap_err().to_string();
            assert_eq!(error, format!("step 3 took {wrong} us; a step takes more than 0"));
        }
    }

    /// The sum of squared shares of error.
    fn squares(model: &CostModel, steps: &[TimedStep]) -> f64 {
        steps.iter().map(|step| (us(model, &step.batch) / step.us - 1.0).powi(2)).sum()
    }

    proptest! {
        /// Whatever steps took, no coefficient is negative, and no other ones are nearer: not by one that is larger,
        /// nor by one that is smaller and still none below 0.
        #[test]
        fn no_other_coefficients_are_nearer(times in prop::collection::vec(10.0f64..1e6, 26)) {
            let steps = timed(&batches(), |at, _| times[at]);
            let fit = Fit::new(&steps).unwrap();
            prop_assert_eq!(fit.model.wrong(), None);
            prop_assert!(coefficients(fit.model).iter().all(|found| *found >= 0.0), "{:?}", fit);
            let best = squares(&fit.model, &steps);
            for term in &TERMS {
                let largest = steps.iter().map(|step| (term.of)(&step.batch) / step.us).fold(0.0, f64::max);
                for by in [0.01, -0.01] {
                    let mut other = fit.model;
                    let coefficient = (term.coefficient)(&mut other);
                    *coefficient = (*coefficient + by / largest).max(0.0);
                    prop_assert!(squares(&other, &steps) >= best * (1.0 - 1e-6), "{} {by}: {fit:?}", term.name);
                }
            }
        }
    }
}
