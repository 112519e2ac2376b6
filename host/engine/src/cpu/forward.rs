//! One forward pass: from token ids to the logits of the rows that draw.
#![allow(unsafe_code, reason = "threads write disjoint rows and heads of shared buffers")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::attend::{self, Heads, Item, Layout};
use super::disjoint::{Disjoint, Rows};
use super::gemm::{Activations, INLINE_MACS_MAX, Output, Packing, product};
use super::kernels::Kernels;
use super::pool::Pool;
use crate::memory::Bf16Buf;
use crate::model::{Layer, Model};
use crate::pack::PANEL;
use crate::plan::StepPlan;
use crate::rope::fill_angles;

/// What a pass computes with, besides the model and the KV.
pub(super) struct Machine {
    pub(super) core: Core,
    pub(super) buffers: Buffers,
    /// One for each thread.
    pub(super) scratch: Vec<Mutex<attend::Scratch>>,
}

/// Compute functions, and the threads that call them.
pub(crate) struct Core {
    pub(crate) kernels: Kernels,
    pub(crate) pool: Pool,
    pub(crate) packing: Packing,
}

/// Activations of a step. They grow to the largest step and are kept.
#[derive(Default)]
pub(super) struct Buffers {
    /// Residual stream [tokens, hidden] f32.
    x: Vec<f32>,
    /// Input of the next product, bf16, rows `stride(width)` apart.
    a: Vec<u16>,
    /// Queries, keys, values [tokens, (heads + 2 kv_heads) head_dim] f32.
    qkv: Vec<f32>,
    /// Queries after rope [tokens, heads, head_dim] bf16.
    q: Vec<u16>,
    /// Gated values, bf16, rows `stride(ffn)` apart.
    gated: Vec<u16>,
    /// Cosines and sines [tokens, head_dim] f32.
    angles: Vec<f32>,
    /// Where each token's KV goes: its page table entry, and the slot there.
    slots: Vec<(kv::PageIdx, usize)>,
    /// Attention of all rows; the same in every layer.
    items: Vec<Item>,
    /// Logits of the rows that draw [samples, vocab] f32.
    pub(super) logits: Vec<f32>,
}

/// Values between rows of `width` activations: one cache line more than a multiple of one, so that
/// the rows of a tile do not fall on the same cache sets when `width` is a power of two.
fn stride(width: usize) -> usize {
    width.next_multiple_of(PANEL) + PANEL
}

/// The parts of one pass that do not change from layer to layer.
pub(super) struct Pass<'a> {
    pub(super) model: &'a Model,
    pub(super) plan: &'a StepPlan<'a>,
    pub(super) layout: Layout,
    pub(super) heads: Heads,
}

