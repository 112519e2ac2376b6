//! Drawing the next token from logits.
//!
//! The order is: logit bias, repetition penalty (prompt and output), presence and frequency penalties
//! (output), mask, temperature, top-k, top-p, min-p, draw. What is left stands in the order of token ids when it is
//! drawn from, so that every executor draws the same token from the same logits.
//! **Invariant:** a draw depends on the row's logits, its parameters, its tokens, its mask and nothing else, and
//! the mask allows what was drawn.

use std::cmp::Ordering;

use crate::digest::mix;
use crate::exp::exp;
use crate::{SampleSpec, Sampled, TokenLogprob, TokenMask};

/// Draws tokens; holds the memory that it takes.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    /// Logits before bias and penalties, kept when log-probabilities are asked for.
    raw: Vec<f32>,
    candidates: Vec<Candidate>,
    /// Which tokens a penalty has met; all false between draws.
    seen: Vec<bool>,
}

/// A token with its weight: its probability times an unknown factor, at most 1.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    weight: f32,
    token: u32,
}

impl Sampler {
    /// Draws one token; `logits` [vocab] f32 is used up.
    ///
    /// Cost: greedy reads the logits once; drawing takes about 2 ns a token id more, and sorting only
    /// those that top-p can reach.
    pub(crate) fn draw(&mut self, logits: &mut [f32], spec: &SampleSpec<'_>) -> Sampled {
        let params = spec.params;
        if params.logprobs.is_some() {
            self.raw.clear();
            self.raw.extend_from_slice(logits);
        }
        self.penalise(logits, spec);
        let token = if params.temperature > 0.0 {
            self.candidates_of(logits, spec);
            pick(&self.candidates, uniform(params.seed, spec.position.into()))
        } else {
            match spec.mask {
                None => greedy(logits.iter().copied().zip(0..)),
                Some(mask) => greedy(allowed(logits, mask)),
            }
        };
        let token = within(token, spec.mask, logits.len());
        match params.logprobs {
            None => Sampled { token, logprob: 0.0, top: Vec::new() },
            Some(count) => self.report(token, count),
        }
    }

    fn penalise(&mut self, logits: &mut [f32], spec: &SampleSpec<'_>) {
        let params = spec.params;
        for (token, bias) in &params.logit_bias {
            logits[*token as usize] += bias;
        }
        if params.repetition_penalty != 1.0 {
            self.for_each_distinct([spec.prompt, spec.output], logits.len(), |token| {
                let logit = &mut logits[token];
                let factor = params.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / factor } else { *logit * factor };
            });
        }
        if params.frequency_penalty != 0.0 {
            for token in spec.output {
                if let Some(logit) = logits.get_mut(*token as usize) {
                    *logit -= params.frequency_penalty;
                }
            }
        }
        if params.presence_penalty != 0.0 {
            self.for_each_distinct([spec.output, &[]], logits.len(), |token| {
                logits[token] -= params.presence_penalty
            });
        }
    }

    /// Calls `visit` once for each distinct token of `lists` below `vocab`.
    fn for_each_distinct(&mut self, lists: [&[u32]; 2], vocab: usize, mut visit: impl FnMut(usize)) {
        self.seen.resize(vocab, false);
        for token in lists.into_iter().flatten() {
            if let Some(seen) = self.seen.get_mut(*token as usize).filter(|seen| !**seen) {
                *seen = true;
                visit(*token as usize);
            }
        }
        for token in lists.into_iter().flatten() {
            if let Some(seen) = self.seen.get_mut(*token as usize) {
                *seen = false;
            }
        }
    }

    /// Fills `candidates` with the tokens that survive the cuts, in order; at least the most likely one does.
    fn candidates_of(&mut self, logits: &[f32], spec: &SampleSpec<'_>) {
        let params = spec.params;
        let max = match spec.mask {
            None => logits.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            Some(mask) => allowed(logits, mask).map(|(logit, _)| logit).fold(f32::NEG_INFINITY, f32::max),
        };
        let scale = 1.0 / params.temperature;
        let weigh =
            |(logit, token): (f32, u32)| Candidate { weight: exp(((logit - max) * scale).min(0.0)), token };
        self.candidates.clear();
        match spec.mask {
            None => self.candidates.extend(logits.iter().copied().zip(0..).map(weigh)),
            Some(mask) => self.candidates.extend(allowed(logits, mask).map(weigh)),
        }
        let kept = params.top_k as usize;
        let cut_by_count = kept > 0 && kept < self.candidates.len();
        if cut_by_count {
            self.candidates.select_nth_unstable_by(kept - 1, by_weight);
            self.candidates.truncate(kept);
        }
        if params.top_p < 1.0 {
            keep_top_p(&mut self.candidates, params.top_p);
        }
        if params.min_p > 0.0 {
            // The most likely token has weight 1, so its own share is the threshold.
            self.candidates.retain(|candidate| candidate.weight >= params.min_p.min(1.0));
        }
        if cut_by_count || params.top_p < 1.0 {
            self.candidates.sort_unstable_by_key(|candidate| candidate.token);
        }
    }

    /// Log-probabilities under the unscaled model distribution, without mask: of `token`, and the `count` largest.
    fn report(&mut self, token: u32, count: u32) -> Sampled {
        let max = self.raw.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = self.raw.iter().map(|logit| f64::from(exp(logit - max))).sum();
        let norm = f64::from(max) + sum.ln();
        let logprob = |logit: f32| (f64::from(logit) - norm) as f32;
        self.candidates.clear();
        let all = self.raw.iter().enumerate();
        self.candidates.extend(all.map(|(token, logit)| Candidate { weight: *logit, token: token as u32 }));
        let count = (count as usize).min(self.candidates.len());
        if count > 0 && count < self.candidates.len() {
            self.candidates.select_nth_unstable_by(count - 1, by_weight);
        }
        self.candidates.truncate(count);
        self.candidates.sort_unstable_by(by_weight);
        let top = self.candidates.iter();
        let top = top.map(|c| TokenLogprob { token: c.token, logprob: logprob(c.weight) }).collect();
        Sampled { token, logprob: logprob(self.raw[token as usize]), top }
    }
}

