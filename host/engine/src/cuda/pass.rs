//! One forward pass as launches: from the inputs of a step to drawn tokens.
//!
//! The same launches run a step at once, or are recorded as a graph: they depend on how many tokens and samples they cover and on
//! nothing else of the plan. `host/engine/README.md` has the drawing, `cpu/forward.rs` the same on the processor.
//! **Invariant:** nothing is allocated here.

use std::sync::Arc;

use super::args::{
    AddExpertsArgs, AddNormArgs, AnglesArgs, AttendArgs, Drawn, EmbedArgs, GemmArgs, NormArgs, Ptr,
    RopeKvArgs, RouteArgs, SampleArgs, SortArgs,
};
use super::driver::{Context, Failure};
use super::inputs::chunk_at;
use super::kernels::{Grid, Kernel, Kernels};
use super::memory::DeviceMemory;
use super::products::{Gating, Products};
use super::stream::Stream;
use super::weights::{DeviceLayer, DeviceWeights, INPUTS};
use crate::Experts;
use crate::family::Activation;
use crate::model::Model;

/// Threads of a block in kernels that take one token each.
const TOKEN_THREADS: u32 = 256;
/// In norms of longer rows than [`NORM_COLUMNS`], which the registers of so many threads hold.
const WIDE_THREADS: u32 = 512;
const NORM_COLUMNS: usize = TOKEN_THREADS as usize * 16;
/// With fewer tokens, each warp of `rope_kv` takes one head.
const ROPE_WIDE_MIN: usize = 64;
const EMBED_THREADS: u32 = 128;
const ANGLES_THREADS: u32 = 64;
const ROUTE_THREADS: u32 = 128;
/// From so many tokens on, a block scores 32 experts instead of 8.
const SCORE_WIDE_MIN: usize = 64;
const ONE_BLOCK_THREADS: u32 = 1024;
const ATTEND_THREADS: u32 = 128;
/// Warps of a block that each add the parts of one head.
const COMBINE_HEADS: usize = 4;
/// Blocks of attention for each multiprocessor, where there is as much to do: those that fit at once. A block asks for its next item's
/// keys while it ends one; more blocks would each begin with nothing asked for.
const ATTEND_BLOCKS: usize = 3;

/// Activations of a step.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// Tokens that they hold.
    pub(crate) tokens: usize,
    /// A step's inputs.
    pub(crate) inputs: DeviceMemory,
    x: DeviceMemory,
    a: DeviceMemory,
    qkv: DeviceMemory,
    q: DeviceMemory,
    gated: DeviceMemory,
    /// Products before a gate, where the gate is not a part of the product.
    pub(crate) gate_up: Option<DeviceMemory>,
    branch: DeviceMemory,
    angles: DeviceMemory,
    partials: DeviceMemory,
    head_in: DeviceMemory,
    pub(crate) logits: DeviceMemory,
    /// What was drawn, and the tokens of it once more.
    pub(crate) reports: DeviceMemory,
    pub(crate) drawn: DeviceMemory,
    experts: Option<ExpertBuffers>,
}

#[derive(Debug)]
struct ExpertBuffers {
    scores: DeviceMemory,
    chosen: DeviceMemory,
    shares: DeviceMemory,
    bounds: DeviceMemory,
    rows: DeviceMemory,
    places: DeviceMemory,
}

/// How large [`Buffers`] are to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BufferSizes {
    pub(crate) tokens: usize,
    /// Samples of a chunk of logits, and of a step.
    pub(crate) chunk_samples: usize,
    pub(crate) samples: usize,
    pub(crate) input_bytes: usize,
    pub(crate) attention_parts: usize,
}

