//! One forward pass: from token ids to the logits of the rows that draw.
#![allow(unsafe_code, reason = "threads write disjoint rows and heads of shared buffers")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::adapter::Deltas;
use super::attend::{self, Heads, Item, Layout};
use super::disjoint::{Disjoint, Rows};
use super::experts::Routes;
use super::gemm::{Activations, INLINE_MACS_MAX, Output, Packing, product};
use super::kernels::Kernels;
use super::pool::Pool;
use crate::adapter::Site;
use crate::memory::Bf16Buf;
use crate::model::{Attention, FeedForward, Gated, Model};
use crate::pack::{PANEL, Packed};
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
    pub(super) x: Vec<f32>,
    /// Input of the next product, bf16, rows `stride(width)` apart.
    pub(super) a: Vec<u16>,
    /// Queries, keys, values [tokens, (heads + 2 kv_heads) head_dim] f32.
    qkv: Vec<f32>,
    /// Queries after rope [tokens, heads, head_dim] bf16.
    q: Vec<u16>,
    /// Gated values, bf16, rows `stride(ffn)` apart.
    pub(super) gated: Vec<u16>,
    /// What a layer adds to the residual stream where it is not added as it is computed [tokens, hidden] f32.
    pub(super) branch: Vec<f32>,
    /// Cosines and sines of every rotary embedding [ropes, tokens, head_dim] f32.
    angles: Vec<f32>,
    /// Which experts compute which token.
    pub(super) routes: Routes,
    /// What adapters add to the current product.
    deltas: Deltas,
    /// Where each token's KV goes: its page table entry, and the slot there.
    slots: Vec<(kv::PageIdx, usize)>,
    /// Attention of all rows; the same in every layer.
    items: Vec<Item>,
    /// Logits of the rows that draw [samples, vocab] f32.
    pub(super) logits: Vec<f32>,
}