impl Pass<'_> {
    /// Computes the plan: writes KV of every token, and logits of every row that draws.
    ///
    /// The plan has been checked; see `CpuExec::submit`.
    pub(super) fn run(&self, machine: &mut Machine, kv: &mut Bf16Buf) {
        self.prepare(&mut machine.buffers);
        for (index, layer) in self.model.layers.iter().enumerate() {
            self.attention(machine, kv, index, layer);
            self.feed_forward(machine, layer);
        }
        self.logits(machine);
    }

    fn prepare(&self, buffers: &mut Buffers) {
        let config = &self.model.config;
        let tokens = self.plan.tokens.len();
        let (hidden, head_dim) = (config.hidden, config.head_dim);
        let widest = hidden.max(config.heads * head_dim);
        buffers.x.resize(tokens * hidden, 0.0);
        buffers.a.resize(tokens * stride(widest), 0);
        buffers.qkv.resize(tokens * (config.heads + 2 * config.kv_heads) * head_dim, 0.0);
        buffers.q.resize(tokens * config.heads * head_dim, 0);
        buffers.gated.resize(tokens * stride(config.ffn), 0);
        buffers.angles.resize(tokens * head_dim, 0.0);
        buffers.slots.clear();
        buffers.items.clear();
        for (token, x) in self.plan.tokens.iter().zip(buffers.x.chunks_exact_mut(hidden)) {
            self.model.embed.unpack_row(*token as usize, x);
        }
        let mut angles = buffers.angles.chunks_exact_mut(head_dim);
        for row in self.plan.rows {
            let pages = row.pages.start as usize..row.pages.end as usize;
            let tokens = row.tokens.start as usize..row.tokens.end as usize;
            for (position, angles) in (row.position..).zip(angles.by_ref().take(tokens.len())) {
                fill_angles(&self.model.frequencies, position, angles);
                let block = position as usize / self.layout.block_tokens;
                let page = self.plan.pages[pages.start + block];
                buffers.slots.push((page, position as usize % self.layout.block_tokens));
            }
            buffers.items.extend(attend::items(self.heads, tokens, row.position as usize, pages));
        }
    }

    /// `x += o(attention(rope(norm(qkv(norm(x))))))`; writes the layer's KV.
    fn attention(&self, machine: &mut Machine, kv: &mut Bf16Buf, index: usize, layer: &Layer) {
        let config = &self.model.config;
        let Machine { core, buffers, scratch } = machine;
        let tokens = self.plan.tokens.len();
        let (hidden, q_width) = (config.hidden, config.heads * config.head_dim);
        self.norm(core, &layer.attn_norm, &buffers.x, &mut buffers.a);
        let a = Activations { values: &buffers.a, stride: stride(hidden), rows: tokens };
        let qkv = Output::Store(Rows::new(&mut buffers.qkv, layer.qkv.rows));
        product(core, &layer.qkv, a, &qkv);
        self.rotate_and_store(core, (index, layer), buffers, kv);
        let shared = attend::Layer {
            kernels: &core.kernels,
            heads: self.heads,
            kv,
            pages: self.plan.pages,
            layout: self.layout,
            layer: index,
            queries: &buffers.q,
        };
        let out = Rows::new(&mut buffers.a, stride(q_width));
        attend_items(&mut core.pool, &shared, &buffers.items, scratch, &out);
        let a = Activations { values: &buffers.a, stride: stride(q_width), rows: tokens };
        product(core, &layer.o, a, &Output::Add(Rows::new(&mut buffers.x, hidden)));
    }

    /// `x += down(silu(gate(norm(x))) * up(norm(x)))`.
    fn feed_forward(&self, machine: &mut Machine, layer: &Layer) {
        let config = &self.model.config;
        let Machine { core, buffers, .. } = machine;
        let (tokens, hidden) = (self.plan.tokens.len(), config.hidden);
        self.norm(core, &layer.ffn_norm, &buffers.x, &mut buffers.a);
        let a = Activations { values: &buffers.a, stride: stride(hidden), rows: tokens };
        let gated = Output::SiluMul(Rows::new(&mut buffers.gated, stride(config.ffn)));
        product(core, &layer.gate_up, a, &gated);
        let a = Activations { values: &buffers.gated, stride: stride(config.ffn), rows: tokens };
        product(core, &layer.down, a, &Output::Add(Rows::new(&mut buffers.x, hidden)));
    }

    /// Logits of the last token of every row that draws, in the order of the plan's samples.
    fn logits(&self, machine: &mut Machine) {
        let config = &self.model.config;
        let Machine { core, buffers, .. } = machine;
        let hidden = config.hidden;
        for row in self.plan.rows {
            let Some(sample) = row.sample else { continue };
            let x = &buffers.x[(row.tokens.end as usize - 1) * hidden..][..hidden];
            let out = &mut buffers.a[sample as usize * stride(hidden)..][..hidden];
            (core.kernels.rmsnorm)(x, &self.model.norm, config.norm_eps, out);
        }
        let samples = self.plan.samples.len();
        buffers.logits.resize(samples * config.vocab, 0.0);
        if samples > 0 {
            let a = Activations { values: &buffers.a, stride: stride(hidden), rows: samples };
            let logits = Output::Store(Rows::new(&mut buffers.logits, config.vocab));
            product(core, self.model.output(), a, &logits);
        }
    }

    fn norm(&self, core: &mut Core, weight: &[f32], x: &[f32], out: &mut [u16]) {
        let Core { kernels, pool, .. } = core;
        let (hidden, eps) = (weight.len(), self.model.config.norm_eps);
        let out = Rows::new(out, stride(hidden));
        // A norm costs about as much as 4 multiply-adds a value do in a product.
        for_rows(pool, x.len() / hidden, hidden * 4, &|token| {
            // SAFETY: rows are apart, and each is written by one part.
            let out = unsafe { out.row(token, 0, hidden) };
            (kernels.rmsnorm)(&x[token * hidden..][..hidden], weight, eps, out);
        });
    }

    /// Norms and rotates queries and keys; writes queries to `q`, keys and values to their pages.
    fn rotate_and_store(
        &self,
        core: &mut Core,
        (index, layer): (usize, &Layer),
        buffers: &mut Buffers,
        kv: &mut Bf16Buf,
    ) {
        let Core { kernels, pool, .. } = core;
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let width = (heads + 2 * kv_heads) * head_dim;
        let eps = self.model.config.norm_eps;
        let (qkv, q, kv) =
            (Disjoint::new(&mut buffers.qkv), Disjoint::new(&mut buffers.q), Disjoint::new(kv));
        let (angles, slots) = (&buffers.angles, &buffers.slots);
        for_rows(pool, slots.len(), width * 8, &|token| {
            let angles = &angles[token * head_dim..][..head_dim];
            let (page, slot) = slots[token];
            for head in 0..heads + 2 * kv_heads {
                // SAFETY: tokens are apart in `qkv` and `q`; in the pages they are too, because the
                // plan's rows write different slots. Each is written by one part.
                let (x, out) = unsafe {
                    let x = qkv.range(token * width + head * head_dim, head_dim);
                    let out = if head < heads {
                        q.range((token * heads + head) * head_dim, head_dim)
                    } else {
                        let (value, kv_head) = ((head - heads) / kv_heads, (head - heads) % kv_heads);
                        let at = self.layout.head(page, index, value, kv_head) + slot * head_dim;
                        kv.range(at, head_dim)
                    };
                    (x, out)
                };
                if head >= heads + kv_heads {
                    (kernels.narrow)(x, out);
                    continue;
                }
                if let Some((q_norm, k_norm)) = &layer.qk_norm {
                    let weight = if head < heads { q_norm } else { k_norm };
                    (kernels.rmsnorm_head)(x, weight, eps);
                }
                (kernels.rope)(x, angles, out);
            }
        });
    }
}

