//! The CPU executor.
//!
//! A step is computed inside [`Executor::submit`], on the calling thread and the executor's own; `poll`
//! hands out its result. So do `transfer` and `settle` with moves. Several executors share one [`Model`].
//! **Invariant:** a row's result depends on its tokens, position and adapter alone: not on the other rows, the
//! chunks of its prefill, the page size or the number of threads.

mod activation;
mod adapter;
mod attend;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod disjoint;
mod experts;
mod forward;
mod gemm;
mod kernels;
mod mover;
mod peak;
mod pool;
mod portable;
mod row;

#[cfg(test)]
mod equality;
#[cfg(test)]
pub(crate) mod golden;
#[cfg(test)]
mod products;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use attend::{Heads, Layout};
use forward::{Buffers, Core, Machine, Pass};
use gemm::Packing;
pub use kernels::Isa;
use kernels::Kernels;
pub use peak::peak_bf16_flops;
use pool::Pool;

use crate::check;
use crate::clock::Stopwatch;
use crate::memory::Bf16Buf;
use crate::plan::resolved;
use crate::sample::Sampler;
use crate::settling::Settling;
use crate::{
    Caps, EngineError, Executor, Fence, KvShape, Model, ModelFiles, Moved, StepOut, StepPlan, Ticket, Xfer,
};

/// How a [`CpuExec`] is set up.
#[derive(Clone, Copy, Debug)]
pub struct CpuConfig {
    /// Threads that compute, the caller's included; 0 takes one for each core.
    pub threads: usize,
    /// KV pages.
    pub pages: u32,
    /// Tokens a page holds.
    pub block_tokens: u32,
    /// Most tokens of one sequence; the model's own limit when that is smaller, or when this is 0.
    pub context_max: u32,
    /// Instruction set.
    pub isa: Isa,
}

impl Default for CpuConfig {
    fn default() -> Self {
        Self { threads: 0, pages: 1024, block_tokens: 16, context_max: 0, isa: Isa::Auto }
    }
}

/// Computes on the processor.
pub struct CpuExec {
    model: Arc<Model>,
    caps: Caps,
    heads: Heads,
    layout: Layout,
    machine: Machine,
    sampler: Sampler,
    /// Tokens that the last step drew.
    drawn: Vec<u32>,
    kv: Bf16Buf,
    steps: u64,
    moved: Settling<Moved>,
    done: VecDeque<(Ticket, StepOut)>,
}

impl CpuExec {
    /// Loads a model for one executor. For several, load a [`Model`] once and use [`Self::new`].
    ///
    /// Errors: those of [`Model::load`] and of [`Self::new`].
    pub fn load(files: &ModelFiles, config: CpuConfig) -> Result<Self, EngineError> {
        Self::new(Arc::new(Model::load(files)?), config)
    }

    /// An executor over a loaded model, with its own threads and KV pages.
    ///
    /// Cost: KV memory is `pages * page_bytes` of address space; RAM is taken page by page, when used.
    /// Errors: [`EngineError::Config`] for no pages or an instruction set that is lacking,
    /// [`EngineError::Memory`] when address space or threads are refused.
    pub fn new(model: Arc<Model>, config: CpuConfig) -> Result<Self, EngineError> {
        let kernels = Kernels::choose(config.isa)?;
        let shape = &model.config;
        if config.pages == 0 || config.block_tokens == 0 {
            let CpuConfig { pages, block_tokens, .. } = config;
            return Err(EngineError::Config(format!("{pages} pages of {block_tokens} tokens hold nothing")));
        }
        let heads = Heads { heads: shape.heads, kv_heads: shape.kv_heads, head_dim: shape.head_dim };
        let block_tokens = config.block_tokens as usize;
        let page = shape.layers * 2 * shape.kv_heads * block_tokens * shape.head_dim;
        let kv = Bf16Buf::zeroed(page * config.pages as usize, "KV pages")?;
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = if config.threads == 0 { cores() } else { config.threads };
        let pool = Pool::start(threads).map_err(|source| EngineError::Memory {
            what: "threads",
            bytes: 0,
            source,
        })?;
        let page_bytes = page as u64 * 2;
        let shape_kv = KvShape {
            pages: config.pages,
            block_tokens: config.block_tokens,
            page_bytes,
            block_bytes: page_bytes,
        };
        Ok(Self {
            caps: Caps {
                name: kernels.name.to_owned(),
                kv: shape_kv,
                context_max: shape.context_within(config.context_max),
                vocab: shape.vocab as u32,
                overlaps: false,
                fingerprint: model.fingerprint,
                adapters: model.adapters.iter().map(|adapter| adapter.fingerprint).collect(),
            },
            heads,
            layout: Layout { block_tokens, kv_heads: heads.kv_heads, head_dim: heads.head_dim, page },
            machine: Machine {
                core: Core { kernels, pool, packing: Packing::default() },
                buffers: Buffers::default(),
                scratch: (0..threads).map(|_| Mutex::default()).collect(),
            },
            sampler: Sampler::default(),
            drawn: Vec::new(),
            kv,
            steps: 0,
            moved: Settling::new(),
            done: VecDeque::new(),
            model,
        })
    }

    /// The model that this executor runs.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }
}

impl Executor for CpuExec {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn submit(&mut self, plan: &StepPlan<'_>) -> Result<Ticket, EngineError> {
        check::plan(&self.caps, plan, self.drawn.len())?;
        let watch = Stopwatch::start();
        let tokens = resolved(plan.tokens, &self.drawn);
        let plan = &StepPlan { tokens: &tokens, ..*plan };
        if !plan.rows.is_empty() {
            let pass = Pass { model: &self.model, plan, layout: self.layout, heads: self.heads };
            pass.run(&mut self.machine, &mut self.kv);
        }
        let logits = self.machine.buffers.logits.chunks_exact_mut(self.caps.vocab as usize);
        let sampled: Vec<_> =
            plan.samples.iter().zip(logits).map(|(spec, row)| self.sampler.draw(row, spec)).collect();
        self.drawn.clear();
        self.drawn.extend(sampled.iter().map(|sampled| sampled.token));
        self.steps += 1;
        let ticket = Ticket(self.steps);
        self.done.push_back((ticket, StepOut { sampled, took: watch.elapsed() }));
        Ok(ticket)
    }

    fn poll(&mut self, ticket: Ticket, _block: bool) -> Result<Option<StepOut>, EngineError> {
        let at = self.done.iter().position(|(done, _)| *done == ticket);
        let out = at.and_then(|at| self.done.remove(at));
        match out {
            Some((_, out)) => Ok(Some(out)),
            None => Err(EngineError::Plan(format!("ticket {} is not outstanding", ticket.0))),
        }
    }

    fn transfer(&mut self, moves: Vec<Xfer>, after: Fence) -> Result<Fence, EngineError> {
        check::moves(&self.caps, &moves, (after, self.moved.last()))?;
        self.moved.check_room()?;
        let watch = Stopwatch::start();
        let block_bytes = self.caps.kv.block_bytes as usize;
        let saved = mover::run(self.kv.bytes_mut(), block_bytes, moves);
        Ok(self.moved.start(Moved { saved, took: watch.elapsed() }))
    }

    fn settle(&mut self, fence: Fence, _block: bool) -> Result<Option<Moved>, EngineError> {
        self.moved.take(fence).map(Some)
    }
}
