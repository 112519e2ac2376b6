//! Causal attention over KV pages.
//!
//! The queries of a few tokens that share a KV head form one matrix. Keys are taken 128 at a time,
//! counted from position 0, packed from their pages as panels, and multiplied like weights:
//!
//! ```text
//! queries [tokens x group, head_dim] x keys^T -> scores [.., 128] -> weights bf16 [.., 128]
//! weights [.., 128] x values [128, head_dim] -> added to out [.., head_dim], rescaled
//! ```
//!
//! A layer with a window starts at the tile that holds the oldest key any of its queries sees.
//!
//! **Invariant:** a token's result depends on its position and the KV before it, not on the batch, the
//! chunk or the page size: tiles start at fixed positions, and masked keys add exactly zero.
#![allow(unsafe_code, reason = "keys and values are read through page pointers")]

use std::ops::Range;

use kv::PageIdx;

use super::disjoint::Rows;
use super::kernels::{Gather, Kernels, Softmax, Tile};
use crate::pack::PANEL;

/// Keys taken at once, in panels.
const KEY_PANELS: usize = 4;
/// Keys taken at once.
const KEYS: usize = KEY_PANELS * PANEL;
/// Values from one row of weights to the next, as [`query_stride`].
const WEIGHTS_STRIDE: usize = KEYS + PANEL;
/// Queries (tokens times heads of a group) computed together: enough to hide the packing of keys, few
/// enough that scores stay in the second-level cache.
const QUERIES_MAX: usize = 96;

/// Attention of some tokens of one row, for one KV head.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// Their place in the batch.
    pub(crate) tokens: Range<usize>,
    /// Position of the first.
    pub(crate) position: usize,
    /// The row's page table, a range of the plan's pages.
    pub(crate) pages: Range<usize>,
    pub(crate) kv_head: usize,
}

/// What all items of a layer share.
pub(crate) struct Layer<'a> {
    pub(crate) kernels: &'a Kernels,
    pub(crate) heads: Heads,
    /// KV of all pages, and the page table.
    pub(crate) kv: &'a [u16],
    pub(crate) pages: &'a [PageIdx],
    pub(crate) layout: Layout,
    pub(crate) layer: usize,
    /// Queries [tokens, heads, head_dim] bf16.
    pub(crate) queries: &'a [u16],
    pub(crate) rule: Rule<'a>,
}

/// What a layer's scores mean.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule<'a> {
    /// Factor of every score.
    pub(crate) scale: f32,
    /// Keys that a token sees, its own included; `usize::MAX` for all before it.
    pub(crate) window: usize,
    /// For each query head a score without a value, which takes its share of the softmax; or none.
    pub(crate) sinks: &'a [f32],
}

impl Rule<'_> {
    /// The oldest position that a token at `position` sees.
    fn oldest(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window)
    }
}

/// Heads of a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// Places in `[page][layer][K|V][kv_head][slot][head_dim]`, in values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) block_tokens: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) page: usize,
}

impl Layout {
    /// Where the vector of a KV head stands for slot 0 of a page; `value` is 0 for K and 1 for V.
    pub(crate) fn head(&self, page: PageIdx, layer: usize, value: usize, kv_head: usize) -> usize {
        let tile = (layer * 2 + value) * self.kv_heads + kv_head;
        page.0 as usize * self.page + tile * self.block_tokens * self.head_dim
    }
}

/// Memory one thread needs, kept between steps.
#[derive(Default)]
pub(crate) struct Scratch {
    queries: Vec<u16>,
    keys: Vec<u16>,
    values: Vec<u16>,
    scores: Vec<f32>,
    weights: Vec<u16>,
    part: Vec<f32>,
    sums: Vec<f32>,
    states: Vec<Softmax>,
    keep: Vec<f32>,
}

impl Scratch {
    fn prepare(&mut self, queries: usize, head_dim: usize) {
        let width = head_dim.next_multiple_of(PANEL);
        self.queries.resize(queries * query_stride(head_dim), 0);
        self.keys.resize(KEYS * head_dim, 0);
        self.values.resize(KEYS * width, 0);
        self.scores.resize(queries * KEYS, 0.0);
        self.weights.resize(queries * WEIGHTS_STRIDE, 0);
        self.part.resize(queries * width, 0.0);
        self.keep.resize(queries, 0.0);
        self.sums.clear();
        self.sums.resize(queries * width, 0.0);
        self.states.clear();
        self.states.resize(queries, Softmax { max: f32::NEG_INFINITY, sum: 0.0 });
    }

