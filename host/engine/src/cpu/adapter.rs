//! What adapters add to the products of a step.
//!
//! ```text
//! tokens of one adapter ─ bf16 ─ [A] ─ f32 ─ bf16 ─ [B] ─ f32 ─ added to the product of the model's own matrix
//! ```
//!
//! Tokens are gathered by adapter, so that an adapter's matrices are read once a step. Called by `forward.rs` for each
//! matrix that may be adapted.
//! **Invariant:** what is added to a token depends on that token and its adapter alone; a token without one is left alone.
#![allow(unsafe_code, reason = "threads write disjoint rows of shared buffers")]

use super::disjoint::Rows;
use super::forward::{Core, for_rows, stride};
use super::gemm::{Activations, Output, product};
use crate::AdapterId;
use crate::adapter::{Adapter, Site};
use crate::plan::StepPlan;

/// What is added to the rows of one product. Kept between steps.
#[derive(Default)]
pub(super) struct Deltas {
    /// Tokens of the step that have an adapter, by adapter.
    tokens: Vec<(AdapterId, usize)>,
    /// Activations of one adapter's tokens, bf16.
    a: Vec<u16>,
    /// `A` times them, [tokens, rank] f32, and the same in bf16.
    low: Vec<f32>,
    low_a: Vec<u16>,
    /// What is added, [placed, outputs] f32.
    sums: Vec<f32>,
    outputs: usize,
    /// Tokens to which a row of `sums` is added.
    placed: Vec<usize>,
    /// The row of `sums` of each token, if it has one; empty when none has.
    rows: Vec<Option<usize>>,
}

impl Deltas {
    /// Notes which tokens of a step have which adapter.
    pub(super) fn begin(&mut self, plan: &StepPlan<'_>) {
        self.tokens.clear();
        for row in plan.rows {
            let tokens = row.tokens.start as usize..row.tokens.end as usize;
            self.tokens.extend(
                row.adapter.into_iter().flat_map(|one| tokens.clone().map(move |token| (one, token))),
            );
        }
        self.tokens.sort_unstable();
    }

    /// Computes what is added to the product of `a` with a matrix of a layer.
    pub(super) fn compute(
        &mut self,
        core: &mut Core,
        adapters: &[Adapter],
        (layer, site): (usize, Site),
        a: Activations<'_>,
    ) {
        self.placed.clear();
        self.rows.clear();
        let Self { tokens, a: gathered, low, low_a, sums, outputs, placed, rows } = self;
        for tokens in tokens.chunk_by(|one, next| one.0 == next.0) {
            let Some(low_rank) = adapters[tokens[0].0.0 as usize].low_rank(layer, site) else { continue };
            let (inputs, rank) = (low_rank.a.cols, low_rank.a.rows);
            gathered.resize(tokens.len() * stride(inputs), 0);
            for ((_, token), out) in tokens.iter().zip(gathered.chunks_exact_mut(stride(inputs))) {
                out[..inputs].copy_from_slice(&a.values[token * a.stride..][..inputs]);
            }
            let own = Activations { values: gathered, stride: stride(inputs), rows: tokens.len() };
            low.resize(tokens.len() * rank, 0.0);
            product(core, &low_rank.a, own, &Output::Store(Rows::new(low, rank)));
            low_a.resize(tokens.len() * stride(rank), 0);
            for (low, out) in low.chunks_exact(rank).zip(low_a.chunks_exact_mut(stride(rank))) {
                (core.kernels.narrow)(low, &mut out[..rank]);
            }
            let own = Activations { values: low_a, stride: stride(rank), rows: tokens.len() };
            *outputs = low_rank.b.rows;
            sums.resize((placed.len() + tokens.len()) * *outputs, 0.0);
            let out = &mut sums[placed.len() * *outputs..];
            product(core, &low_rank.b, own, &Output::Store(Rows::new(out, *outputs)));
            placed.extend(tokens.iter().map(|(_, token)| *token));
        }
        if !placed.is_empty() {
            rows.resize(a.rows, None);
            placed.iter().enumerate().for_each(|(row, token)| rows[*token] = Some(row));
        }
    }

    /// What is added to a token, [outputs]; none when nothing is.
    pub(super) fn of(&self, token: usize) -> Option<&[f32]> {
        let row = (*self.rows.get(token)?)?;
        Some(&self.sums[row * self.outputs..][..self.outputs])
    }

    /// Adds to a product [tokens, outputs].
    pub(super) fn add_to(&self, core: &mut Core, product: &mut [f32]) {
        let Core { kernels, pool, .. } = core;
        let out = Rows::new(product, self.outputs);
        for_rows(pool, self.placed.len(), self.outputs * 2, &|row| {
            // SAFETY: tokens are apart, each is placed once, and each is written by one part.
            let out = unsafe { out.row(self.placed[row], 0, self.outputs) };
            (kernels.add)(&self.sums[row * self.outputs..][..self.outputs], out);
        });
    }
}
