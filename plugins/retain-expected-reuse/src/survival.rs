//! How long sessions stay away, as a share of what was forecast, and what holding one is worth at each point of that time.
//!
//! Called by the expectation. Time is cut into bins of equal width in its logarithm; the chance to come back in a bin is
//! that of those who stayed away until then, so whoever is still away counts for what is known of it.
//! **Invariant:** counts are bounded: they are halved before they would pass [`ENTERED_MAX`].
//!
//! Sources: E. L. Kaplan, P. Meier, Nonparametric estimation from incomplete observations, JASA 53 (1958), for the chances;
//! J. C. Gittins, Bandit processes and dynamic allocation indices, JRSS B 41 (1979), for the index.

use serde::{Deserialize, Serialize};

/// Bins of time. Chosen: the last begins at 1,300 times the forecast.
pub(crate) const BINS: usize = 50;
/// Logarithm of where bin 1 begins; bin 0 begins at 0.
const FIRST: f64 = -4.75;
/// Width of a bin in logarithms. Chosen: a bin ends 28 % later than it begins; finer ones learn slower.
const WIDTH: f64 = 0.25;
/// Chosen: of two days of a busy host, so that it follows how its users change.
const ENTERED_MAX: f64 = 20_000.0;
/// What a bin's chance is at most.
const CHANCE_MAX: f64 = 0.95;

/// Who entered, who came back when, and what follows from it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Survival {
    entered: f64,
    returned: Vec<f64>,
    /// Worth of a token held, at the beginning of each bin: chance to be used within the best time to hold it, by that time.
    index: Vec<f64>,
}

impl Survival {
    /// Nothing learned.
    pub(crate) fn new(prior: &[f64; BINS], weight: f64) -> Self {
        let mut survival = Self { entered: 0.0, returned: vec![0.0; BINS], index: vec![0.0; BINS] };
        survival.learn(&[0.0; BINS], prior, weight);
        survival
    }

    /// Whether the lists are as long as they are here: false for a state of another version.
    pub(crate) fn is_whole(&self) -> bool {
        self.returned.len() == BINS && self.index.len() == BINS
    }

    /// Somebody left.
    pub(crate) fn enter(&mut self) {
        self.entered += 1.0;
        if self.entered > ENTERED_MAX {
            self.entered /= 2.0;
            self.returned.iter_mut().for_each(|count| *count /= 2.0);
        }
    }

    /// Whoever left is not counted here after all.
    pub(crate) fn withdraw(&mut self) {
        self.entered = (self.entered - 1.0).max(0.0);
    }

    /// Somebody came back after so many times the forecast.
    pub(crate) fn come_back(&mut self, share: f64) {
        self.returned[bin(share)] += 1.0;
    }

    /// Makes the worth of what was counted; `away` are those who are still away, by the bin that they are in, and the
    /// prior stands for `weight` who entered.
    ///
    /// Cost: `BINS` squared.
    pub(crate) fn learn(&mut self, away: &[f64; BINS], prior: &[f64; BINS], weight: f64) {
        let mut at_risk = self.entered;
        let mut chances = [0.0; BINS];
        for (k, chance) in chances.iter_mut().enumerate() {
            // Who is in this bin has not come through it.
            at_risk = (at_risk - away[k]).max(0.0);
            *chance = ((self.returned[k] + weight * prior[k]) / (at_risk + weight)).min(CHANCE_MAX);
            at_risk = (at_risk - self.returned[k]).max(0.0);
        }
        for first in 0..BINS {
            let (mut stays, mut held, mut best) = (1.0, 0.0, 0.0f64);
            for (k, chance) in chances.iter().enumerate().take(BINS - 1).skip(first) {
                let returns = stays * chance;
                // Who comes back in a bin does so in the middle of it.
                held += (stays - returns / 2.0) * (edge(k + 1) - edge(k));
                stays -= returns;
                best = best.max((1.0 - stays) / held);
            }
            self.index[first] = best;
        }
    }

    /// Worth of a token held after so many times the forecast, by that time.
    pub(crate) fn worth(&self, share: f64) -> f64 {
        let k = bin(share).min(BINS - 2);
        let within = ((share - edge(k)) / (edge(k + 1) - edge(k))).clamp(0.0, 1.0);
        self.index[k] * (1.0 - within) + self.index[k + 1] * within
    }
}

/// The bin of a time.
pub(crate) fn bin(share: f64) -> usize {
    if share <= 0.0 {
        return 0;
    }
    ((share.ln() - FIRST) / WIDTH + 1.0).clamp(0.0, (BINS - 1) as f64) as usize
}

/// Where a bin begins.
fn edge(bin: usize) -> f64 {
    if bin == 0 { 0.0 } else { (FIRST + WIDTH * (bin - 1) as f64).exp() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIOR: [f64; BINS] = [0.05; BINS];

    fn learned(returns: &[f64], lost: usize) -> Survival {
        let mut survival = Survival::new(&PRIOR, 1.0);
        for _ in 0..returns.len() + lost {
            survival.enter();
        }
        returns.iter().for_each(|share| survival.come_back(*share));
        survival.learn(&[0.0; BINS], &PRIOR, 1.0);
        survival
    }

    #[test]
    fn bins_and_their_edges_agree() {
        for k in 1..BINS - 1 {
            assert_eq!((bin(edge(k) * 1.001), bin(edge(k + 1) * 0.999)), (k, k));
        }
        assert_eq!((bin(0.0), bin(-1.0), bin(f64::INFINITY)), (0, 0, BINS - 1));
    }

    #[test]
    fn who_is_about_to_come_back_is_worth_more_than_who_just_left() {
        let survival = learned(&[1.0; 200], 0);
        assert!(survival.worth(0.8) > 1.5 * survival.worth(0.01));
        assert!(survival.worth(0.8) > 10.0 * survival.worth(5.0), "and than who did not come");
    }

    #[test]
    fn who_often_never_comes_back_is_worth_less() {
        assert!(learned(&[1.0; 100], 0).worth(0.1) > 1.5 * learned(&[1.0; 100], 200).worth(0.1));
    }

    #[test]
    fn who_is_still_away_is_no_proof_that_they_never_come() {
        let (mut without, mut with) = (learned(&[3.0; 50], 0), learned(&[3.0; 50], 50));
        let mut away = [0.0; BINS];
        away[bin(0.1)] = 50.0;
        with.learn(&away, &PRIOR, 1.0);
        without.learn(&[0.0; BINS], &PRIOR, 1.0);
        assert!((with.worth(1.0) - without.worth(1.0)).abs() < 1e-9);
    }

    #[test]
    fn counts_stay_bounded() {
        let mut survival = Survival::new(&PRIOR, 1.0);
        for _ in 0..100_000 {
            survival.enter();
            survival.come_back(1.0);
        }
        assert!(survival.entered <= ENTERED_MAX);
        assert!(survival.returned.iter().sum::<f64>() <= survival.entered + 1.0);
    }
}
