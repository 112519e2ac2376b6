//! Whether a draft model's guesses save more than they cost, by how often they are right and by how long steps take.
//!
//! A guess is worth the time of the token that it saves, times the chance that it and all before it are right. Its price
//! is its share of a step of the draft model, and one more token in the step of the served model. Both are learned.
//! **Invariant:** what is decided here changes when tokens come, and never which.

use std::time::Duration;

/// Share of the last trial in what one sequence's guesses are believed to be worth. Chosen: a text changes its kind within
/// tens of tokens.
const TRIAL_WEIGHT: f64 = 0.125;
/// The same for the guesses of all, which a sequence begins with.
const TRIAL_WEIGHT_OF_ALL: f64 = 1.0 / 64.0;
/// How often guesses are believed to be right until there were some. Chosen: to begin with, they are tried.
const RIGHT_AT_FIRST: f64 = 0.8;
/// What a step counts for after one more. Chosen: contexts grow and machines get busy within hundreds of steps.
const STEP_MEMORY: f64 = 1.0 - 1.0 / 128.0;
/// Steps after which times are believed.
const STEPS_MIN: f64 = 6.0;
/// Most guesses in a row that are weighed ahead. Chosen: those behind them are worth little.
const AHEAD_MAX: i32 = 8;

/// How often guesses are right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share(f64);

impl Default for Share {
    fn default() -> Self {
        Self(RIGHT_AT_FIRST)
    }
}

impl Share {
    /// Learns that the first `right` of some guesses were right. Those behind a wrong one were not looked at.
    pub(super) fn note(&mut self, guesses: usize, right: usize) {
        self.learn(guesses, right, TRIAL_WEIGHT);
    }

    /// The same where many sequences tell.
    pub(super) fn note_of_many(&mut self, guesses: usize, right: usize) {
        self.learn(guesses, right, TRIAL_WEIGHT_OF_ALL);
    }

    fn learn(&mut self, guesses: usize, right: usize, weight: f64) {
        for trial in 0..guesses.min(right + 1) {
            let was_right = if trial < right { 1.0 } else { 0.0 };
            self.0 += (was_right - self.0) * weight;
        }
    }

    /// The chance that a guess and the `before` ones before it are right.
    pub(super) fn chance(self, before: usize) -> f64 {
        self.0.powi(before as i32 + 1)
    }
}

/// Seconds of a step by its tokens: a fixed part and one for each, by least squares over steps that fade.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    steps: f64,
    tokens: f64,
    tokens_squared: f64,
    seconds: f64,
    products: f64,
}

impl Line {
    fn note(&mut self, tokens: usize, took: Duration) {
        let (tokens, seconds) = (tokens as f64, took.as_secs_f64());
        let sums = [
            (&mut self.steps, 1.0),
            (&mut self.tokens, tokens),
            (&mut self.tokens_squared, tokens * tokens),
            (&mut self.seconds, seconds),
            (&mut self.products, tokens * seconds),
        ];
        for (sum, value) in sums {
            *sum = *sum * STEP_MEMORY + value;
        }
    }

    fn is_known(&self) -> bool {
        self.steps >= STEPS_MIN
    }

    /// Seconds of one more token. Where all steps had as many tokens, none.
    fn each(&self) -> f64 {
        let spread = self.steps * self.tokens_squared - self.tokens * self.tokens;
        // Rounding leaves a crumb where there is no spread.
        if spread <= 1e-9 * self.tokens_squared * self.steps {
            return 0.0;
        }
        let each = (self.steps * self.products - self.tokens * self.seconds) / spread;
        // No step takes less than nothing, whatever the few that differ say.
        each.clamp(0.0, self.seconds / self.tokens)
    }

    /// Seconds of a step of so many tokens.
    fn of(&self, tokens: usize) -> f64 {
        let each = self.each();
        let fixed = (self.seconds - each * self.tokens) / self.steps.max(1.0);
        fixed + each * tokens as f64
    }
}

/// What steps of both models take.
#[derive(Debug, Default)]
pub(super) struct Prices {
    served: Line,
    draft: Line,
}

impl Prices {
    /// Learns what a step of the served model took that computed no prompt.
    pub(super) fn served_took(&mut self, tokens: usize, took: Duration) {
        self.served.note(tokens, took);
    }

    /// Learns what a step of the draft model took.
    pub(super) fn draft_took(&mut self, tokens: usize, took: Duration) {
        self.draft.note(tokens, took);
    }

    /// Until both are known, everything is worth its price.
    fn are_known(&self) -> bool {
        self.served.is_known() && self.draft.is_known()
    }

