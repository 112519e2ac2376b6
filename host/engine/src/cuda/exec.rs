//! The executor itself: what is made at start, and what each call does.
#![allow(unsafe_code, reason = "copies run beside the host")]

use std::collections::VecDeque;
use std::sync::Arc;

use kv::Arena;

use super::args::{Drawn, TOP_MAX};
use super::driver::{Context, Failure};
use super::image;
use super::inputs::{Inputs, Sizes};
use super::kernels::{Kernel, Kernels};
use super::memory::{DeviceMemory, Pinned};
use super::mover::{Mover, SettleError};
use super::pass::{Buffers, Cover, Pass, attend_blocks};
use super::pinning::Pinning;
use super::products::Products;
use super::setup::{Stop, allocate_pages, buckets, check_model, sizes};
use super::stream::{Event, Graph, Stream};
use super::weights::DeviceWeights;
use crate::clock::Stopwatch;
use crate::plan::drawn_sample;
use crate::sample::Sampler;
use crate::{
    Caps, EngineError, Executor, Fence, Model, Moved, SampleSpec, Sampled, SamplingParams, StepOut, StepPlan,
    Ticket, TokenLogprob, TokenMask, Xfer, check,
};

/// How a [`CudaExec`] is set up.
#[derive(Clone, Copy, Debug)]
pub struct CudaConfig {
    /// Which device, as [`crate::CudaDevice::index`].
    pub device: u32,
    /// Memory for KV pages, in bytes; 0 takes what is free, less `reserve_bytes` and what is left to `followers`.
    pub kv_bytes: u64,
    /// Executors of this model that are to be made on the device after this one: each will find room for as many pages.
    pub followers: u32,
    /// What is left free of the device's memory.
    pub reserve_bytes: u64,
    /// Tokens a page holds.
    pub block_tokens: u32,
    /// Most tokens of one sequence; the model's own limit when that is smaller, or when this is 0.
    pub context_max: u32,
    /// Most new tokens of a step. Activations take memory for as many.
    pub step_tokens_max: u32,
    /// Most rows of a step that decodes alone, which then runs as a graph.
    pub step_rows_max: u32,
}

impl Default for CudaConfig {
    fn default() -> Self {
        Self {
            device: 0,
            kv_bytes: 0,
            followers: 0,
            reserve_bytes: 512 << 20,
            block_tokens: 16,
            context_max: 0,
            step_tokens_max: 2048,
            step_rows_max: 256,
        }
    }
}

/// Steps that may be submitted and not polled.
const RUNNING_MAX: usize = 4;

/// Computes on a CUDA device.
pub struct CudaExec {
    caps: Caps,
    /// The first failure; nothing works after it.
    lost: Option<Failure>,
    /// In order of submission.
    running: VecDeque<Running>,
    free: Vec<Exchange>,
    steps: u64,
    /// Samples of the step submitted last, and those of them that the host draws.
    last_samples: usize,
    last_by_host: Vec<usize>,
    sampler: Sampler,
    /// Since the last step was found done.
    last_done: Option<Stopwatch>,
    sizes: Sizes,
    pinnings: Vec<Pinning>,
    // In the order in which they are dropped: what runs, then what it reads.
    graphs: Vec<(usize, Graph)>,
    mover: Mover,
    core: Core,
}

/// What a pass is made of.
struct Core {
    stream: Stream,
    pages: DeviceMemory,
    buffers: Buffers,
    products: Products,
    weights: DeviceWeights,
    kernels: Kernels,
    model: Arc<Model>,
    context: Arc<Context>,
    block_tokens: usize,
}

/// Memory through which a step's inputs and results go.
struct Exchange {
    inputs: Pinned,
    results: Pinned,
    done: Event,
}

/// A step that nobody has polled.
struct Running {
    ticket: Ticket,
    exchange: Exchange,
    samples: usize,
    /// Alternatives that each sample reports; empty when none reports anything.
    reports: Vec<Option<u32>>,
    by_host: Vec<HostDraw>,
    watch: Stopwatch,
}