    /// Begins every softmax with the sink of its head, as if it were a first key whose value is zero.
    fn begin_with_sinks(&mut self, sinks: &[f32]) {
        for group in self.states.chunks_exact_mut(sinks.len()) {
            for (state, sink) in group.iter_mut().zip(sinks) {
                *state = Softmax { max: *sink, sum: 1.0 };
            }
        }
    }
}

/// Values from one packed query to the next; one cache line more than it needs, so that rows of a
/// power of two do not fall on the same cache sets.
fn query_stride(head_dim: usize) -> usize {
    head_dim + PANEL
}

/// Multiplies a matrix of any size, tile by tile.
fn multiply(kernels: &Kernels, t: Tile<'_>) {
    let rows_step = t.rows.div_ceil(t.rows.div_ceil(kernels.rows_max));
    let mut panel = 0;
    while panel < t.panels {
        let panels = kernels.panels_step(rows_step, t.panels - panel);
        for row in (0..t.rows).step_by(rows_step) {
            (kernels.tile)(&mut Tile {
                a: &t.a[row * t.a_stride..],
                rows: rows_step.min(t.rows - row),
                b: &t.b[panel * t.pairs * PANEL * 2..],
                panels,
                c: &mut t.c[row * t.c_stride + panel * PANEL..],
                ..t
            });
        }
        panel += panels;
    }
}

/// Cuts a row's tokens into items, for every KV head.
pub(crate) fn items(heads: Heads, tokens: Range<usize>, position: usize, pages: Range<usize>) -> Vec<Item> {
    let step = (QUERIES_MAX / (heads.heads / heads.kv_heads)).max(1);
    let mut items = Vec::new();
    for first in tokens.clone().step_by(step) {
        for kv_head in 0..heads.kv_heads {
            items.push(Item {
                tokens: first..tokens.end.min(first + step),
                position: position + first - tokens.start,
                pages: pages.clone(),
                kv_head,
            });
        }
    }
    items
}

impl Item {
    /// Multiply-adds, about.
    pub(crate) fn macs(&self, heads: Heads, rule: Rule<'_>) -> usize {
        let queries = self.tokens.len() * heads.heads / heads.kv_heads;
        // Packing a key costs about as much as four queries.
        (queries + 4) * self.keys(rule).len() * heads.head_dim * 2
    }

    /// Positions of the keys that are read: whole tiles up to the last token.
    fn keys(&self, rule: Rule<'_>) -> Range<usize> {
        rule.oldest(self.position) / KEYS * KEYS..self.position + self.tokens.len()
    }

    /// Computes the item: writes its heads of its tokens to `out` [tokens, heads, head_dim] bf16.
    ///
    /// # Safety
    /// No other range of `out` that holds these heads of these tokens lives. KV of every position up
    /// to the last token is written, and nobody writes it meanwhile.
    pub(crate) unsafe fn attend(&self, layer: &Layer<'_>, scratch: &mut Scratch, out: &Rows<'_, u16>) {
        let Heads { heads, kv_heads, head_dim } = layer.heads;
        let group = heads / kv_heads;
        let queries = self.tokens.len() * group;
        let width = head_dim.next_multiple_of(PANEL);
        scratch.prepare(queries, head_dim);
        for (i, token) in self.tokens.clone().enumerate() {
            for g in 0..group {
                let from = (token * heads + self.kv_head * group + g) * head_dim;
                let to = (i * group + g) * query_stride(head_dim);
                scratch.queries[to..to + head_dim].copy_from_slice(&layer.queries[from..][..head_dim]);
            }
        }
        if !layer.rule.sinks.is_empty() {
            scratch.begin_with_sinks(&layer.rule.sinks[self.kv_head * group..][..group]);
        }
        let Range { start, end } = self.keys(layer.rule);
        self.prefetch(layer, start..end.min(start + KEYS));
        for first in (start..end).step_by(KEYS) {
            self.prefetch(layer, first + KEYS..end.min(first + 2 * KEYS));
            self.add_keys(layer, scratch, first..end.min(first + KEYS));
        }
        for (query, (sums, state)) in scratch.sums.chunks_exact(width).zip(&scratch.states).enumerate() {
            let token = self.tokens.start + query / group;
            let col = (self.kv_head * group + query % group) * head_dim;
            // SAFETY: by the caller's promise.
            let out = unsafe { out.row(token, col, head_dim) };
            (layer.kernels.scale_narrow)(&sums[..head_dim], 1.0 / state.sum, out);
        }
    }

