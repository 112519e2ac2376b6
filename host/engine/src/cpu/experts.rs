//! Feed-forward layers whose tokens are computed by a few experts each.
//!
//! ```text
//! a token:    x ─ rmsnorm ─ f32 ─ [router] ─ scores ─ softmax ─ its best experts and their weights
//! an expert:  the tokens that chose it ─ bf16 ─ [gate, up] ─ gate ─ bf16 ─ [down] ─ x += weight times the result
//! ```
//!
//! Experts follow one another in the order of their index; each reads its weights once for all of its tokens.
//!
//! **Invariant:** a token's experts, and the order in which they are added, depend on that token alone.
#![allow(unsafe_code, reason = "threads write disjoint rows of shared buffers")]

use super::disjoint::{Disjoint, Rows};
use super::forward::{Buffers, Core, Pass, for_rows, stride};
use super::gemm::{Activations, Output, product};
use crate::exp::exp;
use crate::model::{FeedForward, Gated, Router};

/// Which experts compute which token. Kept between steps.
#[derive(Default)]
pub(super) struct Routes {
    /// Router input [tokens, hidden] f32.
    input: Vec<f32>,
    /// Scores [tokens, experts] f32.
    scores: Vec<f32>,
    /// Each token's experts and their weights [tokens, active].
    chosen: Vec<(usize, f32)>,
    /// The tokens of one expert, and their weights.
    tokens: Vec<(usize, f32)>,
    /// The activations of those tokens, bf16, as the step's own.
    a: Vec<u16>,
}

impl Pass<'_> {
    /// Adds to the residual stream what each token's experts make of it; `buffers.a` holds the normed input.
    pub(super) fn experts(
        &self,
        core: &mut Core,
        buffers: &mut Buffers,
        router: &Router,
        layer: &FeedForward,
    ) {
        assert!(layer.norm_out.is_none(), "no family norms what its experts add");
        self.choose(core, buffers, router, layer.norm_in.as_deref());
        for (index, expert) in layer.gated.iter().enumerate() {
            self.expert(core, buffers, (index, expert));
        }
    }

    /// Finds the experts of every token.
    fn choose(&self, core: &mut Core, buffers: &mut Buffers, router: &Router, norm: Option<&[f32]>) {
        let config = &self.model.config;
        let Some(experts) = config.experts else { unreachable!("a router comes with experts") };
        let (hidden, tokens) = (config.hidden, self.plan.tokens.len());
        let Routes { input, scores, chosen, .. } = &mut buffers.routes;
        input.resize(tokens * hidden, 0.0);
        scores.resize(tokens * experts.count, 0.0);
        chosen.resize(tokens * experts.active, (0, 0.0));
        let (x, inputs) = (&buffers.x, Rows::new(input, hidden));
        let (all_scores, all_chosen) = (Rows::new(scores, experts.count), Disjoint::new(chosen));
        let Core { kernels, pool, .. } = core;
        for_rows(pool, tokens, hidden * (experts.count + 4), &|token| {
            // SAFETY: tokens are apart in all three, and each is written by one part.
            let (input, scores, chosen) = unsafe {
                (
                    inputs.row(token, 0, hidden),
                    all_scores.row(token, 0, experts.count),
                    all_chosen.range(token * experts.active, experts.active),
                )
            };
            input.copy_from_slice(&x[token * hidden..][..hidden]);
            if let Some(norm) = norm {
                (kernels.rmsnorm_head)(input, norm, config.norm_eps);
            }
            for (score, weights) in scores.iter_mut().zip(router.weights.chunks_exact(hidden)) {
                *score = (kernels.sum_products)(input, weights);
            }
            if !router.bias.is_empty() {
                (kernels.add)(&router.bias, scores);
            }
            choose_best(scores, experts.normalized, chosen);
        });
    }

    /// Computes the tokens of one expert, and adds its results.
    fn expert(&self, core: &mut Core, buffers: &mut Buffers, (index, expert): (usize, &Gated)) {
        let config = &self.model.config;
        let Some(experts) = config.experts else { unreachable!("a router comes with experts") };
        let hidden = config.hidden;
        let Routes { chosen, tokens, a, .. } = &mut buffers.routes;
        tokens.clear();
        for (token, chosen) in chosen.chunks_exact(experts.active).enumerate() {
            tokens.extend(chosen.iter().filter(|(one, _)| *one == index).map(|(_, weight)| (token, *weight)));
        }
        if tokens.is_empty() {
            return;
        }
        a.resize(tokens.len() * stride(hidden), 0);
        for ((token, _), a) in tokens.iter().zip(a.chunks_exact_mut(stride(hidden))) {
            a.copy_from_slice(&buffers.a[token * stride(hidden)..][..stride(hidden)]);
        }
        let a = Activations { values: a, stride: stride(hidden), rows: tokens.len() };
        product(core, &expert.gate_up, a, &self.gated_output(core, expert, &mut buffers.gated, None));
        let a = Activations { values: &buffers.gated, stride: stride(config.ffn), rows: tokens.len() };
        product(core, &expert.down, a, &Output::Store(Rows::new(&mut buffers.branch, hidden)));
        let (x, sums) = (Rows::new(&mut buffers.x, hidden), Rows::new(&mut buffers.branch, hidden));
        let Core { kernels, pool, .. } = core;
        let tokens = &*tokens;
        for_rows(pool, tokens.len(), hidden * 4, &|row| {
            let (token, weight) = tokens[row];
            // SAFETY: rows are apart, a token chooses an expert once, and each is written by one part.
            let (x, sums) = unsafe { (x.row(token, 0, hidden), sums.row(row, 0, hidden)) };
            if !expert.down_bias.is_empty() {
                (kernels.add)(&expert.down_bias, sums);
            }
            (kernels.add_scaled)(sums, weight, x);
        });
    }
}