/// A sample that the host draws: its logits, and how.
struct HostDraw {
    sample: usize,
    logits: Vec<f32>,
    params: SamplingParams,
    position: u32,
    prompt: Vec<u32>,
    output: Vec<u32>,
    mask: Option<Vec<u32>>,
}

impl HostDraw {
    fn new(sample: usize, spec: &SampleSpec<'_>) -> Self {
        Self {
            sample,
            logits: Vec::new(),
            params: spec.params.clone(),
            position: spec.position,
            prompt: spec.prompt.to_vec(),
            output: spec.output.to_vec(),
            mask: spec.mask.map(|mask| mask.0.to_vec()),
        }
    }

    fn draw(&mut self, sampler: &mut Sampler) -> Sampled {
        let spec = SampleSpec {
            params: &self.params,
            position: self.position,
            prompt: &self.prompt,
            output: &self.output,
            mask: self.mask.as_deref().map(TokenMask),
        };
        sampler.draw(&mut self.logits, &spec)
    }
}

impl CudaExec {
    /// An executor on a device, with a copy of the model's weights there and its own KV pages.
    ///
    /// Cost: reads the weights once and copies them; records a graph for each of up to 13 batch sizes.
    /// Errors: [`EngineError::Device`] when the device cannot be used; [`EngineError::Config`] for a model or sizes that
    /// it does not compute; [`EngineError::DeviceMemory`] when weights, activations and one page of KV do not fit;
    /// [`EngineError::Lost`] when it fails.
    pub fn new(model: &Arc<Model>, config: CudaConfig) -> Result<Self, EngineError> {
        check_model(model, &config)?;
        let context = Context::open(config.device)?;
        let name = context.name();
        let image = image::image_for(context.device.compute)?;
        Self::start(&context, model, (&config, &image)).map_err(|stop| stop.error(&name))
    }

    fn start(
        context: &Arc<Context>,
        model: &Arc<Model>,
        (config, image): (&CudaConfig, &image::Image),
    ) -> Result<Self, Stop> {
        let free_before = context.free_bytes()?;
        let kernels = Kernels::load(context, image.bytes, |kernel| image.has(kernel))?;
        for &kernel in Kernel::ALL {
            kernels.allow_shared(kernel, kernel.shared_bytes())?;
        }
        let stream = Stream::new(context)?;
        let weights =
            DeviceWeights::upload(context, &kernels, &stream, model).map_err(Stop::of("weights"))?;
        let products = Products::new(context, &kernels);
        let (sizes, buffer_sizes) = sizes(model, config);
        let buffers = Buffers::new(context, &stream, (model, &weights), &products, &buffer_sizes);
        let buffers = buffers.map_err(Stop::of("activations"))?;
        let exchange = || {
            Ok::<_, Failure>(Exchange {
                inputs: Pinned::new(context, sizes.bytes)?,
                results: Pinned::new(context, buffer_sizes.samples * (4 + size_of::<Drawn>()))?,
                done: Event::new(context)?,
            })
        };
        let free = (0..RUNNING_MAX).map(|_| exchange()).collect::<Result<_, _>>()?;
        let (pages, shape) = allocate_pages(context, model, (config, free_before))?;
        stream.synchronize()?;
        let caps = Caps {
            name: context.name(),
            kv: shape,
            context_max: model.config.context_within(config.context_max),
            vocab: model.config.vocab as u32,
            overlaps: true,
            fingerprint: model.fingerprint,
            adapters: Vec::new(),
        };
        let core = Core {
            stream,
            pages,
            buffers,
            products,
            weights,
            kernels,
            model: Arc::clone(model),
            context: Arc::clone(context),
            block_tokens: sizes.block_tokens,
        };
        let mut exec = Self {
            caps,
            lost: None,
            running: VecDeque::new(),
            free,
            steps: 0,
            last_samples: 0,
            last_by_host: Vec::new(),
            sampler: Sampler::default(),
            last_done: None,
            sizes,
            pinnings: Vec::new(),
            graphs: Vec::new(),
            mover: Mover::new(context, &shape)?,
            core,
        };
        exec.record_graphs(config.step_rows_max as usize)?;
        Ok(exec)
    }