    /// Adds the keys at `positions`, of one tile, to the softmax of every query.
    fn add_keys(&self, layer: &Layer<'_>, scratch: &mut Scratch, positions: Range<usize>) {
        let Heads { heads, kv_heads, head_dim } = layer.heads;
        let (group, kernels) = (heads / kv_heads, layer.kernels);
        let panels = positions.len().div_ceil(PANEL);
        let width = head_dim.next_multiple_of(PANEL);
        self.pack(layer, scratch, positions.clone());
        let queries = scratch.states.len();
        multiply(
            kernels,
            Tile {
                a: &scratch.queries,
                a_stride: query_stride(head_dim),
                rows: queries,
                b: &scratch.keys,
                panels,
                pairs: head_dim / 2,
                c: &mut scratch.scores,
                c_stride: KEYS,
            },
        );
        for (query, (state, keep)) in scratch.states.iter_mut().zip(&mut scratch.keep).enumerate() {
            let position = self.position + query / group;
            let live = (position + 1).saturating_sub(positions.start).min(positions.len());
            let scores = &mut scratch.scores[query * KEYS..][..panels * PANEL];
            let weights = &mut scratch.weights[query * WEIGHTS_STRIDE..][..panels * PANEL];
            let outside = layer.rule.oldest(position).saturating_sub(positions.start);
            let live = if outside < live { live } else { 0 };
            scores[..outside.min(live)].fill(f32::NEG_INFINITY);
            *keep = (kernels.softmax)(scores, live, layer.rule.scale, state, weights);
        }
        multiply(
            kernels,
            Tile {
                a: &scratch.weights,
                a_stride: WEIGHTS_STRIDE,
                rows: queries,
                b: &scratch.values,
                panels: width / PANEL,
                pairs: panels * PANEL / 2,
                c: &mut scratch.part,
                c_stride: width,
            },
        );
        let rows = scratch.part.chunks_exact(width).zip(scratch.sums.chunks_exact_mut(width));
        for ((part, sums), keep) in rows.zip(&scratch.keep) {
            (kernels.scale_add)(part, *keep, sums);
        }
    }

    /// Packs the keys and values at `positions` as panels: keys over `head_dim`, values over positions.
    fn pack(&self, layer: &Layer<'_>, scratch: &mut Scratch, positions: Range<usize>) {
        let head_dim = layer.heads.head_dim;
        let panels = positions.len().div_ceil(PANEL);
        for panel in 0..panels {
            let first = positions.start + panel * PANEL;
            let live = first..positions.end.min(first + PANEL);
            let (keys, values) = (self.gather(layer, 0, live.clone()), self.gather(layer, 1, live));
            let keys_out = &mut scratch.keys[panel * head_dim * PANEL..][..head_dim * PANEL];
            let values_out = &mut scratch.values[panel * PANEL * PANEL..];
            // SAFETY: `gather` gives null or a pointer to `head_dim` values within the KV slice.
            unsafe {
                (layer.kernels.pack_keys)(&keys, head_dim, keys_out);
                (layer.kernels.pack_values)(&values, head_dim, values_out, panels * PANEL * PANEL);
            }
        }
    }

    /// Asks for the keys and values at `positions`. Each page holds only a few lines of them, and its
    /// neighbours belong to other layers: hardware cannot guess where they go on.
    fn prefetch(&self, layer: &Layer<'_>, positions: Range<usize>) {
        for value in 0..2 {
            self.for_each_run(layer, value, positions.clone(), |run| (layer.kernels.prefetch)(run));
        }
    }

    /// Where the keys (or values) of up to 32 positions stand.
    fn gather(&self, layer: &Layer<'_>, value: usize, positions: Range<usize>) -> Gather {
        let mut gather = [std::ptr::null(); PANEL];
        let mut filled = 0;
        self.for_each_run(layer, value, positions, |run| {
            for vector in run.chunks_exact(layer.heads.head_dim) {
                gather[filled] = vector.as_ptr();
                filled += 1;
            }
        });
        gather
    }

    /// Visits the keys (or values) at `positions`, one run of neighbouring slots after another.
    fn for_each_run(
        &self,
        layer: &Layer<'_>,
        value: usize,
        positions: Range<usize>,
        mut visit: impl FnMut(&[u16]),
    ) {
        let Layout { block_tokens, head_dim, .. } = layer.layout;
        let mut position = positions.start;
        while position < positions.end {
            let (block, slot) = (position / block_tokens, position % block_tokens);
            let slots = (block_tokens - slot).min(positions.end - position);
            let page = layer.pages[self.pages.start + block];
            let at = layer.layout.head(page, layer.layer, value, self.kv_head) + slot * head_dim;
            visit(&layer.kv[at..at + slots * head_dim]);
            position += slots;
        }
    }
}