    /// Which guesses with these chances are worth one more step of the draft model, in a step of `rows` sequences; nobody's
    /// or those of a few.
    pub(super) fn worth(&self, chances: &[f64], rows: usize) -> Vec<bool> {
        if !self.are_known() {
            return vec![true; chances.len()];
        }
        let rows = rows.max(1);
        let token = self.served.of(rows) / rows as f64;
        let own = self.draft.each() + self.served.each();
        let worth: Vec<bool> = chances.iter().map(|chance| chance * token >= own).collect();
        let saved: f64 = chances
            .iter()
            .zip(&worth)
            .filter(|(_, worth)| **worth)
            .map(|(chance, _)| chance * token - own)
            .sum();
        match saved >= self.draft.of(0) {
            true => worth,
            false => vec![false; chances.len()],
        }
    }

    /// Whether a sequence that goes on for `tokens` more would save what computing `missing` tokens of it costs.
    pub(super) fn worth_catching_up(&self, share: Share, missing: usize, tokens: usize) -> bool {
        if !self.are_known() {
            return true;
        }
        tokens as f64 * self.served.of(1) * self.saved(share) >= self.draft.of(missing)
    }

    /// The part of its time that a sequence alone saves at best.
    fn saved(&self, share: Share) -> f64 {
        let one = self.served.of(1);
        if one <= 0.0 {
            return 0.0;
        }
        let mut tokens = 1.0;
        let mut best = 0.0f64;
        for guesses in 1..=AHEAD_MAX {
            tokens += share.chance(guesses as usize - 1);
            let seconds = self.served.of(1 + guesses as usize) + f64::from(guesses) * self.draft.of(1);
            best = best.max(1.0 - seconds / (tokens * one));
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: f64) -> Duration {
        Duration::from_nanos((ms * 1e6) as u64)
    }

    /// The served model takes 20 ms and 1 ms a token, the draft `draft` ms a step.
    fn prices(draft: f64) -> Prices {
        let mut prices = Prices::default();
        for step in 0..40 {
            let tokens = 1 + step % 8;
            prices.served_took(tokens, ms(19.0 + tokens as f64));
            prices.draft_took(1, ms(draft));
        }
        prices
    }

    #[test]
    fn a_line_is_found_through_steps_and_followed_when_it_changes() {
        let mut line = Line::default();
        (0..50).for_each(|step| line.note(1 + step % 5, ms(10.0 + 2.0 * (1 + step % 5) as f64)));
        assert!((line.of(3) - 0.016).abs() < 1e-6 && (line.each() - 0.002).abs() < 1e-6, "{line:?}");
        (0..1500).for_each(|_| line.note(4, ms(50.0)));
        assert!((line.of(4) - 0.05).abs() < 1e-4, "{}", line.of(4));
        let mut flat = Line::default();
        (0..50).for_each(|_| flat.note(3, ms(5.0)));
        assert_eq!(flat.each(), 0.0);
        assert!((flat.of(9) - 0.005).abs() < 1e-6, "one size says nothing about others");
    }

    #[test]
    fn guesses_are_worth_it_when_they_are_right_often_enough_for_their_price() {
        assert_eq!(Prices::default().worth(&[0.01], 1), [true], "nothing is known");
        let cheap = prices(2.0);
        assert_eq!(cheap.worth(&[0.5], 1), [true]);
        assert_eq!(
            cheap.worth(&[0.1], 1),
            [false],
            "2 ms of 20 are not saved by a tenth, less than 3 at all"
        );
        assert_eq!(cheap.worth(&[0.5, 0.01], 2), [true, false], "one leaves alone what is never right");
        assert_eq!(prices(25.0).worth(&[1.0], 1), [false], "a draft that takes longer than the token");
        // Two that are worth too little each are worth a step together.
        assert_eq!(prices(9.0).worth(&[0.4, 0.4], 1), [true, true]);
        assert_eq!(prices(9.0).worth(&[0.4], 1), [false]);
    }

    #[test]
    fn a_long_prompt_is_caught_up_with_for_long_answers_only() {
        let prices = prices(2.0);
        assert!(prices.worth_catching_up(Share(0.9), 64, 10));
        let mut each = Prices { served: prices.served, draft: Line::default() };
        (0..40).for_each(|step| each.draft_took(1 + step % 64, ms(1.0 + 0.5 * (1 + step % 64) as f64)));
        assert!(!each.worth_catching_up(Share(0.9), 4000, 20), "2 s for 20 tokens of 20 ms");
        assert!(each.worth_catching_up(Share(0.9), 4000, 1000));
        assert!(!each.worth_catching_up(Share(0.05), 64, 100_000), "guesses that are never right");
    }

    #[test]
    fn what_was_right_is_learned_until_the_first_that_was_wrong() {
        let mut share = Share(0.5);
        share.note(4, 0);
        assert!((share.chance(0) - 0.4375).abs() < 1e-9, "three were not looked at");
        (0..100).for_each(|_| share.note(4, 4));
        assert!(share.chance(3) > 0.99);
        let mut all = Share(0.5);
        all.note_of_many(1, 1);
        assert!(all.chance(0) < 0.51);
    }
}