/// The best experts, the first of equal ones, in the order of their index; weights are their shares in the softmax of
/// all scores, or of theirs alone when `normalized`. Overwrites `scores`.
fn choose_best(scores: &mut [f32], normalized: bool, chosen: &mut [(usize, f32)]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = exp(*score - max));
    let all: f32 = scores.iter().sum();
    let mut sum = 0.0;
    for chosen in chosen.iter_mut() {
        let mut best = 0;
        for (index, score) in scores.iter().enumerate() {
            if *score > scores[best] {
                best = index;
            }
        }
        *chosen = (best, scores[best]);
        sum += scores[best];
        // Below every share, so that an expert is chosen once.
        scores[best] = -1.0;
    }
    let divisor = if normalized { sum } else { all };
    chosen.iter_mut().for_each(|(_, weight)| *weight /= divisor);
    chosen.sort_unstable_by_key(|(index, _)| *index);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(scores: &[f32], normalized: bool, expected: &[(usize, f32)]) {
        let mut chosen = vec![(0, 0.0); expected.len()];
        choose_best(&mut scores.to_vec(), normalized, &mut chosen);
        for ((index, weight), (expected_index, expected)) in chosen.iter().zip(expected) {
            assert_eq!(index, expected_index);
            assert!((weight - expected).abs() < 1e-6, "{weight}, not {expected}");
        }
    }

    #[test]
    fn weights_are_shares_of_all_experts_or_of_the_chosen() {
        let scores = [1.0f32.ln(), 4.0f32.ln(), 2.0f32.ln(), 3.0f32.ln()];
        check(&scores, false, &[(1, 0.4), (3, 0.3)]);
        check(&scores, true, &[(1, 4.0 / 7.0), (3, 3.0 / 7.0)]);
    }

    #[test]
    fn of_equal_experts_the_first_are_chosen_once_each() {
        check(&[-100.0, 2.0, 2.0, 2.0], true, &[(1, 0.5), (2, 0.5)]);
        check(&[5.0, -200.0, -200.0], true, &[(0, 1.0), (1, 0.0)]);
    }
}