    /// Records a graph for every bucket up to the one that holds `rows_max`, largest first, since they share memory.
    fn record_graphs(&mut self, rows_max: usize) -> Result<(), Failure> {
        for bucket in buckets(rows_max).into_iter().rev() {
            let core = &self.core;
            let cover = Cover {
                tokens: bucket,
                chunks: vec![bucket],
                prefill_blocks: 0,
                decode_blocks: core.attend_blocks(),
            };
            let graph = core.stream.capture(|| core.pass().run(&cover, &mut |_| Ok(())))?;
            self.graphs.push((bucket, graph));
        }
        self.graphs.reverse();
        self.core.stream.synchronize()
    }

    /// Errors: [`EngineError::Lost`] after a failure.
    fn alive(&self) -> Result<(), EngineError> {
        self.lost.map_or(Ok(()), |failure| Err(failure.lost(&self.caps.name)))
    }

    /// Notes the first failure.
    fn lose(&mut self, failure: Failure) -> EngineError {
        self.lost.get_or_insert(failure).lost(&self.caps.name)
    }

    /// What only this executor asks of a plan.
    fn check(&self, plan: &StepPlan<'_>) -> Result<(), EngineError> {
        let refuse = |reason: String| Err(EngineError::Plan(reason));
        let (tokens, tokens_max) = (plan.tokens.len(), self.core.buffers.tokens);
        if tokens > tokens_max || plan.samples.len() > tokens_max {
            return refuse(format!("{tokens} tokens in a step of at most {tokens_max}"));
        }
        if self.free.is_empty() {
            return refuse(format!("{RUNNING_MAX} steps are not polled, the most there may be"));
        }
        let by_host = |token: &u32| drawn_sample(*token).filter(|sample| self.last_by_host.contains(sample));
        match plan.tokens.iter().find_map(by_host) {
            Some(sample) => {
                refuse(format!("sample {sample} of the step before is drawn by the host: poll it first"))
            }
            None => Ok(()),
        }
    }

    /// Uploads and queues a checked plan; none when its inputs do not fit.
    fn queue(&mut self, plan: &StepPlan<'_>, exchange: &mut Exchange) -> Result<Option<Queued>, Failure> {
        self.core.context.bind()?;
        let Some(inputs) = Inputs::build(plan, &self.sizes, exchange.inputs.bytes_mut()) else {
            return Ok(None);
        };
        let Core { stream, buffers, .. } = &self.core;
        // SAFETY: the device has as many bytes for inputs, and the exchange is used again only after this step is done.
        unsafe { stream.upload(&exchange.inputs.slice()[..inputs.len], buffers.inputs.ptr())? };
        self.mover.order(plan, stream)?;
        let mut by_host: Vec<_> =
            inputs.by_host.iter().map(|&sample| HostDraw::new(sample, &plan.samples[sample])).collect();
        match self.graph_of(&inputs) {
            Some(graph) => stream.launch(graph)?,
            None => self.core.run(&inputs, &mut by_host)?,
        }
        let results = exchange.results.bytes_mut();
        // SAFETY: results have room for as many tokens and reports, and are read only after the event.
        unsafe {
            stream.download(buffers.drawn.ptr(), results.as_mut_ptr(), 4 * plan.samples.len())?;
            if inputs.reports {
                let bytes = size_of::<Drawn>() * plan.samples.len();
                let at = 4 * reports_at(results.len() / 4);
                stream.download(buffers.reports.ptr(), results[at..].as_mut_ptr(), bytes)?;
            }
        }
        exchange.done.record(stream)?;
        let reports = plan.samples.iter().map(|spec| spec.params.logprobs);
        Ok(Some(Queued { reports: reports.filter(|_| inputs.reports).collect(), by_host }))
    }