impl Buffers {
    /// Zeroed, since columns that nobody writes are multiplied with zeros.
    pub(crate) fn new(
        context: &Arc<Context>,
        stream: &Stream,
        (model, weights): (&Model, &DeviceWeights),
        products: &Products,
        sizes: &BufferSizes,
    ) -> Result<Self, Failure> {
        let config = &model.config;
        let of = |bytes: usize| {
            let memory = DeviceMemory::new(context, bytes)?;
            stream.zero(memory.ptr(), memory.bytes())?;
            Ok::<_, Failure>(memory)
        };
        let layer = &weights.layers[0];
        let (x_stride, a_stride) = (layer.o.n, layer.qkv.k.max(layer.o.k));
        let active = config.experts.map_or(1, |experts| experts.active);
        let rows = sizes.tokens * active;
        let parts = |n: usize, k: usize| products.parts_rows_max(sizes.tokens, (n, k));
        let branch = parts(x_stride, layer.o.k).max(parts(x_stride, layer.down.k)).max(rows);
        let experts = config.experts.map(|experts| {
            Ok::<_, Failure>(ExpertBuffers {
                scores: of(sizes.tokens * experts.count * 4)?,
                chosen: of(rows * 4)?,
                shares: of(rows * 4)?,
                bounds: of((experts.count + 1) * 4)?,
                rows: of(rows * 4)?,
                places: of(rows * 4)?,
            })
        });
        Ok(Self {
            tokens: sizes.tokens,
            inputs: of(sizes.input_bytes)?,
            x: of(sizes.tokens * x_stride * 4)?,
            a: of(sizes.tokens * a_stride * 2)?,
            qkv: of(parts(layer.qkv.n, layer.qkv.k) * layer.qkv.n * 4)?,
            q: of(sizes.tokens * config.heads * config.head_dim * 2)?,
            gated: of(rows * layer.down.k * 2)?,
            gate_up: products.has_blas().then(|| of(sizes.tokens * layer.gate_up.n * 4)).transpose()?,
            branch: of(branch * x_stride * 4)?,
            angles: of(model.ropes.len() * sizes.tokens * config.head_dim * 4)?,
            partials: of(sizes.attention_parts * config.heads * (config.head_dim + 2) * 4)?,
            head_in: of(sizes.chunk_samples * x_stride * 2)?,
            logits: of(sizes.chunk_samples * weights.output().n * 4)?,
            reports: of(sizes.samples * size_of::<Drawn>())?,
            drawn: of(sizes.samples * 4)?,
            experts: experts.transpose()?,
        })
    }
}

/// What a pass covers.
#[derive(Clone, Debug)]
pub(crate) struct Cover {
    /// Tokens, padding included.
    pub(crate) tokens: usize,
    /// Samples of each chunk of logits, padding included.
    pub(crate) chunks: Vec<usize>,
    /// Blocks for each KV head of the two kernels of attention; none when there are no items.
    pub(crate) prefill_blocks: usize,
    pub(crate) decode_blocks: usize,
}

/// All that a pass is made of.
pub(crate) struct Pass<'a> {
    pub(crate) model: &'a Model,
    pub(crate) weights: &'a DeviceWeights,
    pub(crate) kernels: &'a Kernels,
    pub(crate) products: &'a Products,
    pub(crate) buffers: &'a Buffers,
    pub(crate) stream: &'a Stream,
    /// KV pages, and tokens of one.
    pub(crate) pages: Ptr,
    pub(crate) block_tokens: usize,
}

/// Most blocks of attention for each KV head.
pub(crate) fn attend_blocks(multiprocessors: u32, kv_heads: usize) -> usize {
    (multiprocessors as usize * ATTEND_BLOCKS).div_ceil(kv_heads)
}