/// Values between rows of `width` activations: one cache line more than a multiple of one, so that
/// the rows of a tile do not fall on the same cache sets when `width` is a power of two.
pub(super) fn stride(width: usize) -> usize {
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
            self.attention(machine, kv, index, &layer.attention);
            self.feed_forward(machine, index, &layer.ffn);
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
        buffers.branch.resize(tokens * hidden, 0.0);
        buffers.angles.resize(self.model.ropes.len() * tokens * head_dim, 0.0);
        buffers.deltas.begin(self.plan);
        buffers.slots.clear();
        buffers.items.clear();
        for (token, x) in self.plan.tokens.iter().zip(buffers.x.chunks_exact_mut(hidden)) {
            self.model.embed.unpack_row(*token as usize, x);
            if self.model.embed_scale != 1.0 {
                x.iter_mut().for_each(|x| *x *= self.model.embed_scale);
            }
        }
        for row in self.plan.rows {
            let pages = row.pages.start as usize..row.pages.end as usize;
            let tokens = row.tokens.start as usize..row.tokens.end as usize;
            for position in (row.position..).take(tokens.len()) {
                let block = position as usize / self.layout.block_tokens;
                let page = self.plan.pages[pages.start + block];
                buffers.slots.push((page, position as usize % self.layout.block_tokens));
            }
            buffers.items.extend(attend::items(self.heads, tokens, row.position as usize, pages));
        }
        self.fill_angles(&mut buffers.angles);
    }

    fn fill_angles(&self, angles: &mut [f32]) {
        let tokens = self.plan.tokens.len();
        let head_dim = self.model.config.head_dim;
        for (rope, angles) in self.model.ropes.iter().zip(angles.chunks_exact_mut(tokens * head_dim)) {
            let positions = self.plan.rows.iter().flat_map(|row| (row.position..).take(row.tokens.len()));
            for (position, angles) in positions.zip(angles.chunks_exact_mut(head_dim)) {
                fill_angles(rope, position, angles);
            }
        }
    }

    /// `x += o(attention(rope(qkv(x))))`, with the norms and biases that the layer has; writes the layer's KV.
    fn attention(&self, machine: &mut Machine, kv: &mut Bf16Buf, index: usize, layer: &Attention) {
        let config = &self.model.config;
        let Machine { core, buffers, scratch } = machine;
        let tokens = self.plan.tokens.len();
        let (hidden, q_width) = (config.hidden, config.heads * config.head_dim);
        self.norm(core, layer.norm_in.as_deref(), &buffers.x, &mut buffers.a);
        let a = Activations { values: &buffers.a, stride: stride(hidden), rows: tokens };
        let qkv = Output::Store(Rows::new(&mut buffers.qkv, layer.qkv.rows));
        product(core, &layer.qkv, a, &qkv);
        buffers.deltas.compute(core, &self.model.adapters, (index, Site::Qkv), a);
        buffers.deltas.add_to(core, &mut buffers.qkv);
        self.rotate_and_store(core, (index, layer), buffers, kv);
        let rule = attend::Rule { scale: self.model.score_scale, window: layer.window, sinks: &layer.sinks };
        let shared = attend::Layer {
            kernels: &core.kernels,
            heads: self.heads,
            kv,
            pages: self.plan.pages,
            layout: self.layout,
            layer: index,
            queries: &buffers.q,
            rule,
        };
        let out = Rows::new(&mut buffers.a, stride(q_width));
        attend_items(&mut core.pool, &shared, &buffers.items, scratch, &out);
        let a = Activations { values: &buffers.a, stride: stride(q_width), rows: tokens };
        buffers.deltas.compute(core, &self.model.adapters, (index, Site::O), a);
        let norm = layer.norm_out.as_deref();
        let branch = Branch { weights: &layer.o, deltas: &buffers.deltas, bias: &layer.o_bias, norm };
        self.add_branch(core, &branch, a, (&mut buffers.x, &mut buffers.branch));
    }

    /// `x += down(gate(x))`, with the norms and biases that the layer has, or the same by experts.
    fn feed_forward(&self, machine: &mut Machine, index: usize, layer: &FeedForward) {
        let config = &self.model.config;
        let Machine { core, buffers, .. } = machine;
        let tokens = self.plan.tokens.len();
        self.norm(core, layer.norm_in.as_deref(), &buffers.x, &mut buffers.a);
        if let Some(router) = &layer.router {
            return self.experts(core, buffers, router, layer);
        }
        let [gated] = &layer.gated[..] else { unreachable!("without a router there is one layer") };
        let a = Activations { values: &buffers.a, stride: stride(config.hidden), rows: tokens };
        buffers.deltas.compute(core, &self.model.adapters, (index, Site::GateUp), a);
        let out = self.gated_output(core, gated, &mut buffers.gated, Some(&buffers.deltas));
        product(core, &gated.gate_up, a, &out);
        let a = Activations { values: &buffers.gated, stride: stride(config.ffn), rows: tokens };
        buffers.deltas.compute(core, &self.model.adapters, (index, Site::Down), a);
        let (norm, bias) = (layer.norm_out.as_deref(), &gated.down_bias);
        let branch = Branch { weights: &gated.down, deltas: &buffers.deltas, bias, norm };
        self.add_branch(core, &branch, a, (&mut buffers.x, &mut buffers.branch));
    }

    /// Where the product with gate and up goes.
    pub(super) fn gated_output<'a>(
        &self,
        core: &Core,
        gated: &'a Gated,
        out: &'a mut [u16],
        deltas: Option<&'a Deltas>,
    ) -> Output<'a> {
        Output::Gated {
            deltas,
            out: Rows::new(out, stride(self.model.config.ffn)),
            gate: core.kernels.gate(self.model.activation),
            bias: &gated.gate_up_bias,
        }
    }

    /// `x += norm(weights a + deltas + bias)`; straight into `x` when there is neither norm nor bias.
    fn add_branch(
        &self,
        core: &mut Core,
        branch: &Branch<'_>,
        a: Activations<'_>,
        (x, sums): (&mut [f32], &mut [f32]),
    ) {
        let hidden = self.model.config.hidden;
        if branch.bias.is_empty() && branch.norm.is_none() {
            product(core, branch.weights, a, &Output::Add(Rows::new(x, hidden)));
            return branch.deltas.add_to(core, x);
        }
        product(core, branch.weights, a, &Output::Store(Rows::new(sums, hidden)));
        branch.deltas.add_to(core, sums);
        let eps = self.model.config.norm_eps;
        let Core { kernels, pool, .. } = core;
        let (x, sums) = (Rows::new(x, hidden), Rows::new(sums, hidden));
        for_rows(pool, a.rows, hidden * 4, &|token| {
            // SAFETY: rows are apart, and each is written by one part.
            let (x, sums) = unsafe { (x.row(token, 0, hidden), sums.row(token, 0, hidden)) };
            if !branch.bias.is_empty() {
                (kernels.add)(branch.bias, sums);
            }
            if let Some(norm) = branch.norm {
                (kernels.rmsnorm_head)(sums, norm, eps);
            }
            (kernels.add)(sums, x);
        });
    }

    /// Logits of the last tokens of every row that draws, in the order of the plan's samples.
    fn logits(&self, machine: &mut Machine) {
        let config = &self.model.config;
        let Machine { core, buffers, .. } = machine;
        let hidden = config.hidden;
        for row in self.plan.rows {
            for (token, sample) in (row.tokens.end - row.samples.len() as u32..).zip(row.samples.clone()) {
                let x = &buffers.x[token as usize * hidden..][..hidden];
                let out = &mut buffers.a[sample as usize * stride(hidden)..][..hidden];
                (core.kernels.rmsnorm)(x, &self.model.norm, config.norm_eps, out);
            }
        }
        let samples = self.plan.samples.len();
        buffers.logits.resize(samples * config.vocab, 0.0);
        if samples > 0 {
            let a = Activations { values: &buffers.a, stride: stride(hidden), rows: samples };
            let logits = Output::Store(Rows::new(&mut buffers.logits, config.vocab));
            product(core, self.model.output(), a, &logits);
        }
    }

    /// The residual stream in bf16, normed where the layer says so.
    fn norm(&self, core: &mut Core, weight: Option<&[f32]>, x: &[f32], out: &mut [u16]) {
        let Core { kernels, pool, .. } = core;
        let (hidden, eps) = (self.model.config.hidden, self.model.config.norm_eps);
        let out = Rows::new(out, stride(hidden));
        // A norm costs about as much as 4 multiply-adds a value do in a product.
        for_rows(pool, x.len() / hidden, hidden * 4, &|token| {
            // SAFETY: rows are apart, and each is written by one part.
            let out = unsafe { out.row(token, 0, hidden) };
            let x = &x[token * hidden..][..hidden];
            match weight {
                Some(weight) => (kernels.rmsnorm)(x, weight, eps, out),
                None => (kernels.narrow)(x, out),
            }
        });
    }

    /// Norms and rotates queries and keys; writes queries to `q`, keys and values to their pages.
    fn rotate_and_store(
        &self,
        core: &mut Core,
        (index, layer): (usize, &Attention),
        buffers: &mut Buffers,
        kv: &mut Bf16Buf,
    ) {
        let Core { kernels, pool, .. } = core;
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let width = (heads + 2 * kv_heads) * head_dim;
        let (qkv, q, kv) =
            (Disjoint::new(&mut buffers.qkv), Disjoint::new(&mut buffers.q), Disjoint::new(kv));
        let slots = &buffers.slots;
        let angles = &buffers.angles[layer.rope * slots.len() * head_dim..];
        for_rows(pool, slots.len(), width * 8, &|token| {
            let angles = &angles[token * head_dim..][..head_dim];
            let (page, slot) = slots[token];
            // SAFETY: tokens are apart in `qkv`, and each is written by one part.
            let row = unsafe { qkv.range(token * width, width) };
            self.bias_and_norm(kernels, layer, row);
            for (head, x) in row.chunks_exact(head_dim).enumerate() {
                // SAFETY: tokens are apart in `q`; in the pages they are too, because the plan's rows
                // write different slots. Each is written by one part.
                let out = unsafe {
                    if head < heads {
                        q.range((token * heads + head) * head_dim, head_dim)
                    } else {
                        let (value, kv_head) = ((head - heads) / kv_heads, (head - heads) % kv_heads);
                        let at = self.layout.head(page, index, value, kv_head) + slot * head_dim;
                        kv.range(at, head_dim)
                    }
                };
                if head < heads + kv_heads {
                    (kernels.rope)(x, angles, out);
                } else {
                    (kernels.narrow)(x, out);
                }
            }
        });
    }

    /// Adds the biases of one token's queries, keys and values, and norms its queries and keys, as many heads at
    /// once as the norm has weights for.
    fn bias_and_norm(&self, kernels: &Kernels, layer: &Attention, qkv: &mut [f32]) {
        if !layer.qkv_bias.is_empty() {
            (kernels.add)(&layer.qkv_bias, qkv);
        }
        let Some((q_norm, k_norm)) = &layer.qk_norm else { return };
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let (queries, rest) = qkv.split_at_mut(heads * head_dim);
        for (part, weight) in [(queries, q_norm), (&mut rest[..kv_heads * head_dim], k_norm)] {
            for part in part.chunks_exact_mut(weight.len()) {
                (kernels.rmsnorm_head)(part, weight, self.model.config.norm_eps);
            }
        }
    }
}

/// A product whose result is added to the residual stream.
struct Branch<'a> {
    weights: &'a Packed,
    deltas: &'a Deltas,
    bias: &'a [f32],
    norm: Option<&'a [f32]>,
}

/// Calls `row` for every row, on all threads when the work is worth it.
pub(super) fn for_rows(pool: &mut Pool, rows: usize, macs: usize, row: &(dyn Fn(usize) + Sync)) {
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
    let macs: usize = items.iter().map(|item| item.macs(layer.heads, layer.rule)).sum();
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