    /// The graph that runs a step, if one does: rows that decode, and draw on the device.
    fn graph_of(&self, inputs: &Inputs) -> Option<&Graph> {
        let header = &inputs.header;
        if header.prefill_items > 0 || header.tokens == 0 || !inputs.by_host.is_empty() {
            return None;
        }
        let holds = |bucket: usize| header.tokens.max(header.samples) as usize <= bucket;
        self.graphs.iter().find(|(bucket, _)| holds(*bucket)).map(|(_, graph)| graph)
    }
}

/// What is known of a step once it is queued.
struct Queued {
    reports: Vec<Option<u32>>,
    by_host: Vec<HostDraw>,
}

impl Core {
    fn pass(&self) -> Pass<'_> {
        Pass {
            model: &self.model,
            weights: &self.weights,
            kernels: &self.kernels,
            products: &self.products,
            buffers: &self.buffers,
            stream: &self.stream,
            pages: self.pages.ptr(),
            block_tokens: self.block_tokens,
        }
    }

    fn attend_blocks(&self) -> usize {
        attend_blocks(self.context.device.multiprocessors, self.model.config.kv_heads)
    }

    /// Queues a pass launch by launch; logits of samples that the host draws are fetched on the way.
    fn run(&self, inputs: &Inputs, by_host: &mut [HostDraw]) -> Result<(), Failure> {
        let header = &inputs.header;
        let blocks = |items: u32| self.attend_blocks().min(items as usize);
        let cover = Cover {
            tokens: header.tokens as usize,
            chunks: inputs.chunks.iter().map(std::ops::Range::len).collect(),
            prefill_blocks: header.prefill_items as usize,
            decode_blocks: blocks(header.decode_items[0].max(header.decode_items[1])),
        };
        self.pass().run(&cover, &mut |chunk| {
            let samples = &inputs.chunks[chunk];
            for draw in by_host.iter_mut().filter(|draw| samples.contains(&draw.sample)) {
                draw.logits = self.logits(draw.sample - samples.start)?;
            }
            Ok(())
        })
    }

    /// A row of logits, waited for.
    fn logits(&self, row: usize) -> Result<Vec<f32>, Failure> {
        let mut logits = vec![0.0f32; self.model.config.vocab];
        let from = self.buffers.logits.ptr().at(row * self.weights.output().n * 4);
        // SAFETY: a row has at least as many values, and the copy is waited for.
        unsafe { self.stream.download(from, logits.as_mut_ptr().cast(), logits.len() * 4)? };
        self.stream.synchronize()?;
        Ok(logits)
    }
}

impl Executor for CudaExec {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn submit(&mut self, plan: &StepPlan<'_>) -> Result<Ticket, EngineError> {
        self.alive()?;
        check::plan(&self.caps, plan, self.last_samples)?;
        self.check(plan)?;
        let watch = Stopwatch::start();
        let mut exchange = self.free.pop().expect("one was free");
        let queued = self.queue(plan, &mut exchange);
        let queued = match queued {
            Ok(Some(queued)) => queued,
            Ok(None) => {
                self.free.push(exchange);
                return Err(EngineError::Plan("its inputs are larger than a step's may be".into()));
            }
            Err(failure) => {
                let _ = self.core.stream.synchronize();
                return Err(self.lose(failure));
            }
        };
        self.steps += 1;
        let ticket = Ticket(self.steps);
        let Queued { reports, by_host } = queued;
        self.last_samples = plan.samples.len();
        self.last_by_host = by_host.iter().map(|draw| draw.sample).collect();
        self.running.push_back(Running {
            ticket,
            exchange,
            samples: plan.samples.len(),
            reports,
            by_host,
            watch,
        });
        Ok(ticket)
    }