/// The most likely first; equal ones by token id.
fn by_weight(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token))
}

/// The logits of the tokens that a mask allows.
fn allowed<'a>(logits: &'a [f32], mask: TokenMask<'a>) -> impl Iterator<Item = (f32, u32)> + 'a {
    mask.tokens(logits.len() as u32).map(|token| (logits[token as usize], token))
}

/// The token, if the mask allows it; a model whose allowed logits are all broken numbers gets the first allowed one.
fn within(token: u32, mask: Option<TokenMask<'_>>, vocab: usize) -> u32 {
    let Some(mask) = mask.filter(|mask| !mask.allows(token)) else { return token };
    mask.tokens(vocab as u32).next().expect("a plan whose mask allows no token was refused")
}

/// The largest logit; of equal ones, the lowest id.
fn greedy(logits: impl Iterator<Item = (f32, u32)>) -> u32 {
    let mut best = (f32::NEG_INFINITY, 0);
    for (logit, token) in logits {
        if logit > best.0 {
            best = (logit, token);
        }
    }
    best.1
}

/// Keeps the fewest most likely candidates whose share reaches `top_p`. Source: arXiv 1904.09751.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f32) {
    let target = total(candidates) * f64::from(top_p);
    // Sorting a whole vocabulary costs more than the model's last layer. Candidates above a threshold
    // that reach the target alone contain the answer, because all others are less likely.
    for threshold in [1e-2, 1e-4, 1e-6] {
        let above: f64 =
            candidates.iter().filter(|c| c.weight >= threshold).map(|c| f64::from(c.weight)).sum();
        if above >= target {
            candidates.retain(|candidate| candidate.weight >= threshold);
            break;
        }
    }
    candidates.sort_unstable_by(by_weight);
    let mut mass = 0.0;
    let reached = candidates.iter().position(|candidate| {
        mass += f64::from(candidate.weight);
        mass >= target
    });
    candidates.truncate(reached.map_or(candidates.len(), |last| last + 1));
}

fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
}

