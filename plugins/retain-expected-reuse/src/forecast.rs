//! How long a session will stay away, forecast from what is known when its turn ends.
//!
//! Called by the expectation. A linear model of the logarithm of that time, fitted anew with each return.
//! **Invariant:** a forecast lies within [`SECONDS_LN`], whatever was learned.
//!
//! Source: recursive least squares, L. Ljung, System Identification (1999), section 11.2.

use serde::{Deserialize, Serialize};

/// What a forecast is made from.
pub(crate) const FACTS: usize = 8;
/// Bounds of a forecast: logarithms of seconds.
const SECONDS_LN: (f64, f64) = (-1.0, 9.0);
/// How far a return may be off to count in full. Chosen: one that is late by hours says little about the usual one.
const SURPRISE_MAX: f64 = 2.0;
/// Uncertainty of the weights at the start: the prior counts as some twenty returns.
const DOUBT: f64 = 0.05;
/// Chosen: a weight follows a change within some thousand returns.
const DOUBT_MIN: f64 = 1e-3;

/// Facts of a turn, the first of which is always 1.
pub(crate) type Facts = [f64; FACTS];

/// The model of one kind of turn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Forecast {
    weights: Facts,
    doubt: [Facts; FACTS],
}

impl Forecast {
    /// Starts from these weights.
    pub(crate) fn new(weights: Facts) -> Self {
        let mut doubt = [[0.0; FACTS]; FACTS];
        for (i, row) in doubt.iter_mut().enumerate() {
            row[i] = DOUBT;
        }
        Self { weights, doubt }
    }

    /// Logarithm of the seconds that a turn with these facts is followed by.
    pub(crate) fn of(&self, facts: &Facts) -> f64 {
        dot(&self.weights, facts).clamp(SECONDS_LN.0, SECONDS_LN.1)
    }

    /// The same from the first so many facts alone.
    pub(crate) fn of_first(&self, facts: &Facts, first: usize) -> f64 {
        dot(&self.weights[..first], &facts[..first])
    }

    /// After a turn with these facts it took so long: `seconds_ln`.
    ///
    /// Cost: `FACTS` squared.
    pub(crate) fn learn(&mut self, facts: &Facts, seconds_ln: f64) {
        let seen = self.doubt.map(|row| dot(&row, facts));
        let spread = 1.0 + dot(&seen, facts);
        let error = (seconds_ln - dot(&self.weights, facts)).clamp(-SURPRISE_MAX, SURPRISE_MAX);
        for (i, (weight, row)) in self.weights.iter_mut().zip(&mut self.doubt).enumerate() {
            let gain = seen[i] / spread;
            *weight += gain * error;
            row.iter_mut().zip(&seen).for_each(|(cell, seen)| *cell -= gain * seen);
            // What is not doubted any more would never be learned anew.
            row[i] = row[i].max(DOUBT_MIN);
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two facts, of which the second matters.
    fn facts(second: f64) -> Facts {
        let mut facts = [0.0; FACTS];
        (facts[0], facts[1]) = (1.0, second);
        facts
    }

    #[test]
    fn it_learns_a_line() {
        let mut forecast = Forecast::new([0.0; FACTS]);
        for i in 0..2000 {
            let x = f64::from(i % 7) - 3.0;
            forecast.learn(&facts(x), 3.0 + 0.5 * x);
        }
        assert!((forecast.of(&facts(2.0)) - 4.0).abs() < 0.05, "{}", forecast.of(&facts(2.0)));
    }

    #[test]
    fn it_follows_a_change() {
        let mut forecast = Forecast::new([0.0; FACTS]);
        (0..5000).for_each(|_| forecast.learn(&facts(0.0), 1.0));
        (0..20_000).for_each(|_| forecast.learn(&facts(0.0), 3.0));
        assert!((forecast.of(&facts(0.0)) - 3.0).abs() < 0.2, "{}", forecast.of(&facts(0.0)));
    }

    #[test]
    fn a_forecast_stays_within_bounds_whatever_comes() {
        let mut forecast = Forecast::new([0.0; FACTS]);
        for i in 0..10_000u32 {
            let x = f64::from(i.wrapping_mul(2_654_435_761) % 1000) / 10.0;
            forecast.learn(&[x, 1.0, -x, x * x / 100.0, 0.0, 5.0, x, 1.0], f64::from(i % 23) - 5.0);
            let of = forecast.of(&facts(x));
            assert!((SECONDS_LN.0..=SECONDS_LN.1).contains(&of), "{of} after {i}");
        }
    }
}