/// Calls `row` for every row, on all threads when the work is worth it.
fn for_rows(pool: &mut Pool, rows: usize, macs: usize, row: &(dyn Fn(usize) + Sync)) {
    let threads = pool.threads();
    if threads == 1 || rows * macs <= INLINE_MACS_MAX {
        return (0..rows).for_each(row);
    }
    pool.run(&|index| (rows * index / threads..rows * (index + 1) / threads).for_each(row));
}

/// Computes all attention items: each thread takes the next one, because their costs differ.
fn attend_items(
    pool: &mut Pool,
    layer: &attend::Layer<'_>,
    items: &[Item],
    scratch: &[Mutex<attend::Scratch>],
    out: &Rows<'_, u16>,
) {
    let next = AtomicUsize::new(0);
    let macs: usize = items.iter().map(|item| item.macs(layer.heads)).sum();
    let take = |index: usize| {
        // A thread that panicked with the lock held left nothing that `prepare` does not set.
        let mut scratch = scratch[index].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            // SAFETY: items differ in token or KV head, so their outputs are apart; KV was written
            // before this operation began, and nobody writes during it.
            unsafe { item.attend(layer, &mut scratch, out) }
        }
    };
    if macs <= INLINE_MACS_MAX { take(0) } else { pool.run(&take) }
}