    fn poll(&mut self, ticket: Ticket, block: bool) -> Result<Option<StepOut>, EngineError> {
        self.alive()?;
        let Some(at) = self.running.iter().position(|step| step.ticket == ticket) else {
            return Err(EngineError::Plan(format!("ticket {} is not outstanding", ticket.0)));
        };
        let done = &self.running[at].exchange.done;
        let passed = self.core.context.bind().and_then(|()| match block {
            true => done.synchronize().map(|()| true),
            false => done.passed(),
        });
        if !passed.map_err(|failure| self.lose(failure))? {
            return Ok(None);
        }
        let mut step = self.running.remove(at).expect("the place was just found");
        let mut sampled = read(&step);
        for draw in &mut step.by_host {
            sampled[draw.sample] = draw.draw(&mut self.sampler);
        }
        self.free.push(step.exchange);
        // Until the one before it was done it only waited.
        let took = step.watch.elapsed();
        let since = self.last_done.replace(Stopwatch::start()).map_or(took, |last| last.elapsed());
        Ok(Some(StepOut { sampled, took: took.min(since) }))
    }

    fn transfer(&mut self, moves: Vec<Xfer>, after: Fence) -> Result<Fence, EngineError> {
        self.alive()?;
        check::moves(&self.caps, &moves, (after, self.mover.last()))?;
        self.mover.check_room()?;
        let Core { context, pages, stream, .. } = &self.core;
        let started = context.bind().and_then(|()| self.mover.start(pages.ptr(), stream, (moves, after)));
        started.map_err(|failure| self.lose(failure))
    }

    fn settle(&mut self, fence: Fence, block: bool) -> Result<Option<Moved>, EngineError> {
        self.alive()?;
        let bound = self.core.context.bind().map_err(SettleError::Failed);
        bound.and_then(|()| self.mover.settle(fence, block)).map_err(|error| match error {
            SettleError::Refused(error) => error,
            SettleError::Failed(failure) => self.lose(failure),
        })
    }

    fn pin(&mut self, arena: &Arena) -> Result<(), EngineError> {
        self.alive()?;
        // Without a thread, copies are slower.
        self.pinnings.extend(Pinning::start(&self.core.context, arena));
        Ok(())
    }
}

impl Drop for CudaExec {
    fn drop(&mut self) {
        // Nothing may run on what is freed now. What fails here has failed before.
        let _ = self.core.context.bind();
        let _ = self.core.stream.synchronize();
    }
}

/// What a step drew, but for what the host draws.
fn read(step: &Running) -> Vec<Sampled> {
    let words = step.exchange.results.slice::<u32>();
    let token_of = |&token: &u32| Sampled { token, ..Sampled::default() };
    if step.reports.is_empty() {
        return words[..step.samples].iter().map(token_of).collect();
    }
    let reports = words[reports_at(words.len())..].chunks_exact(DRAWN_WORDS);
    reports
        .zip(&step.reports)
        .map(|(report, count)| match count {
            Some(count) => sampled_of(report, *count as usize),
            None => token_of(&report[0]),
        })
        .collect()
}

const DRAWN_WORDS: usize = size_of::<Drawn>() / 4;

/// Where reports begin in so many words of results: behind a token for each of them.
fn reports_at(words: usize) -> usize {
    words / (1 + DRAWN_WORDS)
}

/// A [`Drawn`] in words: token, log-probability, alternatives and theirs.
fn sampled_of(words: &[u32], count: usize) -> Sampled {
    let (tokens, logprobs) = words[2..].split_at(TOP_MAX);
    let top = tokens.iter().zip(logprobs).take(count);
    let top = top.map(|(&token, &bits)| TokenLogprob { token, logprob: f32::from_bits(bits) }).collect();
    Sampled { token: words[0], logprob: f32::from_bits(words[1]), top }
}