/// The candidate at share `uniform` of the total weight, in the order in which they stand.
fn pick(candidates: &[Candidate], uniform: f64) -> u32 {
    let mut left = uniform * total(candidates);
    for candidate in candidates {
        left -= f64::from(candidate.weight);
        if left < 0.0 {
            return candidate.token;
        }
    }
    // Rounding can leave a crumb; the last candidate with weight takes it.
    candidates.iter().rev().find(|candidate| candidate.weight > 0.0).map_or(0, |candidate| candidate.token)
}

/// The random number in [0, 1) of a seed and a position: 53 bits of two rounds of the splitmix64
/// finaliser over both. It depends on nothing else, so that a sequence draws the same tokens in every
/// batch, after every preemption and on every machine.
fn uniform(seed: u64, position: u64) -> f64 {
    uniform_bits(seed, position) as f64 / (1u64 << 53) as f64
}

/// The same, times 2^53.
pub(crate) fn uniform_bits(seed: u64, position: u64) -> u64 {
    let key = mix(seed ^ 0x9e37_79b9_7f4a_7c15);
    mix(key.wrapping_add(position.wrapping_mul(0xd1b5_4a32_d192_ed03))) >> 11
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::SamplingParams;

    fn spec<'a>(params: &'a SamplingParams, position: u32, mask: Option<TokenMask<'a>>) -> SampleSpec<'a> {
        SampleSpec { params, position, prompt: &[], output: &[], mask }
    }

    fn draw(logits: &[f32], position: u32, params: &SamplingParams) -> Sampled {
        Sampler::default().draw(&mut logits.to_vec(), &spec(params, position, None))
    }

    fn draw_masked(logits: &[f32], mask: &[u32], params: &SamplingParams) -> Sampled {
        let spec = spec(params, 1, Some(TokenMask(mask)));
        Sampler::default().draw(&mut logits.to_vec(), &spec)
    }

    fn survivors(logits: &[f32], params: &SamplingParams) -> Vec<u32> {
        let mut sampler = Sampler::default();
        sampler.candidates_of(logits, &spec(params, 1, None));
        let tokens: Vec<u32> = sampler.candidates.iter().map(|c| c.token).collect();
        assert!(tokens.is_sorted(), "whatever is cut, tokens are drawn from in their order");
        tokens
    }

    fn softmax(logits: &[f32], temperature: f32) -> Vec<f64> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f64> =
            logits.iter().map(|l| (f64::from(l - max) / f64::from(temperature)).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|w| w / sum).collect()
    }

    /// Chi-square of 20,000 draws, one for each position, against exact probabilities.
    fn check_draws(params: &SamplingParams, logits: &[f32], expected: &[f64]) {
        const DRAWS: usize = 20_000;
        let mut counts = vec![0usize; logits.len()];
        for position in 0..DRAWS as u32 {
            counts[draw(logits, position, params).token as usize] += 1;
        }
        let mut chi = 0.0;
        let mut freedom = 0.0;
        for (count, share) in counts.iter().zip(expected) {
            if *share == 0.0 {
                assert_eq!(*count, 0);
                continue;
            }
            let mean = share * DRAWS as f64;
            chi += (*count as f64 - mean).powi(2) / mean;
            freedom += 1.0;
        }
        // Mean freedom - 1, variance twice that: 4 standard deviations.
        let freedom: f64 = freedom - 1.0;
        assert!(chi < freedom + 4.0 * (2.0 * freedom).sqrt(), "chi square {chi} with {freedom} degrees");
    }

    const LOGITS: [f32; 8] = [1.0, 0.5, 2.0, -1.0, 0.0, 1.5, -0.5, 0.25];

    #[test]
    fn draws_follow_the_softmax() {
        for (seed, temperature) in [(1, 1.0), (2, 0.5), (3, 2.0)] {
            let params = SamplingParams { seed, temperature, ..Default::default() };
            check_draws(&params, &LOGITS, &softmax(&LOGITS, temperature));
        }
    }

    #[test]
    fn draws_after_cuts_follow_the_renormalised_softmax() {
        let params = SamplingParams { seed: 7, top_k: 3, ..Default::default() };
        let mut expected = softmax(&LOGITS, 1.0);
        for token in [1, 3, 4, 6, 7] {
            expected[token] = 0.0;
        }
        let sum: f64 = expected.iter().sum();
        expected.iter_mut().for_each(|share| *share /= sum);
        check_draws(&params, &LOGITS, &expected);
    }

    #[test]
    fn random_numbers_of_neighbouring_seeds_and_positions_are_uniform() {
        let mut bins = [0usize; 64];
        for seed in 0..100 {
            for position in 0..1000 {
                bins[(uniform(seed, position) * 64.0) as usize] += 1;
            }
        }
        let mean = 100_000.0 / 64.0;
        let chi: f64 = bins.iter().map(|count| (*count as f64 - mean).powi(2) / mean).sum();
        assert!(chi < 63.0 + 4.0 * (2.0f64 * 63.0).sqrt(), "chi square {chi}");
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        let params = SamplingParams { temperature: 0.0, ..Default::default() };
        assert_eq!(draw(&[1.0, 3.0, 3.0], 0, &params).token, 1);
    }

    #[test]
    fn a_bias_can_force_and_forbid() {
        let params = |bias| SamplingParams { temperature: 0.0, logit_bias: bias, ..Default::default() };
        assert_eq!(draw(&LOGITS, 0, &params(vec![(3, 100.0)])).token, 3);
        assert_eq!(draw(&LOGITS, 0, &params(vec![(2, -100.0)])).token, 5);
    }

    #[test]
    fn penalties_count_what_they_say() {
        let spec = |params| {
            let mut logits = vec![2.0f32, -2.0, 2.0, 0.0];
            let (prompt, output) = (&[0, 0, 1], &[2, 2, 2]);
            let spec = SampleSpec { params: &params, position: 6, prompt, output, mask: None };
            Sampler::default().penalise(&mut logits, &spec);
            logits
        };
        let repetition = spec(SamplingParams { repetition_penalty: 2.0, ..Default::default() });
        assert_eq!(repetition, [1.0, -4.0, 1.0, 0.0]);
        let presence = spec(SamplingParams { presence_penalty: 0.5, ..Default::default() });
        assert_eq!(presence, [2.0, -2.0, 1.5, 0.0]);
        let frequency = spec(SamplingParams { frequency_penalty: 0.5, ..Default::default() });
        assert_eq!(frequency, [2.0, -2.0, 0.5, 0.0]);
    }

    #[test]
    fn logprobs_are_of_the_raw_distribution() {
        let params = SamplingParams {
            temperature: 0.0,
            logit_bias: vec![(3, 100.0)],
            logprobs: Some(2),
            ..Default::default()
        };
        let sampled = draw(&LOGITS, 0, &params);
        let exact = softmax(&LOGITS, 1.0);
        assert_eq!(sampled.token, 3);
        assert!((f64::from(sampled.logprob) - exact[3].ln()).abs() < 1e-5);
        assert_eq!(sampled.top.iter().map(|t| t.token).collect::<Vec<_>>(), [2, 5]);
        assert!((f64::from(sampled.top[0].logprob) - exact[2].ln()).abs() < 1e-5);
    }

    #[test]
    fn log_probabilities_do_not_know_the_mask() {
        let params = SamplingParams { temperature: 0.0, logprobs: Some(1), ..Default::default() };
        let sampled = draw_masked(&LOGITS, &[0b1001], &params);
        let exact = softmax(&LOGITS, 1.0);
        assert_eq!(sampled.token, 0);
        assert!((f64::from(sampled.logprob) - exact[0].ln()).abs() < 1e-5);
        assert_eq!(sampled.top[0].token, 2);
    }

    #[test]
    fn a_bias_cannot_lift_what_the_mask_forbids() {
        let params = SamplingParams { logit_bias: vec![(2, 100.0)], ..Default::default() };
        assert_eq!(draw_masked(&LOGITS, &[0b1000], &params).token, 3);
    }

    #[test]
    fn broken_logits_draw_an_allowed_token() {
        for (logits, temperature) in [(f32::NAN, 0.0), (f32::NAN, 1.0), (f32::NEG_INFINITY, 0.0)] {
            let params = SamplingParams { temperature, ..Default::default() };
            assert_eq!(draw_masked(&[logits; 8], &[0b10_0000], &params).token, 5);
        }
    }

    #[test]
    fn draws_within_a_mask_follow_the_renormalised_softmax() {
        let params = |seed| SamplingParams { seed, ..Default::default() };
        let drawn =
            (0..20_000).filter(|seed| draw_masked(&LOGITS, &[0b11], &params(*seed)).token == 0).count();
        let exact = softmax(&LOGITS[..2], 1.0)[0];
        assert!((drawn as f64 / 20_000.0 - exact).abs() < 0.02, "{drawn} of 20000, not {exact}");
    }

    proptest! {
        /// Whatever the parameters, the mask allows what is drawn.
        #[test]
        fn the_mask_allows_what_is_drawn(
            logits in vec(-30.0f32..30.0, 1..100), words in vec(any::<u32>(), 1..5), temperature in 0.0f32..3.0,
            (top_p, top_k, min_p) in (0.0f32..1.0, 0u32..100, 0.0f32..1.0), seed in any::<u64>()
        ) {
            let mask = TokenMask(&words);
            prop_assume!(mask.tokens(logits.len() as u32).next().is_some());
            let params = SamplingParams { temperature, top_p, top_k, min_p, seed, ..Default::default() };
            prop_assert!(mask.allows(draw_masked(&logits, &words, &params).token));
        }

        /// The kept set reaches top-p, and would not without its least likely member.
        #[test]
        fn top_p_keeps_the_smallest_set_that_reaches_it(
            logits in vec(-12.0f32..4.0, 1..200), top_p in 0.01f32..0.999
        ) {
            let params = SamplingParams { top_p, ..Default::default() };
            let shares = softmax(&logits, 1.0);
            let kept: Vec<f64> = survivors(&logits, &params).iter().map(|t| shares[*t as usize]).collect();
            let mass: f64 = kept.iter().sum();
            let least = kept.iter().copied().fold(f64::INFINITY, f64::min);
            prop_assert!(mass >= f64::from(top_p) - 1e-5);
            prop_assert!(mass - least < f64::from(top_p) + 1e-5);
        }

        #[test]
        fn top_k_keeps_the_k_largest(logits in vec(-9.0f32..9.0, 1..100), top_k in 1u32..100) {
            let params = SamplingParams { top_k, ..Default::default() };
            let mut order: Vec<u32> = (0..logits.len() as u32).collect();
            order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            order.truncate(top_k as usize);
            let kept = survivors(&logits, &params);
            let least = |tokens: &[u32]| {
                tokens.iter().map(|t| logits[*t as usize]).fold(f32::INFINITY, f32::min)
            };
            prop_assert_eq!(kept.len(), order.len());
            // Two logits may round to one weight.
            prop_assert!((least(&kept) - least(&order)).abs() < 1e-5);
        }

        #[test]
        fn min_p_keeps_exactly_what_is_likely_enough(
            logits in vec(-9.0f32..9.0, 1..100), min_p in 0.001f32..1.0
        ) {
            let params = SamplingParams { min_p, ..Default::default() };
            let shares = softmax(&logits, 1.0);
            let most = shares.iter().copied().fold(0.0, f64::max);
            let kept = survivors(&logits, &params);
            for (token, share) in shares.iter().enumerate() {
                let ratio = share / most / f64::from(min_p);
                if (ratio - 1.0).abs() > 1e-4 {
                    prop_assert_eq!(kept.contains(&(token as u32)), ratio > 1.0);
                }
            }
        }

        /// Whatever the parameters, a token is drawn that the cuts kept, twice the same.
        #[test]
        fn draws_repeat_and_stay_within_the_cuts(
            logits in vec(-30.0f32..30.0, 1..80), temperature in 0.01f32..5.0, top_p in 0.0f32..1.0,
            top_k in 0u32..100, min_p in 0.0f32..1.0, seed in any::<u64>()
        ) {
            let params = SamplingParams { temperature, top_p, top_k, min_p, seed, ..Default::default() };
            let first = draw(&logits, 0, &params).token;
            prop_assert_eq!(first, draw(&logits, 0, &params).token);
            prop_assert!(survivors(&logits, &params).contains(&first));
        }
    }
}