impl Pass<'_> {
    /// Queues the pass; `logits_done` is called after the logits of each chunk were queued, and before they are used up.
    pub(crate) fn run(
        &self,
        cover: &Cover,
        logits_done: &mut dyn FnMut(usize) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.begin(cover)?;
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.attention(cover, index, layer)?;
            // The norm that follows a layer is the next one's; after the last, each sampled token gets its own.
            let next = self.weights.layers.get(index + 1);
            match &layer.router {
                None => self.feed_forward(cover, layer, next)?,
                Some((router, bias)) => self.experts(cover, layer, (router, bias.as_ref()), next)?,
            }
        }
        let mut first = 0;
        for (index, samples) in cover.chunks.iter().enumerate() {
            self.logits(chunk_at(index), *samples)?;
            logits_done(index)?;
            self.sample(chunk_at(index), first, *samples)?;
            first += samples;
        }
        Ok(())
    }

    pub(crate) fn step(&self) -> Ptr {
        self.buffers.inputs.ptr()
    }

    /// Of kernels that norm so many rows.
    fn norm_grid(&self, rows: usize) -> Grid {
        let wide = self.weights.embed.k > NORM_COLUMNS;
        Grid::row(rows, if wide { WIDE_THREADS } else { TOKEN_THREADS })
    }

    fn launch<A: super::args::Plain>(&self, kernel: Kernel, grid: Grid, args: &A) -> Result<(), Failure> {
        self.kernels.launch(self.stream, kernel, grid, args)
    }

    /// Embeddings, angles, and the input of the first layer.
    fn begin(&self, cover: &Cover) -> Result<(), Failure> {
        let (config, buffers) = (&self.model.config, self.buffers);
        let embed = EmbedArgs {
            step: self.step(),
            table: self.weights.embed.memory.ptr(),
            drawn: buffers.drawn.ptr(),
            x: buffers.x.ptr(),
            stride: self.weights.embed.k as u32,
            scale: self.model.embed_scale,
        };
        self.launch(Kernel::Embed, Grid::row(cover.tokens, EMBED_THREADS), &embed)?;
        let angles = AnglesArgs {
            step: self.step(),
            frequencies: self.weights.frequencies.ptr(),
            magnitudes: self.weights.magnitudes.ptr(),
            angles: buffers.angles.ptr(),
            head_dim: config.head_dim as u32,
            cap: cover.tokens as u32,
        };
        let blocks = [cover.tokens as u32, self.model.ropes.len() as u32, 1];
        self.launch(Kernel::Angles, Grid { blocks, threads: ANGLES_THREADS, shared_bytes: 0 }, &angles)?;
        let norm = NormArgs {
            step: self.step(),
            x: buffers.x.ptr(),
            weight: ptr(self.weights.layers[0].norm_in.as_ref()),
            out: buffers.a.ptr(),
            width: config.hidden as u32,
            x_stride: self.weights.embed.k as u32,
            out_stride: self.weights.layers[0].qkv.k as u32,
            eps: config.norm_eps,
        };
        self.launch(Kernel::RowNorm, self.norm_grid(cover.tokens), &norm)
    }

    /// `x += o(attention(rope(qkv(a))))`, and the input of the feed-forward layer; writes the layer's KV.
    fn attention(&self, cover: &Cover, index: usize, layer: &DeviceLayer) -> Result<(), Failure> {
        let (config, buffers) = (&self.model.config, self.buffers);
        let a = buffers.a.ptr();
        let parts = self.products.store(self, (a, cover.tokens), &layer.qkv, buffers.qkv.ptr())?;
        let head_values = config.kv_heads * self.block_tokens * config.head_dim;
        let page_stride = (config.layers * 2 * head_values) as u64;
        let kv = self.pages.at(index * 2 * head_values * 2);
        let rope = RopeKvArgs {
            step: self.step(),
            qkv: buffers.qkv.ptr(),
            bias: ptr(layer.qkv_bias.as_ref()),
            q_norm: ptr(layer.qk_norm.as_ref().map(|(q, _)| q)),
            k_norm: ptr(layer.qk_norm.as_ref().map(|(_, k)| k)),
            angles: buffers.angles.ptr().at(layer.rope * cover.tokens * config.head_dim * 4),
            q: buffers.q.ptr(),
            kv,
            page_stride,
            parts: parts as u32,
            part_stride: (cover.tokens * layer.qkv.n) as u32,
            qkv_stride: layer.qkv.n as u32,
            heads: config.heads as u32,
            kv_heads: config.kv_heads as u32,
            head_dim: config.head_dim as u32,
            block_tokens: self.block_tokens as u32,
            norm_whole: layer.norm_whole.into(),
            eps: config.norm_eps,
            spare: 0,
        };
        let all_heads = config.heads + 2 * config.kv_heads;
        let parts =
            if cover.tokens < ROPE_WIDE_MIN { all_heads.div_ceil(TOKEN_THREADS as usize / 32) } else { 1 };
        let blocks = [cover.tokens as u32, parts as u32, 1];
        self.launch(Kernel::RopeKv, Grid { blocks, threads: TOKEN_THREADS, shared_bytes: 0 }, &rope)?;
        self.attend(cover, layer, (kv, page_stride))?;
        let parts = self.products.store(self, (a, cover.tokens), &layer.o, buffers.branch.ptr())?;
        let bias = layer.o_bias.as_ref();
        self.add_norm(cover, (layer.norm_out.as_ref(), bias, parts), layer.ffn_norm_in.as_ref())
    }

    fn attend(
        &self,
        cover: &Cover,
        layer: &DeviceLayer,
        (kv, page_stride): (Ptr, u64),
    ) -> Result<(), Failure> {
        let (config, buffers) = (&self.model.config, self.buffers);
        let args = AttendArgs {
            step: self.step(),
            q: buffers.q.ptr(),
            kv,
            sinks: ptr(layer.sinks.as_ref()),
            out: buffers.a.ptr(),
            partials: buffers.partials.ptr(),
            page_stride,
            heads: config.heads as u32,
            kv_heads: config.kv_heads as u32,
            head_dim: config.head_dim as u32,
            block_tokens: self.block_tokens as u32,
            out_stride: layer.o.k as u32,
            window: layer.window,
            list: (layer.window != u32::MAX).into(),
            scale: self.model.score_scale,
        };
        let [decode, prefill] = attend_kernels(config.head_dim);
        let grid = |blocks: usize, shared_bytes| Grid {
            blocks: [blocks as u32, config.kv_heads as u32, 1],
            threads: ATTEND_THREADS,
            shared_bytes,
        };
        self.launch(decode, grid(cover.decode_blocks, decode.shared_bytes()), &args)?;
        if cover.decode_blocks > 0 {
            let blocks = cover.tokens * config.heads.div_ceil(COMBINE_HEADS);
            self.launch(Kernel::AttendCombine, Grid::row(blocks, ATTEND_THREADS), &args)?;
        }
        self.launch(prefill, grid(cover.prefill_blocks, prefill.shared_bytes()), &args)
    }

    /// Adds a branch to the residual stream; the normed sum is the input of the next product.
    fn add_norm(
        &self,
        cover: &Cover,
        (branch_norm, bias, parts): (Option<&DeviceMemory>, Option<&DeviceMemory>, usize),
        norm: Option<&DeviceMemory>,
    ) -> Result<(), Failure> {
        let (config, stride) = (&self.model.config, self.weights.embed.k);
        let args = AddNormArgs {
            step: self.step(),
            x: self.buffers.x.ptr(),
            branch: self.buffers.branch.ptr(),
            bias: ptr(bias),
            branch_norm: ptr(branch_norm),
            weight: ptr(norm),
            out: self.buffers.a.ptr(),
            parts: parts as u32,
            part_stride: (cover.tokens * stride) as u32,
            width: config.hidden as u32,
            x_stride: stride as u32,
            out_stride: stride as u32,
            eps: config.norm_eps,
        };
        self.launch(Kernel::AddNorm, self.norm_grid(cover.tokens), &args)
    }

    /// `x += down(gate(a))`, and the input of the next layer.
    fn feed_forward(
        &self,
        cover: &Cover,
        layer: &DeviceLayer,
        next: Option<&DeviceLayer>,
    ) -> Result<(), Failure> {
        let buffers = self.buffers;
        let gating = Gating { bias: ptr(layer.gate_up_bias.as_ref()), gate: gate(self.model.activation) };
        let out = (buffers.gated.ptr(), layer.down.k);
        self.products.gated(self, (buffers.a.ptr(), cover.tokens), &layer.gate_up, (gating, out))?;
        let parts = self.products.store(
            self,
            (buffers.gated.ptr(), cover.tokens),
            &layer.down,
            buffers.branch.ptr(),
        )?;
        let branch = (layer.ffn_norm_out.as_ref(), layer.down_bias.as_ref(), parts);
        self.add_norm(cover, branch, next.and_then(|next| next.norm_in.as_ref()))
    }

    /// The same by experts.
    fn experts(
        &self,
        cover: &Cover,
        layer: &DeviceLayer,
        (router, router_bias): (&DeviceMemory, Option<&DeviceMemory>),
        next: Option<&DeviceLayer>,
    ) -> Result<(), Failure> {
        let (config, buffers) = (&self.model.config, self.buffers);
        let (Some(shape), Some(own)) = (config.experts, &buffers.experts) else {
            unreachable!("a router comes with experts")
        };
        self.route(cover, layer, (router, router_bias), (&shape, own))?;
        let gating = Gating { bias: ptr(layer.gate_up_bias.as_ref()), gate: gate(self.model.activation) };
        let stride = self.weights.embed.k as u32;
        let bounds = own.bounds.ptr();
        let inward = GemmArgs { a: buffers.a.ptr(), rows: own.rows.ptr(), bounds, ..GemmArgs::default() };
        let out = (buffers.gated.ptr(), layer.down.k);
        self.products.grouped(
            self,
            (inward, cover.tokens, shape.count),
            &layer.gate_up,
            (Some(gating), out),
        )?;
        let outward = GemmArgs { a: buffers.gated.ptr(), bounds, ..GemmArgs::default() };
        let out = (buffers.branch.ptr(), layer.down.n);
        self.products.grouped(self, (outward, cover.tokens, shape.count), &layer.down, (None, out))?;
        let add = AddExpertsArgs {
            step: self.step(),
            x: buffers.x.ptr(),
            down: buffers.branch.ptr(),
            bias: ptr(layer.down_bias.as_ref()),
            chosen: own.chosen.ptr(),
            places: own.places.ptr(),
            shares: own.shares.ptr(),
            weight: ptr(next.and_then(|next| next.norm_in.as_ref())),
            out: buffers.a.ptr(),
            active: shape.active as u32,
            width: config.hidden as u32,
            x_stride: stride,
            out_stride: stride,
            bias_stride: layer.down.n as u32,
            eps: config.norm_eps,
        };
        self.launch(Kernel::AddExperts, self.norm_grid(cover.tokens), &add)
    }

    /// Has every token choose its experts, and sorts tokens by them.
    fn route(
        &self,
        cover: &Cover,
        layer: &DeviceLayer,
        (router, router_bias): (&DeviceMemory, Option<&DeviceMemory>),
        (shape, own): (&Experts, &ExpertBuffers),
    ) -> Result<(), Failure> {
        let (config, buffers) = (&self.model.config, self.buffers);
        let (stride, active) = (self.weights.embed.k as u32, shape.active as u32);
        let route = RouteArgs {
            step: self.step(),
            x: buffers.x.ptr(),
            norm: ptr(layer.ffn_norm_in.as_ref()),
            router: router.ptr(),
            bias: ptr(router_bias),
            scores: own.scores.ptr(),
            chosen: own.chosen.ptr(),
            shares: own.shares.ptr(),
            width: config.hidden as u32,
            x_stride: stride,
            experts: shape.count as u32,
            active,
            normalized: shape.normalized.into(),
            eps: config.norm_eps,
            cap: cover.tokens as u32,
            spare: 0,
        };
        let experts = if cover.tokens < SCORE_WIDE_MIN { 8 } else { 32 };
        let blocks = [cover.tokens.div_ceil(8) as u32, shape.count.div_ceil(experts) as u32, 1];
        self.launch(Kernel::Score, Grid { blocks, threads: TOKEN_THREADS, shared_bytes: 0 }, &route)?;
        self.launch(Kernel::Route, Grid::row(cover.tokens.div_ceil(4), ROUTE_THREADS), &route)?;
        let sort = SortArgs {
            step: self.step(),
            chosen: own.chosen.ptr(),
            bounds: own.bounds.ptr(),
            rows: own.rows.ptr(),
            places: own.places.ptr(),
            experts: shape.count as u32,
            active,
        };
        self.launch(Kernel::SortExperts, Grid::row(1, ONE_BLOCK_THREADS), &sort)
    }

    /// Logits of a chunk's samples.
    fn logits(&self, step_at: usize, samples: usize) -> Result<(), Failure> {
        let (config, buffers) = (&self.model.config, self.buffers);
        let stride = self.weights.embed.k as u32;
        let args = NormArgs {
            step: self.step().at(step_at),
            x: buffers.x.ptr(),
            weight: self.weights.norm.ptr(),
            out: buffers.head_in.ptr(),
            width: config.hidden as u32,
            x_stride: stride,
            out_stride: stride,
            eps: config.norm_eps,
        };
        self.launch(Kernel::PickNorm, self.norm_grid(samples), &args)?;
        self.products.store_whole(
            self,
            (buffers.head_in.ptr(), samples),
            self.weights.output(),
            buffers.logits.ptr(),
        )
    }

    fn sample(&self, step_at: usize, first: usize, samples: usize) -> Result<(), Failure> {
        let buffers = self.buffers;
        let args = SampleArgs {
            step: self.step().at(step_at),
            logits: buffers.logits.ptr(),
            out: buffers.reports.ptr().at(first * size_of::<Drawn>()),
            drawn: buffers.drawn.ptr().at(first * 4),
            vocab: self.model.config.vocab as u32,
            stride: self.weights.output().n as u32,
        };
        self.launch(Kernel::Sample, Grid::row(samples, ONE_BLOCK_THREADS), &args)
    }
}

/// The decode and the prefill kernel for heads of so many values.
pub(crate) fn attend_kernels(head_dim: usize) -> [Kernel; 2] {
    match head_dim {
        ..=64 => [Kernel::AttendDecode64, Kernel::AttendPrefill64],
        65..=128 => [Kernel::AttendDecode128, Kernel::AttendPrefill128],
        _ => [Kernel::AttendDecode256, Kernel::AttendPrefill256],
    }
}

/// Tokens of a prefill item, whose queries are those of `group` heads.
pub(crate) fn item_tokens(head_dim: usize, group: usize) -> usize {
    let queries = if head_dim > 128 { 64 } else { 128 };
    (queries / group).max(1)
}

fn gate(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::ClampedSwiglu => 2,
    }
}

/// The address of what may be absent.
fn ptr(memory: Option<&DeviceMemory>) -> Ptr {
    memory.map_or(Ptr::NULL, DeviceMemory::ptr)
}

const _: () = assert!(INPUTS.is_multiple_of(32), "rows of a matrix are a multiple of 32");
